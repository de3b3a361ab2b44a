"""Who takes part in a joint block: the index arrays that make the difference between dense and compact execution.

Dense execution keeps a row for every token and sets halted ones to zero, as the released model does. Compact execution
removes them. The identities that make the answers the same (exact in real arithmetic):

1. `masked`: a halted token is no key, so it can go.
2. `zero`: all m halted tokens of a clip enter a block as the same zero vector. They share one key and one value, so
   one *ghost* token, key and value only, with log m added to its logit, stands for all of them.
3. Once CLS has halted nothing computed later reaches the logits: at inference the clip leaves.
4. In the last block every token halts with its remainder whatever its state is, and only CLS's output is read: CLS
   alone asks, the others are keys and values. A clip whose CLS has halted skips the block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.ops import Array

__all__ = ["LayerPlan", "compact_plan", "dense_plan"]


class LayerPlan(NamedTuple):
    """One joint block on the packed states left by the layer before it.

    entering [rows]: for each row of the block its row in the state before, −1 for a zero row; None if nothing moves.
    key_offsets [clips+1]: its segments. key_bias [rows] or None. queries: the rows that ask (None: all), cut by
    query_offsets. leaving [rows out]: the token (clip · N' + index) each row that comes out belongs to.
    """

    entering: Array | None
    key_offsets: Array
    key_bias: Array | None
    queries: Array | None
    query_offsets: Array | None
    leaving: Array


def dense_plan(alive: Array, layer: int, halted_keys: str) -> LayerPlan:
    """Every token of every clip keeps its row; alive [B, N'] bool are those that have not halted."""
    B, N = alive.shape
    tokens = np.arange(B * N)
    entering = None if layer == 1 else np.where(alive.ravel(), tokens, -1)
    bias = np.where(alive.ravel(), 0.0, -np.inf) if halted_keys == "masked" and layer > 1 else None
    return LayerPlan(entering, np.arange(B + 1) * N, bias, None, None, tokens)


def compact_plan(alive: Array, row_of: Array, halted_keys: str, cls_only: bool) -> LayerPlan | None:
    """Only living tokens have rows, one ghost per clip stands for its halted ones; None if nothing is to be computed.

    alive [B, N'] bool; row_of [B·N'] the row of each living token in the packed state before. cls_only: the last block,
    where CLS alone asks and clips without a living CLS stay out.
    """
    B, N = alive.shape
    living = alive & alive[:, :1] if cls_only else alive
    counts = living.sum(axis=1)
    # a column for each token, and behind them one for the ghost
    there = np.empty((B, N + 1), dtype=bool)
    there[:, :N] = living
    there[:, N] = ghosts = (halted_keys == "zero") & (counts > 0) & (counts < N)
    rows = counts + ghosts  # of each clip
    if not rows.any():
        return None
    before = np.empty((B, N + 1), dtype=np.int64)  # rows of the state before, −1 for the ghost
    before[:, :N] = row_of.reshape(B, N)
    before[:, N] = -1
    entering = before[there]  # [rows]
    key_bias = queries = None
    if ghosts.any():
        key_bias = np.zeros(len(entering))
        key_bias[np.cumsum(rows)[ghosts] - 1] = np.log(N - counts[ghosts])
    asks = living & (np.arange(N) == 0) if cls_only else living
    asking = asks.sum(axis=1)
    if not np.array_equal(asking, rows):
        queries = (np.cumsum(there).reshape(B, N + 1)[:, :N] - 1)[asks]
    nothing_moves = len(entering) == int(row_of.max()) + 1 and np.array_equal(entering, np.arange(len(entering)))
    return LayerPlan(
        None if nothing_moves else entering,
        _offsets(rows),
        key_bias,
        queries,
        None if queries is None else _offsets(asking),
        np.flatnonzero(asks),
    )


def _offsets(lengths: Array) -> Array:
    """[B+1] where each clip's rows start."""
    return np.concatenate([[0], np.cumsum(lengths)])
