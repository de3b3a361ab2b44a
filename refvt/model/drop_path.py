"""DropPath (stochastic depth): which residual branches drop in a training step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig

__all__ = ["DropPath", "GlimpserDropPath", "check_scales", "draw_drop_path"]


class GlimpserDropPath(NamedTuple):
    """The DropPath scales of one Glimpser block: 0 where a unit's branch drops, else 1 / (1 − rate)."""

    temporal: Array  # [B, S] a unit is the path of one patch through time
    spatial: Array  # [B, T] a unit is a frame
    mlp: Array  # [B]


class DropPath(NamedTuple):
    """The DropPath scales of one forward pass."""

    glimpser: list[GlimpserDropPath]
    joint: Array  # [L, 2, B] attention and MLP of every joint block; a unit is a clip


def check_scales(drop_path: DropPath, config: HaltingVTConfig, B: int) -> None:
    """ValueError unless these are the finite scales of B clips, with the shapes that ``draw_drop_path`` gives."""
    S, T = config.patches_entering(), config.num_frames
    if len(drop_path.glimpser) != config.glimpser_depth:
        raise ValueError(
            f"drop_path: expected the scales of {config.glimpser_depth} Glimpser blocks, got {len(drop_path.glimpser)}"
        )
    expected: dict[str, tuple[Array, tuple[int, ...]]] = {"joint": (drop_path.joint, (config.joint_depth, 2, B))}
    for g, block in enumerate(drop_path.glimpser):
        shapes = {"temporal": (B, S[g]), "spatial": (B, T), "mlp": (B,)}
        expected |= {f"glimpser[{g}].{name}": (getattr(block, name), shape) for name, shape in shapes.items()}
    for name, (scales, shape) in expected.items():
        scales = np.asarray(scales)
        fits = scales.shape == shape and scales.dtype.kind in "fiu"
        if not fits or not np.isfinite(scales).all():
            got = scales[~np.isfinite(scales)][0] if fits else f"{scales.dtype} {list(scales.shape)}"
            raise ValueError(f"drop_path.{name}: expected finite numbers {list(shape)}, got {got}")


def draw_drop_path(config: HaltingVTConfig, B: int, drop_path: float, rng: np.random.Generator) -> DropPath:
    """Draw the scales: block i drops a unit with rate drop_path · i / (depth − 1).

    One uniform number per unit is drawn, block by block; the unit drops where the number is below the rate. In a
    Glimpser block the draws are [B, S] for temporal attention, [B, T] for spatial attention, [B] for the MLP; in a
    joint block [B] and [B]. They do not depend on the execution. Source: Huang et al. 2016 (arXiv 1603.09382).
    """

    def scales(i: int, *shape: int) -> Array:
        rate = drop_path * i / max(config.depth - 1, 1)
        return np.where(rng.random(shape) >= rate, 1 / (1 - rate), 0.0)

    S, T, G = config.patches_entering(), config.num_frames, config.glimpser_depth
    glimpser = [GlimpserDropPath(scales(g, B, S[g]), scales(g, B, T), scales(g, B)) for g in range(G)]
    return DropPath(glimpser, np.stack([np.stack([scales(i, B), scales(i, B)]) for i in range(G, config.depth)]))
