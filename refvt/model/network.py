"""The whole network on checked arrays: clip → tokens → Glimpser blocks → joint blocks → heads, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.model.blocks import Scope
from refvt.model.config import HaltingVTConfig
from refvt.model.glimpser import GlimpserCache, GlimpserGains, glimpser_backward, glimpser_forward, originals_of
from refvt.model.joint import Fates, JointCache, JointResult, joint_backward, joint_fates, joint_forward
from refvt.ops.compaction.reference import first_rows

__all__ = [
    "Gains",
    "Heads",
    "NetworkResult",
    "draw_gains",
    "network_backward",
    "network_forward",
    "network_result",
]


class Gains(NamedTuple):
    """DropPath's gains of one forward pass."""

    glimpser: list[GlimpserGains]
    joint: Array  # [L, 2, B]: attention and MLP of every joint block


def draw_gains(config: HaltingVTConfig, B: int, drop_path: float, rng: np.random.Generator) -> Gains:
    """Which paths drop: block i drops with rate drop_path · i / (depth − 1), survivors are divided by 1 − rate.

    One uniform number per unit is drawn, block by block, dropped where it is below the rate: in a Glimpser block
    [B, S] for temporal attention, [B, T] for spatial attention, [B] for the MLP; in a joint block [B] and [B].
    The draws do not depend on the execution. Source: SPEC of the parent work; Huang et al. 2016 (arXiv 1603.09382).
    """

    def gain(i: int, *shape: int) -> Array:
        rate = drop_path * i / max(config.depth - 1, 1)
        return np.where(rng.random(shape) >= rate, 1 / (1 - rate), 0.0)

    sizes, G = config.patches_entering(), config.glimpser_depth
    glimpser = [GlimpserGains(gain(g, B, sizes[g]), gain(g, B, config.num_frames), gain(g, B)) for g in range(G)]
    return Gains(glimpser, np.stack([np.stack([gain(i, B), gain(i, B)]) for i in range(G, config.depth)]))


class NetworkCache(NamedTuple):
    embed: Any
    glimpser: list[GlimpserCache]
    joint: JointCache
    fates: Any  # of the remainders, when they are known
    cls: Any  # of the gather of CLS rows
    norm: Any
    head: Any
    motion_head: Any


class Heads(NamedTuple):
    """What a forward pass leaves where it was computed."""

    logits: Array  # [B, K]
    motion_logits: Array  # [B, 2]
    features: Array  # [B, D]
    chosen: list[Array | None]  # per Glimpser block where the patches that go on stood
    joint: JointResult


class NetworkResult(NamedTuple):
    logits: Array  # [B, K]
    motion_logits: Array  # [B, 2]
    features: Array  # [B, D]
    kept: list[Array]  # per Glimpser block [B, T, S']
    fates: Fates


