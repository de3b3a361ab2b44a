"""Reading the frames of one clip from a video file, a GIF or a folder of images.

Many files have a wrong frame count in their header, and in some, seeking to a frame by its number gives another frame.
So a file is decoded from start to end, and only the wanted frames are converted and kept. A file in which the decoder
finds damage is refused: a clip with wrong frames looks like any other clip.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refvt.checks import at_most, check_int
from refvt.data.containers import missing_bytes
from refvt.data.display import Pixels, check_opaque, make_square, size_of, turn
from refvt.data.images import count_pictures, list_frames, read_image, read_pictures
from refvt.data.sampling import largest_stride, sample_indices
from refvt.files import check_regular
from refvt.limits import check_frames, most_pixels


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
    path: str | Path,
    num_frames: int,
    stride: int | None = None,
    place: float | None = None,
    loop: bool = False,
    *,
    part: tuple[int, int] | None = None,
    square_pixels: bool = False,
) -> Frames:
    """Read one clip of a video file, a GIF, or a folder of images; the centre clip unless ``place`` is given.

    ``place`` and ``loop`` are those of ``sample_indices``. ``stride`` None takes the largest that fits, at most 32.
    ``part`` (first, count) takes ``count`` images of a folder, from number ``first`` (counted from 0), as the video.

    Frames are turned and mirrored upright as the file says. The sample aspect ratio of a file whose pixels are not
    square is ignored, as MMAction ignores it; with ``square_pixels`` frames are widened by it, the height kept, as a
    player shows them. Colours have 8 bits. A cover picture, and a stream of a single frame beside a longer one, are not
    the video. Which files of a folder are the frames, and in what order: see ``refvt.data.images.list_frames``.

    Raises FileNotFoundError; IsADirectoryError for a folder without images; ModuleNotFoundError without PyAV (not
    needed for a folder); ValueError, with the path, for a file that is empty, truncated, damaged, too short for the
    clip, not a video, without a video stream or with several of which none is marked as the default, for transparent
    pixels, for a camera that is neither upright nor at a right angle, and for a folder in which the frames or their
    order are in doubt. In the few formats that declare no length, truncation between two frames is not detected (see
    ``refvt.data.containers``).
    """
    path = Path(path)
    num_frames = check_int("num_frames", num_frames)
    if stride is not None:
        stride = check_int("stride", stride)
    wish = _Wish(num_frames, stride, place, loop)
    if path.is_dir():
        return _read_folder(path, wish, part)
    _check_file(path)
    if part is not None:
        raise ValueError(f"{path}: expected a folder of images where a part is asked for, got a file")
    with path.open("rb") as file:
        head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return _read_animation(path, wish)

    # The number of packets is quick to count and nearly always the number of frames: good enough to guess which frames
    # are wanted. Decoding to the end gives the true number.
    stream, packets = _find_stream(path)
    guess = _guess(packets, wish)
    found = _decode(path, stream, guess, num_frames, square_pixels)
    stride, indices = _choose(path, found.num_available, wish)
    if not np.array_equal(indices, guess):
        found = _decode(path, stream, indices, num_frames, square_pixels)
    order = np.unique(indices, return_inverse=True)[1]  # a looped clip may use a frame twice
    images = found.images if np.array_equal(order, range(len(found.images))) else found.images[order]
    return Frames(images, indices, found.num_available, found.rate, stride)


def _check_file(path: Path) -> None:
    """Raise FileNotFoundError, or ValueError for a file that is empty or truncated."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such video")
    if check_regular(path, "a video").st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    cut = missing_bytes(path)
    if cut is not None:
        raise ValueError(f"{path}: the file is truncated: {cut}")


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
    if count < wish.num_frames and not wish.loop:
        raise ValueError(f"{path}: expected at least {wish.num_frames} frames, as many as the model needs, got {count}")
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


