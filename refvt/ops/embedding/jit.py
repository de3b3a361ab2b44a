"""Patch embedding in tiles: cut patches out, multiply, add their position and time embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.backends.jit.matmul import Cut, edges, grid, multiply, pack_panels, panel_size, weight_gradients
from refvt.backends.jit.microkernel import ROWS
from refvt.backends.jit.threads import next_tile, run, span
from refvt.backends.jit.vectors import copy_rows, view
from refvt.backends.jit.workspace import num_threads, workspace
from refvt.ops.embedding import check_frames


class EmbedCache(NamedTuple):
    """What the backward of the embedding reads."""

    patches: Array  # [B*S*T, C*P*P]
    weight: Array  # [D, C, P, P]
    B: int
    S: int
    T: int


@kernel
def _cut(clip: Array, P: int, first: int, patches: Array) -> None:
    """patches [n, C·P·P] ← patches first, first + 1, … of a clip [C, T, H, W].

    They are ordered (patch, frame) and flattened (channel, row, column).
    """
    C, T, _, W = clip.shape
    columns = W // P
    for r in range(len(patches)):
        s, t = divmod(first + r, T)
        top, left = (s // columns) * P, (s % columns) * P
        for c in range(C):
            copy_rows(clip[c, t, top : top + P, left : left + P], view(patches, (r * C + c) * P * P, P, P))


@kernel
def _cut_all(ticket: Any, clips: Array, P: int, parts: int, patches: Array) -> None:
    """patches [B·S·T, C·P·P] ← clips [B, C, T, H, W]; a tile is one of ``parts`` spans of one clip's patches."""
    each = len(patches) // len(clips)
    i = next_tile(ticket)
    while i >= 0:
        b, part = divmod(i, parts)  # some patches of one clip
        first, last = span(part, parts, each)
        # 1. cut
        _cut(clips[b], P, first, patches[b * each + first : b * each + last])
        i = next_tile(ticket)


@kernel
def _project(
    ticket: Any,
    scratch: Array,
    patches: Array,
    weight: Array,
    bias: Array,
    pos: Array,
    time: Array,
    cut: Cut,
    y: Array,
) -> None:
    """y [B, 1+S·T, D] but for CLS ← patches [B·S·T, C·P·P], weight [D, C·P·P], bias [D], pos [S, D], time [T, D].

    A tile is a task of ``cut`` in one clip.
    """
    T, each = len(time), len(pos) * len(time)
    i, before = next_tile(ticket), -1
    while i >= 0:
        clip, part = divmod(i, cut.down * cut.across)
        top, bottom, left, right = edges(part, cut, each, len(weight))
        # sliced as in the linear layer, and called like it: both share what is compiled
        panels, before = pack_panels(weight[left:right, :].T, cut, scratch, left != before), left
        rows, tokens = patches[clip * each : (clip + 1) * each], y[clip, 1:]
        for a in range(top, bottom, ROWS):
            b = min(a + ROWS, bottom)
            # 2. project
            y_tile = tokens[a:b, left:right]
            multiply(rows[a:b], panels, y_tile, bias[left:right], bias[:0], y_tile[:0])
            # 3. add the embeddings
            for r in range(a, b):
                s, t = divmod(r, T)
                token = tokens[r, left:right]
                for j in range(right - left):
                    token[j] += pos[s, left + j] + time[t, left + j]
        i = next_tile(ticket)


def embed_forward(
    clips: Array,
    weight: Array,
    bias: Array,
    cls_token: Array,
    pos_embed: Array,
    time_embed: Array,
    keep: bool = True,
) -> tuple[Array, EmbedCache | None]:
    """Patch embedding: W · patch + bias + pos_embed + time_embed, with CLS in front.

    clips [B, C, T, H, W], weight [D, C, P, P], bias [D], cls_token [1, 1, D], pos_embed [1, 1+S, D],
    time_embed [1, T, D] → y [B·(1+S·T), D]. H and W must be multiples of P (ValueError if not).
    Source: HaltingVT section 3.1.
    """
    clips = contiguous(clips)
    B, _, T, H, W = clips.shape
    D, _, P, _ = weight.shape
    check_frames(clips, P)
    S = (H // P) * (W // P)
    flat = contiguous(weight.reshape(D, -1))
    size = (B * S * T, flat.shape[1])  # [B*S*T, C*P*P]
    patches = np.empty(size, clips.dtype) if keep else workspace("embed.patches", size, clips.dtype)
    y = np.empty((B, 1 + S * T, D), clips.dtype)  # [B, N, D]
    parts = max(1, min(4 * num_threads() // B, S * T // 64))
    # 1. cut
    run(_cut_all, B * parts, clips, P, parts, patches)
    # passes 2–3
    cut = grid(S * T, D, flat.shape[1], clips.itemsize)
    scratch = (panel_size(cut, *flat.shape), clips.dtype)
    bias, pos, time = (contiguous(x, clips.dtype) for x in (bias, pos_embed[0, 1:], time_embed[0]))
    run(_project, B * cut.tasks, patches, flat, bias, pos, time, cut, y, scratch=scratch)
    # 3. put CLS in front
    y[:, 0] = cls_token[0, 0] + pos_embed[0, 0]
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
    # 2. the projection
    flat = dprojected.reshape(-1, D)  # [B*S*T, D]
    dweight, dbias = weight_gradients(flat, patches)
    # 1. clips have no gradient
    return dweight.reshape(weight.shape), dbias, dcls.reshape(1, 1, D).copy(), dpos_embed[None], dtime_embed[None]
