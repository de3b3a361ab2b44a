"""Patch embedding in tiles: cut some patches, multiply, add their places."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.backends.blas import gemm
from refvt.backends.jit import kernel
from refvt.backends.pool import grid, workspace
from refvt.backends.products import weight_gradient
from refvt.backends.team import run, take
from refvt.ops import Array


class EmbedCache(NamedTuple):
    patches: Array  # [B*S*T, C*P*P]
    weight: Array
    B: int
    S: int
    T: int


@kernel
def _cut(clip: Array, P: int, first: int, patches: Array) -> None:
    """Patches first, first + 1, … of a clip [C, T, H, W], ordered (patch, frame), flattened (channel, row, column)."""
    C, T, _, W = clip.shape
    columns = W // P
    for r in range(len(patches)):
        s, t = divmod(first + r, T)
        top, left = (s // columns) * P, (s % columns) * P
        for c in range(C):
            for i in range(P):
                for j in range(P):
                    patches[r, (c * P + i) * P + j] = clip[c, t, top + i, left + j]


@kernel
def _forward(
    share: Any,
    clips: Array,
    weight: Array,
    bias: Array,
    pos: Array,
    time: Array,
    P: int,
    parts: int,
    patches: Array,
    y: Array,
) -> None:
    S, T, D = len(pos), len(time), len(weight)
    i = take(share)
    while i >= 0:
        b, part = divmod(i, parts)  # some patches of one clip
        first, last = S * T * part // parts, S * T * (part + 1) // parts
        here, place = patches[b * S * T + first : b * S * T + last], y[b, 1 + first : 1 + last]
        # 1. cut
        _cut(clips[b], P, first, here)
        # 2. project
        gemm(here, weight.T, place, 0)
        # 3. add the embeddings
        for r in range(last - first):
            s, t = divmod(first + r, T)
            for c in range(D):
                place[r, c] += bias[c] + pos[s, c] + time[t, c]
        i = take(share)


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
    size = (B * S * T, flat.shape[1])  # [B*S*T, C*P*P]
    patches = np.empty(size, clips.dtype) if keep else workspace("embed.patches", size, clips.dtype)
    y = np.empty((B, 1 + S * T, D), clips.dtype)  # [B, N, D]
    y[:, 0] = cls_token[0, 0] + pos_embed[0, 0]
    parts = grid(S * T, 1)[0]
    # passes 1–3
    run(_forward, B * parts, clips, flat, bias, pos_embed[0, 1:], time_embed[0], P, parts, patches, y)
    return y.reshape(-1, D), EmbedCache(patches, weight, B, S, T) if keep else None


@kernel
def _backward(
    share: Any, dprojected: Array, patches: Array, cut: tuple[int, int], dweight: Array, dbias: Array
) -> None:
    i = take(share)
    while i >= 0:
        # 2. the projection
        weight_gradient(i, cut, dprojected, patches, dweight, dbias)
        i = take(share)


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
    # 2. the projection
    flat = np.ascontiguousarray(dprojected.reshape(-1, D))  # [B*S*T, D]
    dweight, dbias = np.empty((D, patches.shape[1]), dy.dtype), np.empty(D, dy.dtype)
    cut = grid(*dweight.shape)
    run(_backward, cut[0] * cut[1], flat, patches, cut, dweight, dbias)
    # 1. clips have no gradient
    return dweight.reshape(weight.shape), dbias, dcls.reshape(1, 1, D).copy(), dpos_embed[None], dtime_embed[None]
