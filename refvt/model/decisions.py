"""The discrete choices of a forward pass: which patches the Glimpser kept, at which layer each token halted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig

__all__ = ["Decisions", "check_decisions"]


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
