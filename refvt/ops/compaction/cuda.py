"""Compaction on the GPU: index arrays are made on the device; at most the counts are copied to the host.

Two kernels. The first counts: a warp per clip. The second writes the rows: a block per clip adds the counts of earlier
clips, each of its threads counts a few neighbouring tokens, and adds the counts of earlier threads; then every thread
knows where to write. This is a prefix sum, over clips and within a clip, with a single barrier.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import cuda

from refvt.array import Array
from refvt.backends.cuda.arguments import Flags, IndexMatrix, Indices, Int, Vector
from refvt.backends.cuda.device_array import absent, empty
from refvt.backends.cuda.kernel import device_function, kernel
from refvt.backends.cuda.sizes import THREADS, WARP
from refvt.backends.cuda.threads import lane_and_row, warp_sum
from refvt.backends.cuda.upload import read_only
from refvt.ops.compaction.reference import Cuts, Survivors, shares

__all__ = ["compact", "silence"]


@kernel(name="compaction.count_living")
def _count(halted: Flags, tokens: Indices, living: IndexMatrix, N: Int, leave_early: Int, after: IndexMatrix) -> None:
    """halted, tokens [n], living [2, B] → after [2, B]: live tokens of each clip, and 1 where CLS lives.

    A warp per clip.
    """
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
    """Number of live tokens of a clip that are rows of the next block, and of ghosts behind them: 0 or 1."""
    count = after[0, clip]
    if cls_only > 0:
        count *= after[1, clip]
    return count, 1 if ghosts > 0 and count > 0 and count < N else 0


# rows of ``cuts``: numbers of the clips that may stay on the device
KEY_OFFSETS, QUERY_OFFSETS, NTH, CLS, TOTALS = range(5)


@kernel(name="compaction.place_living")
def _place(
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
    """All index arrays of ``compaction.compact``, from the counts; a block per clip.

    halted, tokens [n], living, after [2, B] → indices [4, n+B]: surviving rows, their tokens, entering rows, queries;
    key_bias [n+B] or empty; cuts [5, max(B+1, 3)]: offsets, rows of CLS, and totals of survivors, rows and queries.
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
        cuts[NTH, clip] = survivor if after[1, clip] > 0 else -1
        cuts[CLS, clip] = query if after[1, clip] > 0 else -1
        if clip == cuda.gridDim.x - 1:
            cuts[KEY_OFFSETS, clip + 1] = row + count + ghost
            cuts[QUERY_OFFSETS, clip + 1] = query + queries
            cuts[TOTALS, 0] = survivor + after[0, clip]
            cuts[TOTALS, 1] = row + count + ghost
            cuts[TOTALS, 2] = query + queries
    # 1. each thread counts the survivors among a few neighbouring tokens
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
        index.num_valid = flat[start : start + 1]  # type: ignore[attr-defined]
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


@kernel(name="compaction.silence")
def _silence(halted: Flags, layer: Int, layers: Indices, entering: Indices, key_bias: Vector) -> None:
    """halted, layers [n] → layers, entering, key_bias [n]; one thread per token."""
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
