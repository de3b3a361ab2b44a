"""Compaction: which tokens enter the next joint block, and where their rows, the ghost's row and its log m stand.

A token that halts leaves the computation. The state of the next block is packed again: the surviving tokens of clip 0,
then its ghost if it has one, then those of clip 1, and so on. A survivor's new row is the number of survivors before
it, plus one for every ghost before it: a prefix sum. Two clips of N = 4 tokens, where tokens 1, 2 and 6 halt::

    token            0  1  2  3     4  5  6  7
    halted           .  x  x  .     .  .  x  .
    survivor_rows    0        3     4  5     7       places among the tokens of the block that has just ended
    entering_rows    0  3 −1        4  5  7 −1       the next block: survivors, then a ghost, made of a zero row (−1)
    key_offsets      0              3              7
    key_bias         0  0  log 2    0  0  0  log 1   log m at a ghost that stands for m halted tokens
    query_rows       0  1           3  4  5          every row but the ghosts

``tokens`` stand clip after clip, as in the picture: whoever calls ``compact`` keeps this order.

The *ghost* exists in the `zero` variant only. There, all m halted tokens of a clip enter a block as the same zero
vector, so they have the same key and the same value. One row with log m added to its attention logit stands for all of
them: m · e^logit = e^(logit + log m). It is key and value, never a query.

Two switches remove more, and neither changes an answer:

- ``leave_early``: once CLS has halted, nothing that comes later reaches the logits. At inference the whole clip leaves.
- ``cls_only``: in the last block only the output of CLS is read. CLS is the only query; a clip whose CLS has halted
  stays out.

``compact`` is a decision: it has no backward. Survivors get their gradient through the ``gather`` that uses the
indices. The ghost's dk and dv are the sums of those of its m tokens; they reach the k and v parts of qkv (weight and
bias) and norm1.bias, since the normed zero row is that bias. Only the gradient at the zero row itself is discarded.

The number of survivors is one of the results: a device that knows it need not tell the host (``DeviceSurvivors``).

``mask_halted`` is the dense counterpart. Every token keeps its row: a halted one is set to zero and, in the `masked`
variant, gets the key bias −∞.

Source: the identities hold exactly in real arithmetic (``model/plan.py`` lists them); the released model computes what
it has halted.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from refvt.array import Array
from refvt.ops import Operation
from refvt.packing import first_rows, frozen_copy, offsets_of

OPERATIONS = (
    Operation(
        "compact",
        arguments={"halted": "n", "tokens": "n", "counts": "2 B", "halting_layer": "B*N"},
        settings=("layer", "N", "ghosts", "leave_early", "cls_only"),
        results={
            "counts": "2 B",
            "backend_counts": "2 B",
            "tokens": "n'",
            "survivor_rows": "n'",
            "entering_rows": "rows",
            "query_rows": "queries",
        },
        differentiable=(),
        in_place=("halting_layer",),
    ),
    Operation(
        "mask_halted",
        arguments={"halted": "B*N", "halting_layer": "B*N"},
        settings=("layer", "masked"),
        results={"entering_rows": "B*N", "key_bias": "B*N"},
        differentiable=(),
        in_place=("halting_layer",),
    ),
)


class LayerPlan(NamedTuple):
    """Which rows take part in one joint block: index arrays, the same for dense and compact execution."""

    entering_rows: Array | None  # [rows] for each row of the block its row in the state before, −1: zero; None: no move
    key_offsets: Array  # [B+1] the rows of each clip
    key_bias: Array | None  # [rows] log m at a ghost, −∞ at a masked token, else 0; None: 0 everywhere
    query_rows: Array | slice | None  # [queries] rows of the block that are queries; only they come out; None: all
    query_offsets: Array | None  # [B+1] the queries of each clip; None: the key offsets
    query_counts: Array | None  # [B] queries of each clip; None: the host does not know
    cls_tokens: Array | slice  # [B] where CLS stands among the tokens that entered, −1 where it has halted before
    cls_rows: Array | slice  # [B] where it stands among the rows that come out, −1 likewise


class AnySurvivors(Protocol):
    """The tokens that enter a joint block, as either of the two classes below gives them."""

    @property
    def backend_counts(self) -> Array: ...
    @property
    def tokens(self) -> Array: ...
    @property
    def survivor_rows(self) -> Array | None: ...
    def all_halted(self) -> bool: ...
    def layer_plan(self, N: int, ghosts: bool, cls_only: bool, dtype: Any, views: bool) -> LayerPlan | None: ...


class Survivors(NamedTuple):
    """The tokens that enter a joint block, where the host knows the number of them.

    The index arrays lie where the backend computes.
    """

    counts: Array  # int64 [2, B] on the host: living tokens of each clip, and 1 where CLS is one of them
    backend_counts: Array  # the same where the backend computes
    tokens: Array  # [n] which tokens they are, clip · N + index, in this order
    survivor_rows: Array | None  # [n] their places among the tokens that entered the block before; None: 0, 1, …, n − 1
    entering_rows: Array | None  # [rows] the row before of every row of the block, −1 for a ghost; None: 0, 1, …
    query_rows: Array  # [queries] the rows of the block that are queries: all but the ghosts, or CLS alone

    def all_halted(self) -> bool:
        """Whether every token of every clip has halted."""
        return not self.counts[0].any()

    def layer_plan(self, N: int, ghosts: bool, cls_only: bool, dtype: Any, views: bool) -> LayerPlan | None:
        """The block that these tokens enter; None if nothing is to be computed. dtype: of the key bias.

        ghosts, cls_only: as in ``compact``. views: rows may be given as slices where a batch is one clip.
        """
        alive, has_cls = self.counts
        tokens, ghost = rows_of_block(self.counts, N, ghosts, cls_only)  # [B], [B]
        rows = tokens + ghost
        if not rows.any():
            return None
        key_offsets = offsets_of(rows)
        key_bias = query_rows = query_offsets = None
        if ghost.any():  # log m at the last row of a clip that has one
            bias = np.zeros(key_offsets[-1])
            bias[key_offsets[1:][ghost] - 1] = np.log(N - tokens[ghost])
            key_bias = bias.astype(dtype)
        queries = np.minimum(tokens, 1) if cls_only else tokens
        one_clip = views and len(rows) == 1
        if (queries != rows).any():
            query_rows = slice(int(queries[0])) if one_clip else self.query_rows
            query_offsets = offsets_of(queries)
        cls_tokens: Array | slice = slice(1)
        cls_rows: Array | slice = slice(1)
        if not (one_clip and has_cls[0]):  # CLS is the first token of its clip
            cls_tokens, cls_rows = (np.where(has_cls > 0, offsets_of(n)[:-1], -1) for n in (alive, queries))
        return LayerPlan(
            self.entering_rows, key_offsets, key_bias, query_rows, query_offsets, queries, cls_tokens, cls_rows
        )


class DeviceSurvivors(NamedTuple):
    """The tokens that enter a joint block, where only the device knows the number of them.

    Arrays are as long as they can be at most; those whose length is a result carry the device's count of valid rows.
    """

    backend_counts: Array  # int64 [2, B]
    tokens: Array  # [≤ B·N]
    survivor_rows: Array  # [≤ B·N]
    plan: LayerPlan  # made by the kernel that placed the rows

    def all_halted(self) -> bool:
        """False, since the host does not know: the block is launched and finds nothing to do."""
        return False

    def layer_plan(self, N: int, ghosts: bool, cls_only: bool, dtype: Any, views: bool) -> LayerPlan:
        """The block that these tokens enter."""
        return self.plan


@lru_cache(maxsize=64)  # always the same arrays, so that a GPU need not copy them again
def all_alive(B: int, N: int, cls_only: bool) -> Survivors:
    """All tokens of all clips: what enters the first joint block."""
    counts = frozen_copy(np.array([[N] * B, [1] * B], dtype=np.int64))
    tokens, cls = first_rows(B * N, 1), first_rows(B, N)
    return Survivors(counts, counts, tokens, None, None, cls if cls_only else tokens)


def rows_of_block(counts: Array, N: int, ghosts: bool, cls_only: bool) -> tuple[Array, Array]:
    """For each clip: the number of living tokens that are rows of the block [B], and whether it has a ghost, bool [B].

    counts [2, B] as in ``Survivors``. A ghost stands for the halted tokens of a clip that still has living ones.
    """
    alive, has_cls = counts
    tokens = alive * has_cls if cls_only else alive
    return tokens, ghosts & (tokens > 0) & (tokens < N)