def _read_folder(path: Path, wish: _Wish, part: tuple[int, int] | None) -> Frames:
    names = list_frames(path)
    first, count = (0, len(names)) if part is None else part
    if first < 0 or count < 1 or first + count > len(names):
        raise ValueError(
            f"{path}: expected frames {first} to {first + count - 1}, counted from 0, got {len(names)} images"
        )
    stride, indices = _choose(path, count, wish)
    images: NDArray[np.uint8] | None = None
    for place, i in enumerate(indices):
        name = names[first + i]
        image = read_image(name, len(indices))
        if images is None:
            images = np.empty((len(indices), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise ValueError(f"{name}: {size_of(image)}, but the images before it are {size_of(images[0])}")
        images[place] = image
    assert images is not None
    return Frames(images, first + indices, count, None, stride)


def _read_animation(path: Path, wish: _Wish) -> Frames:
    """Read a clip of an animated WebP, which FFmpeg does not decode."""
    count = count_pictures(path)
    stride, indices = _choose(path, count, wish)
    return Frames(read_pictures(path, indices.tolist()), indices, count, None, stride)


# ---- decoding


_STILL = ("attached_pic", "still_image", "timed_thumbnails")  # streams that a player does not play


class _Decoded(NamedTuple):
    images: NDArray[np.uint8]  # [frames, height, width, 3]: the wanted ones in the order of the video, each once
    num_available: int  # frames in the whole video
    rate: float | None


def _find_stream(path: Path) -> tuple[int, int]:
    """Return which of the video streams is the video, and its number of packets that will be shown; decodes nothing.

    ValueError if there is none, or if several could be it.
    """
    av = _import_av()
    count = 0
    try:
        with _open(av, path) as container:
            streams = container.streams.video
            moving = [i for i, s in enumerate(streams) if not any(_is_marked(av, s, mark) for mark in _STILL)]
            if not moving:
                raise ValueError(f"{path}: no video stream in it, only {len(streams)} attached pictures")
            counts, corrupt = dict.fromkeys(moving, 0), dict.fromkeys(moving, False)
            number_of = {streams[i].index: i for i in moving}
            for packet in _packets(container, [streams[i] for i in moving]):
                i = number_of[packet.stream.index]
                corrupt[i] |= packet.is_corrupt
                counts[i] += packet.size > 0 and not packet.is_discard
                count = max(counts.values())
            chosen = _choose_stream(av, path, streams, counts)
            if corrupt[chosen]:
                raise _damaged(path, counts[chosen], None)
            if streams[chosen].codec_context is None:
                raise ValueError(f"{path}: FFmpeg has no decoder for its video stream")
    except av.error.FFmpegError as error:
        raise _damaged(path, count, error) from error
    return chosen, counts[chosen]


def _choose_stream(av: Any, path: Path, streams: Any, counts: dict[int, int]) -> int:
    """Return the one stream of several frames; of several, the one that is marked as the default."""
    longest = max(counts.values())
    found = [i for i, count in counts.items() if count > 1 or longest <= 1]
    marked = [i for i in found if _is_marked(av, streams[i], "default")]
    if len(found) > 1 and len(marked) != 1:
        listed = ", ".join(at_most(f"0:v:{i} ({_size(streams[i])}{counts[i]} frames)" for i in found))
        raise ValueError(
            f"{path}: several video streams and none is marked as the one default: {listed}; keep one of them, for "
            f"example: ffmpeg -i FILE -map 0:v:{found[0]} -c copy OUT"
        )
    return found[0] if len(found) == 1 else marked[0]


def _size(stream: Any) -> str:
    """Return "width×height, ", nothing if FFmpeg has no decoder for the stream."""
    context = stream.codec_context
    return "" if context is None else f"{context.width}×{context.height}, "


def _packets(container: Any, streams: Any) -> Iterator[Any]:
    """Yield the packets of some streams."""
    try:
        yield from container.demux(streams)
    except IndexError:  # from PyAV's last step, for a stream that began late: all packets have come
        return


def _is_marked(av: Any, stream: Any, mark: str) -> bool:
    return bool(stream.disposition & av.stream.Disposition[mark])


def _decode(path: Path, number: int, wanted: NDArray[np.int64], num_frames: int, square_pixels: bool) -> _Decoded:
    """Decode all frames of video stream ``number``, keep the wanted ones. ValueError at the first sign of damage.

    num_frames: frames of the clip; the more there are, the smaller each must be.
    """
    av = _import_av()
    keep = set(wanted.tolist())
    images: NDArray[np.uint8] | None = None
    kept = count = 0
    stored = path.stat().st_size
    limit = min(most_pixels(num_frames, stored), 2**31 - 1)
    try:
        with _open(av, path) as container:
            stream = container.streams.video[number]
            check_frames(str(path), num_frames, stream.codec_context.width, stream.codec_context.height, stored)
            # some formats say only here how large a frame is: the decoder must not take memory for it
            stream.codec_context.options = {"max_pixels": str(limit)}
            aspect = stream.sample_aspect_ratio if square_pixels else None
            # One thread: with frames in parallel, errors of the last frames are lost; with slices, errors that the
            # decoder could conceal.
            stream.thread_type = "NONE"
            for packet in _packets(container, stream):
                _refuse_damage(path, packet, count)
                for frame in packet.decode():
                    _refuse_damage(path, frame, count)
                    if count in keep:
                        check_frames(str(path), num_frames, frame.width, frame.height, stored)
                        image = _upright(path, frame, aspect)
                        if images is None:
                            images = np.empty((len(keep), *image.shape), np.uint8)
                        if image.shape != images.shape[1:]:
                            change = f"{size_of(images[0])} to {size_of(image)}"
                            raise ValueError(f"{path}: the size changes from {change} by frame {count}")
                        images[kept] = image
                        kept += 1
                    count += 1
            rate = stream.average_rate or stream.guessed_rate
    except av.error.ArgumentError as error:
        if count > 0:
            raise _damaged(path, count, error) from error
        raise ValueError(
            f"{path}: expected frames of at most {limit} pixels in a file of {stored} bytes, got larger or damaged "
            f"ones ({_reason(error)})"
        ) from error
    except av.error.FFmpegError as error:
        raise _damaged(path, count, error) from error
    if count == 0:
        raise ValueError(f"{path}: the video stream holds no frame")
    found = np.empty((0, 1, 1, 3), np.uint8) if images is None else images[:kept]
    return _Decoded(found, count, float(rate) if rate else None)


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
        # tags may have any encoding, which PyAV before 19 refuses unless it is told
        lenient = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
        container = av.open(f"file:{path}", **lenient)
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


def _upright(path: Path, frame: Any, aspect: Fraction | None) -> Pixels:
    """Return a frame as it is shown, uint8 [height, width, 3]. aspect: width : height of its pixels, None if square."""
    try:
        if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
            check_opaque(frame.to_ndarray(format="rgba")[:, :, 3])
        image = make_square(frame.to_ndarray(format="rgb24"), aspect)
        return turn(image, _display_matrix(frame))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _display_matrix(frame: Any) -> tuple[float, ...]:
    """Return a, b, c, d of a frame's display matrix (see ``refvt.data.display``); upright if it has none."""
    for i in range(len(frame.side_data)):
        data = frame.side_data[i]
        if data.type.name == "DISPLAYMATRIX":
            values = np.frombuffer(bytes(data), np.int32)  # rows (a, b, u), (c, d, v), (x, y, w)
            return tuple(values[[0, 1, 3, 4]].tolist())
    return (1, 0, 0, 1)
