"""The discrete choices of a forward pass: which patches the Glimpser kept, at which layer each token halted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig

__all__ = ["Decisions", "check_decisions", "kept_places", "original_patches"]


@dataclass(frozen=True)
class Decisions:
    """What was decided, in a form that can be imposed on another run or another implementation.

    kept: one int64 array [B, T, S'] per Glimpser block, the original patch index of every patch token that leaves it,
    in order of rank; −1 is a fused token (with *fuse*, the one just made stands last). A block without selection passes
    its patches on. halting_layer: int64 [B, N'], N_k counted from 1; 0 for a token still alive when its clip left
    early, which, imposed on another run, lives to the last layer. Either may be None: the run itself then decides.
    """

    kept: tuple[Array, ...] | None = None
    halting_layer: Array | None = None


def check_decisions(decisions: Decisions, config: HaltingVTConfig, B: int) -> Decisions:
    """The decisions as int64 arrays; ValueError that says which of them does not fit the configuration or the batch."""
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
    """Imposed patches as places: where each stands among the patches that enter its block, None if all stay.

    kept: for each Glimpser block original indices [B, T, S'] as in ``Decisions``; returns [B·T, k] for each.
    ValueError for a patch that does not enter its block or is named twice, and for a block that cannot choose.
    """
    B, T = kept[0].shape[:2] if kept else (0, 0)
    entering: Array = np.broadcast_to(np.arange(config.patches_per_frame), (B, T, config.patches_per_frame))
    found: list[Array | None] = []
    for g, leaving in enumerate(kept):
        k = config.num_kept_patches(g, entering.shape[2])
        if config.keep_rates[g] >= 1:
            if (leaving != entering).any():
                raise ValueError(f"decisions.kept[{g}]: this block keeps every patch in its place (its keep rate is 1)")
            found.append(None)
        else:
            if config.fuse_dropped and (leaving[:, :, -1] != -1).any():
                raise ValueError(f"decisions.kept[{g}]: the last entry of a frame is its fused token and must be −1")
            found.append(_places_of(leaving[:, :, :k], entering, g).reshape(B * T, k))
        entering = leaving
    return tuple(found)


def _places_of(wanted: Array, candidates: Array, block: int) -> Array:
    """Where the wanted original patch indices stand among the candidates of their frame.

    wanted [B, T, k], candidates [B, T, S] → places [B, T, k]. ValueError for a patch that is no candidate or is named
    twice.
    """
    match = wanted[..., :, None] == candidates[..., None, :]  # [B, T, k, S]
    # several fused tokens share the name −1: the first wanted one is the first that stands there, and so on
    nth = np.cumsum(wanted[..., :, None] == wanted[..., None, :], axis=-1)
    nth = np.diagonal(nth, axis1=-2, axis2=-1)  # [B, T, k] how often this name was wanted so far
    match &= np.cumsum(match, axis=-1) == nth[..., None]
    if not match.any(axis=-1).all():
        b, t, rank = (int(i) for i in np.argwhere(~match.any(axis=-1))[0])
        raise ValueError(
            f"decisions.kept[{block}]: clip {b}, frame {t} names patch {int(wanted[b, t, rank])}, "
            "which is named twice or did not enter this block"
        )
    return np.asarray(match.argmax(axis=-1))


def original_patches(places: list[Array | None], config: HaltingVTConfig, B: int) -> list[Array]:
    """The original patches [B, T, S'] that leave each block (−1: a fused token), from their places.

    places: for each Glimpser block [B·T, k] among the patches that entered it; None where all stay.
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
