"""The joint halting blocks: space-time attention over all living tokens of a clip, until every token has halted.

The passes of a layer, forward and in reverse backward:

1. gather the rows that enter the block (``plan``), and the weight that each of its tokens has used so far
2. attention and MLP
3. ``halt``: score h = σ(γ·x[0] − β), or 1 in the last layer. A token halts if used + h > 1 − ε; its weight is then the
   remainder 1 − used, else h. CLS is treated like every other token.
4. ``accumulate``: y ← y + weight · x, one more term of the output of the tokens that are read
5. the tokens that live on; a decision, without a backward

After the last layer: 6. the ponder ρ = N_k + r_k of every token, its halting layer and its remainder.

Gradients (``ops/halting`` derives them): the comparison of pass 3 carries none, the remainder does. A token that has
halted gets none from later blocks: its row is gone, or is a zero row, at which the gradient is discarded. (What a zero
row gives as a key and a value does count: the ghost's gradient reaches the k and v parts of qkv, and norm1.bias.)

Which tokens have a row, and which rows are queries, is decided by index arrays alone: dense and compact execution share
every line below. Source: HaltingVT section 3.3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.model.blocks import (
    AttentionCache,
    Context,
    MlpCache,
    Segments,
    attention_sublayer_backward,
    attention_sublayer_forward,
    mlp_sublayer_backward,
    mlp_sublayer_forward,
)
from refvt.model.config import HaltingVTConfig
from refvt.model.plan import Execution, steps_of
from refvt.ops.compaction import LayerPlan

__all__ = ["HaltingOutcome", "JointCache", "JointResult", "halting_outcome", "joint_backward", "joint_forward"]


class JointResult(NamedTuple):
    """The results of the joint blocks, still where the backend computes."""

    y: Array  # [B, D] the output of CLS, or [B·N', D] of every token
    weights: Array  # the halting weights of all layers, one layer after another
    lengths: list[int]  # the number of weights of each layer
    halting_layer: Array  # int64 [B·N']; 0: no layer before the last has halted the token
    compact: bool  # a layer has one weight per living token; else one per token


class JointCache(NamedTuple):
    """What the backward of the joint blocks needs."""

    layers: list[_LayerCache]
    num_tokens: int  # B·N'


class _LayerCache(NamedTuple):
    block: _BlockCache | None  # None: the block was not computed
    num_weights: int  # tokens that have a weight in this layer
    used: Any  # of the gather of ``used`` from the layer before; None if nothing moved
    halt: Any
    output: _OutputCache | None
    tokens: Array  # [n] the living tokens, for traces; else empty


def joint_forward(
    context: Context, config: HaltingVTConfig, x: Array, B: int, execution: Execution
) -> tuple[JointResult, JointCache | None]:
    """Blocks G … depth−1 on the state x [B·N', D]."""
    ops, keep, tracing = context.ops, context.keep, context.tracing
    arrays, dtype, D = ops.arrays, x.dtype, x.shape[1]
    L, size = config.joint_depth, B * config.joint_tokens
    steps = steps_of(ops, config, B, dtype, execution, keep, tracing)
    y = arrays.zeros((size if execution.every_output else B, D), dtype)
    used = arrays.zeros(size, dtype)  # [n] the sum of each token's weights so far
    weights: list[Array] = []
    caches: list[_LayerCache] = []
    for layer in range(1, L + 1):
        if steps.all_halted():
            break
        # 1. the rows that enter, and the weight that their tokens have used
        plan = steps.plan(layer)
        used_cache = block_cache = None
        if steps.survivor_rows is not None:
            used, used_cache = ops.gather.forward(used, steps.survivor_rows, keep=keep)  # [n]
        # passes 1–2: the block
        if plan is not None:
            x, block_cache = _block_forward(context, config, layer, x, plan, execution)
        # 3. score, weight, decision, for the n tokens that have a row (in dense execution: all)
        imposed = steps.imposed(layer)
        weight, used, halted, halt_cache = _halt_forward(context, config, layer, x, used, imposed)
        weights.append(weight)
        tokens = _living_tokens(context, steps.halting_layer)
        _record_halting(context, config, layer, x, weight, tokens, size)
        # 4. the output's next term
        output_cache = None
        if plan is not None:
            y, output_cache = _output_forward(context, execution, x, weight, y, plan, tokens)
        if keep:
            caches.append(_LayerCache(block_cache, len(weight), used_cache, halt_cache, output_cache, tokens))
        # 5. the living go on; imposed decisions are on the host, ``halted`` may be on the device
        if layer < L:
            steps.advance(halted if imposed is None else imposed, layer)
    lengths = [len(weight) for weight in weights]
    result = JointResult(y, arrays.join_rows(weights), lengths, steps.halting_layer, execution.compact)
    return result, JointCache(caches, size) if keep else None


def joint_backward(
    context: Context, config: HaltingVTConfig, dy: Array, dponder: Array, cache: JointCache, remainders: Any
) -> Array:
    """The gradient of the state [B·N', D] that entered the first joint block.

    dy: of ``JointResult.y``; dponder [B, N']; remainders: the gather cache of ``HaltingOutcome``.
    """
    ops, arrays, size = context.ops, context.ops.arrays, cache.num_tokens
    # 6. the gradient of ρ reaches one weight per token, its remainder; pass 3 carries it to the earlier scores
    dweights = ops.gather.backward(dponder.reshape(-1), remainders)
    stop = len(dweights)
    dx: Array | None = None  # [rows, D] of the state that leaves the layer; only y reads the last one
    dused: Array | None = None  # [n]
    for layer in reversed(range(1, len(cache.layers) + 1)):
        saved = cache.layers[layer - 1]
        start = stop - saved.num_weights
        dweight, stop = dweights[start:stop], start  # [n]
        # 4. the output's term
        if saved.output is not None:
            dy, dx_of_y, dweight_of_y = _output_backward(context, dy, saved.output)
            dx, dweight = arrays.add(dx_of_y, dx), arrays.add(dweight_of_y, dweight)
        # 3. score, weight; channel 0 of the state is the logit
        if dused is None:
            dused = arrays.zeros(saved.num_weights, dy.dtype)
        dlogit, dused = ops.halt.backward(dweight, dused, saved.halt)
        for name, value in (("weight", dweight), ("logit", dlogit)) if context.tracing else ():
            context.record(f"d(joint.{layer}.{name})", _scatter(context, value, saved.tokens, size, dy.dtype))
        if layer < config.joint_depth:
            assert dx is not None
            dx = arrays.add_to_column(dx, 0, dlogit)
        # passes 2–1: the block, and the weight used so far
        if saved.block is not None:
            dx = _block_backward(context, f"blocks.{config.glimpser_depth + layer - 1}", dx, saved.block)
        if saved.used is not None:
            dused = ops.gather.backward(dused, saved.used)
    assert dx is not None
    return dx


# ---- 1. and 2. the block


class _BlockCache(NamedTuple):
    entering: Any  # of the gather into the block; None if nothing moved
    residual: Any  # of the gather of the query rows; None if every row is a query
    attention: AttentionCache | None
    mlp: MlpCache | None


def _block_forward(
    context: Context, config: HaltingVTConfig, layer: int, x: Array, plan: LayerPlan, execution: Execution
) -> tuple[Array, _BlockCache]:
    """The states [queries, D] after joint block ``layer``, from those after the layer before [·, D]."""
    ops, block = context.ops, f"blocks.{config.glimpser_depth + layer - 1}"
    # 1. the rows that enter; a zero row for a ghost, or for a halted token that keeps its row
    entering_cache = residual_cache = None
    if plan.entering_rows is not None:
        x, entering_cache = ops.gather.forward(x, plan.entering_rows, keep=context.keep)  # [rows, D]
    context.record(f"{block}.entering", x)
    # 2. attention and MLP; only the query rows come out
    residual = x
    if plan.query_rows is not None:
        residual, residual_cache = context.take_rows(x, plan.query_rows)  # [queries, D]
    scales = [None, None]
    if execution.drop_path is not None and plan.query_counts is not None:
        of_clips = execution.drop_path.joint[layer - 1]  # [2, B]
        scales = list(np.repeat(of_clips, plan.query_counts, axis=1).astype(x.dtype))  # [2, queries]
    segments = Segments(
        plan.key_offsets, plan.key_offsets if plan.query_offsets is None else plan.query_offsets, plan.key_bias
    )
    names = f"{block}.norm1", f"{block}.attn"
    x, attention_cache = attention_sublayer_forward(
        context, *names, x, residual, segments, config.num_heads, plan.query_rows, scales[0]
    )
    x, mlp_cache = mlp_sublayer_forward(context, block, x, scales[1])
    return x, _BlockCache(entering_cache, residual_cache, attention_cache, mlp_cache)


def _block_backward(context: Context, block: str, dx: Array | None, cache: _BlockCache) -> Array:
    """The gradient of the states after the layer before, from dx [queries, D]."""
    ops, arrays = context.ops, context.ops.arrays
    assert dx is not None
    assert cache.mlp is not None
    assert cache.attention is not None
    # 2. MLP and attention
    dx = mlp_sublayer_backward(context, dx, cache.mlp)
    dentered, dresidual = attention_sublayer_backward(context, dx, cache.attention)
    if cache.residual is not None:
        dresidual = ops.gather.backward(dresidual, cache.residual)
    dx = arrays.add(dentered, dresidual)  # [rows, D]
    context.record(f"d({block}.entering)", dx)
    # 1. the rows that entered; the gradient at a zero row (a ghost's) is discarded
    return dx if cache.entering is None else ops.gather.backward(dx, cache.entering)


# ---- 3. halting


def _halt_forward(
    context: Context, config: HaltingVTConfig, layer: int, x: Array, used: Array, imposed: Array | None
) -> tuple[Array, Array, Array, Any]:
    """weight, used', halted [n] of the tokens that have a row, and the cache.

    Channel 0 of a state is its halting logit. In dense execution a halted token keeps its row; it has used up its
    weight (used = 1), so it halts again with weight 0. In the last layer every token halts, whatever its state is: only
    ``used`` is read, and x may hold the row of CLS alone.
    """
    last = layer == config.joint_depth
    logit = None if last else context.ops.arrays.column(x, 0)  # [n]; in the last layer every score is 1
    (weight, used, halted), cache = context.ops.halt.forward(
        logit, used, config.halting_scale, config.halting_center, config.epsilon, last, imposed, keep=context.keep
    )
    return weight, used, halted, cache


def _living_tokens(context: Context, halting_layer: Array) -> Array:
    """The tokens that no layer has halted yet, of all B·N', for traces; else none."""
    if not context.tracing:
        return np.empty(0, np.int64)
    return np.flatnonzero(context.ops.arrays.to_numpy(halting_layer) == 0)


def _record_halting(
    context: Context, config: HaltingVTConfig, layer: int, x: Array, weight: Array, tokens: Array, size: int
) -> None:
    """Record logit and weight of a layer for every token [B·N'], zero where a token has halted before."""
    if not context.tracing:
        return
    logit = None if layer == config.joint_depth else context.ops.arrays.column(x, 0)
    for name, values in (("logit", logit), ("weight", weight)):
        context.record(f"joint.{layer}.{name}", _scatter(context, values, tokens, size, x.dtype))


def _scatter(context: Context, values: Array | None, tokens: Array, size: int, dtype: Any) -> Array:
    """Values of the living tokens in the places of all tokens [size], else zero."""
    full = np.zeros(size, dtype=dtype)
    if values is not None:
        given = context.ops.arrays.to_numpy(values)
        full[tokens] = given[tokens] if len(given) == size else given
    return full


# ---- 4. the output


class _OutputCache(NamedTuple):
    term: Any  # of the gather of the states that are read; None if all are
    weight: Any  # of the gather of their weights
    accumulate: Any


def _output_forward(
    context: Context, execution: Execution, x: Array, weight: Array, y: Array, plan: LayerPlan, tokens: Array
) -> tuple[Array, _OutputCache]:
    """y + weight · x for the tokens whose output is read: y [B, D] for CLS, or [B·N', D] for all."""
    term_cache = weight_cache = None
    if execution.compact or not execution.every_output:
        # [B] two indices: in the last block only CLS has a state, but every living token has a weight
        rows, places = plan.cls_rows, plan.cls_tokens
        if execution.every_output:  # [B·N'] the row of every token, −1 if it has halted before
            assert context.tracing  # else the living tokens are not known here
            rows = places = np.full(len(y), -1)
            places[tokens] = np.arange(len(tokens))
        x, term_cache = context.take_rows(x, rows)
        weight, weight_cache = context.take_rows(weight, places)
    y, accumulate_cache = context.ops.accumulate.forward(y, x, weight, keep=context.keep)
    return y, _OutputCache(term_cache, weight_cache, accumulate_cache)


def _output_backward(context: Context, dy: Array, cache: _OutputCache) -> tuple[Array, Array, Array]:
    """The gradients of y before the layer, of the states after it and of their weights."""
    ops = context.ops
    dy, dterm, dweight = ops.accumulate.backward(dy, cache.accumulate)
    if cache.term is not None:
        dterm, dweight = ops.gather.backward(dterm, cache.term), ops.gather.backward(dweight, cache.weight)
    return dy, dterm, dweight


# ---- 6. when each token halted


class HaltingOutcome(NamedTuple):
    """When each token halted, on the host: known once the logits are computed."""

    ponder: Array  # [B, N'] where the backend computes; NaN for tokens still alive when their clip left
    halting_layer: Array  # int64 [B, N'], 0 for those
    alive: Array  # bool [B, L, N'] the tokens that entered each layer
    remainder_cache: Any  # of the gather of the remainders


def halting_outcome(
    context: Context, config: HaltingVTConfig, result: JointResult, B: int, leave_early: bool
) -> HaltingOutcome:
    """Pass 6: ρ = N_k + r_k for every token, and the layers that it entered; leave_early as in ``Execution``."""
    arrays = context.ops.arrays
    recorded = np.array(arrays.to_numpy(result.halting_layer)).reshape(B, -1)  # [B, N']
    layers, alive = _layers_lived(recorded, config.joint_depth, leave_early)
    place = _places_of_remainders(layers.ravel(), alive, result)  # [B·N']
    remainder, cache = context.ops.gather.forward(result.weights, place, keep=context.keep)  # [B·N']
    count = arrays.from_numpy(np.where(place < 0, np.nan, layers.ravel()), remainder.dtype)
    return HaltingOutcome(arrays.add(remainder, count).reshape(layers.shape), layers, alive, cache)


def _layers_lived(recorded: Array, L: int, leave_early: bool) -> tuple[Array, Array]:
    """The halting layer of each token [B, N'], and the tokens that entered each layer, bool [B, L, N'].

    recorded [B, N']: 0 where no layer before the last has halted the token. Such a token halts in layer L, unless its
    clip has left before: then its halting layer stays 0, not known. With L = 4 and ``leave_early``, a clip whose CLS
    (token 0) halts in layer 2::

        recorded        2  1  0  0
        last entered    2  1  2  2
        halting layer   2  1  0  0
    """
    unhalted = recorded == 0
    last_entered = np.where(unhalted, L, recorded)  # [B, N']
    if leave_early:
        cls = last_entered[:, :1]  # [B, 1]
        last_entered = np.minimum(last_entered, cls)
        unhalted &= last_entered == L
    layers = np.where(unhalted, L, recorded)
    return layers, last_entered[:, None, :] > np.arange(L)[:, None]


def _places_of_remainders(layers: Array, alive: Array, result: JointResult) -> Array:
    """Where the remainder of each token stands among the weights of all layers [B·N']; −1: it is not known.

    layers [B·N'] halting layers; alive [B, L, N'].
    """
    place, first = np.full(layers.size, -1), 0
    for layer, length in enumerate(result.lengths, 1):
        tokens = np.flatnonzero(alive[:, layer - 1]) if result.compact else np.arange(layers.size)
        halts = layers[tokens] == layer
        place[tokens[halts]] = first + np.flatnonzero(halts)
        first += length
    return place
