"""Which stream of a file is the video: pictures beside it are not, and of two videos none is guessed."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from refvt.data import AnnotatedVideos, read_frames

GREY, RED = (100, 100, 100), (255, 0, 0)


class Writer:
    """A container whose streams are all declared before their packets are written."""

    def __init__(self, path: Path) -> None:
        self.container, self.streams = av.open(str(path), "w"), []

    def add(self, count: int, colour: tuple[int, ...], size: tuple[int, int] = (48, 64), mark: str = "") -> None:
        stream: Any = self.container.add_stream("mpeg4" if size != (40, 40) else "mjpeg", rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p" if size != (40, 40) else "yuvj420p"
        if mark:
            stream.disposition = av.stream.Disposition[mark].value
        self.streams.append((stream, count, colour, size))

    def close(self) -> None:
        for stream, count, colour, size in self.streams:
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), colour, np.uint8), "rgb24")
                self.container.mux(stream.encode(frame))
            self.container.mux(stream.encode(None))
        self.container.close()


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        yield data[at + 4 : at + 8], data[at + 8 : at + size]
        at += size


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(data), kind) + data


def with_cover(path: Path, before: bool) -> None:
    """Add a red cover picture to the tags of an MP4, before or after its track."""
    picture = io.BytesIO()
    Image.new("RGB", (100, 100), RED).save(picture, "JPEG")
    handler = box(b"hdlr", struct.pack(">II4s4sII", 0, 0, b"mdir", b"appl", 0, 0) + b"\0")
    cover = box(b"covr", box(b"data", struct.pack(">II", 13, 0) + picture.getvalue()))
    tags = box(b"udta", box(b"meta", struct.pack(">I", 0) + handler + box(b"ilst", cover)))
    out = b""
    for kind, data in boxes(path.read_bytes()):
        if kind == b"moov":
            head, *tracks = [box(k, d) for k, d in boxes(data) if k != b"udta"]
            data = head + (tags if before else b"") + b"".join(tracks) + (b"" if before else tags)
        out += box(kind, data)
    path.write_bytes(out)


def is_grey(image: np.ndarray) -> bool:
    return bool(np.abs(image.astype(int) - 100).max() < 6)


@pytest.mark.parametrize("before", [True, False])
def test_a_cover_picture_is_not_the_video(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "a.mp4"
    writer = Writer(path)
    writer.add(12, GREY)
    writer.close()
    with_cover(path, before)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    frames = read_frames(path, 4)
    assert frames.num_available == 12
    assert is_grey(frames.images)
    (tmp_path / "list.txt").write_text("a.mp4 1\n")
    clip = AnnotatedVideos(tmp_path / "list.txt", tmp_path, 5, 4, 1, image_size=(32, 32)).clip(0)
    assert clip[0].mean() < 0


@pytest.mark.parametrize("first", [True, False])
def test_a_stream_of_one_frame_beside_a_longer_one_is_a_picture(tmp_path: Path, first: bool) -> None:
    path = tmp_path / "a.mkv"
    writer = Writer(path)
    streams = [(1, RED, (40, 40)), (9, GREY, (48, 64))]
    for stream in streams if first else streams[::-1]:
        writer.add(*stream)
    writer.close()
    frames = read_frames(path, 3)
    assert frames.num_available == 9
    assert is_grey(frames.images)


def test_of_several_videos_the_default_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    writer = Writer(path)
    writer.add(8, RED, (32, 48), mark="dub")
    writer.add(12, GREY, mark="default")
    writer.close()
    frames = read_frames(path, 4)
    assert frames.num_available == 12
    assert is_grey(frames.images)


def test_several_videos_without_a_default_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"  # a transport stream has no such mark
    writer = Writer(path)
    writer.add(8, RED, (32, 48))
    writer.add(12, GREY)
    writer.close()
    listed = r"0:v:0 \(48×32, 8 frames\), 0:v:1 \(64×48, 12 frames\)"
    with pytest.raises(ValueError, match=rf"a\.ts: several video streams .*: {listed}; keep .* ffmpeg -i FILE -map"):
        read_frames(path, 4)


def test_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    writer = Writer(path)
    writer.add(3, GREY)
    writer.close()
    with_cover(path, before=True)
    path.write_bytes(path.read_bytes().replace(b"vide", b"soun"))  # the track is no longer one of pictures
    with pytest.raises(ValueError, match=r"song\.mp4: no video stream in it"):
        read_frames(path, 2)


def test_an_animated_webp_and_a_png(tmp_path: Path) -> None:
    images = [Image.new("RGB", (64, 48), (20 * i,) * 3) for i in range(1, 7)]
    for name in ("a.webp", "a.png"):
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=100, lossless=True)
        frames = read_frames(tmp_path / name, 3, 2)
        assert frames.num_available == 6
        assert frames.images[:, 20, 20, 1].tolist() == [20, 60, 100]


def test_an_animated_webp_held_on_its_side(tmp_path: Path) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:16, :16] = 255  # the corner at the top left, which is at the top right of what is shown
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [Image.fromarray(picture // n) for n in (1, 2, 3)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], lossless=True, exif=exif)
    shown = read_frames(tmp_path / "a.webp", 3).images
    np.testing.assert_array_equal(shown[0], np.rot90(picture, -1))
    assert shown.shape == (3, 64, 48, 3)


def test_streams_that_ffmpeg_cannot_decode(tmp_path: Path) -> None:
    for count, said in (
        (1, "FFmpeg has no decoder for its video stream"),
        (2, r"0:v:0 \(3 frames\), 0:v:1 \(3 frames\)"),
    ):
        path = tmp_path / f"{count}.avi"
        writer = Writer(path)
        for _ in range(count):
            writer.add(3, GREY)
        writer.close()
        path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZQ9"))
        with pytest.raises(ValueError, match=said):
            read_frames(path, 2, 1)


def test_of_many_streams_some_are_listed(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "a.mkv")
    for _ in range(25):
        writer.add(2, GREY, mark="forced")
    writer.close()
    with pytest.raises(ValueError, match=r"0:v:19 \(64×48, 2 frames\), … and 5 more; keep one of them"):
        read_frames(tmp_path / "a.mkv", 2, 1)


def test_the_clip_that_is_asked_for_bounds_the_size_of_its_frames(tmp_path: Path) -> None:
    """Also where the file has fewer frames than the clip, so that none of them will be kept."""
    path = tmp_path / "a.gif"
    Image.new("P", (16, 16)).save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x2c\0\0\0\0\x10\0\x10\0")
    data[6:10] = data[at + 5 : at + 9] = struct.pack("<HH", 3600, 8749)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"pixels in each of 4 frames of a file of .* bytes, got 3600×8749"):
        read_frames(path, 4, 1)
