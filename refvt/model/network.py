"""The whole network on checked arrays: clip → tokens → Glimpser blocks → joint blocks → heads, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

from refvt.array import Array
from refvt.model.blocks import Context
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import original_patches
from refvt.model.glimpser import GlimpserCache, glimpser_backward, glimpser_forward
from refvt.model.joint import (
    HaltingOutcome,
    JointCache,
    JointResult,
    halting_outcome,
    joint_backward,
    joint_forward,
)
from refvt.model.plan import Execution
from refvt.packing import first_rows

__all__ = [
    "ForwardResult",
    "NetworkCache",
    "NetworkResult",
    "network_backward",
    "network_forward",
    "network_result",
]


class ForwardResult(NamedTuple):
    """The results of a forward pass, still where the backend computes."""

    logits: Array  # [B, K]
    motion_logits: Array  # [B, 2]
    features: Array  # [B, D] CLS after the last norm
    kept_places: list[Array | None]  # per Glimpser block [B·T, k] the places of the kept patches; None: all stay
    joint: JointResult


class NetworkResult(NamedTuple):
    """The results of a pass, with its decisions on the host."""

    logits: Array  # [B, K]
    motion_logits: Array  # [B, 2]
    features: Array  # [B, D]
    kept: list[Array]  # per Glimpser block [B, T, S'] original patch indices
    halting: HaltingOutcome


class NetworkCache(NamedTuple):
    """What the backward pass needs."""

    embed: Any
    glimpser: list[GlimpserCache]
    joint: JointCache
    remainders: Any  # the gather cache of ``HaltingOutcome``
    cls: Any  # of the gather of the CLS rows
    norm: Any
    head: Any
    motion_head: Any


def network_forward(
    context: Context, config: HaltingVTConfig, clips: Array, execution: Execution
) -> tuple[ForwardResult, NetworkCache | None]:
    """Passes 1 to 4 on clips [B, C, T, H, W] in the model's dtype."""
    ops, keep, B = context.ops, context.keep, clips.shape[0]
    # 1. tokens
    proj = context.weight_and_bias("patch_embed.proj")
    embeddings = (context.parameters[name] for name in ("cls_token", "pos_embed", "time_embed"))
    x, embed_cache = ops.embed.forward(clips, *proj, *embeddings, keep=keep)  # [B·N, D]
    context.record("embed", x)
    # 2. Glimpser blocks
    kept_places: list[Array | None] = []
    glimpser_caches: list[GlimpserCache] = []
    for g in range(config.glimpser_depth):
        x, places, cache = glimpser_forward(context, config, g, x, B, execution)  # [B·(1+S'·T), D]
        kept_places.append(places)
        if cache is not None:
            glimpser_caches.append(cache)
    # 3. joint blocks
    joint, joint_cache = joint_forward(context, config, x, B, execution)
    context.record("y", joint.y)
    # 4. norm and heads read CLS
    cls, cls_cache = ops.gather.forward(joint.y, first_rows(B, len(joint.y) // B), keep=keep)  # [B, D]
    features, norm_cache = ops.layernorm.forward(cls, *context.weight_and_bias("norm"), keep=keep)  # [B, D]
    logits, head_cache = ops.linear.forward(features, *context.weight_and_bias("head"), keep=keep)  # [B, K]
    motion_head = context.weight_and_bias("motion_head")
    motion_logits, motion_cache = ops.linear.forward(features, *motion_head, keep=keep)  # [B, 2]
    for name, tensor in (("norm", features), ("logits", logits), ("motion_logits", motion_logits)):
        context.record(name, tensor)
    result = ForwardResult(logits, motion_logits, features, kept_places, joint)
    if joint_cache is None:
        return result, None
    return result, NetworkCache(
        embed=embed_cache,
        glimpser=glimpser_caches,
        joint=joint_cache,
        remainders=None,
        cls=cls_cache,
        norm=norm_cache,
        head=head_cache,
        motion_head=motion_cache,
    )


def network_result(
    context: Context,
    config: HaltingVTConfig,
    found: ForwardResult,
    B: int,
    leave_early: bool,
    cache: NetworkCache | None,
) -> tuple[NetworkResult, NetworkCache | None]:
    """5. The decisions, brought to the host after everything else has been launched."""
    halting = halting_outcome(context, config, found.joint, B, leave_early)
    context.record("ponder", halting.ponder)
    to_numpy = context.ops.arrays.to_numpy
    places = [None if chosen is None else to_numpy(chosen) for chosen in found.kept_places]
    kept = original_patches(places, config, B)
    result = NetworkResult(found.logits, found.motion_logits, found.features, kept, halting)
    return result, None if cache is None else cache._replace(remainders=halting.remainder_cache)


def network_backward(
    context: Context,
    config: HaltingVTConfig,
    dlogits: Array,
    dmotion_logits: Array,
    dponder: Array,
    cache: NetworkCache,
) -> None:
    """Store the gradient of every parameter. dlogits [B, K], dmotion_logits [B, 2], dponder [B, N']."""
    ops, arrays, record = context.ops, context.ops.arrays, context.record
    for name, tensor in (("logits", dlogits), ("motion_logits", dmotion_logits), ("ponder", dponder)):
        record(f"d({name})", tensor)
    # 4. heads and norm
    dfeatures, dweight, dbias, _ = ops.linear.backward(dlogits, cache.head)
    context.set_gradient("head", dweight, dbias)
    dmotion_features, dweight, dbias, _ = ops.linear.backward(dmotion_logits, cache.motion_head)
    context.set_gradient("motion_head", dweight, dbias)
    dfeatures = arrays.add(dfeatures, dmotion_features)  # [B, D]
    record("d(norm)", dfeatures)
    dcls, dweight, dbias = ops.layernorm.backward(dfeatures, cache.norm)
    context.set_gradient("norm", dweight, dbias)
    dy = ops.gather.backward(dcls, cache.cls)
    record("d(y)", dy)
    # 3. joint blocks
    dx = joint_backward(context, config, dy, dponder, cache.joint, cache.remainders)
    # 2. Glimpser blocks
    for g in reversed(range(config.glimpser_depth)):
        dx = glimpser_backward(context, g, dx, cache.glimpser[g])
    record("d(embed)", dx)
    # 1. tokens
    names = ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed", "time_embed")
    context.gradients.update(zip(names, ops.embed.backward(dx, cache.embed), strict=True))
    # a block that was never computed (every clip was done before it) leaves its parameters without a gradient
    for name, value in context.parameters.items():
        if name not in context.gradients:
            context.gradients[name] = arrays.zeros(value.shape, value.dtype)
