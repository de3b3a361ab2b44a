"""Reading the frames of one clip from a video file, a GIF or a folder of images.

Many files have a wrong frame count in their header, and in some, seeking to a frame by its number gives another frame.
So a file is decoded from start to end, and only the wanted frames are converted and kept. A file in which the decoder
finds damage is refused: a clip with wrong frames looks like any other clip.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

from refvt.checks import check_int
from refvt.data.containers import missing_bytes
from refvt.data.sampling import largest_stride, sample_indices

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of one clip.

    images: uint8 [T, height, width, 3], RGB. indices: int64 [T], their numbers in the video, counted from 0.
    num_available: number of frames of the video. rate: frames per second, None if unknown. stride: from one sampled
    frame to the next.
    """

    images: NDArray[np.uint8]
    indices: NDArray[np.int64]
    num_available: int
    rate: float | None
    stride: int


def read_frames(
    path: str | Path, num_frames: int, stride: int | None = None, place: float | None = None, loop: bool = False
) -> Frames:
    """Read one clip of a video file, a GIF, or a folder of images; the centre clip unless ``place`` is given.

    ``place`` and ``loop`` are those of ``sample_indices``. ``stride`` None takes the largest that fits, at most 32.
    Frames keep their size, and are rotated upright if the file says that the camera was rotated. The images of a folder
    are sorted by name, with numbers by value: 2.png before 10.png.

    Raises FileNotFoundError; IsADirectoryError for a folder without images; ModuleNotFoundError without PyAV (not
    needed for a folder); ValueError, with the path, for a file that is empty, truncated, damaged, too short for the
    clip, not a video, or without a video stream. In the few formats that declare no length, truncation between two
    frames is not detected (see ``refvt.data.containers``).
    """
    path = Path(path)
    num_frames = check_int("num_frames", num_frames)
    if stride is not None:
        stride = check_int("stride", stride)
    wish = _Wish(num_frames, stride, place, loop)
    if path.is_dir():
        return _read_folder(path, wish)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such video")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    cut = missing_bytes(path)
    if cut is not None:
        raise ValueError(f"{path}: the file is truncated: {cut}")

    # The number of packets is quick to count and nearly always the number of frames: good enough to guess which frames
    # are wanted. Decoding to the end gives the true number.
    guess = _guess(_count_packets(path), wish)
    found = _decode(path, guess)
    stride, indices = _choose(path, found.num_available, wish)
    if not np.array_equal(indices, guess):
        found = _decode(path, indices)
    order = np.unique(indices, return_inverse=True)[1]  # a looped clip may use a frame twice
    images = np.stack([found.images[i] for i in order])
    return Frames(images, indices, found.num_available, found.rate, stride)


class _Wish(NamedTuple):
    """Which clip of a video is wanted."""

    num_frames: int
    stride: int | None
    place: float | None
    loop: bool

    def choose(self, count: int) -> tuple[int, NDArray[np.int64]]:
        """Return the stride and the frame numbers for a video of ``count`` frames."""
        stride = largest_stride(count, self.num_frames) if self.stride is None else self.stride
        return stride, sample_indices(count, self.num_frames, stride, self.place, self.loop)


def _choose(path: Path, count: int, wish: _Wish) -> tuple[int, NDArray[np.int64]]:
    try:
        return wish.choose(count)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _guess(count: int, wish: _Wish) -> NDArray[np.int64]:
    """Return the frame numbers if the video has ``count`` frames; none if that is too few: the count may be wrong."""
    try:
        return wish.choose(count)[1]
    except ValueError:
        return np.empty(0, np.int64)