def network_forward(
    scope: Scope,
    config: HaltingVTConfig,
    clips: Array,
    compact: bool,
    every_output: bool = False,
    leave_early: bool = False,
    gains: Gains | None = None,
    kept: tuple[Array, ...] | None = None,
    halting_layer: Array | None = None,
) -> tuple[Heads, NetworkCache | None]:
    """clips [B, C, T, H, W] in the model's dtype; see ``joint_forward`` for the switches."""
    ops, keep, see = scope.ops, scope.keep, scope.see
    B = clips.shape[0]
    # 1. tokens
    x, embed_cache = ops.embed.forward(
        clips,
        *scope.pair("patch_embed.proj"),
        *(scope.parameters[name] for name in ("cls_token", "pos_embed", "time_embed")),
        keep=keep,
    )
    see("embed", x)
    # 2. Glimpser blocks
    chosen: list[Array | None] = []  # where the patches that go on stood in each block
    glimpser_caches: list[GlimpserCache] = []
    for g in range(config.glimpser_depth):
        x, places, cache = glimpser_forward(
            scope,
            config,
            g,
            x,
            B,
            compact,
            None if gains is None else gains.glimpser[g],
            None if kept is None else kept[: g + 1],
        )
        chosen.append(places)
        if cache is not None:
            glimpser_caches.append(cache)
    # 3. joint blocks
    joint, joint_cache = joint_forward(
        scope,
        config,
        x,
        B,
        compact,
        every_output,
        leave_early,
        None if gains is None else gains.joint,
        halting_layer,
    )
    see("y", joint.y)
    # 4. norm and heads read CLS
    stride = len(joint.y) // B
    cls, cls_cache = ops.gather.forward(joint.y, first_rows(B, stride), keep=keep)  # [B, D]
    features, norm_cache = ops.layernorm.forward(cls, *scope.pair("norm"), keep=keep)
    logits, head_cache = ops.linear.forward(features, *scope.pair("head"), keep=keep)
    motion_logits, motion_cache = ops.linear.forward(features, *scope.pair("motion_head"), keep=keep)
    for name, tensor in (("norm", features), ("logits", logits), ("motion_logits", motion_logits)):
        see(name, tensor)
    result = Heads(logits, motion_logits, features, chosen, joint)
    if not keep:
        return result, None
    assert joint_cache is not None
    return result, NetworkCache(
        embed_cache, glimpser_caches, joint_cache, None, cls_cache, norm_cache, head_cache, motion_cache
    )


def network_result(
    scope: Scope, config: HaltingVTConfig, heads: Heads, B: int, leave_early: bool, cache: NetworkCache | None = None
) -> tuple[NetworkResult, NetworkCache | None]:
    """5. what was decided comes to the host, when everything else that was asked for is on its way."""
    fates = joint_fates(scope, config, heads.joint, B, leave_early)
    scope.see("ponder", fates.ponder)
    kept = originals_of(scope, config, heads.chosen, B)
    result = NetworkResult(heads.logits, heads.motion_logits, heads.features, kept, fates)
    return result, None if cache is None else cache._replace(fates=fates.cache)


def network_backward(
    scope: Scope,
    config: HaltingVTConfig,
    dlogits: Array,
    dmotion_logits: Array,
    dponder: Array,
    cache: NetworkCache,
) -> None:
    """Puts the gradient of every parameter into the scope. dlogits [B, K], dmotion_logits [B, 2], dponder [B, N']."""
    ops, arrays, see = scope.ops, scope.ops.arrays, scope.see
    for name, tensor in (("logits", dlogits), ("motion_logits", dmotion_logits), ("ponder", dponder)):
        see(f"d({name})", tensor)
    # 4. heads and norm
    dfeatures, dweight, dbias, _ = ops.linear.backward(dlogits, cache.head)
    scope.put("head", dweight, dbias)
    dmoving, dweight, dbias, _ = ops.linear.backward(dmotion_logits, cache.motion_head)
    scope.put("motion_head", dweight, dbias)
    dfeatures = arrays.add(dfeatures, dmoving)
    see("d(norm)", dfeatures)
    dcls, dweight, dbias = ops.layernorm.backward(dfeatures, cache.norm)
    scope.put("norm", dweight, dbias)
    dy = ops.gather.backward(dcls, cache.cls)
    see("d(y)", dy)
    # 3. joint blocks
    dx = joint_backward(scope, config, dy, dponder, cache.joint, cache.fates)
    # 2. Glimpser blocks
    for g in reversed(range(config.glimpser_depth)):
        see(f"d(blocks.{g}.mlp)", dx)
        dx = glimpser_backward(scope, g, dx, cache.glimpser[g])
    see("d(embed)", dx)
    # 1. tokens
    names = ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed", "time_embed")
    scope.gradients.update(zip(names, ops.embed.backward(dx, cache.embed), strict=True))
    # a block nobody needed (every clip was done before it) leaves its parameters without a gradient
    for name, value in scope.parameters.items():
        if name not in scope.gradients:
            scope.gradients[name] = arrays.zeros(value.shape, value.dtype)
