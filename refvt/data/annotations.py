"""Labelled real videos, read from an annotation list: a text file with one video per line.

The lists have MMAction's format, which the released configurations use::

    some/folder of frames 250 17      a folder of images, the number of images, the label
    some/video.mp4 17                 a video file, the label
    some/video.mp4 17 42              multi-label: one label or more

Paths are relative to a root (or absolute) and may contain spaces: numbers are read from the end of the line. The form
of a line depends on whether its path is a folder or a file. Only in a multi-label list, a path must not end in a word
that is a number. Empty lines and lines that begin with # are ignored. The text is UTF-8.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.checks import check_int
from refvt.data.augmentation import rand_augment, random_flip, random_scale_and_crop
from refvt.data.clips import normalise, resize_and_crop
from refvt.data.dataset import UnreadableClipError
from refvt.data.resize import check_filter
from refvt.data.video import Frames, read_frames

# which clip is the centre clip, as a place of ``sample_indices``
SAMPLING = {"span": None, "window": 0.5}
# the settings with which frames and pixels are those of the released configurations
RELEASED_VIDEOS = {"sampling": "span", "resize": "opencv"}


@dataclass(frozen=True)
class AnnotatedVideo:
    """One line of an annotation list.

    where: "list:line". name: the path as written there. path: the same below the root. declared: a folder's number of
    images, None for a file.
    """

    where: str
    name: str
    path: Path
    labels: tuple[int, ...]
    declared: int | None


class ShortVideoWarning(UserWarning):
    """A video has fewer frames than a clip spans; it is read again from its start."""


def read_annotations(
    annotations: str | Path, root: str | Path, num_classes: int, multi_label: bool = False
) -> tuple[list[AnnotatedVideo], list[str]]:
    """Return the usable lines of an annotation list, and a problem "list:line: …" for each other line.

    A line is unusable if it has another form, a label outside 0 … num_classes − 1, or a path that does not exist. No
    video is opened. Raises OSError if the list itself cannot be read, ValueError if it has no line at all.
    """
    annotations, root = Path(annotations), Path(root)
    videos: list[AnnotatedVideo] = []
    problems: list[str] = []
    for number, line in enumerate(annotations.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        where = f"{annotations}:{number}"
        try:
            text = line.decode("utf-8").strip()
            if text and not text.startswith("#"):
                videos.append(_video(where, text, root, num_classes, multi_label))
        except (ValueError, OSError) as error:  # UnicodeDecodeError is a ValueError
            problems.append(f"{where}: {error}")
    if not videos and not problems:
        raise ValueError(f"{annotations}: no line in it names a video")
    return videos, problems


def _video(where: str, text: str, root: Path, num_classes: int, multi_label: bool) -> AnnotatedVideo:
    """Parse one line. Raises ValueError or OSError if it cannot be used."""
    words = text.split()
    count = 0  # of whole numbers at the end of the line
    while count < len(words) - 1 and words[-1 - count].removeprefix("-").isdecimal():
        count += 1
    if count == 0:
        raise ValueError(f"expected a path and its label, a whole number, got {text!r}")
    if not multi_label:
        count = 2 if count > 1 and (root / _before(text, 2)).is_dir() else 1
    name = _before(text, count)
    path = root / name
    numbers = [int(word) for word in words[-count:]]
    declared = None
    if path.is_dir():
        if count < 2:
            raise ValueError(f"{path} is a folder: expected the number of its frames, then the label, got {text!r}")
        declared, *numbers = numbers
        if declared < 1:
            raise ValueError(f"expected a folder of at least 1 frame, got {declared} in {text!r}")
    elif not path.exists():
        raise ValueError(f"no such video or folder: {path}, got {text!r}")
    for label in numbers:
        if not 0 <= label < num_classes:
            raise ValueError(f"label {label} is out of range: expected 0 to {num_classes - 1}")
    return AnnotatedVideo(where, name, path, tuple(numbers), declared)


def _before(text: str, count: int) -> str:
    """Return ``text`` without its last ``count`` words."""
    return text.rsplit(maxsplit=count)[0]


class AnnotatedVideos:
    """The videos of an annotation list as clips for a model; implements ``refvt.data.Dataset``.

    annotations: the list (see ``refvt.data.annotations``). root: the folder that its paths are relative to.
    num_classes: labels are 0 … num_classes − 1. frames: T, of one clip. stride: frames from one sampled frame to the
    next; 32 in the paper on Mini-Kinetics, 64 on ActivityNet. multi_label: whether a line may have several labels.
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
        num_classes: int,
        frames: int = 8,
        stride: int = 32,
        multi_label: bool = False,
        *,
        image_size: Sequence[int] = (224, 224),
        short: str = "loop",
        flip: bool = False,
        augment: tuple[int, float] = (2, 9.0),
        sampling: str = "span",
        resize: str = "antialiased",
        strict: bool = False,
    ) -> None:
        if short not in ("loop", "refuse"):
            raise ValueError(f"short: expected 'loop' or 'refuse', got {short!r}")
        if sampling not in SAMPLING:
            raise ValueError(f"sampling: expected one of {', '.join(SAMPLING)}, got {sampling!r}")
        if len(image_size) != 2:
            raise ValueError(f"image_size: expected (height, width), got {tuple(image_size)}")
        self.num_classes = check_int("num_classes", num_classes)
        self.frames, self.stride = check_int("frames", frames), check_int("stride", stride)
        self.image_size = tuple(check_int("image_size", side) for side in image_size)
        self.multi_label = multi_label
        self.short, self.flip, self.augment = short, flip, augment
        self.sampling, self.resize = sampling, check_filter(resize)
        self.annotations, self.root = Path(annotations), Path(root)
        videos, problems = read_annotations(annotations, root, self.num_classes, multi_label)
        self.videos: Sequence[AnnotatedVideo] = videos
        self.problems: Sequence[str] = problems
        if strict and problems:
            raise ValueError(f"{len(problems)} lines cannot be used:\n" + "\n".join(problems))

    def __repr__(self) -> str:
        lines = "\n".join(f"{v.name} {v.declared} {v.labels}" for v in self.videos)
        digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
        return (
            f"AnnotatedVideos({self.annotations.name}: {len(self)} videos, sha256 {digest}, frames={self.frames}, "
            f"stride={self.stride}, image_size={self.image_size}, multi_label={self.multi_label}, "
            f"short={self.short!r}, flip={self.flip}, augment={self.augment}, sampling={self.sampling!r}, "
            f"resize={self.resize!r})"
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
            raise UnreadableClipError(f"{video.where}: {error or type(error).__name__}") from error

    def _read(self, video: AnnotatedVideo, place: float | None) -> Frames:
        """Read the frames of a clip and compare their number with what the list declares."""
        T = self.frames
        frames = read_frames(video.path, T, self.stride, place, loop=self.short == "loop")
        found, needed = frames.num_available, (T - 1) * self.stride + 1
        if video.declared not in (None, found):
            raise ValueError(f"{video.path}: the list says {video.declared} frames, the folder has {found}")
        if found < needed:
            message = f"{video.where}: {T} frames {self.stride} apart need {needed} frames, {video.path} has {found}"
            warnings.warn(f"{message}; it is read again from its start", ShortVideoWarning, stacklevel=3)
        return frames
