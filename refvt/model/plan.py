"""Who takes part in a joint block: the index arrays that make the difference between dense and compact execution.

Dense execution keeps a row for every token and sets halted ones to zero, as the released model does. Compact execution
removes them. The identities that make the answers the same (exact in real arithmetic):

1. `masked`: a halted token is no key, so it can go.
2. `zero`: all m halted tokens of a clip enter a block as the same zero vector. They share one key and one value, so
   one *ghost* token, key and value only, with log m added to its logit, stands for all of them.
3. Once CLS has halted nothing computed later reaches the logits: at inference the clip leaves.
4. In the last block every token halts with its remainder whatever its state is, and only CLS's output is read: CLS
   alone asks, the others are keys and values. A clip whose CLS has halted skips the block.

How the rows move is ``backends.compaction``; what follows from their numbers alone is here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.ops.compaction.reference import Survivors, first_rows, offsets_of

__all__ = ["LayerPlan", "cls_rows", "compact_plan", "dense_plan"]


class LayerPlan(NamedTuple):
    """One joint block on the packed states left by the layer before it.

    entering [rows]: for each row of the block its row in the state before, −1 for a zero row; None if nothing moves.
    key_offsets [B+1]: its segments. key_bias [rows] or None. queries: the rows that ask (None: all; a slice: the first
    ones), cut by query_offsets. leaving [B]: how many rows of each clip come out; None if the host is not told.
    """

    entering: Array | None
    key_offsets: Array
    key_bias: Array | None
    queries: Array | slice | None
    query_offsets: Array | None
    leaving: Array | None


def dense_plan(B: int, N: int, entering: Array | None, key_bias: Array | None) -> LayerPlan:
    """Every token of every clip keeps its row; entering and key_bias [B·N'] say who has halted (None: nobody)."""
    return LayerPlan(entering, first_rows(B + 1, N), key_bias, None, None, np.full(B, N))


def compact_plan(survivors: Survivors, N: int, cls_only: bool, views: bool) -> LayerPlan | None:
    """Only living tokens have rows, one ghost per clip stands for its halted ones; None if nothing is to be computed.

    cls_only: the last block, where CLS alone asks and clips without a living CLS stay out. views: rows that ask may be
    a slice, as those of a clip by itself always are.
    """
    if survivors.cuts is not None:
        cuts = survivors.cuts
        asks = None if cuts.query_offsets is None else survivors.asks
        return LayerPlan(survivors.entering, cuts.key_offsets, cuts.key_bias, asks, cuts.query_offsets, None)
    counts, ghosts = survivors.rows, survivors.ghosts
    rows = counts + ghosts  # of each clip
    if not rows.any():
        return None
    key_offsets = offsets_of(rows)
    key_bias = queries = query_offsets = None
    if ghosts.any():
        key_bias = np.zeros(key_offsets[-1])
        key_bias[key_offsets[1:][ghosts] - 1] = np.log(N - counts[ghosts])
    asking = np.minimum(counts, 1) if cls_only else counts
    if not np.array_equal(asking, rows):
        alone = views and len(rows) == 1
        queries, query_offsets = slice(int(asking[0])) if alone else survivors.asks, offsets_of(asking)
    return LayerPlan(survivors.entering, key_offsets, key_bias, queries, query_offsets, asking)


def cls_rows(survivors: Survivors, plan: LayerPlan, views: bool) -> tuple[Array | slice, Array | slice]:
    """[B] twice: where each clip's CLS stands among those who entered, and among the rows that come out.

    −1 where it has halted before. views: a slice, if there is but one clip.
    """
    if survivors.cuts is not None:
        return survivors.cuts.nth, survivors.cuts.cls
    counts, leaving = survivors.counts, plan.leaving
    assert counts is not None
    assert leaving is not None
    if views and len(leaving) == 1 and counts[1, 0]:
        return slice(1), slice(1)
    nth, row = (np.where(counts[1] > 0, offsets_of(of_each)[:-1], -1) for of_each in (counts[0], leaving))
    return nth, row
