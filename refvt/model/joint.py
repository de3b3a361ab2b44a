"""The joint halting blocks: space-time attention over all living tokens of a clip, layer after layer, until all halt.

One layer is: bring the living tokens together (``plan``), attention, MLP, ``halt``, ``accumulate``. ``joint_backward``
walks the same layers in reverse. Which tokens have a row, and which rows are asked, is decided by index arrays alone;
dense and compact execution share every line below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.model.blocks import (
    AttentionHalfCache,
    MlpHalfCache,
    Scope,
    attention_half_backward,
    attention_half_forward,
    mlp_half_backward,
    mlp_half_forward,
)
from refvt.model.config import HaltingVTConfig
from refvt.model.plan import compact_plan, dense_plan
from refvt.ops import Array

__all__ = ["JointCache", "JointResult", "joint_backward", "joint_forward"]


class _LayerCache(NamedTuple):
    entering: Any  # of the gather into the block, None if nothing moved
    asked: Any  # of the gather of the rows that ask, None if all do
    attention: AttentionHalfCache | None  # None: the block was not computed
    mlp: MlpHalfCache | None
    tokens: Array  # [living] the tokens that entered the layer
    logit: Any  # of the gather of living rows' channel 0; None in the last layer
    used: Any  # of the gather of `used` from the layer before
    halt: Any
    output: tuple[Any, Any, Any]  # of the gathers of x and weight, and of the accumulation


class JointCache(NamedTuple):
    layers: list[_LayerCache]
    ponder: Any
    rows: int


class JointResult(NamedTuple):
    y: Array  # [B, D] the output of CLS, or [B·N', D] of every token if all were asked for
    ponder: Array  # [B, N'], NaN (in float) for tokens still alive when their clip left
    halting_layer: Array  # int64 [B, N'], 0 for those
    alive: Array  # bool [B, L, N'] who entered each layer


def _inverse(tokens: Array, size: int) -> Array:
    """[size] the position of each token in ``tokens``, −1 if it is not there."""
    where = np.full(size, -1)
    where[tokens] = np.arange(len(tokens))
    return where


def joint_forward(
    scope: Scope,
    config: HaltingVTConfig,
    x: Array,
    B: int,
    compact: bool,
    every_output: bool = False,
    leave_early: bool = False,
    gains: Array | None = None,
    forced: Array | None = None,
) -> tuple[JointResult, JointCache | None]:
    """Blocks G … depth−1 on x [B·N', D].

    every_output: form y for every token, not just for CLS. leave_early: a clip is done once its CLS has halted.
    gains [L, 2, B]: DropPath's, for attention and MLP of each layer. forced [B, N'] int64: the halting layers.
    Source: HaltingVT section 3.3.
    """
    ops, keep, see = scope.ops, scope.keep, scope.see
    arrays, dtype, D = ops.arrays, x.dtype, x.shape[1]
    N, L, G = len(x) // B, config.joint_depth, config.glimpser_depth
    size = B * N
    readers = np.arange(size) if every_output else np.arange(B) * N  # the tokens whose y is read
    halting = (config.halting_scale, config.halting_center, config.epsilon)

    alive = np.ones((B, N), dtype=bool)
    entered = np.zeros((B, L, N), dtype=bool)
    halting_layer = np.zeros(size, dtype=np.int64)
    final = np.full(size, -1)  # where each token's remainder stands among the weights of all layers
    y = arrays.zeros((len(readers), D), dtype)
    used, used_row = arrays.zeros(size, dtype), np.arange(size)  # weight used so far, and each token's row in it
    row_of = np.arange(size)  # each token's row in the state
    weights: list[Array] = []
    weighed = 0  # of all layers so far
    layers: list[_LayerCache] = []

    for layer in range(1, L + 1):
        tokens = np.flatnonzero(alive)  # [living]
        if compact and len(tokens) == 0:
            break  # dense execution goes on, as the released model does
        entered[:, layer - 1] = alive
        block, last = f"blocks.{G + layer - 1}", layer == L
        # 1. bring together who takes part
        cls_only = last and not every_output
        plan = (
            compact_plan(alive, row_of, config.halted_keys, cls_only)
            if compact
            else dense_plan(alive, layer, config.halted_keys)
        )
        entering_cache = asked_cache = attention_cache = mlp_cache = None
        if plan is not None:
            if plan.entering is not None:
                x, entering_cache = ops.gather.forward(x, plan.entering, keep=keep)  # [rows, D]
            see(f"{block}.entering", x)
            # 2. attention and MLP; only the rows that ask come out
            asked = x
            if plan.queries is not None:
                asked, asked_cache = ops.gather.forward(x, plan.queries, keep=keep)
            gain = None if gains is None else gains[layer - 1][:, plan.leaving // N].astype(dtype)
            key_bias = None if plan.key_bias is None else plan.key_bias.astype(dtype)
            x, _, attention_cache = attention_half_forward(
                scope,
                f"{block}.norm1",
                f"{block}.attn",
                x,
                asked,
                config.num_heads,
                plan.key_offsets,
                plan.query_offsets,
                plan.queries,
                key_bias,
                None if gain is None else gain[0],
            )
            x, mlp_cache = mlp_half_forward(scope, block, x, None if gain is None else gain[1])
            row_of = _inverse(plan.leaving, size)
        # 3. score, decide, weigh: all tokens that entered the layer
        used, used_cache = ops.gather.forward(used, used_row[tokens], keep=keep)
        logit, logit_cache = None, None
        if not last:
            column = arrays.columns(x, 0, 1)  # [rows, 1]
            logit, logit_cache = ops.gather.forward(column, row_of[tokens], keep=keep)
            logit = logit.reshape(-1)
        choice = None if forced is None else forced.ravel()[tokens] == layer
        (weight, used, halted), halt_cache = ops.halt.forward(logit, used, *halting, last, choice, keep=keep)
        if scope.tracing:
            for name, values in (("logit", logit), ("weight", weight)):
                see(f"joint.{layer}.{name}", _scatter(arrays, values, tokens, size, dtype))
        # 4. one more term of the output of those that are read
        position = _inverse(tokens, size)
        nth = position[readers]  # −1 for one that had halted before
        state_row = np.where(nth < 0, -1, row_of[readers]) if plan is not None else np.full(len(readers), -1)
        term, term_cache = ops.gather.forward(x, state_row, keep=keep)
        share, share_cache = ops.gather.forward(weight, nth, keep=keep)
        y, sum_cache = ops.accumulate.forward(y, term, share, keep=keep)
        # 5. who halts here is done; who does not goes on. What is known already need not come from the device
        if last:
            halted = np.ones(len(tokens), dtype=bool)
        halted = arrays.to_numpy(halted) if choice is None else choice
        done = tokens[halted]
        halting_layer[done] = layer
        final[done] = weighed + np.flatnonzero(halted)
        alive.ravel()[done] = False
        weights.append(weight)
        weighed += len(weight)
        used_row = position
        if leave_early:
            alive[~alive[:, 0]] = False
        if keep:
            layers.append(
                _LayerCache(
                    entering_cache,
                    asked_cache,
                    attention_cache,
                    mlp_cache,
                    tokens,
                    logit_cache,
                    used_cache,
                    halt_cache,
                    (term_cache, share_cache, sum_cache),
                )
            )

    # 6. ponder = halting layer + remainder
    remainder, ponder_cache = ops.gather.forward(arrays.join_rows(weights), final, keep=keep)  # [B·N']
    ponder = arrays.add(remainder, arrays.from_numpy(np.where(final < 0, np.nan, halting_layer), dtype))
    result = JointResult(y, ponder.reshape(B, N), halting_layer.reshape(B, N), entered)
    return result, JointCache(layers, ponder_cache, size) if keep else None


def _scatter(arrays: Any, values: Array | None, tokens: Array, size: int, dtype: Any) -> Array:
    """Values of the living tokens in the places of all tokens, for traces."""
    full = np.zeros(size, dtype=dtype)
    if values is not None:
        full[tokens] = arrays.to_numpy(values)
    return full


def joint_backward(scope: Scope, config: HaltingVTConfig, dy: Array, dponder: Array, cache: JointCache) -> Array:
    """Returns the gradient of the state [B·N', D] that entered the first joint block.

    dy: the gradient of ``y`` as it was returned; dponder [B, N'].
    """
    ops, arrays, see = scope.ops, scope.ops.arrays, scope.see
    G, size, dtype = config.glimpser_depth, cache.rows, dy.dtype
    # 6. the remainders of all layers
    dweights = ops.gather.backward(dponder.reshape(-1), cache.ponder)
    stop = len(dweights)
    dx: Array | None = None  # of the state leaving the layer; nothing reads the last one but y
    dused: Array | None = None
    for index in reversed(range(len(cache.layers))):
        step = cache.layers[index]
        layer = index + 1
        block = f"blocks.{G + index}"
        term_cache, share_cache, sum_cache = step.output
        # 4. the output's term
        dy, dterm, dshare = ops.accumulate.backward(dy, sum_cache)
        dx = arrays.add(ops.gather.backward(dterm, term_cache), dx)
        start = stop - len(step.tokens)
        dweight = arrays.add(ops.gather.backward(dshare, share_cache), dweights[start:stop])
        stop = start
        # 3. score and weight; 5. `used` of the living went on
        if dused is None:
            dused = arrays.zeros(len(step.tokens), dtype)
        dlogit, dused = ops.halt.backward(dweight, dused, step.halt)
        if scope.tracing:
            see(f"d(joint.{layer}.weight)", _scatter(arrays, dweight, step.tokens, size, dtype))
            see(f"d(joint.{layer}.logit)", _scatter(arrays, dlogit, step.tokens, size, dtype))
        if step.logit is not None:
            dcolumn = ops.gather.backward(dlogit.reshape(-1, 1), step.logit)  # [rows, 1]
            dx = arrays.add_to_column(dx, 0, dcolumn.reshape(-1))
        dused = ops.gather.backward(dused, step.used)
        # 2. MLP and attention
        if step.attention is None or step.mlp is None:  # no block was computed: x is the state before
            continue
        dx = mlp_half_backward(scope, dx, step.mlp)
        dentered, dresidual = attention_half_backward(scope, dx, step.attention)
        if step.asked is not None:
            dresidual = ops.gather.backward(dresidual, step.asked)
        dx = arrays.add(dentered, dresidual)
        see(f"d({block}.entering)", dx)
        # 1. who took part
        if step.entering is not None:
            dx = ops.gather.backward(dx, step.entering)
    assert dx is not None
    return dx
