"""Compaction: who goes on after a joint block, and which rows of its state make up the next one.

States are packed, clip after clip, halted tokens left out. So a token's next row is the number of living tokens before
it: a prefix sum over the tokens, shifted by one for every ghost that stands before it. Here in NumPy, for the columns
that live in main memory; ``cuda_compaction`` makes the same arrays on the GPU, and tells the host the counts alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array

__all__ = ["Cuts", "Survivors", "compact", "everyone", "first_rows", "frozen", "offsets_of", "shares", "silence"]


class Cuts(NamedTuple):
    """Where the rows of each clip stand in a joint block, all of it where the column computes."""

    key_offsets: Array  # [B+1]
    key_bias: Array | None  # [rows] log m at a ghost, else 0
    query_offsets: Array | None  # [B+1], None if all rows ask
    nth: Array  # [B] where CLS stands among those who entered, −1 where it has halted before
    cls: Array  # [B] its row among those that ask, −1 likewise


class Survivors(NamedTuple):
    """Who enters a joint block. Index arrays lie where the column computes."""

    counts: Array | None  # [2, B] on the host: living tokens of each clip, 1 where CLS is one; None: it is not told
    rows: Array  # [B] on the host: how many of them are rows of the block
    ghosts: Array  # [B] bool on the host: whether a ghost stands behind them
    cuts: Cuts | None  # in the place of these three, where the host is not told
    living: Array  # counts where the column computes
    tokens: Array  # [n] which tokens they are, clip · N' + index, in this order
    goes_on: Array | None  # [n] the row each had among those who entered the block before; None: all of them, in order
    entering: Array | None  # [rows] the row before of every row of the block, −1 for a ghost; None: nothing moves
    asks: Array  # [m] the rows of the block that ask: all but the ghosts, or CLS alone


def frozen(array: Array) -> Array:
    """A copy that nobody may write to, so that a GPU may keep its own."""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


@lru_cache(maxsize=64)
def first_rows(B: int, rows: int) -> Array:
    """[B] where each clip begins if each has so many rows."""
    return frozen(np.arange(B) * rows)


def offsets_of(lengths: Array) -> Array:
    """[B+1] where each clip's rows start."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@lru_cache(maxsize=64)
def everyone(B: int, N: int, cls_only: bool) -> Survivors:
    """All tokens of all clips: who enters the first joint block."""
    counts = frozen(np.array([[N] * B, [1] * B], dtype=np.int64))
    tokens = frozen(np.arange(B * N))
    nobody = frozen(np.zeros(B, dtype=bool))
    return Survivors(
        counts, counts[0], nobody, None, counts, tokens, None, None, frozen(tokens[::N]) if cls_only else tokens
    )


def shares(counts: Array, N: int, ghosts: bool, cls_only: bool) -> tuple[Array, Array]:
    """Of each clip [B]: how many living tokens are rows of the block, and whether a ghost stands behind them.

    ghosts: one stands for the halted tokens of a clip that still has living ones. cls_only: clips without a living CLS
    stay out of the block.
    """
    alive, has_cls = counts
    taking_part = alive * has_cls if cls_only else alive
    return taking_part, ghosts & (taking_part > 0) & (taking_part < N)


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
    """Who enters the next block, from ``halted`` [n] bool among those who entered this one (``before``).

    layers [B·N'] int64 is written to: ``layer`` at every token that halts here. leave_early: a clip goes with its CLS.
    ghosts, cls_only: how the next block is made up, see ``shares``. dtype: of key biases where a device keeps the
    counts to itself, which it may unless this is None.
    """
    assert before.counts is not None
    B, tokens = before.counts.shape[1], before.tokens
    layers[tokens[halted]] = layer
    # 1. count who goes on in each clip
    clip = tokens // N
    has_cls = np.zeros(B, dtype=np.int64)
    has_cls[clip[(tokens % N == 0) & ~halted]] = 1
    going = ~halted & (has_cls[clip] > 0) if leave_early else ~halted
    goes_on = np.flatnonzero(going)  # [n']
    tokens, clip = tokens[goes_on], clip[goes_on]
    counts = np.stack([np.bincount(clip, minlength=B), has_cls])
    # 2. where each clip's rows begin, and so where each of its tokens stands
    taking_part, ghost = shares(counts, N, ghosts, cls_only)
    starts = offsets_of(taking_part + ghost)  # [B+1]
    shift = starts[:-1] - offsets_of(counts[0])[:-1]
    rows = np.arange(len(tokens)) + shift[clip]  # of each token in the block
    here = taking_part[clip] > 0
    # 3. the rows of the block; what nobody claims is a ghost
    entering = np.full(starts[-1], -1)
    entering[rows[here]] = goes_on[here]
    asks = starts[:-1][taking_part > 0] if cls_only else rows
    # no index at all where it would only say that nothing moves
    stays = len(entering) == len(halted) and not ghost.any()
    moves = None if len(tokens) == len(halted) else goes_on, None if stays else entering
    return Survivors(counts, taking_part, ghost, None, counts, tokens, *moves, asks)


def silence(halted: Array, layers: Array, layer: int, dtype: Any, masked: bool) -> tuple[Array, Array | None]:
    """How all rows enter the next block where halted tokens keep theirs: their rows before, −1 for the halted.

    halted [B·N'] bool of this layer and all before; layers as in ``compact``. masked: a key bias too, −∞ for the
    halted.
    """
    layers[halted & (layers == 0)] = layer
    key_bias = np.where(halted, -np.inf, 0.0).astype(dtype) if masked else None
    return np.where(halted, -1, np.arange(len(halted))), key_bias
