"""Patch embedding in tiles: cut some patches, multiply, add their places."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.backends.jit import TILE, column_sums, kernel
from refvt.backends.pool import run, tiles
from refvt.ops import Array


class EmbedCache(NamedTuple):
    patches: Array  # [B*S*T, C*P*P]
    weight: Array
    B: int
    S: int
    T: int


@kernel
def _cut(clips: Array, P: int, first: int, patches: Array) -> None:
    """Patches first, first + 1, … in the order (clip, patch, frame), flattened (channel, row, column)."""
    _, C, T, H, W = clips.shape
    columns = W // P
    S = (H // P) * columns
    for r in range(len(patches)):
        b, rest = divmod(first + r, S * T)
        s, t = divmod(rest, T)
        top, left = (s // columns) * P, (s % columns) * P
        for c in range(C):
            for i in range(P):
                for j in range(P):
                    patches[r, (c * P + i) * P + j] = clips[b, c, t, top + i, left + j]


@kernel
def _place(projected: Array, bias: Array, pos: Array, time: Array, first: int, y: Array) -> None:
    """Rows of projected patches, with bias, position and time added, to their places in y [B, 1+S·T, D]."""
    S, T = len(pos), len(time)
    for r in range(len(projected)):
        b, rest = divmod(first + r, S * T)
        for c in range(projected.shape[1]):
            y[b, 1 + rest, c] = projected[r, c] + bias[c] + pos[rest // T, c] + time[rest % T, c]


def embed_forward(
    clips: Array,
    weight: Array,
    bias: Array,
    cls_token: Array,
    pos_embed: Array,
    time_embed: Array,
    keep: bool = True,
) -> tuple[Array, EmbedCache | None]:
    """Tokens of clips: W · patch + bias + pos_embed + time_embed, with CLS in front.

    clips [B, C, T, H, W], weight [D, C, P, P], bias [D], cls_token [1, 1, D], pos_embed [1, 1+S, D],
    time_embed [1, T, D] → y [B·(1+S·T), D]. H and W must be multiples of P (ValueError if not).
    Source: HaltingVT section 3.1.
    """
    B, _, T, H, W = clips.shape
    D, _, P, _ = weight.shape
    if H % P or W % P:
        raise ValueError(f"clips: height and width must be multiples of {P}, got {H}×{W}")
    S = (H // P) * (W // P)
    flat = weight.reshape(D, -1)
    patches = np.empty((B * S * T, flat.shape[1]), clips.dtype)  # [B*S*T, C*P*P]
    projected = np.empty((B * S * T, D), clips.dtype)
    y = np.empty((B, 1 + S * T, D), clips.dtype)  # [B, N, D]
    y[:, 0] = cls_token[0, 0] + pos_embed[0, 0]
    parts = tiles(len(patches), TILE)

    def tile(i: int) -> None:
        rows = parts[i]
        # 1. cut
        _cut(clips, P, rows.start, patches[rows])
        # 2. project
        np.matmul(patches[rows], flat.T, out=projected[rows])
        # 3. add the embeddings
        _place(projected[rows], bias, pos_embed[0, 1:], time_embed[0], rows.start, y)

    run(tile, len(parts))
    return y.reshape(-1, D), EmbedCache(patches, weight, B, S, T) if keep else None


def embed_backward(dy: Array, cache: EmbedCache) -> tuple[Array, Array, Array, Array, Array]:
    """Returns dweight, dbias, dcls_token, dpos_embed, dtime_embed."""
    patches, weight, B, S, T = cache
    D = weight.shape[0]
    dtokens = dy.reshape(B, 1 + S * T, D)
    dcls = dtokens[:, 0].sum(axis=0)  # [D]
    dprojected = dtokens[:, 1:].reshape(B, S, T, D)
    # 3. each embedding was added to many tokens: it gets the sum of their gradients
    dtime_embed = dprojected.sum(axis=(0, 1))  # [T, D]
    dpos_embed = np.concatenate([dcls[None], dprojected.sum(axis=(0, 2))])  # [1+S, D]
    # 2. the projection, in tiles of the weight's rows
    flat = np.ascontiguousarray(dprojected.reshape(-1, D))  # [B*S*T, D]
    dweight, dbias = np.empty((D, patches.shape[1]), dy.dtype), np.empty(D, dy.dtype)
    parts = tiles(D, TILE)

    def tile(i: int) -> None:
        rows = parts[i]
        np.matmul(flat[:, rows].T, patches, out=dweight[rows])
        column_sums(flat[:, rows], dbias[rows])

    run(tile, len(parts))
    # 1. clips have no gradient
    return dweight.reshape(weight.shape), dbias, dcls.reshape(1, 1, D).copy(), dpos_embed[None], dtime_embed[None]
