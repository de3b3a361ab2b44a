"""The discrete choices of a forward pass: the patches that the Glimpser keeps and the layer where each token halts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig

__all__ = ["Decisions", "check_decisions", "kept_places", "original_patches", "values_of_tokens"]


@dataclass(frozen=True)
class Decisions:
    """The decisions of a run, in a form that can be imposed on another run or another implementation.

    kept: one int64 array [B, T, S'] per Glimpser block: the original index of every patch that leaves the block, in
    order of rank; −1 is a fused token (with ``fuse_dropped`` the new one is last). A block without selection passes its
    patches on unchanged.
    halting_layer: int64 [B, N'], the layer N_k where each token halts, counted from 1. It is 0 for a token that was
    still alive when its clip left early; imposed on another run, such a token lives to the last layer.
    Each may be None: the other run then decides for itself.
    """

    kept: tuple[Array, ...] | None = None
    halting_layer: Array | None = None


def check_decisions(decisions: Decisions, config: HaltingVTConfig, B: int) -> Decisions:
    """Check decisions against a configuration and a batch size, and return them as int64 arrays.

    ValueError names the array that does not fit.
    """
    kept = decisions.kept
    T, sizes = config.num_frames, config.patches_entering()
    if kept is not None:
        if len(kept) != config.glimpser_depth:
            raise ValueError(f"decisions.kept: expected {config.glimpser_depth} arrays, got {len(kept)}")
        kept = tuple(np.asarray(a) for a in kept)
        for g, chosen in enumerate(kept):
            place = f"decisions.kept[{g}]"
            if chosen.shape != (B, T, sizes[g + 1]) or not np.issubdtype(chosen.dtype, np.integer):
                expected = f"integers of shape {[B, T, sizes[g + 1]]}"
                raise ValueError(f"{place}: expected {expected}, got {chosen.dtype} {list(chosen.shape)}")
    layers = decisions.halting_layer
    if layers is not None:
        layers = np.asarray(layers)
        shape, L = (B, config.joint_tokens), config.joint_depth
        if layers.shape != shape or not np.issubdtype(layers.dtype, np.integer):
            raise ValueError(
                f"decisions.halting_layer: expected integers of shape {list(shape)}, "
                f"got {layers.dtype} {list(layers.shape)}"
            )
        if layers.size and (layers.min() < 0 or layers.max() > L):
            raise ValueError(
                f"decisions.halting_layer: expected 0 to {L}, got {int(layers.min())} to {int(layers.max())}"
            )
        layers = np.where(layers == 0, L, layers).astype(np.int64)
    return Decisions(None if kept is None else tuple(a.astype(np.int64) for a in kept), layers)


def kept_places(kept: tuple[Array, ...], config: HaltingVTConfig) -> tuple[Array | None, ...]:
    """Positions of the imposed patches among the patches that enter each Glimpser block.

    kept: original indices [B, T, S'] for each block, as in ``Decisions``. Returns positions [B·T, k] for each block, or
    None for a block that keeps all patches. ValueError for a patch that does not enter its block or is named twice, and
    for other patches than all in a block that does not select.
    """
    B, T = kept[0].shape[:2] if kept else (0, 0)
    entering: Array = np.broadcast_to(np.arange(config.patches_per_frame), (B, T, config.patches_per_frame))
    found: list[Array | None] = []
    for g, leaving in enumerate(kept):
        k = config.num_kept_patches(g, entering.shape[2])
        if config.keep_rates[g] >= 1:
            if (leaving != entering).any():
                raise ValueError(f"decisions.kept[{g}]: expected every patch in its place (keep rate 1), got others")
            found.append(None)
        else:
            if config.fuse_dropped and (leaving[:, :, -1] != -1).any():
                raise ValueError(f"decisions.kept[{g}]: expected −1 (the fused token) last in every frame, got others")
            found.append(_places_of(leaving[:, :, :k], entering, g).reshape(B * T, k))
        entering = leaving
    return tuple(found)


def _places_of(wanted: Array, candidates: Array, block: int) -> Array:
    """Positions of the wanted patches among the candidates of their frame, both given by original index.

    wanted [B, T, k], candidates [B, T, S] → positions [B, T, k]. ValueError for a patch that is no candidate or is
    named twice.
    """
    match = wanted[..., :, None] == candidates[..., None, :]  # [B, T, k, S]
    # several fused tokens share the index −1: the j-th wanted one is the j-th candidate −1
    nth = np.cumsum(wanted[..., :, None] == wanted[..., None, :], axis=-1)
    nth = np.diagonal(nth, axis1=-2, axis2=-1)  # [B, T, k] number of times that this index was wanted so far
    match &= np.cumsum(match, axis=-1) == nth[..., None]
    if not match.any(axis=-1).all():
        b, t, rank = (int(i) for i in np.argwhere(~match.any(axis=-1))[0])
        raise ValueError(
            f"decisions.kept[{block}]: expected different patches that enter this block, got patch "
            f"{int(wanted[b, t, rank])} in clip {b}, frame {t}, which is named twice or does not enter"
        )
    return np.asarray(match.argmax(axis=-1))


def original_patches(places: list[Array | None], config: HaltingVTConfig, B: int) -> list[Array]:
    """Original indices [B, T, S'] of the patches that leave each Glimpser block (−1: a fused token).

    places: for each block, the positions [B·T, k] of the kept patches among those that entered; None if all are kept.
    """
    S, T = config.patches_per_frame, config.num_frames
    originals: Array = np.broadcast_to(np.arange(S), (B, T, S))
    kept = []
    for chosen in places:
        if chosen is not None:
            originals = np.take_along_axis(originals, chosen.reshape(B, T, -1), axis=2)
            if config.fuse_dropped:
                originals = np.concatenate([originals, np.full((B, T, 1), -1)], axis=2)
        kept.append(np.array(originals))
    return kept


def values_of_tokens(values: Array, kept: Array | None, other: float) -> Array:
    """Values of patches [B, T, S] in the order of the tokens that enter the joint blocks, [B, N'].

    kept [B, T, S']: the patches that the last Glimpser block passes on, None for all. CLS and fused patches get
    ``other``.
    """
    if kept is not None:
        values = np.where(kept >= 0, np.take_along_axis(values, np.maximum(kept, 0), axis=2), other)
    of_patches = values.transpose(0, 2, 1).reshape(len(values), -1)  # token 1 + s · T + t
    return np.concatenate([np.full((len(values), 1), other, of_patches.dtype), of_patches], axis=1)
