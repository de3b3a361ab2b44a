"""A Glimpser block: attention through time, attention through space, selection, MLP.

Tokens are stored CLS first, then patch-major: row 1 + s·T + t of a clip is patch s of frame t. The T tokens of one
patch lie next to each other, which is the order temporal attention wants; spatial attention wants them frame by frame,
each frame with its own copy of CLS in front. ``_orders`` holds the index arrays that lead from one to the other.

The scores that decide who goes on need the keys and the query of CLS, no more. So in compact execution only CLS and the
patches that are kept ask: the others would be dropped with their answers (unless *fuse* keeps a sum of them). And where
no gradient is asked for, the two linear layers after temporal attention are one (``_merged``).
"""

from __future__ import annotations

from functools import lru_cache
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
from refvt.ops.compaction.reference import frozen, offsets_of

__all__ = ["GlimpserGains", "glimpser_backward", "glimpser_forward", "merges", "originals_of"]


class GlimpserGains(NamedTuple):
    """DropPath's gains of one block, one per unit that drops: temporal [B, S], spatial [B, T], mlp [B]."""

    temporal: Array
    spatial: Array
    mlp: Array


class _Orders(NamedTuple):
    """Nobody may write to them: they are made once for a size, and a GPU keeps its copies."""

    patch_rows: Array  # [B·S·T] the patch tokens of the state, in the order (clip, patch, frame)
    time_offsets: Array  # [B·S+1] one segment per path of a patch through time
    from_time: Array  # [B·N] state row → row of the temporal result, −1 at CLS
    is_patch: Array  # [B·N] 1.0 at patches, 0.0 at CLS
    frame_rows: Array  # [B·T·(1+S)] frame order: per frame the state's CLS row, then its patches
    frame_rows_no_cls: Array  # the same with −1 (a zero row) for CLS
    frames: Array  # [B·T, 1+S] the rows of each frame in frame order, CLS's first
    frame_offsets: Array  # [B·T+1]
    cls: Array  # [B·T] the rows of CLS in frame order
    of_cls: Array  # [B·T·(1+S)] which of those rows, −1 at patches
    patches: Array  # [B·T·S] the rows of patches in frame order


@lru_cache(maxsize=64)
def _orders(B: int, S: int, T: int, dtype: Any) -> _Orders:
    N = 1 + S * T
    state = np.arange(B * N).reshape(B, N)
    patches = state[:, 1:].reshape(B, S, T)
    from_time = np.full((B, N), -1)
    from_time[:, 1:] = np.arange(B * S * T).reshape(B, S * T)
    cls = np.broadcast_to(state[:, :1, None], (B, T, 1))
    by_frame = patches.transpose(0, 2, 1)  # [B, T, S]
    frames = np.arange(B * T * (1 + S)).reshape(B * T, 1 + S)
    of_cls = np.full(frames.shape, -1)
    of_cls[:, 0] = np.arange(B * T)
    orders = _Orders(
        patch_rows=patches.ravel(),
        time_offsets=np.arange(B * S + 1) * T,
        from_time=from_time.ravel(),
        is_patch=(from_time >= 0).ravel().astype(dtype),
        frame_rows=np.concatenate([cls, by_frame], axis=2).ravel(),
        frame_rows_no_cls=np.concatenate([np.full_like(cls, -1), by_frame], axis=2).ravel(),
        frames=frames,
        frame_offsets=np.arange(B * T + 1) * (1 + S),
        cls=frames[:, 0],
        of_cls=of_cls.ravel(),
        patches=frames[:, 1:].ravel(),
    )
    return _Orders(*(frozen(order) for order in orders))


class _Leaving(NamedTuple):
    """The state after a block that lets k patches of each frame go on, from rows in frame order that are all theirs."""

    rows: Array  # [B·T, 1+k] those rows, CLS's first
    by_place: Array  # [B·(1+k)·T] the same in the order of the state: CLS's T copies, then patch after patch
    asking: Array  # [B·T+1] where each frame's begin
    means: Array  # [B·(1+k·T)+1] segments of the state: CLS is the mean of its T copies, every other one row


