"""Compaction on the GPU: index arrays are made on the device; at most the counts are copied to the host.

Two kernels. The first counts: a warp per clip. The second writes the rows: a block per clip adds the counts of earlier
clips, each of its threads counts a few neighbouring tokens, and adds the counts of earlier threads; then every thread
knows where to write. This is a prefix sum, over clips and within a clip, with a single barrier.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Flags, IndexMatrix, Indices, Int, Vector
from refvt.backends.cuda.device_array import absent, empty
from refvt.backends.cuda.kernel import device_function, kernel
from refvt.backends.cuda.sizes import THREADS, WARP
from refvt.backends.cuda.threads import lane_and_row, warp_sum
from refvt.backends.cuda.upload import read_only, upload
from refvt.ops.compaction import DeviceSurvivors, LayerPlan, Survivors, rows_of_block

__all__ = ["compact", "mask_halted"]


@kernel
def _count_survivors(
    halted: Flags, tokens: Indices, living: IndexMatrix, N: Int, leave_early: Int, after: IndexMatrix
) -> None:
    """halted, tokens [n], living [2, B] → after [2, B]: survivors of each clip, and 1 where CLS survives.

    A warp per clip.
    """
    # 1. count the survivors of each clip
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
def _rows_of_clip(after: IndexMatrix, clip: Int, N: Int, ghosts: Int, cls_only: Int) -> Any:
    """Number of survivors of a clip that are rows of the next block, and of ghosts behind them: 0 or 1."""
    count = after[0, clip]
    if cls_only > 0:
        count *= after[1, clip]
    return count, 1 if ghosts > 0 and count > 0 and count < N else 0


# rows of ``cuts``: numbers of the clips that may stay on the device
KEY_OFFSETS, QUERY_OFFSETS, CLS_TOKENS, CLS_ROWS, TOTALS = range(5)


@kernel
def _place_rows(
    halted: Flags,
    tokens: Indices,
    living: IndexMatrix,
    after: IndexMatrix,
    layer: Int,
    N: Int,
    ghosts: Int,
    cls_only: Int,
    layers: Indices,
    indices: IndexMatrix,
    key_bias: Vector,
    cuts: IndexMatrix,
) -> None:
    """All index arrays of ``compact``, from the counts; a block per clip.

    halted, tokens [n], living, after [2, B] → indices [4, n+B]: survivor_rows, tokens, entering_rows, query_rows;
    key_bias [n+B] or empty; cuts [5, max(B+1, 3)]: offsets, tokens and rows of CLS, and the totals of survivors, rows
    and queries.
    """
    clip, thread = cuda.blockIdx.x, cuda.threadIdx.x
    counted = cuda.shared.array(THREADS, np.int64)
    # 2. where the clip begins: among the old rows, the survivors, the block's rows and the queries
    first, survivor, row, query = 0, 0, 0, 0
    for other in range(clip):
        count, ghost = _rows_of_clip(after, other, N, ghosts, cls_only)
        first += living[0, other]
        survivor += after[0, other]
        row += count + ghost
        query += min(count, 1) if cls_only > 0 else count
    count, ghost = _rows_of_clip(after, clip, N, ghosts, cls_only)
    queries = min(count, 1) if cls_only > 0 else count
    if thread == 0:
        if ghost > 0:
            indices[2, row + count] = -1
            if key_bias.shape[0] > 0:
                key_bias[row + count] = math.log(key_bias.dtype.type(N - count))
        if cls_only > 0 and count > 0:
            indices[3, query] = row
        cuts[KEY_OFFSETS, clip] = row
        cuts[QUERY_OFFSETS, clip] = query
        cuts[CLS_TOKENS, clip] = survivor if after[1, clip] > 0 else -1
        cuts[CLS_ROWS, clip] = query if after[1, clip] > 0 else -1
        if clip == cuda.gridDim.x - 1:
            cuts[KEY_OFFSETS, clip + 1] = row + count + ghost
            cuts[QUERY_OFFSETS, clip + 1] = query + queries
            cuts[TOTALS, 0] = survivor + after[0, clip]
            cuts[TOTALS, 1] = row + count + ghost
            cuts[TOTALS, 2] = query + queries
    # each thread counts the survivors among a few neighbouring tokens
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
    # 2. where a thread begins: behind the survivors of earlier threads
    before = np.int64(0)
    for other in range(thread):
        before += counted[other]
    # 3. the rows
    for i in range(begin, end):
        if clip_goes_on and not halted[i]:
            indices[0, survivor + before] = i
            indices[1, survivor + before] = tokens[i]
            if count > 0:
                indices[2, row + before] = i
                if key_bias.shape[0] > 0:
                    key_bias[row + before] = 0
                if cls_only == 0:
                    indices[3, query + before] = row + before
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
    counts_next: Any = empty((2, B), np.int64)
    _count_survivors.warps(B, halted, tokens, counts, N, int(leave_early), counts_next)
    most = n + B  # the most rows there can be: with a ghost for each clip
    indices, cuts = empty((4, most), np.int64), empty((5, max(B + 1, 3)), np.int64)
    key_bias = absent(np.float32, 1) if device_dtype is None or not ghosts else empty(most, device_dtype)
    switches = layer, N, int(ghosts), int(cls_only)
    _place_rows.blocks(
        (B,), (THREADS,), halted, tokens, counts, counts_next, *switches, halting_layer, indices, key_bias, cuts
    )
    survivor_rows, tokens_next, entering_rows, query_rows = (
        indices.reshape(-1)[i * most : (i + 1) * most] for i in range(4)
    )
    if device_dtype is not None:
        bias = key_bias if ghosts else None
        return _on_device(counts_next, survivor_rows, tokens_next, entering_rows, query_rows, bias, cuts, N, cls_only)
    on_host: Array = counts_next.copy_to_host()
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
        view: Any = index[:most]
        start = TOTALS * width + which
        view.num_valid = flat[start : start + 1]
        return cast(Array, view)

    most = B * N
    with_ghosts = most if key_bias is None else most + B
    all_are_queries = key_bias is None and not cls_only
    plan = LayerPlan(
        entering_rows=counted(entering_rows, with_ghosts, 1),
        key_offsets=row(KEY_OFFSETS, B + 1),
        key_bias=None if key_bias is None else key_bias[:with_ghosts],
        query_rows=None if all_are_queries else counted(query_rows, B if cls_only else most, 2),
        query_offsets=None if all_are_queries else row(QUERY_OFFSETS, B + 1),
        query_counts=None,
        cls_tokens=row(CLS_TOKENS, B),
        cls_rows=row(CLS_ROWS, B),
    )
    return DeviceSurvivors(counts, counted(tokens, most, 0), counted(survivor_rows, most, 0), plan)


@kernel
def _mask_halted(halted: Flags, layer: Int, halting_layer: Indices, entering: Indices, key_bias: Vector) -> None:
    """halted [n] → halting_layer, entering [n], key_bias [n] or empty; one thread per token."""
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
