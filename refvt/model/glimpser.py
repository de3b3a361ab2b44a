"""A Glimpser block: attention through time, attention inside each frame, selection of patches, MLP.

Tokens are stored CLS first, then patch-major: row 1 + s·T + t of a clip is patch s of frame t. The T tokens of one
patch lie next to one another, as temporal attention needs them; they are called the *path* of the patch. (After a
selection s is a rank, so "patch s" may be another place of the picture in every frame.) Spatial attention needs the
tokens frame by frame, each frame with its own copy of CLS in front. ``plan.glimpser_plan`` gives the index arrays that
lead from one order to the other.

The passes of a block, forward and in reverse backward:

1. temporal attention along the path of every patch, then ``temporal_fc``, added to the patches
2. spatial attention in every frame, over a copy of CLS and the frame's patches
3. selection: every frame keeps the patches to which CLS attended most in pass 2; CLS becomes the mean of its T copies
4. MLP on what is left

Where only some rows are queries (compact execution), pass 3 chooses them in the middle of pass 2: the scores need the
keys of the frame and the query of CLS, nothing else.

Source: HaltingVT section 3.2; divided space-time attention is TimeSformer's, selection by CLS attention EViT's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.model.blocks import (
    AttentionCache,
    Context,
    MlpCache,
    Projected,
    Segments,
    attend,
    attention_cache_of,
    attention_sublayer_backward,
    attention_sublayer_forward,
    mlp_sublayer_backward,
    mlp_sublayer_forward,
    project_keys_values,
    project_output,
    project_queries,
    project_queries_keys_values,
)
from refvt.model.config import HaltingVTConfig
from refvt.model.plan import Execution, GlimpserPlan, frame_layout, glimpser_plan, merge_pays, selected_rows

__all__ = ["GlimpserCache", "glimpser_backward", "glimpser_forward"]


class GlimpserCache(NamedTuple):
    """What the backward of a Glimpser block needs."""

    temporal: _TemporalCache
    spatial: _SpatialCache
    selection: _SelectionCache
    mlp: MlpCache | None


def glimpser_forward(
    context: Context, config: HaltingVTConfig, i: int, x: Array, B: int, execution: Execution
) -> tuple[Array, Array | None, GlimpserCache | None]:
    """Glimpser block i on the state x [B·(1+S·T), D].

    Returns the state [B·(1+S'·T), D] that leaves it; the places [B·T, k] of the kept patches among those that entered,
    None if all go on in their places; and the cache.
    """
    block, T = f"blocks.{i}", config.num_frames
    S = (len(x) // B - 1) // T
    plan = glimpser_plan(config, i, B, S, execution.compact, x.dtype)
    drop_path = None if execution.drop_path is None else execution.drop_path.glimpser[i]

    def scales_of(units: Array, rows: int) -> Array:
        """DropPath's scale of every row, from that of every unit of ``rows`` rows (a path, a frame or a clip)."""
        return np.repeat(units.ravel(), rows).astype(x.dtype)

    # 1. temporal attention
    merge = execution.compact and not context.keep and not context.tracing and drop_path is None
    scales = None if drop_path is None else scales_of(drop_path.temporal, T)
    x, temporal = _temporal_forward(context, config, block, x, plan, scales, merge and merge_pays(config, S))
    # 2. spatial attention, 3. with the choice of the patches to keep
    scales = None if drop_path is None else scales_of(drop_path.spatial, 1 + plan.num_queries)
    imposed = None if execution.kept_places is None else execution.kept_places[i]
    frames, chosen, spatial = _spatial_forward(context, config, block, x, plan, scales, imposed)
    # 3. the rows that go on
    x, selection = _selection_forward(context, block, frames, plan, chosen, B, T)
    # 4. MLP
    scales = None if drop_path is None else scales_of(drop_path.mlp, len(x) // B)
    x, mlp = mlp_sublayer_forward(context, block, x, scales)
    return x, chosen.places, GlimpserCache(temporal, spatial, selection, mlp) if context.keep else None


def glimpser_backward(context: Context, i: int, dx: Array, cache: GlimpserCache) -> Array:
    """The gradient of the state that entered block i, from that of the state that left it."""
    block = f"blocks.{i}"
    assert cache.mlp is not None
    # 4. MLP
    dx = mlp_sublayer_backward(context, dx, cache.mlp)
    # 3. selection
    dframes, dq_dk = _selection_backward(context, block, dx, cache.selection)
    # 2. spatial attention
    dx = _spatial_backward(context, block, dframes, dq_dk, cache.spatial)
    # 1. temporal attention
    return _temporal_backward(context, block, dx, cache.temporal)


# ---- 1. temporal attention


class _TemporalCache(NamedTuple):
    paths: Any  # of the gather of the paths
    attention: AttentionCache | None
    to_state: Any  # of the gather back to the order of the state
    fc: Any


def _temporal_forward(
    context: Context,
    config: HaltingVTConfig,
    block: str,
    x: Array,
    plan: GlimpserPlan,
    row_scales: Array | None,
    merge: bool,
) -> tuple[Array, _TemporalCache]:
    """x + temporal_fc(temporal_attn(x)) at the patches, x at CLS.

    x [B·N, D]; row_scales [B·S·T] are DropPath's. merge: the two linear layers after attention are multiplied into one.
    """
    ops, keep, A = context.ops, context.keep, config.num_heads
    norm, attn, fc = f"{block}.temporal_norm1", f"{block}.temporal_attn", f"{block}.temporal_fc"
    paths, paths_cache = ops.gather.forward(x, plan.path_rows, keep=keep)  # [B·S·T, D]
    segments = Segments(plan.path_offsets, plan.path_offsets)
    cache = None
    if merge:
        projected = project_queries_keys_values(context, norm, attn, paths)
        temporal, _ = attend(context, attn, projected, segments, A)  # [B·S·T, D]
        weight, bias = _merged_layer(context, f"{attn}.proj", fc)
    else:
        temporal, cache = attention_sublayer_forward(
            context, norm, attn, paths, None, segments, A, row_scales=row_scales
        )  # [B·S·T, D]
        weight, bias = context.weight_and_bias(fc)
    temporal, to_state_cache = ops.gather.forward(temporal, plan.state_paths, keep=keep)  # [B·N, D], zero at CLS
    # the scale of a row is 0 at CLS: it keeps its state, without the bias of temporal_fc
    x, fc_cache = ops.linear.forward(temporal, weight, bias, x, plan.is_patch, keep=keep)  # [B·N, D]
    context.record(fc, x)
    return x, _TemporalCache(paths_cache, cache, to_state_cache, fc_cache)


def _merged_layer(context: Context, first: str, second: str) -> tuple[Array, Array]:
    """The weight W₂ W₁ and the bias W₂ b₁ + b₂ of two linear layers, one after the other."""
    (W1, b1), (W2, b2) = context.weight_and_bias(first), context.weight_and_bias(second)
    bias, _ = context.ops.linear.forward(b1.reshape(1, -1), W2, b2, keep=False)  # [1, D]
    return context.ops.arrays.matmul(W2, W1), bias.reshape(-1)


def _temporal_backward(context: Context, block: str, dx: Array, cache: _TemporalCache) -> Array:
    """The gradient of the state [B·N, D] before temporal attention."""
    ops = context.ops
    assert cache.attention is not None
    context.record(f"d({block}.temporal_fc)", dx)
    dtemporal, dweight, dbias, dresidual = ops.linear.backward(dx, cache.fc)
    context.set_gradient(f"{block}.temporal_fc", dweight, dbias)
    dtemporal = ops.gather.backward(dtemporal, cache.to_state)  # [B·S·T, D]
    dpaths, _ = attention_sublayer_backward(context, dtemporal, cache.attention)
    return ops.arrays.add(dresidual, ops.gather.backward(dpaths, cache.paths))


# ---- 2. spatial attention, with the choice of pass 3


class _Choice(NamedTuple):
    """Which patches of each frame are kept."""

    places: Array | None = None  # [B·T, k] among those that entered, in descending order of score; None: all
    scores: Array | None = None  # [B·T, S]
    scores_cache: Any = None


class _SpatialCache(NamedTuple):
    frames: Any  # of the gather into frame order
    residual: Any  # of the gather of the residual; None if the frames are the residual
    attention: AttentionCache | None


def _spatial_forward(
    context: Context,
    config: HaltingVTConfig,
    block: str,
    x: Array,
    plan: GlimpserPlan,
    row_scales: Array | None,
    imposed: Array | None,
) -> tuple[Array, _Choice, _SpatialCache]:
    """The rows of all frames [B·T·(1+S), D] after attention, or of CLS and the kept patches alone [B·T·(1+k), D].

    x [B·N, D]; row_scales: DropPath's, one per row that comes out; imposed [B·T, k]: places to keep.
    """
    keep, attn = context.keep, f"{block}.attn"
    frames, frames_cache = context.ops.gather.forward(x, plan.frame_order, keep=keep)  # [B·T·(1+S), D]
    queries_of = _kept_queries if plan.few_queries else _all_queries
    queries = queries_of(context, config, block, x, frames, plan, imposed)
    segments = Segments(plan.frame_offsets, queries.offsets)
    y, attention_cache = attend(context, attn, queries.projected, segments, config.num_heads)
    out, proj_cache = project_output(context, attn, y, queries.residual, row_scales)
    cache = attention_cache_of(context, f"{block}.norm1", attn, queries.projected, attention_cache, proj_cache)
    return out, queries.choice, _SpatialCache(frames_cache, queries.residual_cache, cache)


class _Queries(NamedTuple):
    """The rows that are queries in spatial attention, projected, with their skip input."""

    projected: Projected
    offsets: Array  # [B·T+1] the queries of each frame
    residual: Array  # [queries, D]
    residual_cache: Any  # of its gather; None if the frames are the residual
    choice: _Choice


def _all_queries(
    context: Context,
    config: HaltingVTConfig,
    block: str,
    x: Array,
    frames: Array,
    plan: GlimpserPlan,
    imposed: Array | None,
) -> _Queries:
    """Every row of every frame is a query."""
    projected = project_queries_keys_values(context, f"{block}.norm1", f"{block}.attn", frames)
    choice = _choose_patches(context, block, config, plan, projected, imposed) if plan.selects else _Choice()
    if plan.cls_keeps_skip:
        return _Queries(projected, plan.frame_offsets, frames, None, choice)
    residual, cache = context.ops.gather.forward(x, plan.residual_rows, keep=context.keep)  # [B·T·(1+S), D]
    return _Queries(projected, plan.frame_offsets, residual, cache, choice)


def _kept_queries(
    context: Context,
    config: HaltingVTConfig,
    block: str,
    x: Array,
    frames: Array,
    plan: GlimpserPlan,
    imposed: Array | None,
) -> _Queries:
    """Only CLS and the patches that pass 3 keeps are queries: the others would be dropped with their answers."""
    arrays, norm, attn, T = context.ops.arrays, f"{block}.norm1", f"{block}.attn", config.num_frames
    projected = project_keys_values(context, norm, attn, frames)
    choice = _choose_patches(context, block, config, plan, _query_of_cls(context, attn, projected, plan), imposed)
    assert choice.places is not None
    rows = arrays.take_patches(plan.frame_table, choice.places).reshape(-1)  # [B·T·(1+k)]
    projected = project_queries(context, attn, projected, rows)
    residual, cache = context.ops.gather.forward(x, arrays.take(plan.residual_rows, rows), keep=context.keep)
    offsets = frame_layout(len(plan.frame_table) // T, T, plan.num_kept).offsets
    return _Queries(projected, offsets, residual, cache, choice)


def _query_of_cls(context: Context, attn: str, projected: Projected, plan: GlimpserPlan) -> Projected:
    """``projected`` with q [B·T·(1+S), D] of CLS in every frame, zero at the patches: all that the scores need."""
    ops, D = context.ops, projected.k.shape[1]
    weight, bias = context.weight_and_bias(f"{attn}.qkv")
    cls, _ = ops.gather.forward(projected.normed, plan.cls_rows, keep=False)  # [B·T, D]
    q, _ = ops.linear.forward(cls, weight[:D], bias[:D], keep=False)  # [B·T, D]
    return projected._replace(q=ops.gather.forward(q, plan.cls_of_row, keep=False)[0])


def _choose_patches(
    context: Context,
    block: str,
    config: HaltingVTConfig,
    plan: GlimpserPlan,
    projected: Projected,
    imposed: Array | None,
) -> _Choice:
    """The k patches of every frame with the highest scores, or the imposed ones [B·T, k].

    The score of a patch is the weight that CLS gives it in spatial attention, the mean over heads.
    """
    ops = context.ops
    scores, cache = ops.cls_scores.forward(
        projected.q, projected.k, plan.frame_offsets, config.num_heads, keep=context.keep and plan.fuses
    )  # [B·T, S]
    context.record(f"{block}.scores", scores)
    places = ops.top_k(scores, plan.num_kept) if imposed is None else ops.arrays.from_numpy(imposed)  # [B·T, k]
    return _Choice(places, scores, cache)


def _spatial_backward(
    context: Context, block: str, dframes: Array, dq_dk: tuple[Array, Array] | None, cache: _SpatialCache
) -> Array:
    """The gradient of the state [B·N, D] before spatial attention; dq_dk: that of the scores' q and k."""
    ops, arrays = context.ops, context.ops.arrays
    assert cache.attention is not None
    dentered, dresidual = attention_sublayer_backward(context, dframes, cache.attention, dq_dk)
    if cache.residual is None:  # the frames were the residual
        dx: Array = ops.gather.backward(arrays.add(dentered, dresidual), cache.frames)
        return dx
    return arrays.add(ops.gather.backward(dentered, cache.frames), ops.gather.backward(dresidual, cache.residual))


# ---- 3. selection


class _SelectionCache(NamedTuple):
    patches: Any  # of the gather of the patches; None without a fused token
    fused: Any
    scores: Any
    num_rows: int  # rows in frame order; fused tokens follow them
    leaving: Any  # of the gather of the rows that go on
    mean: Any


def _selection_forward(
    context: Context, block: str, frames: Array, plan: GlimpserPlan, choice: _Choice, B: int, T: int
) -> tuple[Array, _SelectionCache]:
    """The state [B·(1+S'·T), D] of the patches that go on, from rows in frame order [·, D]."""
    ops, arrays, keep = context.ops, context.ops.arrays, context.keep
    patches_cache = fused_cache = None
    num_rows = len(frames)
    if plan.fuses:  # one more token per frame: the sum of the dropped patches, weighted by their scores
        patches, patches_cache = ops.gather.forward(frames, plan.patch_rows, keep=keep)  # [B·T·S, D]
        fused, fused_cache = ops.fuse_dropped.forward(patches, choice.scores, choice.places, keep=keep)  # [B·T, D]
        context.record(f"{block}.fused", fused)
        frames = arrays.join_rows([frames, fused])  # [B·T·(1+S) + B·T, D]
    rows, mean_offsets = selected_rows(plan, arrays, choice.places, B, T)
    x, leaving_cache = ops.gather.forward(frames, rows, keep=keep)  # [B·(1+S')·T, D]
    x, mean_cache = ops.segment_mean.forward(x, mean_offsets, keep=keep)  # [B·(1+S'·T), D]
    context.record(f"{block}.selected", x)
    return x, _SelectionCache(patches_cache, fused_cache, choice.scores_cache, num_rows, leaving_cache, mean_cache)


def _selection_backward(
    context: Context, block: str, dx: Array, cache: _SelectionCache
) -> tuple[Array, tuple[Array, Array] | None]:
    """The gradient of the rows in frame order, and of the scores' q and k if a token was fused.

    Selection is a gather: its indices carry no gradient. Only the weights of a fused token, the scores, do.
    """
    ops, arrays = context.ops, context.ops.arrays
    context.record(f"d({block}.selected)", dx)
    dframes = ops.gather.backward(ops.segment_mean.backward(dx, cache.mean), cache.leaving)
    if cache.fused is None:
        return dframes, None
    dframes, dfused = dframes[: cache.num_rows], dframes[cache.num_rows :]  # [B·T·(1+S), D], [B·T, D]
    context.record(f"d({block}.fused)", dfused)
    dpatches, dscores = ops.fuse_dropped.backward(dfused, cache.fused)
    context.record(f"d({block}.scores)", dscores)
    dframes = arrays.add(dframes, ops.gather.backward(dpatches, cache.patches))
    return dframes, ops.cls_scores.backward(dscores, cache.scores)
