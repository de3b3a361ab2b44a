"""The interface of a labelled data set, as training and evaluation use it."""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array


class UnreadableClipError(ValueError):
    """One clip cannot be read: its video is missing, damaged or unsuitable. Other clips of the set may be readable."""


class Dataset(Protocol):
    """Labelled clips, by index 0 … len − 1.

    ``clip`` returns float32 [C, T, height, width], normalised to (x − 127.5)/127.5: for evaluation if rng is None
    (centre clip, no augmentation), else for training. The same index and the same state of rng give the same clip. It
    raises UnreadableClipError if this clip cannot be read; any other error is a bug, or concerns all clips. It may warn
    of problems with the clip.

    ``target`` returns a class number, or float32 [K] of zeros and ones for multi-label data; it reads no video.
    ``repr`` names the data and all settings: an evaluation is resumed only on data of the same repr.
    """

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several classes."""

    def __len__(self) -> int: ...

    def clip(self, index: int, rng: np.random.Generator | None = None) -> Array:
        """One clip, float32 [C, T, height, width]."""

    def target(self, index: int) -> int | Array:
        """Its class number, or float32 [K] of zeros and ones."""


@runtime_checkable
class ShowsObject(Dataset, Protocol):
    """A data set that knows which pixels belong to the moving object of a clip."""

    def object_pixels(self, index: int) -> NDArray[np.bool_]:
        """Return them for ``clip(index)`` without rng, [T, height, width]."""
        ...


@runtime_checkable
class MakesTwins(Dataset, Protocol):
    """A data set that makes static twins itself, from what a clip is made from."""

    def twin(self, index: int, rng: np.random.Generator) -> Array:
        """Return a static twin of clip ``index``, of the shape of a clip; errors as those of ``clip``."""
        ...