@lru_cache(maxsize=64)
def _leaving(B: int, T: int, k: int) -> _Leaving:
    lengths = np.ones((B, 1 + k * T), dtype=np.int64)
    lengths[:, 0] = T
    rows = np.arange(B * T * (1 + k)).reshape(B * T, 1 + k)
    by_place = rows.reshape(B, T, 1 + k).transpose(0, 2, 1).ravel()
    asking, means = np.arange(B * T + 1) * (1 + k), offsets_of(lengths.ravel())
    return _Leaving(frozen(rows), frozen(by_place), frozen(asking), frozen(means))


@lru_cache(maxsize=64)
def _with_fused(B: int, T: int, S: int) -> Array:
    """[B·T, 1+S+1] the rows of each frame, and its fused token, which stand behind all frames."""
    frames = B * T
    fused = frames * (1 + S) + np.arange(frames)
    return frozen(np.concatenate([np.arange(frames * (1 + S)).reshape(frames, 1 + S), fused[:, None]], axis=1))


def _places_of(originals: Array, candidates: Array, block: int) -> Array:
    """Where the wanted original patch indices stand among the candidates of their frame.

    originals [B, T, k], candidates [B, T, S] → places [B, T, k]. ValueError for a patch that is no candidate or is
    named twice.
    """
    match = originals[..., :, None] == candidates[..., None, :]  # [B, T, k, S]
    # several fused tokens share the name −1: the first wanted one is the first that stands there, and so on
    nth = np.cumsum(originals[..., :, None] == originals[..., None, :], axis=-1)
    nth = np.diagonal(nth, axis1=-2, axis2=-1)  # [B, T, k] how often this name was wanted so far
    match &= np.cumsum(match, axis=-1) == nth[..., None]
    if not match.any(axis=-1).all():
        b, t, rank = (int(i) for i in np.argwhere(~match.any(axis=-1))[0])
        raise ValueError(
            f"decisions.kept[{block}]: clip {b}, frame {t} asks for patch {int(originals[b, t, rank])}, "
            "which is named twice or did not enter this block"
        )
    return np.asarray(match.argmax(axis=-1))


def _candidates(kept: tuple[Array, ...], i: int, shape: tuple[int, int, int]) -> Array:
    """The original patches [B, T, S] that enter block i, by imposed decisions."""
    return kept[i - 1] if i else np.broadcast_to(np.arange(shape[2]), shape)


def originals_of(scope: Scope, config: HaltingVTConfig, chosen: list[Array | None], B: int) -> list[Array]:
    """The original patches leaving each block [B, T, S'] (−1: fused), from where those that go on stood in it.

    chosen: for each block [B·T, S'], where the column computes; None where all go on in their places.
    """
    S, T = config.patches_per_frame, config.num_frames
    originals: Array = np.broadcast_to(np.arange(S), (B, T, S))
    kept = []
    for places in chosen:
        if places is not None:
            originals = np.take_along_axis(originals, scope.ops.arrays.to_numpy(places).reshape(B, T, -1), axis=2)
            if config.fuse_dropped:
                originals = np.concatenate([originals, np.full((B, T, 1), -1)], axis=2)
        kept.append(np.array(originals))
    return kept


class GlimpserCache(NamedTuple):
    temporal_rows: Any
    temporal: AttentionHalfCache
    to_state: Any
    temporal_fc: Any
    frames: Any
    residual: Any  # of the gather of the residual without CLS; None if the frames themselves were the residual
    spatial: AttentionHalfCache
    scores: Any
    patches: Any
    fused: Any
    frame_rows: int  # B·T·(1+S); fused tokens stand behind them
    leaving: Any
    mean: Any
    mlp: MlpHalfCache


def merges(config: HaltingVTConfig, patches: int) -> bool:
    """Is it less work to multiply the two layers after temporal attention than to apply both? For ``patches`` a frame.

    W₂ W₁ costs D³, each of the S·T patches of a clip then D² less. It is no question of the batch: a clip goes the same
    way alone and in company.
    """
    return patches * config.num_frames > config.width


def _merged(scope: Scope, first: str, second: str) -> tuple[Array, Array]:
    """Weight and bias of second(first(·)): W₂ W₁ and W₂ b₁ + b₂."""
    (W1, b1), (W2, b2) = scope.pair(first), scope.pair(second)
    bias, _ = scope.ops.linear.forward(b1.reshape(1, -1), W2, b2, keep=False)
    return scope.ops.arrays.matmul(W2, W1), bias.reshape(-1)


