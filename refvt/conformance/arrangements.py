"""How the rows of a named tensor can be arranged: token order, axis order, heads, and which rows are there.

A named tensor is stored as flat rows (``golden/__init__.py`` describes their order). Another implementation may keep
the same numbers in another arrangement: rectangular, frame by frame, class token last, heads before tokens, only the
tokens that are alive. An ``Arrangement`` says, for every place of such an array, which row of the stored tensor stands
there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig

__all__ = ["Arrangement", "Geometry", "Rows", "bare_name"]

_BLOCK = re.compile(r"blocks\.(\d+)\.(\w+(?:\.\w+)?)$")
_HALTING = re.compile(r"joint\.(\d+)\.(logit|weight)$")
_PER_CLIP = ("logits", "motion_logits", "features", "norm")


def bare_name(name: str) -> str:
    """The tensor of a gradient's name: ``d(norm)`` → ``norm``; other names are returned as given."""
    return name[2:-1] if name.startswith("d(") and name.endswith(")") else name


@dataclass(frozen=True)
class Arrangement:
    """Which stored row stands at every place: ``rows`` [axes…] are row numbers, ``says`` is its name for people.

    ``plain`` is true for the arrangements that a candidate may use freely: the stored order, rectangular or packed.
    """

    says: str
    rows: Array
    plain: bool = False

    def apply(self, value: Array, stored: Rows, heads: int) -> Array | None:
        """The rows [places, channels] in the order of ``rows``, or None if the shape of ``value`` does not fit."""
        axes, channels = self.rows.shape, stored.channels
        if value.size != self.rows.size * channels:
            return None
        width = (heads, channels // heads) if stored.has_heads else (channels,)
        if _merges(value.shape, (*axes, *width)):
            return value.reshape(-1, channels)
        return None

    def apply_heads_first(self, value: Array, stored: Rows, heads: int) -> Array | None:
        """As ``apply``, for an array whose heads stand before the last axis of rows: [B, A, N, d]."""
        axes, channels = self.rows.shape, stored.channels
        if not stored.has_heads or heads == 1 or value.size != self.rows.size * channels:
            return None
        expected = (*axes[:-1], heads, axes[-1], channels // heads)
        if not _merges(value.shape, expected):
            return None
        return np.moveaxis(value.reshape(expected), -3, -2).reshape(-1, channels)

    def positions(self, place: int, stored: Rows, heads: int) -> list[int]:
        """Where the first number of a row stands in the flat array: in ``apply`` and in ``apply_heads_first``."""
        in_order = place * stored.channels
        if not stored.has_heads or heads == 1:
            return [in_order]
        last = self.rows.shape[-1]
        outer, inner = divmod(place, last)
        return [in_order, outer * last * stored.channels + inner * (stored.channels // heads)]


def _merges(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    """Whether ``shape`` results from merging neighbouring axes, or from adding axes of length 1."""
    allowed = set(np.cumprod((1, *axes)).tolist())
    return math.prod(shape) == math.prod(axes) and all(int(p) in allowed for p in np.cumprod(shape))


@dataclass(frozen=True)
class Rows:
    """The rows of one named tensor as they are stored: their kind, their axes, and the channels of each."""

    kind: str  # "state", "paths", "frames", "scores", "per frame", "clips"
    axes: tuple[int, ...]  # the product is the number of rows
    channels: int
    layer: int = 0  # the joint layer, from 1; 0 before the joint blocks
    has_heads: bool = False
    cls_alone: bool = False  # only the class token's row is needed (last joint block)

    @property
    def count(self) -> int:
        """The number of rows."""
        return math.prod(self.axes)


class Geometry:
    """The arrangements of every named tensor of a case.

    config: the case's; batch: B; halting_layer [B, N'] the layer where each token halts, counted from 1. Rows of joint
    layer l count for tokens whose halting layer is at least l.
    """

    def __init__(self, config: HaltingVTConfig, batch: int, halting_layer: Array) -> None:
        self.config, self.batch = config, batch
        self.halting_layer = np.asarray(halting_layer).reshape(batch, -1)
        self._patches = config.patches_entering()
        self._known: dict[Rows | None, tuple[Arrangement, ...]] = {}

    def rows_of(self, name: str) -> Rows | None:
        """The rows of a named tensor or of its gradient; None for a parameter, a loss or a decision."""
        bare, config, B, D = bare_name(name), self.config, self.batch, self.config.width
        if bare in _PER_CLIP:
            channels = {"logits": config.num_classes, "motion_logits": 2}.get(bare, D)
            return Rows("clips", (B,), channels)
        if bare == "embed":
            return self._state(0)
        if bare == "y":
            return self._state(config.glimpser_depth, cls_alone=True)
        if bare == "ponder":
            return self._state(config.glimpser_depth, channels=1)
        if found := _HALTING.match(bare):
            return self._state(config.glimpser_depth, channels=1, layer=int(found[1]))
        if found := _BLOCK.match(bare):
            return self._block_rows(int(found[1]), found[2])
        return None

    def _state(self, g: int, channels: int | None = None, **more: int | bool) -> Rows:
        """Rows of a state that enters block g: per clip the class token, then patch-major tokens."""
        N = 1 + self._patches[g] * self.config.num_frames
        return replace(Rows("state", (self.batch, N), channels or self.config.width), **more)  # type: ignore[arg-type]

    def _block_rows(self, i: int, part: str) -> Rows | None:
        config, B, T, D = self.config, self.batch, self.config.num_frames, self.config.width
        heads = part.removeprefix("temporal_") in ("attn.q", "attn.k", "attn.v", "attn.y")
        if i >= config.depth or part.endswith((".weight", ".bias", "attn.qkv")):
            return None
        if i >= config.glimpser_depth:
            layer = i - config.glimpser_depth + 1
            if part not in ("entering", "norm1", "attn.q", "attn.k", "attn.v", "attn.y", "attn.proj", "norm2", "mlp"):
                return None
            alone = layer == config.joint_depth and part not in ("entering", "norm1", "attn.k", "attn.v")
            return self._state(config.glimpser_depth, layer=layer, has_heads=heads, cls_alone=alone)
        S = self._patches[i]
        if part == "temporal_norm1" or part.startswith("temporal_attn."):
            return Rows("paths", (B, S, T), D, has_heads=heads)
        if part == "temporal_fc":
            return self._state(i)
        if part == "norm1" or part.startswith("attn."):
            return Rows("frames", (B, T, 1 + S), D, has_heads=heads)
        if part == "scores":
            return Rows("scores", (B, T), S)
        if part == "fused":
            return Rows("per frame", (B, T), D)
        return self._state(i + 1) if part in ("selected", "norm2", "mlp") else None

    def counts(self, name: str) -> Array | None:
        """Which rows count, bool [rows]: in a joint layer those of living tokens. None if all do."""
        rows = self.rows_of(name)
        if rows is None or rows.layer == 0:
            return None
        alive: Array = (self.halting_layer >= rows.layer).ravel()
        return alive

    def arrangements(self, name: str) -> tuple[Arrangement, ...]:
        """All arrangements of a named tensor; the plain ones first, the stored order before all others."""
        rows = self.rows_of(name)
        if rows not in self._known:
            self._known[rows] = tuple(self._arrangements(rows))
        return self._known[rows]

    def _arrangements(self, rows: Rows | None) -> Iterator[Arrangement]:
        if rows is None:
            return
        index = np.arange(rows.count).reshape(rows.axes)
        yield Arrangement("", index, plain=True)
        if rows.kind == "state":
            yield from self._packed(rows, index)
            yield from self._state_orders(rows, index)
        elif rows.kind == "paths":
            yield Arrangement("frame-major token order", index.swapaxes(1, 2))
            yield Arrangement("tokens before clips", index.reshape(-1, index.shape[2]).T)
        elif rows.kind == "frames":
            last = np.concatenate([index[..., 1:], index[..., :1]], axis=2)
            yield Arrangement("class token last", last)
            yield Arrangement("patch-major token order", index.swapaxes(1, 2))
            yield Arrangement("tokens before clips", index.reshape(-1, index.shape[2]).T)
            yield Arrangement("patches alone", index[..., 1:])
            yield Arrangement("patches alone, patch-major token order", index[..., 1:].swapaxes(1, 2))
            yield Arrangement("class token alone", index[..., 0])

    def _packed(self, rows: Rows, index: Array) -> Iterator[Arrangement]:
        """Only the rows that a compact execution computes."""
        if rows.layer:
            layers = self.halting_layer
            alive = layers >= rows.layer
            stays = alive & (layers[:, :1] >= rows.layer)  # the clip leaves when its class token has halted
            for chosen in (alive, stays):
                yield Arrangement("", index[chosen], plain=True)
            if rows.cls_alone:
                yield Arrangement("", index[:, 0][alive[:, 0]], plain=True)
        if rows.cls_alone:
            yield Arrangement("", index[:, :1], plain=True)

    def _state_orders(self, rows: Rows, index: Array) -> Iterator[Arrangement]:
        B, T = self.batch, self.config.num_frames
        cls, flat = index[:, :1], index[:, 1:]
        patches = flat.reshape(B, -1, T)  # [B, S, T]
        by_frame = patches.swapaxes(1, 2)  # [B, T, S]
        frame_major = by_frame.reshape(B, -1)
        yield Arrangement("frame-major token order", np.concatenate([cls, frame_major], axis=1))
        yield Arrangement("class token last", np.concatenate([flat, cls], axis=1))
        yield Arrangement("frame-major token order, class token last", np.concatenate([frame_major, cls], axis=1))
        yield Arrangement("tokens before clips", index.T)
        if rows.layer == 0:
            yield Arrangement("patches alone", patches)
            yield Arrangement("patches alone, frame-major token order", by_frame)
        yield Arrangement("class token alone", index[:, 0])
