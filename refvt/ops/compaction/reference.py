"""Compaction in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.array import Array
from refvt.ops.compaction import Survivors, rows_of_block
from refvt.packing import offsets_of

__all__ = ["compact", "mask_halted"]


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
    B = counts.shape[1]
    halting_layer[tokens[halted]] = layer
    # 1. count the survivors of each clip
    clip = tokens // N  # [n]
    has_cls = np.zeros(B, dtype=np.int64)
    has_cls[clip[(tokens % N == 0) & ~halted]] = 1
    survives = ~halted & (has_cls[clip] > 0) if leave_early else ~halted
    survivor_rows = np.flatnonzero(survives)  # [n']
    tokens_next, clip = tokens[survivor_rows], clip[survivor_rows]  # [n']
    counts_next = np.stack([np.bincount(clip, minlength=B), has_cls])  # [2, B]
    # 2. where the rows of each clip begin, and so the row of each survivor
    in_block, ghost = rows_of_block(counts_next, N, ghosts, cls_only)  # [B], [B]
    offsets = offsets_of(in_block + ghost)  # [B+1]
    shift = offsets[:-1] - offsets_of(counts_next[0])[:-1]  # [B]
    rows = np.arange(len(tokens_next)) + shift[clip]  # [n']
    enters = in_block[clip] > 0
    # 3. the rows of the block; a row that no survivor takes is a ghost's
    entering_rows = np.full(offsets[-1], -1)
    entering_rows[rows[enters]] = survivor_rows[enters]
    query_rows = offsets[:-1][in_block > 0] if cls_only else rows
    # no index where it would say that nothing moves
    all_survive = len(tokens_next) == len(halted)
    nothing_moves = len(entering_rows) == len(halted) and not ghost.any()
    return Survivors(
        counts_next,
        counts_next,
        tokens_next,
        None if all_survive else survivor_rows,
        None if nothing_moves else entering_rows,
        query_rows,
    )


def mask_halted(
    halted: Array, halting_layer: Array, layer: int, masked: bool, dtype: Any = np.float64
) -> tuple[Array, Array | None]:
    """Dense execution: every token keeps its row, a halted one is set to zero.

    halted bool [B·N], of this layer and all before; halting_layer as in ``compact``. Returns entering_rows [B·N], −1 at
    a halted token, and key_bias [B·N] of the given dtype, −∞ at a halted token if ``masked``, else None.
    """
    halting_layer[halted & (halting_layer == 0)] = layer
    key_bias = np.where(halted, -np.inf, 0.0).astype(dtype) if masked else None
    return np.where(halted, -1, np.arange(len(halted))), key_bias
