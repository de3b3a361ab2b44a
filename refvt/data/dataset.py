"""What training and evaluation ask of labelled clips, whatever they are made of."""

from typing import Protocol

import numpy as np

from refvt.array import Array


class UnreadableClipError(ValueError):
    """The material behind one clip cannot be read: a missing, damaged or unsuitable video. Others still can be."""


class Dataset(Protocol):
    """Labelled clips. index 0 … len − 1; rng None asks for the evaluation form (centre clip, no augmentation).

    `clip` gives float32 [C, T, height, width], normalised to (x − 127.5)/127.5; the same index and the same state of
    rng give the same clip. It raises UnreadableClipError where one clip cannot be had; anything else it raises is a
    bug, or concerns all clips. It may warn of what is doubtful about the clip. `target` gives a class number, or
    float32 [K] of zeros and ones for multi-label data; it reads no video. repr tells the data and their settings: an
    evaluation is only continued on data of the same repr.
    """

    @property
    def num_classes(self) -> int: ...

    @property
    def multi_label(self) -> bool: ...

    def __len__(self) -> int: ...

    def clip(self, index: int, rng: np.random.Generator | None = None) -> Array: ...

    def target(self, index: int) -> int | Array: ...
