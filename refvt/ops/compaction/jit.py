"""Compaction in Numba: loops over the tokens, which stand in the order of their clips."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.layouts import contiguous
from refvt.ops.compaction import Survivors
from refvt.ops.compaction.reference import mask_halted

__all__ = ["compact", "mask_halted"]


@kernel
def _compact(
    halted: Array,
    tokens: Array,
    halting_layer: Array,
    layer: int,
    N: int,
    ghosts: bool,
    leave_early: bool,
    cls_only: bool,
    counts: Array,
    indices: Array,
) -> tuple[int, int, int, bool]:
    """counts [2, B] and indices [4, n+B]: tokens, survivor_rows, entering_rows, query_rows ← halted, tokens [n].

    Returns the numbers of survivors, of rows of the block and of queries, and whether any row moves. halting_layer
    [B·N] is written to.
    """
    B = counts.shape[1]
    alive, has_cls = counts[0], counts[1]
    tokens_next, survivor_rows, entering_rows, query_rows = indices[0], indices[1], indices[2], indices[3]
    # 1. count the survivors of each clip
    for b in range(B):
        alive[b] = has_cls[b] = 0
    for i in range(len(tokens)):
        if halted[i]:
            halting_layer[tokens[i]] = layer
        elif tokens[i] % N == 0:
            has_cls[tokens[i] // N] = 1
    survivors = 0
    for i in range(len(tokens)):
        b = tokens[i] // N
        if not halted[i] and (not leave_early or has_cls[b] > 0):
            tokens_next[survivors], survivor_rows[survivors] = tokens[i], i
            survivors += 1
            alive[b] += 1
    # passes 2–3: the rows of each clip's survivors, and after them the ghost's
    last, rows, queries, moves = 0, 0, 0, False
    for b in range(B):
        first, last = last, last + alive[b]
        enters = not cls_only or has_cls[b] > 0
        for i in range(first, last if enters else first):
            if i == first or not cls_only:
                query_rows[queries] = rows
                queries += 1
            entering_rows[rows] = survivor_rows[i]
            moves |= survivor_rows[i] != rows
            rows += 1
        if ghosts and enters and 0 < alive[b] < N:
            entering_rows[rows] = -1
            moves = True
            rows += 1
    return survivors, rows, queries, moves or rows < len(tokens)


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
) -> Survivors:
    """The tokens that enter the next block, from those that entered this one.

    halted bool [n] and tokens [n] of the tokens that entered; counts [2, B] their number per clip, and 1 where CLS is
    one of them. halting_layer int64 [B·N] is written to: ``layer`` at every token that halts here. ghosts: the halted
    tokens of a clip have one row. leave_early: a clip leaves with its CLS. cls_only: in the next block CLS is the only
    query. device_dtype matters on a GPU alone.
    """
    n, counts_next = len(tokens), np.empty_like(counts)
    indices = np.empty((4, n + counts.shape[1]), np.int64)
    # passes 1–3
    survivors, rows, queries, moves = _compact(
        contiguous(halted),
        contiguous(tokens),
        halting_layer,
        layer,
        N,
        ghosts,
        leave_early,
        cls_only,
        counts_next,
        indices,
    )
    # no index where it would say that nothing moves
    return Survivors(
        counts_next,
        counts_next,
        indices[0, :survivors],
        None if survivors == n else indices[1, :survivors],
        indices[2, :rows] if moves else None,
        indices[3, :queries],
    )