def _read_folder(path: Path, wish: _Wish) -> Frames:
    names = sorted((p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=_by_number)
    if not names:
        raise IsADirectoryError(f"{path}: a folder without images ({', '.join(IMAGE_SUFFIXES)})")
    stride, indices = _choose(path, len(names), wish)
    images: list[NDArray[np.uint8]] = []
    for i in indices:
        try:
            image: NDArray[np.uint8] = iio.imread(names[i], plugin="pillow", mode="RGB")
        except (OSError, SyntaxError) as error:  # Pillow raises either, depending on where the damage is
            raise ValueError(f"{names[i]}: expected a readable image ({error})") from error
        images.append(image)
        if image.shape != images[0].shape:
            raise ValueError(f"{names[i]}: {_size(image)}, but the images before it are {_size(images[0])}")
    return Frames(np.stack(images), indices, len(names), None, stride)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A sort key in which runs of digits count by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}×{image.shape[0]}"


# ---- decoding


class _Decoded(NamedTuple):
    images: list[NDArray[np.uint8]]  # the wanted frames in the order of the video, each once, [height, width, 3]
    num_available: int  # frames in the whole video
    rate: float | None


def _count_packets(path: Path) -> int:
    """Count the packets of the first video stream that will be shown, without decoding them."""
    av = _import_av()
    count = 0
    try:
        with _open(av, path) as container:
            for packet in container.demux(container.streams.video[0]):
                _refuse_damage(path, packet, count)
                count += packet.size > 0 and not packet.is_discard
    except av.error.FFmpegError as error:
        raise _damaged(path, count, error) from error
    return count


def _decode(path: Path, wanted: NDArray[np.int64]) -> _Decoded:
    """Decode all frames, keep the wanted ones. Raises ValueError at the first sign of damage."""
    av = _import_av()
    images: list[NDArray[np.uint8]] = []
    keep = set(wanted.tolist())
    count = 0
    try:
        with _open(av, path) as container:
            stream = container.streams.video[0]
            # One thread: with frames in parallel, errors of the last frames are lost; with slices, errors that the
            # decoder could conceal.
            stream.thread_type = "NONE"
            for packet in container.demux(stream):
                _refuse_damage(path, packet, count)
                for frame in packet.decode():
                    _refuse_damage(path, frame, count)
                    if count in keep:
                        images.append(_upright(frame))
                        if images[-1].shape != images[0].shape:
                            change = f"{_size(images[0])} to {_size(images[-1])}"
                            raise ValueError(f"{path}: the size changes from {change} by frame {count}")
                    count += 1
            rate = stream.average_rate or stream.guessed_rate
    except av.error.FFmpegError as error:
        raise _damaged(path, count, error) from error
    if count == 0:
        raise ValueError(f"{path}: the video stream holds no frame")
    return _Decoded(images, count, float(rate) if rate else None)


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        message = 'reading a video file needs PyAV: pip install "refvt[demo]"'
        raise ModuleNotFoundError(message, name="av") from error
    return av


def _open(av: Any, path: Path) -> Any:
    """Open a container that has a video stream."""
    try:
        # "file:": a colon in the name must not be read as a protocol
        container = av.open(f"file:{path}")
    except av.error.FFmpegError as error:
        raise ValueError(f"{path}: expected a readable video ({_reason(error)})") from error
    # FFmpeg "decodes" a text file to pictures of its text
    if not container.streams.video or container.format.name == "tty":
        name = container.format.name
        container.close()
        raise ValueError(f"{path}: no video stream in it (format {name})")
    return container


def _refuse_damage(path: Path, item: Any, count: int) -> None:
    """Raise if a packet (truncated by the end of the file) or a frame (with wrong bits) is flagged as damaged."""
    if item.is_corrupt:
        raise _damaged(path, count, None)


def _damaged(path: Path, count: int, error: Exception | None) -> ValueError:
    reason = f" ({_reason(error)})" if error is not None else ""
    return ValueError(f"{path}: the video is damaged or truncated after {count} frames{reason}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _upright(frame: Any) -> NDArray[np.uint8]:
    """Return a frame as uint8 [height, width, 3], rotated as the file says (quarter turns, counterclockwise)."""
    image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    # older versions of PyAV do not give the rotation
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns))
