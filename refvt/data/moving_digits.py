"""Moving digits: handwritten digits on a canvas that wraps around; the class is the motion, not the digit.

A synthetic data set for the problem that HaltingVT addresses. Most patches are background that never changes, one small
digit covers a few of them, and only several frames together show how it moves. Position, speed and digit are drawn from
the same distributions for every class, and on a canvas that wraps around, a uniform position stays uniform under any
motion. So a single frame has the same distribution in every class, and the classes cannot be told apart by it.

The digits are those of scikit-learn's bundled set, 1797 images of 8×8 pixels (E. Alpaydin and C. Kaynak, Optical
Recognition of Handwritten Digits, UCI 1998). The images are ordered by writer, so the split by image number, the last
fifth for testing, also separates most writers.

All arithmetic is on integers, with positions in 1/64 pixel: the same seed gives the same bits on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.checks import check_int
from refvt.limits import check_request

SPLITS = {"train": slice(None, 1437), "test": slice(1437, None)}
BACKGROUNDS = ("black", "photographs")
_COLUMNS = {"train": slice(None, 432), "test": slice(432, None)}  # of the photographs, which have 640
LARGEST_ON_PHOTOGRAPHS = 640 - 432
_SCALES = (1, 2, 3, 4)  # a crop is scaled down by one of these, if the photograph is large enough for it
_UNIT = 64  # positions and speeds count 1/64 pixel
_TURN = 64  # angles count 1/64 turn
_COSINE = np.array([round(1024 * math.cos(2 * math.pi * k / _TURN)) for k in range(_TURN)])
_SINE = np.roll(_COSINE, _TURN // 4)
_TRIANGLE = np.array([0, 1, 2, 1])  # sideways position of a zigzag, frame by frame
_BLOCK = 256  # clips rendered at once by ``arrays``


class _Draw(NamedTuple):
    """The random numbers of n clips, except noise; all integers. A class uses those it needs."""

    digit: NDArray[np.int64]  # [n], index of the image in the split
    start: NDArray[np.int64]  # [n, 2], row and column where the motion starts (of a circle: its centre), 1/64 pixel
    speed: NDArray[np.int64]  # [n, 2], 1/64 pixel per frame: forwards, and sideways in a zigzag
    radius: NDArray[np.int64]  # [n], 1/64 pixel
    angle: NDArray[np.int64]  # [n], position on the circle at frame 0, 1/64 turn
    turning: NDArray[np.int64]  # [n], 1/64 turn per frame
    heading: NDArray[np.int64]  # [n], of a zigzag: 0 right, 1 down, 2 left, 3 up
    phase: NDArray[np.int64]  # [n], of a zigzag
    clutter: NDArray[np.int64]  # [n, clutter, 3]: image, row and column of each static digit
    photo: NDArray[np.int64]  # [n, 7]: what ``_photographs`` and ``_level`` need; without columns on black


@dataclass(frozen=True)
class MovingDigits:
    """Labelled clips of one moving digit; implements ``refvt.data.Dataset``.

    split: "train" or "test"; no digit image is in both. clips: number of clips; class c has the indices c, c + 8, …
    frames: T. size and digit_size (a multiple of 8): sides of the canvas and of the digit in pixels. channels: 1, or 3
    equal ones. clutter: number of static, dimmer digits in the background of a clip. noise: standard deviation of the
    camera noise in grey levels, independent for every pixel of every frame. seed: of all random numbers.

    background: "black", or "photographs": a crop of one of the two photographs of scikit-learn, the same in all frames
    of a clip, scaled, mirrored and of varied brightness, and a digit that is brighter or darker than its mean. Then
    brightness does not say where the digit is; only motion does. Training and test crops never overlap.

    For digits of 8 pixels, speeds are uniform from 1 to 3 pixels per frame; circles have radii of 3 to 5 pixels and
    take 4/64 to 6/64 turn per frame, which is about the same speed. Larger digits move proportionally faster.

    Raises ValueError or TypeError that names the field; ModuleNotFoundError without scikit-learn.
    """

    names: ClassVar[tuple[str, ...]] = (
        "left",
        "right",
        "up",
        "down",
        "clockwise",
        "counter-clockwise",
        "still",
        "zigzag",
    )
    num_classes: ClassVar[int] = len(names)
    multi_label: ClassVar[bool] = False

    split: str = "train"
    clips: int = 1024
    frames: int = 8
    size: int = 32
    digit_size: int = 8
    channels: int = 1
    clutter: int = 0
    noise: int = 0
    background: str = "black"
    seed: int = 0
    _draws: _Draw = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {self.split!r}")
        minimum = {"clutter": 0, "noise": 0, "seed": 0, "digit_size": 8}
        for each in fields(self):
            if each.type == "int":
                number = check_int(each.name, getattr(self, each.name), minimum.get(each.name, 1))
                object.__setattr__(self, each.name, number)
        if self.digit_size % 8:
            raise ValueError(f"digit_size: expected a multiple of 8, got {self.digit_size}")
        if self.size < self.digit_size:
            raise ValueError(f"size: expected at least digit_size {self.digit_size}, got {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {self.channels}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background: expected one of {', '.join(BACKGROUNDS)}, got {self.background!r}")
        if self.background == "photographs" and self.size > LARGEST_ON_PHOTOGRAPHS:
            raise ValueError(f"size: expected at most {LARGEST_ON_PHOTOGRAPHS} on photographs, got {self.size}")
        if self.noise > 128:
            raise ValueError(f"noise: expected 0 to 128 grey levels, got {self.noise}")
        per_clip, clutter = 20, 3 * self.clutter  # whole numbers drawn
        check_request("clips, clutter", [(self.clips, per_clip + clutter)], 8)
        check_request("frames, size", [(self.channels, self.frames, self.size, self.size)], 16)
        object.__setattr__(self, "_draws", self._draw(self._generator(), self.clips))

    def __len__(self) -> int:
        return self.clips

    def target(self, index: int) -> int:
        """Return the class number of a clip, an index into ``names``."""
        return int(self._check_index(index) % len(self.names))

    def clip(self, index: int, rng: np.random.Generator | None = None) -> Array:
        """Return clip ``index``, float32 [channels, T, size, size] from −1 to 1.

        With rng it is a new random clip of the same class, with another digit, start and speed: an unlimited training
        set.
        """
        index = self._check_index(index)
        if rng is None:
            draw = _Draw(*(part[index : index + 1] for part in self._draws))
            noise = self._generator(index)
        else:
            draw, noise = self._draw(rng, 1), rng
        clip: Array = self._normalise(self._render(np.array([self.target(index)]), draw, [noise]))[0]
        return clip

    def arrays(self) -> tuple[Array, NDArray[np.int64]]:
        """Return all clips as ``clip`` does, float32 [clips, channels, T, size, size], and their classes [clips]."""
        classes = np.arange(self.clips) % self.num_classes
        out = np.empty((self.clips, self.channels, self.frames, self.size, self.size), np.float32)
        for first in range(0, self.clips, _BLOCK):
            part = slice(first, min(first + _BLOCK, self.clips))
            draw = _Draw(*(each[part] for each in self._draws))
            noises = [self._generator(i) for i in range(part.start, part.stop)] if self.noise else []
            out[part] = self._normalise(self._render(classes[part], draw, noises))
        return out, classes

    def places(self) -> NDArray[np.int64]:
        """Return row and column of the moving digit's top left corner in every frame, [clips, T, 2]."""
        return self._path(np.arange(self.clips) % self.num_classes, self._draws)

    def ink(self) -> NDArray[np.bool_]:
        """Return which pixels belong to the moving digit, [clips, T, size, size]; clutter and noise do not."""
        return self._ink(np.arange(self.clips))

    def object_pixels(self, index: int) -> NDArray[np.bool_]:
        """Return which pixels of ``clip(index)`` belong to the moving digit, [T, size, size]."""
        return np.asarray(self._ink(np.array([self._check_index(index)]))[0])

    # ---- drawing

    def _ink(self, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Pixels of the moving digit of the chosen clips, [n, T, size, size]."""
        images = _digits(self.digit_size // 8)[SPLITS[self.split]]
        draw = _Draw(*(part[chosen] for part in self._draws))
        out = np.zeros((len(chosen), self.frames, self.size, self.size), np.uint8)
        self._paint(out, images[draw.digit], self._path(chosen % self.num_classes, draw))
        return np.asarray(out > 0)

    def _check_index(self, index: int) -> int:
        """Return the index as an int. IndexError if there is no such clip."""
        index = check_int("index", index, minimum=0)
        if index >= self.clips:
            raise IndexError(f"index: expected 0 to {self.clips - 1}, got {index}")
        return index

    def _generator(self, *index: int) -> np.random.Generator:
        """Return the generator of all clips' draws, or of the noise of one clip."""
        return np.random.default_rng([self.seed, list(SPLITS).index(self.split), *index])

    def _draw(self, rng: np.random.Generator, n: int) -> _Draw:
        """Draw n clips."""
        images = len(_digits(1)[SPLITS[self.split]])
        scale = self.digit_size // 8
        clutter = [rng.integers(below, size=(n, self.clutter)) for below in (images, self.size, self.size)]
        return _Draw(
            digit=rng.integers(images, size=n),
            start=rng.integers(self.size * _UNIT, size=(n, 2)),
            speed=scale * rng.integers(_UNIT, 3 * _UNIT + 1, size=(n, 2)),
            radius=scale * rng.integers(3 * _UNIT, 5 * _UNIT + 1, size=n),
            angle=rng.integers(_TURN, size=n),
            turning=rng.integers(4, 7, size=n),
            heading=rng.integers(4, size=n),
            phase=rng.integers(len(_TRIANGLE), size=n),
            clutter=np.stack(clutter, axis=-1),
            photo=rng.integers(1 << 16, size=(n, 7 if self.background == "photographs" else 0)),
        )

    def _path(self, classes: NDArray[np.int64], draw: _Draw) -> NDArray[np.int64]:
        """Return the digit's row and column in every frame, [n, T, 2], in pixels of the canvas."""
        t = np.arange(self.frames)
        forward, sideways = (draw.speed[:, i, None] for i in (0, 1))  # [n, 1]
        zero = np.zeros((len(classes), self.frames), np.int64)
        circling = np.where(classes == 4, 1, -1)  # rows are counted downwards: a growing angle is clockwise
        angle = (draw.angle[:, None] + (circling * draw.turning)[:, None] * t) % _TURN
        radius = draw.radius[:, None]
        main = forward * t * np.where(draw.heading < 2, 1, -1)[:, None]
        side = sideways * _TRIANGLE[(t + draw.phase[:, None]) % len(_TRIANGLE)]
        along_rows = (draw.heading % 2 == 1)[:, None]  # down or up
        paths = (  # (rows, columns) for each class in order, [n, T] each
            (zero, -forward * t),
            (zero, forward * t),
            (-forward * t, zero),
            (forward * t, zero),
            (radius * _SINE[angle] // 1024, radius * _COSINE[angle] // 1024),
            (radius * _SINE[angle] // 1024, radius * _COSINE[angle] // 1024),
            (zero, zero),
            (np.where(along_rows, main, side), np.where(along_rows, side, main)),
        )
        path = np.stack([np.stack(each, axis=-1) for each in paths])[classes, np.arange(len(classes))]
        moved: NDArray[np.int64] = (draw.start[:, None] + path) // _UNIT % self.size
        return moved

    def _render(self, classes: NDArray[np.int64], draw: _Draw, noises: list[np.random.Generator]) -> NDArray[np.uint8]:
        """Render clips in grey, uint8 [n, T, size, size]."""
        images = _digits(self.digit_size // 8)[SPLITS[self.split]]
        out = np.zeros((len(classes), 1, self.size, self.size), np.uint8)
        for image, row, column in np.moveaxis(draw.clutter, (1, 2), (0, 1)):
            dimmer = (images[image].astype(np.uint16) * 5 // 8).astype(np.uint8)
            self._paint(out, dimmer, np.stack([row, column], axis=-1)[:, None])
        if self.background == "photographs":
            out = np.maximum(out, self._photographs(draw.photo))
            level = self._level(out, draw.photo)
            out = np.repeat(out, self.frames, axis=1)
            self._cover(out, images[draw.digit], level, self._path(classes, draw))
        else:
            out = np.repeat(out, self.frames, axis=1)
            self._paint(out, images[draw.digit], self._path(classes, draw))
        if self.noise:
            for clip, rng in zip(out, noises, strict=True):
                clip[:] = np.clip(clip + self._camera_noise(rng), 0, 255)
        return out

    def _photographs(self, draw: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Crop the backgrounds, uint8 [n, 1, size, size].

        draw: uint16 numbers [n, 7] that choose the photograph, the scale, row, column, mirroring, contrast and (the
        last, in ``_level``) the digit's brightness.
        """
        out = np.empty((len(draw), 1, self.size, self.size), np.uint8)
        for crop, (which, scale, row, column, mirrored, contrast, _) in zip(out[:, 0], draw, strict=True):
            scaled = _scaled_photographs(self.split)
            fitting = [s for s in _SCALES if min(scaled[s].shape[1:]) >= self.size]
            photo = scaled[fitting[scale % len(fitting)]][which % 2]
            rows, columns = (side - self.size + 1 for side in photo.shape)
            top, left = row * rows >> 16, column * columns >> 16
            cut = photo[top : top + self.size, left : left + self.size]
            crop[:] = (cut[:, ::-1] if mirrored % 2 else cut) * (128 + contrast % 129) >> 8  # half to full brightness
        return out

    def _level(self, background: NDArray[np.uint8], draw: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the digits' grey level, [n]: 64 to 127 above or below the mean of their background, at random.

        Where only one of the two is within 0 to 255 it is that one.
        """
        mean = background.reshape(len(background), -1).astype(np.int64).mean(axis=1).astype(np.int64)
        away = 64 + draw[:, 6] // 2 % 64
        up = np.where(mean + away > 255, 0, np.where(mean - away < 0, 1, draw[:, 6] % 2))
        return np.asarray(np.clip(np.where(up, mean + away, mean - away), 0, 255))

    def _cover(
        self, out: NDArray[np.uint8], images: NDArray[np.uint8], level: NDArray[np.int64], places: NDArray[np.int64]
    ) -> None:
        """Cover ``out`` with digits of the given grey levels; the ink is their opacity. Shapes: those of ``_paint``."""
        where = self._where(places)
        ink, below = images[:, None].astype(np.int64), out[where].astype(np.int64)
        out[where] = (below * (255 - ink) + level[:, None, None, None] * ink + 127) // 255

    def _paint(self, out: NDArray[np.uint8], images: NDArray[np.uint8], places: NDArray[np.int64]) -> None:
        """Paint images [n, d, d] on out [n, T, size, size], with their top left corners at places [n, T, 2]."""
        where = self._where(places)
        out[where] = np.maximum(out[where], images[:, None])

    def _where(self, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Return the index of the pixels of digits at ``places``, in an array [n, T, size, size]."""
        n, T = places.shape[:2]
        side = np.arange(self.digit_size)
        rows = (places[:, :, 0, None] + side)[:, :, :, None] % self.size
        columns = (places[:, :, 1, None] + side)[:, :, None, :] % self.size
        return np.arange(n)[:, None, None, None], np.arange(T)[:, None, None], rows, columns

    def _camera_noise(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Integers [T, size, size] of standard deviation ``noise``: sums of four bytes, close to a normal distribution.

        The sum of four uniform bytes has mean 510 and standard deviation √(4 · (256² − 1)/12) = 65536 / 443.4.
        """
        bytes_ = rng.integers(256, size=(4, self.frames, self.size, self.size), dtype=np.uint8)
        grey: NDArray[np.int64] = ((bytes_.sum(axis=0, dtype=np.int64) - 510) * self.noise * 443 + (1 << 15)) >> 16
        return grey

    def _normalise(self, grey: NDArray[np.uint8]) -> Array:
        """Scale to −1 … 1: uint8 [n, T, size, size] → float32 [n, channels, T, size, size]."""
        # only the division rounds
        clips = (grey.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
        return np.repeat(clips[:, None], self.channels, axis=1)


@cache
def _scaled_photographs(split: str) -> dict[int, NDArray[np.uint8]]:
    """Return the columns of a split of both photographs, in grey, scaled down by ``_SCALES``: uint8 [2, rows, columns].

    Grey is (77 red + 150 green + 29 blue) / 256; a pixel of a scaled photograph is the mean of s × s pixels.
    """
    from sklearn.datasets import load_sample_images

    colour = np.stack(load_sample_images().images).astype(np.int64)[:, :, _COLUMNS[split]]
    grey = (colour @ np.array([77, 150, 29]) + 128) >> 8
    found = {}
    for s in _SCALES:
        rows, columns = (side // s for side in grey.shape[1:])
        blocks = grey[:, : rows * s, : columns * s].reshape(2, rows, s, columns, s)
        found[s] = ((blocks.sum(axis=(2, 4)) + s * s // 2) // (s * s)).astype(np.uint8)
    return found


@cache
def _digits(scale: int) -> NDArray[np.uint8]:
    """Return all digits, uint8 [1797, 8 · scale, 8 · scale], bright on black."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        message = 'moving digits need scikit-learn: pip install "refvt[demo]"'
        raise ModuleNotFoundError(message, name="sklearn") from error
    ink: NDArray[Any] = load_digits().images.astype(np.int64)  # 0 to 16
    grey = ((ink * 255 + 8) // 16).astype(np.uint8)
    return grey.repeat(scale, axis=1).repeat(scale, axis=2)
