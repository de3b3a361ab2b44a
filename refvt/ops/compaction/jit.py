"""Compaction on the CPU is the reference: NumPy needs some 50 µs for it, a joint block needs milliseconds."""

from __future__ import annotations

from refvt.ops.compaction.reference import compact, mask_halted

__all__ = ["compact", "mask_halted"]
