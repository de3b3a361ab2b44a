"""Selectivity: whether the tokens that halt late are those of the moving object.

On moving digits the pixels of the object are known. A token whose patch holds the digit now (at least ``OBJECT`` of its
pixels) is an *object* token; one whose patch never holds a pixel of it, in any frame of the clip, is a *background*
token. Others count as neither. Only tokens that enter the joint blocks are compared, and every token is followed to its
own halt (``full_ponder=True``), so that a clip that ends early because CLS has halted changes nothing.

    auc(clip) = P(layers lived by an object token > layers lived by a background token) + ½ P(equal)

with both tokens drawn from the same clip; 0.5 is blind to the object, 1 is perfect. It is the area under the ROC curve
(Hanley and McNeil 1982). ``Selectivity.auc`` is its mean over clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.data.dataset import Dataset, ShowsObject
from refvt.evaluation.patches import kept_patches
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import values_of_tokens
from refvt.model.haltingvt import HaltingVT, Output

__all__ = [
    "OBJECT",
    "Lives",
    "Selectivity",
    "auc_of",
    "compute_lives",
    "lives_of_clips",
    "object_tokens",
    "selectivity_of",
    "summarise_lives",
]

OBJECT = 0.2  # share of a patch's pixels from which on it holds the object
DEEP = 0.25  # share of the object tokens that must enter a layer for the ratio to be taken there


@dataclass(frozen=True)
class Lives:
    """What became of one clip's tokens: layers lived, as histograms [L + 1] (index 0 is always 0).

    ``object`` and ``background`` count the tokens of each group by the layer in which they halt.
    """

    object: NDArray[np.int64]
    background: NDArray[np.int64]


@dataclass(frozen=True)
class Selectivity:
    """The figures over all clips that have both groups.

    auc: mean over clips. clips: their number. object_alive, background_alive: share of each group's tokens that enter
    joint layer 1 … L, over all clips. layer: the deepest layer that a quarter of the object tokens enter. ratio:
    object_alive / background_alive at that layer, None if no background token enters it.
    """

    auc: float
    clips: int
    object_alive: list[float]
    background_alive: list[float]
    layer: int
    ratio: float | None


def object_tokens(ink: NDArray[np.bool_], config: HaltingVTConfig, output: Output) -> NDArray[np.int8]:
    """Return the group of every token after CLS, [B, N' − 1]: 1 object, 0 background, −1 neither.

    ink: [B, T, height, width], true where a pixel belongs to the object.
    """
    P = config.patch_size
    B, T, height, width = ink.shape
    share = ink.reshape(B, T, height // P, P, width // P, P).mean(axis=(3, 5)).reshape(B, T, -1)  # [B, T, S]
    group = np.where(share >= OBJECT, 1, np.where(share.max(axis=1, keepdims=True) == 0, 0, -1)).astype(np.int8)
    return values_of_tokens(group, kept_patches(config, output), -1)[:, 1:].astype(np.int8)


def auc_of(high: NDArray[np.int64], low: NDArray[np.int64]) -> float:
    """P(a > b) + ½ P(a = b) for a drawn from the histogram ``high`` and b from ``low``; NaN if one is empty."""
    if not high.sum() or not low.sum():
        return float("nan")
    below = np.cumsum(low) - low
    return float((high * (below + low / 2)).sum() / (high.sum() * low.sum()))


def lives_of_clips(ink: NDArray[np.bool_], config: HaltingVTConfig, output: Output) -> list[Lives]:
    """Return the lives of a batch's clips. output: of a run with ``full_ponder=True``."""
    L = config.joint_depth
    group = object_tokens(ink, config, output)
    lived: Array = output.alive[:, :, 1:].sum(axis=1)  # [B, N' − 1], layers entered
    return [
        Lives(*(np.bincount(n[g == which], minlength=L + 1) for which in (1, 0)))
        for g, n in zip(group, lived, strict=True)
    ]


def summarise_lives(lives: Iterable[Lives]) -> Selectivity | None:
    """Compute the figures; None if no clip has tokens of both groups."""
    found = [each for each in lives if each.object.sum() and each.background.sum()]
    if not found:
        return None
    total = [np.sum([getattr(each, name) for each in found], axis=0) for name in ("object", "background")]
    # alive in layer l: those that halt in l or later
    alive = [(np.cumsum(n[::-1])[::-1] / n.sum())[1:] for n in total]
    deep = np.flatnonzero(alive[0] >= DEEP)[-1]
    return Selectivity(
        auc=float(np.mean([auc_of(each.object, each.background) for each in found])),
        clips=len(found),
        object_alive=alive[0].tolist(),
        background_alive=alive[1].tolist(),
        layer=int(deep) + 1,
        ratio=float(alive[0][deep] / alive[1][deep]) if alive[1][deep] else None,
    )


def compute_lives(model: HaltingVT, data: ShowsObject, indices: Sequence[int]) -> list[Lives]:
    """Run a model on some clips of a data set, every token to its own halt, and return the lives of their tokens."""
    output = model(np.stack([data.clip(i) for i in indices]), full_ponder=True)
    return lives_of_clips(np.stack([data.object_pixels(i) for i in indices]), model.config, output)


def selectivity_of(model: HaltingVT, data: Dataset, batch: int = 32) -> Selectivity | None:
    """Run a model on all clips of a data set that shows an object, and return the figures; None for other data."""
    if not isinstance(data, ShowsObject):
        return None
    starts = range(0, len(data), batch)
    return summarise_lives(
        each for first in starts for each in compute_lives(model, data, range(first, min(first + batch, len(data))))
    )
