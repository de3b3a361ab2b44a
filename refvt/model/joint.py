"""The joint halting blocks: space-time attention over all living tokens of a clip, layer after layer, until all halt.

One layer is: bring the living tokens together (``plan``), attention, MLP, ``halt``, ``accumulate``. ``joint_backward``
walks the same layers in reverse. Which tokens have a row, and which rows are asked, is decided by index arrays alone;
dense and compact execution share every line below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
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
from refvt.model.plan import cls_rows, compact_plan, dense_plan
from refvt.ops.compaction import reference as compaction
from refvt.ops.compaction.reference import everyone

__all__ = ["Fates", "JointCache", "JointResult", "joint_backward", "joint_fates", "joint_forward"]


class _LayerCache(NamedTuple):
    entering: Any  # of the gather into the block, None if nothing moved
    asked: Any  # of the gather of the rows that ask, None if all do
    attention: AttentionHalfCache | None  # None: the block was not computed
    mlp: MlpHalfCache | None
    entered: int  # how many tokens did
    used: Any  # of the gather of `used` from the layer before, None if nothing moved
    halt: Any
    output: tuple[Any, Any, Any] | None  # of the gathers of x and weight (None: all rows are read), of the accumulation
    tokens: Array  # the tokens that entered, for traces


class JointCache(NamedTuple):
    layers: list[_LayerCache]
    rows: int


class JointResult(NamedTuple):
    y: Array  # [B, D] the output of CLS, or [B·N', D] of every token if all were asked for
    weights: Array  # what the tokens of every layer gave, one layer behind the other
    lengths: list[int]  # how many places each layer has there
    layers: Array  # int64 [B·N'] the halting layers, where the column computes; 0: not known, or the last
    packed: bool  # weights are of those who entered, one behind the other; else each token has its place


class Fates(NamedTuple):
    """What became of the tokens: known to the host once the logits are on their way."""

    ponder: Array  # [B, N'], NaN (in float) for tokens still alive when their clip left
    halting_layer: Array  # int64 [B, N'], 0 for those
    alive: Array  # bool [B, L, N'] who entered each layer
    cache: Any  # of the gather of the remainders


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
    size, halted_keys = B * N, config.halted_keys
    halting = (config.halting_scale, config.halting_center, config.epsilon)

    # what is imposed the host knows by itself; else it is told how many are left, for a gradient or a trace alone
    moves: Any = arrays if forced is None else compaction
    untold = not (keep or scope.tracing or every_output)

    def cls_only(layer: int) -> bool:
        return compact and layer == L and not every_output

    layers = arrays.zeros(size, np.int64) if forced is None else np.zeros(size, np.int64)  # at which each token halts
    survivors = everyone(B, N, cls_only(1))
    plan = dense_plan(B, N, None, None)
    y = arrays.zeros((size if every_output else B, D), dtype)
    used = arrays.zeros(size, dtype)  # weight used so far
    weights: list[Array] = []
    caches: list[_LayerCache] = []

    for layer in range(1, L + 1):
        if compact and survivors.counts is not None and not survivors.counts[0].any():
            break  # dense execution goes on, as the released model does
        block, last = f"blocks.{G + layer - 1}", layer == L
        # 1. bring together who takes part
        step = compact_plan(survivors, N, cls_only(layer), not keep) if compact else plan
        entering_cache = asked_cache = attention_cache = mlp_cache = None
        if step is not None:
            if step.entering is not None:
                x, entering_cache = ops.gather.forward(x, step.entering, keep=keep)  # [rows, D]
            see(f"{block}.entering", x)
            # 2. attention and MLP; only the rows that ask come out
            asked = x
            if step.queries is not None:
                asked, asked_cache = scope.rows(x, step.queries)
            gain = None
            if gains is not None and step.leaving is not None:
                gain = np.repeat(gains[layer - 1], step.leaving, axis=1).astype(dtype)
            key_bias = step.key_bias.astype(dtype) if isinstance(step.key_bias, np.ndarray) else step.key_bias
            x, _, attention_cache = attention_half_forward(
                scope,
                f"{block}.norm1",
                f"{block}.attn",
                x,
                asked,
                config.num_heads,
                step.key_offsets,
                step.query_offsets,
                step.queries,
                key_bias,
                None if gain is None else gain[0],
            )
            x, mlp_cache = mlp_half_forward(scope, block, x, None if gain is None else gain[1])
        # 3. score, decide, weigh: all tokens that entered the layer, in dense execution those that never left too: a
        # halted one has used up its weight, so that it halts again and gives nothing
        used_cache = None
        if survivors.goes_on is not None:
            used, used_cache = ops.gather.forward(used, survivors.goes_on, keep=keep)
        logit = None if last else arrays.column(x, 0)
        choice = None if forced is None else _choice(forced, layer, compact, leave_early)
        (weight, used, halted), halt_cache = ops.halt.forward(logit, used, *halting, last, choice, keep=keep)
        weights.append(weight)
        tokens = np.flatnonzero(arrays.to_numpy(layers) == 0) if scope.tracing else np.empty(0, np.int64)
        if scope.tracing:
            for name, values in (("logit", logit), ("weight", weight)):
                see(f"joint.{layer}.{name}", _scatter(arrays, values, tokens, size, dtype))
        # 4. one more term of the output of those that are read
        term_cache = share_cache = output = None
        if step is not None:
            term, share = x, weight
            if compact or not every_output:
                # [readers]
                nth, state_row = (_inverse(tokens, size),) * 2 if every_output else cls_rows(survivors, step, not keep)
                term, term_cache = scope.rows(x, state_row)
                share, share_cache = scope.rows(weight, nth)
            y, sum_cache = ops.accumulate.forward(y, term, share, keep=keep)
            output = term_cache, share_cache, sum_cache
        if keep:
            caches.append(
                _LayerCache(
                    entering_cache,
                    asked_cache,
                    attention_cache,
                    mlp_cache,
                    len(weight),
                    used_cache,
                    halt_cache,
                    output,
                    tokens,
                )
            )
        # 5. who halts here is done; who does not goes on
        if last:
            break
        if choice is not None:
            halted = choice
        if compact:
            survivors = moves.compact(
                *(halted, survivors, layers, layer, N, halted_keys == "zero", leave_early, cls_only(layer + 1)),
                dtype if untold else None,
            )
        else:
            plan = dense_plan(B, N, *moves.silence(halted, layers, layer, dtype, halted_keys == "masked"))

    result = JointResult(y, arrays.join_rows(weights), [len(weight) for weight in weights], layers, compact)
    return result, JointCache(caches, size) if keep else None


def joint_fates(scope: Scope, config: HaltingVTConfig, result: JointResult, B: int, leave_early: bool) -> Fates:
    """6. ponder = halting layer + remainder, and who was alive when: for the host, after everything else.

    leave_early as in ``joint_forward``.
    """
    arrays, L = scope.ops.arrays, config.joint_depth
    layers = np.array(arrays.to_numpy(result.layers)).reshape(B, -1)
    # who is left at the end halts there, if the clip is
    stayed = layers == 0
    lasts = np.where(stayed, L, layers)  # [B, N'] the last layer that each token entered
    if leave_early:
        lasts = np.minimum(lasts, lasts[:, :1])
        stayed &= lasts == L
    layers[stayed] = L
    alive = lasts[:, None, :] > np.arange(L)[:, None]  # [B, L, N']
    # where each token's remainder stands among the weights of all layers, one behind the other
    final, weighed = np.full(layers.size, -1), 0
    for layer, length in enumerate(result.lengths, 1):
        tokens = np.flatnonzero(alive[:, layer - 1]) if result.packed else np.arange(layers.size)
        halts = layers.ravel()[tokens] == layer
        final[tokens[halts]] = weighed + np.flatnonzero(halts)
        weighed += length
    remainder, cache = scope.ops.gather.forward(result.weights, final, keep=scope.keep)  # [B·N']
    count = arrays.from_numpy(np.where(final < 0, np.nan, layers.ravel()), remainder.dtype)
    return Fates(arrays.add(remainder, count).reshape(layers.shape), layers, alive, cache)


def _choice(forced: Array, layer: int, compact: bool, leave_early: bool) -> Array:
    """Who halts by imposed decisions [B, N'], among those who enter a layer."""
    if not compact:
        return np.asarray(forced.ravel() <= layer)
    alive = forced >= layer
    if leave_early:
        alive &= forced[:, :1] >= layer
    return np.asarray(forced[alive] == layer)


def _inverse(tokens: Array, size: int) -> Array:
    """[size] the position of each token in ``tokens``, −1 if it is not there."""
    where = np.full(size, -1)
    where[tokens] = np.arange(len(tokens))
    return where


def _scatter(arrays: Any, values: Array | None, tokens: Array, size: int, dtype: Any) -> Array:
    """Values of the living tokens in the places of all tokens, for traces."""
    full = np.zeros(size, dtype=dtype)
    if values is not None:
        given = arrays.to_numpy(values)
        full[tokens] = given[tokens] if len(given) == size else given
    return full


def joint_backward(
    scope: Scope, config: HaltingVTConfig, dy: Array, dponder: Array, cache: JointCache, fates: Any
) -> Array:
    """Returns the gradient of the state [B·N', D] that entered the first joint block.

    dy: the gradient of ``y`` as it was returned; dponder [B, N']; fates: the cache of ``joint_fates``.
    """
    ops, arrays, see = scope.ops, scope.ops.arrays, scope.see
    G, size, dtype = config.glimpser_depth, cache.rows, dy.dtype
    # 6. the remainders of all layers
    dweights = ops.gather.backward(dponder.reshape(-1), fates)
    stop = len(dweights)
    dx: Array | None = None  # of the state leaving the layer; nothing reads the last one but y
    dused: Array | None = None
    for index in reversed(range(len(cache.layers))):
        step = cache.layers[index]
        layer = index + 1
        block = f"blocks.{G + index}"
        start = stop - step.entered
        dweight = dweights[start:stop]
        stop = start
        # 4. the output's term
        if step.output is not None:
            term_cache, share_cache, sum_cache = step.output
            dy, dterm, dshare = ops.accumulate.backward(dy, sum_cache)
            if term_cache is not None:
                dterm, dshare = ops.gather.backward(dterm, term_cache), ops.gather.backward(dshare, share_cache)
            dx, dweight = arrays.add(dterm, dx), arrays.add(dshare, dweight)
        # 3. score and weight; 5. `used` of the living went on
        if dused is None:
            dused = arrays.zeros(step.entered, dtype)
        dlogit, dused = ops.halt.backward(dweight, dused, step.halt)
        if scope.tracing:
            see(f"d(joint.{layer}.weight)", _scatter(arrays, dweight, step.tokens, size, dtype))
            see(f"d(joint.{layer}.logit)", _scatter(arrays, dlogit, step.tokens, size, dtype))
        if layer < config.joint_depth:
            dx = arrays.add_to_column(dx, 0, dlogit)
        if step.used is not None:
            dused = ops.gather.backward(dused, step.used)
        # 2. MLP and attention
        if step.attention is None or step.mlp is None:  # no block was computed: x is the state before
            continue
        assert dx is not None
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
