"""The configuration of a HaltingVT: its sizes and switches."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from refvt.checks import brief, is_number

__all__ = ["PRESETS", "HaltingVTConfig"]

LARGEST = 1_000_000  # of every whole number: a configuration beyond is a mistake, and its costs overflow

# (frames, keep rate R of the second Glimpser block, halting centre β): the configurations of the paper
PRESETS: dict[str, tuple[int, float, float]] = {
    "minik-g03-b10": (8, 0.3, 10.0),
    "minik-g07-b20": (8, 0.7, 20.0),
    "minik-g03-b5": (8, 0.3, 5.0),
    "minik-g05-b20": (8, 0.5, 20.0),
    "anet-g03-b10": (10, 0.3, 10.0),
    "anet-g05-b10": (10, 0.5, 10.0),
    "anet-g05-b20": (10, 0.5, 20.0),
    "anet-g07-b20": (10, 0.7, 20.0),
}


@dataclass(frozen=True)
class HaltingVTConfig:
    """Sizes and switches of a HaltingVT; the defaults are HaltingVT-S on 8 frames of 224×224 with R = 0.3, β = 10.

    The ``depth`` = G + L blocks are G Glimpser blocks (divided space-time attention), then L joint halting blocks.

    - image_size: (height, width) of a frame in pixels, multiples of patch_size
    - patch_size: P, in pixels; channels: C; num_frames: T
    - width: D, a multiple of num_heads; num_heads: A; mlp_ratio: F / D
    - glimpser_depth: G; depth: G + L
    - keep_rates: R_g in (0, 1], one per Glimpser block; a block with a rate below 1 selects patches
    - fuse_dropped: selection adds one token per frame, the weighted sum of the dropped patches
    - cls_skip: CLS keeps its skip connection in a block that selects; False in the published weights
    - halting_scale: γ; halting_center: β; epsilon: ε in (0, 1)
    - halted_keys: how live tokens see halted ones, as "zero" states (published weights) or not at all ("masked")
    - num_classes: K

    ValueError or TypeError names the field that does not fit. Source: HaltingVT section 4.1.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    channels: int = 3
    num_frames: int = 8
    width: int = 384
    num_heads: int = 6
    mlp_ratio: float = 4.0
    glimpser_depth: int = 2
    depth: int = 12
    keep_rates: tuple[float, ...] = (1.0, 0.3)
    fuse_dropped: bool = False
    cls_skip: bool = False
    halting_scale: float = 10.0
    halting_center: float = 10.0
    epsilon: float = 0.01
    halted_keys: str = "zero"
    num_classes: int = 200

    def __post_init__(self) -> None:
        def check(ok: bool, field: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"{field}: expected {expected}, got {brief(getattr(self, field))}")

        whole = {"patch_size", "channels", "num_frames", "width", "num_heads", "glimpser_depth", "depth", "num_classes"}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in whole and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{field.name}: expected a whole number, got {brief(value)}")
            if field.name in {"fuse_dropped", "cls_skip"} and not isinstance(value, bool):
                raise TypeError(f"{field.name}: expected True or False, got {brief(value)}")
            if field.name in {"mlp_ratio", "halting_scale", "halting_center", "epsilon"}:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise TypeError(f"{field.name}: expected a number, got {brief(value)}")
                check(is_number(value), field.name, "a finite number")
            if field.name in {"image_size", "keep_rates"}:
                if not isinstance(value, tuple | list):
                    raise TypeError(f"{field.name}: expected a tuple of numbers, got {brief(value)}")
                object.__setattr__(self, field.name, tuple(value))
        for name in whole - {"glimpser_depth"}:
            check(1 <= getattr(self, name) <= LARGEST, name, f"1 to {LARGEST}")
        check(len(self.image_size) == 2, "image_size", "(height, width)")
        for side in self.image_size:
            if isinstance(side, bool) or not isinstance(side, int):
                raise TypeError(f"image_size: expected two whole numbers, got {brief(self.image_size)}")
            check(
                self.patch_size <= side <= LARGEST and side % self.patch_size == 0,
                "image_size",
                f"(height, width) in multiples of patch_size {self.patch_size}",
            )
        check(self.width % self.num_heads == 0, "width", f"a multiple of num_heads {self.num_heads}")
        hidden = self.width * self.mlp_ratio
        check(1 <= hidden <= 100 * LARGEST, "mlp_ratio", f"1/width to {100 * LARGEST}/width")
        check(0 <= self.glimpser_depth < self.depth, "glimpser_depth", f"0 to depth − 1 = {self.depth - 1}")
        check(
            len(self.keep_rates) == self.glimpser_depth
            and all(isinstance(r, int | float) and 0 < r <= 1 for r in self.keep_rates),
            "keep_rates",
            f"{self.glimpser_depth} numbers (one per Glimpser block) above 0 and at most 1",
        )
        check(0 < self.epsilon < 1, "epsilon", "a number above 0 and below 1")
        check(self.halted_keys in ("zero", "masked"), "halted_keys", "'zero' or 'masked'")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """One of the paper's configurations (a key of ``PRESETS``); ``changes`` replace single fields."""
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {list(PRESETS)}, got {name!r}")
        frames, rate, center = PRESETS[name]
        return cls(**{"num_frames": frames, "keep_rates": (1.0, rate), "halting_center": center, **changes})

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches of a frame, as (rows, columns)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches_per_frame(self) -> int:
        """S, the number of patches of a frame before any selection."""
        return self.grid[0] * self.grid[1]

    @property
    def hidden_width(self) -> int:
        """F, the hidden width of the MLPs."""
        return int(self.width * self.mlp_ratio)

    @property
    def joint_depth(self) -> int:
        """L, the number of joint halting blocks."""
        return self.depth - self.glimpser_depth

    def num_kept_patches(self, block: int, patches: int) -> int:
        """Number of patches that a Glimpser block keeps of S: k = ceil(R_g · S), the product in double precision."""
        return math.ceil(self.keep_rates[block] * patches)

    def patches_entering(self) -> tuple[int, ...]:
        """Number of patches per frame (S) that enter each Glimpser block and, last, the joint blocks: G + 1 numbers."""
        sizes = [self.patches_per_frame]
        for block, rate in enumerate(self.keep_rates):
            S = sizes[-1]
            sizes.append(self.num_kept_patches(block, S) + self.fuse_dropped if rate < 1 else S)
        return tuple(sizes)

    @property
    def joint_tokens(self) -> int:
        """N', the number of tokens of a clip that enter the joint blocks."""
        return 1 + self.patches_entering()[-1] * self.num_frames

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict of plain values, for JSON."""
        return asdict(self)