def glimpser_forward(
    scope: Scope,
    config: HaltingVTConfig,
    i: int,
    x: Array,
    B: int,
    compact: bool,
    gains: GlimpserGains | None = None,
    forced: tuple[Array, ...] | None = None,
) -> tuple[Array, Array | None, GlimpserCache | None]:
    """Block i on the state x [B·(1+S·T), D]: the state leaving it, where its patches stood among those that entered
    [B·T, S'] (None: all go on, in their places), cache.

    forced [B, T, S'] imposes the choice of this block and all before it. Source: HaltingVT section 3.2.
    """
    ops, keep, block, A = scope.ops, scope.keep, f"blocks.{i}", config.num_heads
    arrays, dtype, T = ops.arrays, x.dtype, config.num_frames
    S = (len(x) // B - 1) // T
    order = _orders(B, S, T, dtype)
    selects = config.keep_rates[i] < 1
    fuses = selects and config.fuse_dropped
    few_ask = compact and selects and not fuses
    merged = compact and not keep and not scope.tracing and gains is None and merges(config, S)

    def rows_of(gain: Array, repeats: int) -> Array:
        return np.repeat(gain.ravel(), repeats).astype(dtype)

    # 1. temporal attention along every patch's path, then temporal_fc, added to the patches (gain 0 keeps CLS as it is)
    paths, temporal_rows_cache = ops.gather.forward(x, order.patch_rows, keep=keep)  # [B·S·T, D]
    gain = None if gains is None else rows_of(gains.temporal, T)
    names = f"{block}.temporal_norm1", f"{block}.temporal_attn"
    moved, _, temporal_cache = attention_half_forward(
        scope, *names, paths, None, A, order.time_offsets, gain=gain, project=not merged
    )
    fc = f"{block}.temporal_fc"
    layer = _merged(scope, f"{block}.temporal_attn.proj", fc) if merged else scope.pair(fc)
    moved, to_state_cache = ops.gather.forward(moved, order.from_time, keep=keep)  # [B·N, D]
    x, temporal_fc_cache = ops.linear.forward(moved, *layer, x, order.is_patch, keep=keep)
    scope.see(f"{block}.temporal_fc", x)

    # 2. spatial attention in every frame, a copy of CLS with its patches
    frames, frames_cache = ops.gather.forward(x, order.frame_rows, keep=keep)  # [B·T·(1+S), D]
    # the released model loses the residual of CLS where it selects
    residual_rows = order.frame_rows_no_cls if selects and not config.cls_skip else order.frame_rows
    wanted = config.kept_patches(i, S)  # S itself where the block does not select
    places: Array | None = None
    scores = scores_cache = residual_cache = patches_cache = fused_cache = None

    def select(q: Array, k: Array) -> Array:
        """3. selection: the patches CLS attends to most go on, in order of score. Where they stand [B·T, k]."""
        nonlocal places, scores, scores_cache
        scores, scores_cache = ops.cls_scores.forward(q, k, order.frame_offsets, A, keep=keep and fuses)
        scope.see(f"{block}.scores", scores)
        if forced is None:
            places = ops.top_k(scores, wanted)
        else:
            if fuses and (forced[i][:, :, -1] != -1).any():
                raise ValueError(f"decisions.kept[{i}]: the last entry of a frame is its fused token and must be −1")
            found = _places_of(forced[i][:, :, :wanted], _candidates(forced, i, (B, T, S)), i)
            places = arrays.from_numpy(found.reshape(B * T, wanted))
        return places

    def cls_and_kept(normed: Array, k: Array) -> tuple[Array, Array]:
        """3. selection before anybody but CLS has asked: the rows of CLS and the kept patches, their residual."""
        nonlocal residual_cache
        asking, _ = ops.gather.forward(normed, order.cls, keep=False)
        weight, bias = scope.pair(f"{block}.attn.qkv")
        q, _ = ops.linear.forward(asking, weight[: config.width], bias[: config.width], keep=False)  # [B·T, D]
        chosen = select(ops.gather.forward(q, order.of_cls, keep=False)[0], k)
        rows = arrays.take_patches(order.frames, chosen).reshape(-1)
        residual, residual_cache = ops.gather.forward(x, arrays.take(residual_rows, rows), keep=keep)
        return rows, residual

    standing, residual = (wanted, None) if few_ask else (S, frames)
    if not few_ask and residual_rows is not order.frame_rows:
        residual, residual_cache = ops.gather.forward(x, residual_rows, keep=keep)
    gain = None if gains is None else rows_of(gains.spatial, 1 + standing)
    frames, (q, k), spatial_cache = attention_half_forward(
        scope,
        f"{block}.norm1",
        f"{block}.attn",
        frames,
        residual,
        A,
        order.frame_offsets,
        _leaving(B, T, standing).asking,
        cls_and_kept if few_ask else None,
        gain=gain,
    )
    if selects and not few_ask:
        select(q, k)
    elif not selects and forced is not None and (forced[i] != _candidates(forced, i, (B, T, S))).any():
        raise ValueError(f"decisions.kept[{i}]: this block keeps every patch in its place (its keep rate is 1)")
    index = _leaving(B, T, standing).by_place
    if fuses:
        patches, patches_cache = ops.gather.forward(frames, order.patches, keep=keep)  # [B·T·S, D]
        fused, fused_cache = ops.fuse_dropped.forward(patches, scores, places, keep=keep)  # [B·T, D]
        scope.see(f"{block}.fused", fused)
        frames = arrays.join_rows([frames, fused])
        index = arrays.frames_to_patches(arrays.take_patches(_with_fused(B, T, S), places, tail=1), T)
    elif selects and not few_ask:
        index = arrays.frames_to_patches(arrays.take_patches(_leaving(B, T, S).rows, places), T)
    x, leaving_cache = ops.gather.forward(frames, index, keep=keep)
    x, mean_cache = ops.segment_mean.forward(x, _leaving(B, T, wanted + fuses).means, keep=keep)  # [B·(1+S'·T), D]
    scope.see(f"{block}.selected", x)

    # 4. MLP on what is left
    gain = None if gains is None else rows_of(gains.mlp, len(x) // B)
    x, mlp_cache = mlp_half_forward(scope, block, x, gain)
    if not keep:
        return x, places, None
    assert temporal_cache is not None
    assert spatial_cache is not None
    assert mlp_cache is not None
    cache = GlimpserCache(
        temporal_rows_cache,
        temporal_cache,
        to_state_cache,
        temporal_fc_cache,
        frames_cache,
        residual_cache,
        spatial_cache,
        scores_cache,
        patches_cache,
        fused_cache,
        B * T * (1 + S),
        leaving_cache,
        mean_cache,
        mlp_cache,
    )
    return x, places, cache


def glimpser_backward(scope: Scope, i: int, dx: Array, cache: GlimpserCache) -> Array:
    """Returns the gradient of the state that entered block i; parameter gradients go to the scope."""
    ops, arrays, block = scope.ops, scope.ops.arrays, f"blocks.{i}"
    # 4. MLP
    dx = mlp_half_backward(scope, dx, cache.mlp)
    scope.see(f"d({block}.selected)", dx)
    # 3. selection is a gather; only the fused token's weights, the scores, carry a gradient back to q and k
    dframes = ops.gather.backward(ops.segment_mean.backward(dx, cache.mean), cache.leaving)
    extra = None
    if cache.fused is not None:
        dframes, dfused = dframes[: cache.frame_rows], dframes[cache.frame_rows :]
        scope.see(f"d({block}.fused)", dfused)
        dpatches, dscores = ops.fuse_dropped.backward(dfused, cache.fused)
        scope.see(f"d({block}.scores)", dscores)
        dframes = arrays.add(dframes, ops.gather.backward(dpatches, cache.patches))
        extra = ops.cls_scores.backward(dscores, cache.scores)
    # 2. spatial attention; its residual went in with or without CLS
    dentered, dresidual = attention_half_backward(scope, dframes, cache.spatial, extra)
    if cache.residual is None:  # the frames themselves were the residual
        dx = ops.gather.backward(arrays.add(dentered, dresidual), cache.frames)
    else:
        dx = arrays.add(ops.gather.backward(dentered, cache.frames), ops.gather.backward(dresidual, cache.residual))
    scope.see(f"d({block}.temporal_fc)", dx)
    # 1. temporal attention
    dmoved, dweight, dbias, dresidual = ops.linear.backward(dx, cache.temporal_fc)
    scope.put(f"{block}.temporal_fc", dweight, dbias)
    dpaths, _ = attention_half_backward(scope, ops.gather.backward(dmoved, cache.to_state), cache.temporal)
    dstate: Array = arrays.add(dresidual, ops.gather.backward(dpaths, cache.temporal_rows))
    return dstate
