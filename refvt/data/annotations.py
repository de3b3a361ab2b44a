"""Labelled real videos, read from an annotation list (see ``refvt.data.lists`` for its format)."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.checks import at_most, check_int, words_of
from refvt.data.augmentation import rand_augment, random_flip, random_scale_and_crop
from refvt.data.clips import normalise, resize_and_crop
from refvt.data.dataset import UnreadableClipError
from refvt.data.lists import AnnotatedVideo, read_annotations
from refvt.data.resize import check_filter
from refvt.data.video import Frames, read_frames

# which clip is the centre clip, as a place of ``sample_indices``
SAMPLING = {"span": None, "window": 0.5}
# the settings with which frames and pixels are those of the released configurations
RELEASED_VIDEOS = {"sampling": "span", "resize": "opencv"}


class ShortVideoWarning(UserWarning):
    """A video has fewer frames than a clip spans; it is read again from its start."""


@runtime_checkable
class ClipSizes(Protocol):
    """What a model's configuration says about its clips."""

    @property
    def num_classes(self) -> int: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def image_size(self) -> tuple[int, int]: ...


class AnnotatedVideos:
    """The videos of an annotation list as clips for a model; implements ``refvt.data.Dataset``.

    annotations: the list (see ``refvt.data.lists``). root: the folder that its paths are relative to.
    num_classes: labels are 0 … num_classes − 1; a model's configuration instead says this, frames and image_size.
    frames: T, of one clip. stride: frames from one sampled frame to the
    next; 32 in the paper on Mini-Kinetics, 64 on ActivityNet. multi_label: whether a line may have several labels.
    with_offset: whether lines with folders have an offset (only multi-label lists need to be told).
    square_pixels: widens frames whose pixels are not square; off in the released configurations.
    image_size: (height, width) of the clips.

    Without a generator ``clip`` takes the centre clip, scales its short side to 256 for a crop of 224, and crops the
    centre. With one it takes a clip from a random place in the video, scales and crops at random, mirrors if ``flip``
    (off in the paper), and applies RandAugment: ``augment`` is (operations, magnitude), (0, 0) for none. ``twin`` is a
    static twin made from the video anew, as the released data set makes it.

    sampling: which clip is the centre clip: "span" (the clip itself is centred, as in MMAction2 1.0.0, which the
    released configurations use) or "window" (T · stride frames are centred, as in its releases 0.x). resize: the
    filter, "antialiased" or "opencv" (see ``refvt.data.resize``); the released configurations use OpenCV's.

    A video with fewer frames than a clip spans is read again from its start, as in MMAction, with a ShortVideoWarning
    that names the line; with short="refuse" its clip is unreadable instead.

    Lines that cannot be used are left out and listed in ``problems``; with ``strict`` they raise ValueError instead.
    Only ``clip`` opens videos. It raises UnreadableClipError, with the list's line, for missing, damaged or truncated
    files, folders with another number of images than declared, and frames that cannot be used.

    Raises TypeError or ValueError for settings that do not fit, and the errors of ``read_annotations``.
    """

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path,
        num_classes: int | ClipSizes,
        frames: int | None = None,
        stride: int = 32,
        multi_label: bool = False,
        *,
        image_size: Sequence[int] | None = None,
        short: str = "loop",
        flip: bool = False,
        augment: tuple[int, float] = (2, 9.0),
        sampling: str = "span",
        resize: str = "antialiased",
        strict: bool = False,
        with_offset: bool = False,
        square_pixels: bool = False,
    ) -> None:
        if short not in ("loop", "refuse"):
            raise ValueError(f"short: expected 'loop' or 'refuse', got {short!r}")
        if sampling not in SAMPLING:
            raise ValueError(f"sampling: expected one of {', '.join(SAMPLING)}, got {sampling!r}")
        if isinstance(num_classes, ClipSizes):
            sizes = num_classes
            num_classes = sizes.num_classes
            frames, image_size = frames or sizes.num_frames, image_size or sizes.image_size
        frames = 8 if frames is None else frames
        image_size = (224, 224) if image_size is None else image_size
        if len(image_size) != 2:
            raise ValueError(f"image_size: expected (height, width), got {tuple(image_size)}")
        self.num_classes = check_int("num_classes", num_classes)
        self.frames, self.stride = check_int("frames", frames), check_int("stride", stride)
        self.image_size = tuple(check_int("image_size", side) for side in image_size)
        self.multi_label = multi_label
        self.short, self.flip, self.augment = short, flip, augment
        self.sampling, self.resize = sampling, check_filter(resize)
        self.square_pixels = square_pixels
        self.annotations, self.root = Path(annotations), Path(root)
        videos, problems = read_annotations(annotations, root, self.num_classes, multi_label, with_offset)
        self.videos: Sequence[AnnotatedVideo] = videos
        self.problems: Sequence[str] = problems
        if strict and problems:
            raise ValueError(f"{len(problems)} lines cannot be used:\n" + "\n".join(at_most(problems)))

    def __repr__(self) -> str:
        lines = "\n".join(f"{v.name} {_span(v)} {v.labels}" for v in self.videos)
        digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return (
            f"AnnotatedVideos({self.annotations.name}: {len(self)} videos, sha256 {digest}, frames={self.frames}, "
            f"stride={self.stride}, image_size={self.image_size}, multi_label={self.multi_label}, "
            f"short={self.short!r}, flip={self.flip}, augment={self.augment}, sampling={self.sampling!r}, "
            f"resize={self.resize!r}" + (", square_pixels=True)" if self.square_pixels else ")")
        )

    def __len__(self) -> int:
        return len(self.videos)

    def target(self, index: int) -> int | Array:
        """Return the class number; for multi-label data float32 [K] with ones at the labels."""
        labels = self.videos[index].labels
        if not self.multi_label:
            return labels[0]
        target = np.zeros(self.num_classes, np.float32)
        target[list(labels)] = 1
        return target

    def clip(self, index: int, rng: np.random.Generator | None = None) -> Array:
        """Return clip ``index``, float32 [3, T, height, width] from −1 to 1; see the class for ``rng``."""
        with self._naming(index) as video:
            frames = self._read(video, SAMPLING[self.sampling] if rng is None else float(rng.random()))
            if rng is None:
                return normalise(resize_and_crop(frames.images, self.image_size, resize=self.resize))
            images = random_scale_and_crop(frames.images, rng, self.image_size, self.resize)
        return self._augmented(images, rng)

    def twin(self, index: int, rng: np.random.Generator) -> Array:
        """Return a static twin of clip ``index`` that owes nothing to the clip itself, float32 [3, T, height, width].

        A clip is sampled from the video as in training, one of its T frames is drawn, scaled, cropped and augmented by
        itself, and repeated T times. Source: the released data set, ``RawFrameFakeVidDataset``.
        """
        with self._naming(index) as video:
            frames = self._read(video, float(rng.random()))
            chosen = int(rng.integers(self.frames))
            images = random_scale_and_crop(frames.images[chosen : chosen + 1], rng, self.image_size, self.resize)
        return self._augmented(images, rng).repeat(self.frames, axis=1)

    def _augmented(self, images: NDArray[np.uint8], rng: np.random.Generator) -> Array:
        """Mirror and augment frames at random, and normalise them."""
        if self.flip:
            images = random_flip(images, rng)
        return normalise(rand_augment(images, rng, *self.augment))

    @contextmanager
    def _naming(self, index: int) -> Iterator[AnnotatedVideo]:
        """Yield a video; an error in reading it becomes an UnreadableClipError that names its line."""
        video = self.videos[index]
        try:
            yield video
        except ImportError:
            raise  # not a fault of this video
        except Exception as error:  # a decoder may raise anything on a broken file; other videos can still be read
            raise UnreadableClipError(f"{video.where}: {words_of(error)}") from error

    def _read(self, video: AnnotatedVideo, place: float | None) -> Frames:
        """Read the frames of a clip and compare their number with what the list declares."""
        T = self.frames
        part = None if video.offset is None or video.declared is None else (video.offset, video.declared)
        more: dict[str, Any] = {"part": part, "square_pixels": self.square_pixels}
        frames = read_frames(video.path, T, self.stride, place, loop=self.short == "loop", **more)
        found, needed = frames.num_available, (T - 1) * self.stride + 1
        if video.declared not in (None, found):
            offset = "; for a list with offsets say with_offset" if self.multi_label else ""
            raise ValueError(f"{video.path}: the list says {video.declared} frames, the folder has {found}{offset}")
        if found < needed:
            message = f"{video.where}: {T} frames {self.stride} apart need {needed} frames, {video.path} has {found}"
            warnings.warn(f"{message}; it is read again from its start", ShortVideoWarning, stacklevel=3)
        return frames


def _span(video: AnnotatedVideo) -> str:
    return f"{video.declared}" if video.offset is None else f"{video.offset}+{video.declared}"
