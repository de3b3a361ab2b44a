"""The decisions that a PyTorch module took, read from what it computed.

In float16 and bfloat16 rounding alone can keep another patch or halt a token elsewhere. Such a decision is ambiguous
and not wrong, but only if it is known. A module that returns no decisions has still computed them: the indices of a
top-k or a sort are the kept patches, and ρ = N + r with 0 < r ≤ 1 says in which layer N a token halted.
"""

from __future__ import annotations

import numpy as np

from refvt.array import Array
from refvt.conformance.adapters.recorder import Event
from refvt.conformance.adapters.roles import SORTS
from refvt.model.config import HaltingVTConfig

__all__ = ["halting_layers", "kept_patches"]


def halting_layers(ponder: Array, expected: Array, eps: float) -> Array | None:
    """N [B, N'] from ρ [B, N'], whose numbers are multiples of about ``eps``; None for another shape or NaN.

    Where ρ is within rounding of a whole number, N is not certain: it is that of ``expected``, if that is possible.
    """
    if ponder.shape != expected.shape or not np.isfinite(ponder).all():
        return None
    tolerance = 4 * eps * np.abs(ponder)
    low, high = (np.ceil(ponder + sign * tolerance).astype(np.int64) - 1 for sign in (-1, 1))
    return np.where((expected >= low) & (expected <= high), expected, low)


def kept_patches(events: list[Event], config: HaltingVTConfig, batch: int) -> dict[str, Array]:
    """``decisions.kept.g`` of every Glimpser block; nothing if there are not as many sorts as blocks that select."""
    selecting = [g for g, rate in enumerate(config.keep_rates) if rate < 1]
    sorts: dict[int, Array] = {}
    for event in events:
        if event.function in SORTS and event.inputs and event.value.dtype.kind == "i":
            sorts.setdefault(event.inputs[0], event.value)
    if len(sorts) != len(selecting):
        return {}
    indices, sizes, found = iter(sorts.values()), config.patches_entering(), {}
    places = np.arange(sizes[0])
    kept: Array = np.broadcast_to(places, (batch, config.num_frames, sizes[0]))
    for g in range(config.glimpser_depth):
        if g in selecting:
            chosen = next(indices)
            k = config.num_kept_patches(g, sizes[g])
            if chosen.size % (batch * config.num_frames) or chosen.shape[-1] < k or chosen.max() >= sizes[g]:
                return {}
            chosen = chosen.reshape(batch, config.num_frames, -1)[:, :, :k]
            kept = np.take_along_axis(kept, chosen, axis=2)
            if config.fuse_dropped:
                kept = np.concatenate([kept, np.full((*kept.shape[:2], 1), -1)], axis=2)
        found[f"decisions.kept.{g}"] = np.array(kept)
    return found
