"""Real videos with labels, as annotation lists name them: one line of text per video.

The lists are those of MMAction, which the released configurations use::

    some/folder of frames 250 17      a folder of images, how many there are, the label
    some/video.mp4 17                 a video file, the label
    some/video.mp4 17 42              multi-label: one label or more

Paths are relative to a root (or absolute) and may contain spaces: numbers are read from the end of the line. Whether a
path is a folder or a file decides how its line is read. Only in a multi-label list a path cannot end in a word that is
a number. Empty lines and lines that begin with # are passed over; the text is UTF-8.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refvt.array import Array
from refvt.checks import check_int
from refvt.data.augmentation import rand_augment, random_flip, random_scale_and_crop
from refvt.data.clips import normalise, resize_and_crop
from refvt.data.dataset import UnreadableClipError
from refvt.data.video import Frames, read_frames
from refvt.model.config import HaltingVTConfig


@dataclass(frozen=True)
class AnnotatedVideo:
    """One line of a list.

    where: "list:line". name: the path as it stands there. declared: a folder's number of images, None for a file.
    """

    where: str
    name: str
    path: Path
    labels: tuple[int, ...]
    declared: int | None


class ShortVideoWarning(UserWarning):
    """A video has fewer frames than a clip takes, so the clip begins anew at its end."""


def read_annotations(
    annotations: str | Path, root: str | Path, num_classes: int, multi_label: bool = False
) -> tuple[list[AnnotatedVideo], list[str]]:
    """The usable lines of an annotation list, and what is wrong with the others, "list:line: …" each.

    Wrong are lines of another form, labels that are not in 0 … num_classes − 1, and paths where nothing is. No video is
    opened. Raises OSError where the list itself cannot be read, ValueError where it holds no line at all.
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
    words = text.split()
    count = 0  # of whole numbers at the end
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
    """`text` without its last `count` words."""
    return text.rsplit(maxsplit=count)[0]


class AnnotatedVideos:
    """The videos of an annotation list as clips for a model; implements `refvt.data.Dataset`.

    annotations: the list (see `refvt.data.annotations`); root: the folder its paths start from. config: of the model
    that is to see the clips: T, image_size and num_classes are its. stride: frames from one sampled frame to the next;
    32 in the paper on Mini-Kinetics, 64 on ActivityNet. multi_label: may a line have several labels?

    With rng None `clip` takes the centre clip, scales its short side to 256 for a crop of 224, and crops the centre.
    With a generator it takes a clip from anywhere, scales and crops at random, mirrors with `flip` (off in the paper),
    and applies RandAugment: `augment` is (operations, magnitude), (0, 0) for none.

    A video with fewer frames than the clip spans is read again from its start, as MMAction does (ShortVideoWarning
    tells the line), or with short="refuse" is unreadable.

    What is wrong with the list's lines is in `problems`, the rest can be used; `strict` raises ValueError with all of
    them instead. Videos are opened by `clip` alone, which raises UnreadableClipError with the list's line for missing,
    damaged or cut files, folders that hold another number of images than declared, and frames of no use. Raises
    TypeError or ValueError for other settings that do not fit.
    """

    def __init__(
        self,
        annotations: str | Path,
        root: str | Path,
        config: HaltingVTConfig,
        stride: int = 32,
        multi_label: bool = False,
        *,
        short: str = "loop",
        flip: bool = False,
        augment: tuple[int, float] = (2, 9.0),
        strict: bool = False,
    ) -> None:
        if config.channels != 3:
            raise ValueError(f"config: videos have 3 channels, the model {config.channels}")
        if short not in ("loop", "refuse"):
            raise ValueError(f"short: expected 'loop' or 'refuse', got {short!r}")
        self.config = config
        self.stride = check_int("stride", stride)
        self.num_classes = config.num_classes
        self.multi_label = multi_label
        self.short, self.flip, self.augment = short, flip, augment
        self.annotations, self.root = Path(annotations), Path(root)
        videos, problems = read_annotations(annotations, root, config.num_classes, multi_label)
        self.videos: Sequence[AnnotatedVideo] = videos
        self.problems: Sequence[str] = problems
        if strict and problems:
            raise ValueError(f"{len(problems)} lines cannot be used:\n" + "\n".join(problems))

    def __repr__(self) -> str:
        lines = "\n".join(f"{v.name} {v.declared} {v.labels}" for v in self.videos)
        digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
        c = self.config
        return (
            f"AnnotatedVideos({self.annotations.name}: {len(self)} videos, sha256 {digest}, frames={c.num_frames}, "
            f"stride={self.stride}, image_size={c.image_size}, multi_label={self.multi_label}, short={self.short!r}, "
            f"flip={self.flip}, augment={self.augment})"
        )

    def __len__(self) -> int:
        return len(self.videos)

    def target(self, index: int) -> int | Array:
        """The class number; for multi-label data float32 [K] with ones at the labels."""
        labels = self.videos[index].labels
        if not self.multi_label:
            return labels[0]
        target = np.zeros(self.num_classes, np.float32)
        target[list(labels)] = 1
        return target

    def clip(self, index: int, rng: np.random.Generator | None = None) -> Array:
        """Clip `index`, float32 [3, T, *image_size], from −1 to 1."""
        video = self.videos[index]
        crop = self.config.image_size
        try:
            frames = self._read(video, None if rng is None else float(rng.random()))
            if rng is None:
                return normalise(resize_and_crop(frames.images, crop))
            images = random_scale_and_crop(frames.images, rng, crop)
        except ImportError:
            raise  # concerns every video
        except Exception as error:  # whatever a decoder makes of a broken file, the other videos can still be read
            raise UnreadableClipError(f"{video.where}: {error or type(error).__name__}") from error
        if self.flip:
            images = random_flip(images, rng)
        return normalise(rand_augment(images, rng, *self.augment))

    def _read(self, video: AnnotatedVideo, place: float | None) -> Frames:
        T = self.config.num_frames
        frames = read_frames(video.path, T, self.stride, place, loop=self.short == "loop")
        found, needed = frames.num_available, (T - 1) * self.stride + 1
        if video.declared not in (None, found):
            raise ValueError(f"{video.path}: the list says {video.declared} frames, the folder has {found}")
        if found < needed:
            message = f"{video.where}: {T} frames {self.stride} apart need {needed} frames, {video.path} has {found}"
            warnings.warn(f"{message}; it is read again from its start", ShortVideoWarning, stacklevel=3)
        return frames
