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
    upload,
    warp_sum,
)
from refvt.ops.compaction import DeviceSurvivors, LayerPlan, Survivors, rows_of_block

__all__ = ["compact", "mask_halted"]


@kernel("b i I n n I", "compaction.count_survivors")
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
KEY_OFFSETS, QUERY_OFFSETS, CLS_TOKENS, CLS_ROWS, TOTALS = range(5)


@kernel("b i I I n n n n i I f I", "compaction.place_rows")
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
        cuts[CLS_TOKENS, clip] = place if after[1, clip] > 0 else -1
        cuts[CLS_ROWS, clip] = asking if after[1, clip] > 0 else -1
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
    tokens: Array,
    counts: Array,
    halting_layer: Array,
    layer: int,
    N: int,
    ghosts: bool,
    leave_early: bool,
    cls_only: bool,
    device_dtype: Any = None,
) -> Survivors | DeviceSurvivors:
    """The tokens that enter the next block: as ``reference``.

    The host waits for the counts, 2 · B numbers. With a ``device_dtype`` it does not: the result is then
    ``DeviceSurvivors``, with key biases of this dtype.
    """
    n, B = len(halted), counts.shape[1]
    halted, counts, tokens = upload(halted), read_only(counts), read_only(tokens)
    counts_next = empty((2, B), np.int64)
    _count.warps(B, halted, tokens, counts, N, int(leave_early), counts_next)
    most = n + B  # the most rows there can be: with a ghost for each clip
    indices, cuts = empty((4, most), np.int64), empty((5, max(B + 1, 3)), np.int64)
    key_bias = absent(np.float32, 1) if device_dtype is None or not ghosts else empty(most, device_dtype)
    switches = layer, N, int(ghosts), int(cls_only)
    _place.blocks(
        (B,), (THREADS,), halted, tokens, counts, counts_next, *switches, halting_layer, indices, key_bias, cuts
    )
    survivor_rows, tokens_next, entering_rows, query_rows = (
        indices.reshape(-1)[i * most : (i + 1) * most] for i in range(4)
    )
    if device_dtype is not None:
        bias = key_bias if ghosts else None
        return _on_device(counts_next, survivor_rows, tokens_next, entering_rows, query_rows, bias, cuts, N, cls_only)
    on_host: Array = counts_next.copy_to_host()  # type: ignore[attr-defined]
    in_block, ghost = rows_of_block(on_host, N, ghosts, cls_only)
    # in Python's numbers: NumPy takes longer for arrays this short
    alive, of_clips, num_ghosts = sum(on_host[0].tolist()), in_block.tolist(), sum(ghost.tolist())
    rows = num_ghosts + sum(of_clips)
    queries = B - of_clips.count(0) if cls_only else rows - num_ghosts
    return Survivors(
        on_host,
        counts_next,
        tokens_next[:alive],
        None if alive == n else survivor_rows[:alive],
        None if num_ghosts == 0 and rows == n else entering_rows[:rows],
        query_rows[:queries],
    )


def _on_device(
    counts: Array,
    survivor_rows: Array,
    tokens: Array,
    entering_rows: Array,
    query_rows: Array,
    key_bias: Array | None,
    cuts: Array,
    N: int,
    cls_only: bool,
) -> DeviceSurvivors:
    """Survivors whose number the host knows a bound of: arrays of that length, and the device's count of valid rows."""
    B = counts.shape[1]
    flat, width = cuts.reshape(-1), cuts.shape[1]

    def row(which: int, length: int) -> Array:
        return flat[which * width : which * width + length]

    def counted(index: Array, most: int, which: int) -> Array:
        index = index[:most]
        start = TOTALS * width + which
        index.count = flat[start : start + 1]  # type: ignore[attr-defined]
        return index

    most = B * N
    with_ghosts = most if key_bias is None else most + B
    all_are_queries = key_bias is None and not cls_only
    plan = LayerPlan(
        entering_rows=counted(entering_rows, with_ghosts, 1),
        key_offsets=row(KEY_OFFSETS, B + 1),
        key_bias=None if key_bias is None else key_bias[:with_ghosts],
        query_rows=None if all_are_queries else counted(query_rows, B if cls_only else most, 2),
        query_offsets=None if all_are_queries else row(QUERY_OFFSETS, B + 1),
        rows_leaving=None,
        cls_tokens=row(CLS_TOKENS, B),
        cls_rows=row(CLS_ROWS, B),
    )
    return DeviceSurvivors(counts, counted(tokens, most, 0), counted(survivor_rows, most, 0), plan)


@kernel("b n i i f", "compaction.mask_halted")
def _mask_halted(halted, layer, halting_layer, entering, key_bias):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < halted.shape[0]:
        if halted[i] and halting_layer[i] == 0:
            halting_layer[i] = layer
        entering[i] = -1 if halted[i] else i
        if key_bias.shape[0] > 0:
            key_bias[i] = -np.inf if halted[i] else 0


def mask_halted(
    halted: Array, halting_layer: Array, layer: int, masked: bool, dtype: Any = np.float64
) -> tuple[Array, Array | None]:
    """Dense execution, where every token keeps its row: as ``reference``."""
    n = len(halted)
    entering_rows = empty(n, np.int64)
    key_bias = empty(n, dtype) if masked else absent(dtype, 1)
    _mask_halted.each(n, upload(halted), layer, halting_layer, entering_rows, key_bias)
    return entering_rows, key_bias if masked else None
