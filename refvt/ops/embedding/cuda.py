"""Patch embedding on the GPU: copy patches into rows, multiply, add the embeddings."""

from __future__ import annotations

from typing import NamedTuple

from refvt.array import Array
from refvt.backends.cuda.arguments import Array5, Int, Matrix, Vector
from refvt.backends.cuda.device_array import empty
from refvt.backends.cuda.elementwise import column_sums
from refvt.backends.cuda.kernel import kernel
from refvt.backends.cuda.matmul import Matmul, matmul_tn
from refvt.backends.cuda.threads import cell


class EmbedCache(NamedTuple):
    patches: Array  # [B*S*T, C*P*P]
    weight: Array  # [D, C, P, P]
    B: int
    S: int
    T: int


_project = Matmul("embedding.project", transpose_a=False, transpose_b=True)


@kernel
def _cut(clips: Array5, P: Int, patches: Matrix) -> None:
    """clips [B, C, T, H, W] → patches [B·S·T, C·P·P]; one thread per element."""
    r, e = cell()
    if r < patches.shape[0] and e < patches.shape[1]:
        _, _, T, H, W = clips.shape
        columns = W // P
        S = (H // P) * columns
        # 1. cut: the row is (clip, patch, frame), the element (channel, row, column)
        b, s, t = r // (S * T), r // T % S, r % T
        c, i, j = e // (P * P), e // P % P, e % P
        patches[r, e] = clips[b, c, t, s // columns * P + i, s % columns * P + j]


@kernel
def _add_embeddings(projected: Matrix, cls: Vector, pos: Matrix, time: Matrix, y: Matrix) -> None:
    """projected [B·S·T, D], cls [D], pos [1+S, D], time [T, D] → y [B·(1+S·T), D]; one thread per element."""
    r, c = cell()
    if r < y.shape[0] and c < y.shape[1]:
        S, T = pos.shape[0] - 1, time.shape[0]
        b, k = r // (1 + S * T), r % (1 + S * T)
        # 3. add the embeddings, put CLS in front
        if k == 0:
            y[r, c] = cls[c] + pos[0, c]
        else:
            y[r, c] = projected[b * S * T + k - 1, c] + (pos[1 + (k - 1) // T, c] + time[(k - 1) % T, c])


def embed_forward(
    clips: Array,
    weight: Array,
    bias: Array,
    cls_token: Array,
    pos_embed: Array,
    time_embed: Array,
    keep: bool = True,
) -> tuple[Array, EmbedCache | None]:
    """As ``reference``: W · patch + bias + pos_embed + time_embed, with CLS in front.

    clips [B, C, T, H, W], weight [D, C, P, P], bias [D], cls_token [1, 1, D], pos_embed [1, 1+S, D],
    time_embed [1, T, D] → y [B·(1+S·T), D]. ValueError if H or W is not a multiple of P.
    """
    B, C, T, H, W = clips.shape
    D, _, P, _ = weight.shape
    if H % P or W % P:
        raise ValueError(f"clips: expected height and width that are multiples of {P}, got {H}×{W}")
    S = (H // P) * (W // P)
    # 1. cut
    patches = empty((B * S * T, C * P * P), clips.dtype)  # [B*S*T, C*P*P]
    _cut.cells(patches.shape[0], patches.shape[1], clips, P, patches)
    # 2. project
    projected = _project(patches, weight.reshape(D, C * P * P), bias)  # [B*S*T, D]
    # 3. add the embeddings, put CLS in front
    y = empty((B * (1 + S * T), D), clips.dtype)  # [B*N, D]
    pos, time = pos_embed.reshape(1 + S, D), time_embed.reshape(T, D)
    _add_embeddings.cells(y.shape[0], D, projected, cls_token.reshape(D), pos, time, y)
    return y, EmbedCache(patches, weight, B, S, T) if keep else None


@kernel
def _drop_cls(dy: Matrix, S: Int, T: Int, dprojected: Matrix) -> None:
    """dy [B·(1+S·T), D] → dprojected [B·S·T, D], without the rows of CLS; one thread per element."""
    r, c = cell()
    if r < dprojected.shape[0] and c < dprojected.shape[1]:
        b = r // (S * T)
        dprojected[r, c] = dy[r + 1 + b, c]


@kernel
def _embeddings_backward(dy: Matrix, S: Int, T: Int, dcls: Matrix, dpos: Matrix, dtime: Matrix) -> None:
    """dy [B·(1+S·T), D] → dcls [1, D], dpos [1+S, D], dtime [T, D]; one thread per element.

    Rows 0 … T−1 of the grid compute dtime, row T computes dcls and dpos[0], rows T+1 … T+S the rest of dpos.
    """
    row, c = cell()
    B = dy.shape[0] // (1 + S * T)
    if row < 1 + S + T and c < dy.shape[1]:
        total = dy.dtype.type(0)
        for b in range(B):
            first = b * (1 + S * T)
            if row < T:
                for s in range(S):
                    total += dy[first + 1 + s * T + row, c]
            elif row == T:
                total += dy[first, c]
            else:
                for t in range(T):
                    total += dy[first + 1 + (row - T - 1) * T + t, c]
        if row < T:
            dtime[row, c] = total
        else:
            dpos[row - T, c] = total
        if row == T:
            dcls[0, c] = total


def embed_backward(dy: Array, cache: EmbedCache) -> tuple[Array, Array, Array, Array, Array]:
    """As ``reference``: dweight, dbias, dcls_token, dpos_embed, dtime_embed."""
    patches, weight, B, S, T = cache
    D = weight.shape[0]
    # 3. each embedding was added to many tokens: it gets the sum of their gradients
    dcls, dpos, dtime = (empty((rows, D), dy.dtype) for rows in (1, 1 + S, T))
    _embeddings_backward.cells(1 + S + T, D, dy, S, T, dcls, dpos, dtime)
    # 2. the projection
    dprojected = empty((B * S * T, D), dy.dtype)  # [B*S*T, D]
    _drop_cls.cells(B * S * T, D, dy, S, T, dprojected)
    dweight, dbias = matmul_tn(dprojected, patches), column_sums(dprojected)
    # 1. clips have no gradient
    shapes = (1, 1, D), (1, 1 + S, D), (1, T, D)
    dcls, dpos, dtime = (array.reshape(shape) for array, shape in zip((dcls, dpos, dtime), shapes, strict=True))
    return dweight.reshape(tuple(weight.shape)), dbias, dcls, dpos, dtime
