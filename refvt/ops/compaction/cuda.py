"""Compaction on the GPU: the index arrays of ``compaction``, made where the tokens are. The host learns counts alone.

Two kernels. The first counts: a warp per clip. The second places: a block per clip adds up what the clips before it
have, each of its threads counts a few neighbouring tokens, and adds up what the threads before it have counted; then
everybody knows where to write. That is a prefix sum, over clips and inside of a clip, without a thread that waits for
more than one other step.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.kernel import (
    THREADS,
    WARP,
    absent,
    device_function,
    empty,
    kernel,
    lane_and_row,
    read_only,
    warp_sum,
)
from refvt.ops.compaction.reference import Cuts, Survivors, shares

__all__ = ["compact", "silence"]


@kernel("b i I n n I", "compaction.count_living")
def _count(halted, tokens, living, N, leave_early, after):  # type: ignore[no-untyped-def]
    """after [2, B] from living [2, B]: how many of each clip go on, and 1 where CLS does. A warp per clip."""
    lane, row = lane_and_row()
    B = living.shape[1]
    clip = min(row, B - 1)
    first = np.int64(0)
    for other in range(lane, clip, WARP):
        first += living[0, other]
    first = warp_sum(first)
    count = living[0, clip]
    has_cls = count > 0 and tokens[first] % N == 0 and not halted[first]
    total = np.int64(0)
    for i in range(first + lane, first + count, WARP):
        if not halted[i]:
            total += 1
    total = warp_sum(total)
    if lane == 0 and row < B:
        after[0, clip] = 0 if leave_early > 0 and not has_cls else total
        after[1, clip] = 1 if has_cls else 0


@device_function
def _share(after, clip, N, ghosts, cls_only):  # type: ignore[no-untyped-def]
    """Living tokens of a clip that are rows of the next block, and how many ghosts stand behind them: 0 or 1."""
    count = after[0, clip]
    if cls_only > 0:
        count *= after[1, clip]
    return count, 1 if ghosts > 0 and count > 0 and count < N else 0


# rows of ``cuts``, of the clips' numbers that a device may keep to itself
KEY_OFFSETS, QUERY_OFFSETS, NTH, CLS, TOTALS = range(5)


@kernel("b i I I n n n n i I f I", "compaction.place_living")
def _place(halted, tokens, living, after, layer, N, ghosts, cls_only, layers, indices, key_bias, cuts):  # type: ignore[no-untyped-def]
    """Everything else that ``compaction.compact`` says, from the counts. A block per clip.

    indices [4, …]: who goes on, which tokens they are, entering, asks. cuts [5, …]: what ``Cuts`` says; TOTALS are of
    who goes on, of the block's rows, and of those that ask.
    """
    clip, thread = cuda.blockIdx.x, cuda.threadIdx.x
    counted = cuda.shared.array(THREADS, np.int64)
    # 2. where the clip's rows begin: among those before, those who go on, the block's rows, those of them that ask
    first, place, row, asking = 0, 0, 0, 0
    for other in range(clip):
        count, ghost = _share(after, other, N, ghosts, cls_only)
        first += living[0, other]
        place += after[0, other]
        row += count + ghost
        asking += min(count, 1) if cls_only > 0 else count
    count, ghost = _share(after, clip, N, ghosts, cls_only)
    ask = min(count, 1) if cls_only > 0 else count
    if thread == 0:
        if ghost > 0:
            indices[2, row + count] = -1
            if key_bias.shape[0] > 0:
                key_bias[row + count] = math.log(key_bias.dtype.type(N - count))
        if cls_only > 0 and count > 0:
            indices[3, asking] = row
        cuts[KEY_OFFSETS, clip] = row
        cuts[QUERY_OFFSETS, clip] = asking
        cuts[NTH, clip] = place if after[1, clip] > 0 else -1
        cuts[CLS, clip] = asking if after[1, clip] > 0 else -1
        if clip == cuda.gridDim.x - 1:
            cuts[KEY_OFFSETS, clip + 1] = row + count + ghost
            cuts[QUERY_OFFSETS, clip + 1] = asking + ask
            cuts[TOTALS, 0] = place + after[0, clip]
            cuts[TOTALS, 1] = row + count + ghost
            cuts[TOTALS, 2] = asking + ask
    # 1. each thread counts a few neighbours …
    clip_goes_on = after[0, clip] > 0
    length = living[0, clip]
    each = (length + THREADS - 1) // THREADS
    begin = first + min(thread * each, length)
    end = first + min((thread + 1) * each, length)
    mine = np.int64(0)
    for i in range(begin, end):
        if halted[i]:
            layers[tokens[i]] = layer
        elif clip_goes_on:
            mine += 1
    counted[thread] = mine
    cuda.syncthreads()
    # … and knows from those before it where they stand
    before = np.int64(0)
    for other in range(thread):
        before += counted[other]
    # 3. the rows
    for i in range(begin, end):
        if clip_goes_on and not halted[i]:
            indices[0, place + before] = i
            indices[1, place + before] = tokens[i]
            if count > 0:
                indices[2, row + before] = i
                if key_bias.shape[0] > 0:
                    key_bias[row + before] = 0
                if cls_only == 0:
                    indices[3, asking + before] = row + before
            before += 1


def compact(
    halted: Array,
    before: Survivors,
    layers: Array,
    layer: int,
    N: int,
    ghosts: bool,
    leave_early: bool,
    cls_only: bool,
    dtype: Any = None,
) -> Survivors:
    """Who enters the next block: as ``compaction.compact``.

    Waits for the counts, 2 · B numbers, unless ``dtype`` says that the host need not know them.
    """
    n, B = len(halted), before.living.shape[1]
    living, tokens = read_only(before.living), read_only(before.tokens)
    after = empty((2, B), np.int64)
    _count.warps(B, halted, tokens, living, N, int(leave_early), after)
    most = n + B  # rows that there can be: with a ghost for each clip
    indices, cuts = empty((4, most), np.int64), empty((5, max(B + 1, 3)), np.int64)
    key_bias = absent(np.float32, 1) if dtype is None or not ghosts else empty(most, dtype)
    switches = layer, N, int(ghosts), int(cls_only)
    _place.blocks((B,), (THREADS,), halted, tokens, living, after, *switches, layers, indices, key_bias, cuts)
    goes_on, tokens_next, entering, asks = (indices.reshape(-1)[i * most : (i + 1) * most] for i in range(4))
    if dtype is not None:
        return _untold(after, goes_on, tokens_next, entering, asks, key_bias if ghosts else None, cuts, N, cls_only)
    counts: Array = after.copy_to_host()  # type: ignore[attr-defined]
    taking_part, ghost = shares(counts, N, ghosts, cls_only)
    # in Python's numbers: NumPy takes longer for so few
    alive, of_clips, m = sum(counts[0].tolist()), taking_part.tolist(), sum(ghost.tolist())
    rows = m + sum(of_clips)
    asking = B - of_clips.count(0) if cls_only else rows - m
    moves = None if alive == n else goes_on[:alive], None if m == 0 and rows == n else entering[:rows]
    return Survivors(counts, taking_part, ghost, None, after, tokens_next[:alive], *moves, asks[:asking])


def _untold(
    after: Array,
    goes_on: Array,
    tokens: Array,
    entering: Array,
    asks: Array,
    key_bias: Array | None,
    cuts: Array,
    N: int,
    cls_only: bool,
) -> Survivors:
    """Survivors of whom the host knows how many there can be at most: arrays have so many rows, and a count."""
    B = after.shape[1]
    flat, width = cuts.reshape(-1), cuts.shape[1]

    def row(which: int, length: int) -> Array:
        return flat[which * width : which * width + length]

    def counted(index: Array, most: int, which: int) -> Array:
        index = index[:most]
        start = TOTALS * width + which
        index.count = flat[start : start + 1]  # type: ignore[attr-defined]
        return index

    most = B * N
    entering = counted(entering, most if key_bias is None else most + B, 1)
    everybody_asks = key_bias is None and not cls_only
    found = Cuts(
        row(KEY_OFFSETS, B + 1),
        None if key_bias is None else key_bias[: most + B],
        None if everybody_asks else row(QUERY_OFFSETS, B + 1),
        row(NTH, B),
        row(CLS, B),
    )
    nobody = np.zeros(0, np.int64)
    asks = counted(asks, B if cls_only else most, 2)
    goes_on, tokens = counted(goes_on, most, 0), counted(tokens, most, 0)
    return Survivors(None, nobody, nobody, found, after, tokens, goes_on, entering, asks)


@kernel("b n i i f", "compaction.silence")
def _silence(halted, layer, layers, entering, key_bias):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < halted.shape[0]:
        if halted[i] and layers[i] == 0:
            layers[i] = layer
        entering[i] = -1 if halted[i] else i
        if key_bias.shape[0] > 0:
            key_bias[i] = -np.inf if halted[i] else 0


def silence(halted: Array, layers: Array, layer: int, dtype: Any, masked: bool) -> tuple[Array, Array | None]:
    """How all rows enter the next block where halted tokens keep theirs: as ``compaction.silence``."""
    n = len(halted)
    entering = empty(n, np.int64)
    key_bias = empty(n, dtype) if masked else absent(dtype, 1)
    _silence.each(n, halted, layer, layers, entering, key_bias)
    return entering, key_bias if masked else None
