"""The frames read are the frames asked for, and no damaged file passes for a whole one."""

import struct
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import pytest

from refvt.data import find_sample_video, read_frames, video
from tests.support.numbered_frames import number_of, numbered

Encode = Callable[..., Path]


def decode_all(path: Path) -> tuple[list[np.ndarray], bool]:
    """Every frame, and whether the decoder complained."""
    images: list[np.ndarray] = []
    damaged = False
    try:
        with av.open(str(path)) as container:
            stream: Any = container.streams.video[0]
            stream.thread_type = "NONE"
            for packet in container.demux(stream):
                damaged |= packet.is_corrupt
                for frame in packet.decode():
                    damaged |= frame.is_corrupt
                    images.append(frame.to_ndarray(format="rgb24"))
    except av.error.FFmpegError:
        damaged = True
    return images, damaged


def raw_packets(path: Path) -> list[bytes]:
    """The packets of an H.264 file as a raw stream has them."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


# ---- the right frames


@pytest.mark.parametrize(("name", "stride", "used"), [("carphone_pristine.mp4", None, 17), ("bikes.mp4", 20, 20)])
def test_the_frames_of_a_full_decode(name: str, stride: int | None, used: int) -> None:
    path = find_sample_video(name)
    everything, _ = decode_all(path)
    frames = read_frames(path, 8, stride)
    assert frames.num_available == len(everything)
    assert frames.stride == used
    assert frames.images.dtype == np.uint8
    np.testing.assert_array_equal(frames.images, np.stack(everything)[frames.indices])


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")]
)
def test_frames_by_what_they_show(encode: Encode, name: str, codec: str) -> None:
    frames = read_frames(encode(name, 60, codec), 5, 10)
    assert frames.images.shape == (5, 48, 64, 3)
    assert frames.indices.tolist() == [9, 19, 29, 39, 49]
    assert [number_of(image) for image in frames.images] == [9, 19, 29, 39, 49]
    assert frames.num_available == 60
    assert frames.rate == 25


def test_stride_none_is_the_largest_up_to_32(encode: Encode) -> None:
    frames = read_frames(encode("a.mp4", 60), 3)
    assert frames.stride == 29
    assert frames.indices.tolist() == [0, 29, 58]
    frames = read_frames(encode("b.mp4", 60), 2)
    assert frames.stride == 32
    assert frames.indices.tolist() == [13, 45]


def test_a_place_and_a_loop(encode: Encode, tmp_path: Path) -> None:
    path = encode("a.mp4", 20)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(20):
        iio.imwrite(folder / f"img_{number + 1:05}.png", numbered(number))
    for source in (path, folder):
        late = read_frames(source, 4, 3, 0.99)  # a window of 12 frames has 9 places
        assert late.indices.tolist() == [number_of(image) for image in late.images] == [8, 11, 14, 17]
        looped = read_frames(source, 4, 9, loop=True)
        assert looped.indices.tolist() == [number_of(image) for image in looped.images] == [0, 9, 18, 7]
        twice = read_frames(source, 3, 20, loop=True)
        assert [number_of(image) for image in twice.images] == [0, 0, 0]
        assert twice.num_available == 20


def test_odd_sizes_and_gif(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    images = np.stack([numbered(i, 31, 45) for i in range(12)])
    iio.imwrite(path, images, duration=100, loop=0)
    frames = read_frames(path, 4, 3)
    assert frames.indices.tolist() == [1, 4, 7, 10]
    np.testing.assert_array_equal(frames.images, images[[1, 4, 7, 10]])
    assert frames.rate == 10


def test_a_colon_in_the_name(encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode("a.mp4").rename(tmp_path / "day1:noon.mp4")
    monkeypatch.chdir(tmp_path)  # "day1:" must not be taken for a protocol
    assert read_frames("day1:noon.mp4", 2).num_available == 60


# ---- counts that lie


def test_more_packets_than_frames(encode: Encode, tmp_path: Path) -> None:
    # Recording began in the middle of a group of pictures: the decoder skips to the next key frame.
    packets = raw_packets(encode("whole.h264", g="10", sc_threshold="0"))
    path = tmp_path / "late.h264"
    path.write_bytes(b"".join(packets[3:]))
    assert len(packets) == 60
    assert video._find_stream(path) == (0, 57)
    frames = read_frames(path, 8, 7)
    assert frames.num_available == 50
    assert frames.indices.tolist() == [0, 7, 14, 21, 28, 35, 42, 49]
    # Frame 10 is the first that can be shown.
    assert [number_of(image) for image in frames.images] == [10, 17, 24, 31, 38, 45, 52, 59]
    with pytest.raises(ValueError, match="8 frames 8 apart need 57 frames; the video has 50; use stride <= 7"):
        read_frames(path, 8, 8)


def test_fewer_packets_counted_than_frames(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode("a.mp4", 60)
    for count in (2, 30):
        monkeypatch.setattr(video, "_find_stream", lambda *_, count=count: (0, count))
        frames = read_frames(path, 3, 20)
        assert [number_of(image) for image in frames.images] == frames.indices.tolist() == [9, 29, 49]


def test_header_counts_frames_that_are_not_shown(encode: Encode, tmp_path: Path) -> None:
    # An edit list hides the first ten frames: players begin at frame 10, and so must we.
    path = tmp_path / "edited.mp4"
    with (
        av.open(str(encode("whole.mp4", 60, g="60"))) as source,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as out,
    ):
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                shift = round(10 / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                out.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60
    assert video._find_stream(path) == (0, 50)
    frames = read_frames(path, 5, 10)
    assert frames.num_available == 50
    assert [number_of(image) for image in frames.images] == [14, 24, 34, 44, 54]


def test_one_decode_and_only_wanted_frames_converted(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"_decode": 0, "_upright": 0}
    originals = {name: getattr(video, name) for name in calls}
    for name in calls:

        def counted(*args: Any, name: str = name) -> Any:
            calls[name] += 1
            return originals[name](*args)

        monkeypatch.setattr(video, name, counted)
    read_frames(encode("a.mp4", 60), 4)
    assert calls == {"_decode": 1, "_upright": 4}


# ---- cameras held on their side


@pytest.mark.parametrize(
    ("matrix", "quarter_turns_left"),
    # Rows (a, b), (c, d) of the track header: x' = a x + c y, y' = b x + d y, with y pointing down.
    [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
)
def test_turned_upright(encode: Encode, matrix: tuple[int, ...], quarter_turns_left: int) -> None:
    path = encode("a.mp4", 20)
    plain = read_frames(path, 3)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (65536 * value for value in matrix)
    data[start : start + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(data)
    turned = read_frames(path, 3)
    np.testing.assert_array_equal(turned.images, np.rot90(plain.images, quarter_turns_left, axes=(1, 2)))


# ---- damage


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99, 0.99999])
def test_cut_mp4(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.mp4"
    data = find_sample_video("carphone_pristine.mp4").read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"cut\.mp4: .*truncated"):
        read_frames(path, 2, 1)


def test_cut_between_two_frames_with_the_index_in_front(encode: Encode) -> None:
    path = encode("a.mp4", 60, container={"movflags": "faststart"})
    with av.open(str(path)) as container:
        positions = [p.pos for p in container.demux(container.streams.video[0]) if p.size]
    path.write_bytes(path.read_bytes()[: positions[40]])
    images, damaged = decode_all(path)
    assert len(images) == 40  # the decoder sees nothing amiss …
    assert not damaged
    with pytest.raises(ValueError, match="the file is truncated: the mdat box ends at byte"):
        read_frames(path, 2)  # … and the centre of what is left is not the centre of the video


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_cut_inside_a_frame_of_a_stream_without_lengths(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.ts"
    with (
        av.open(str(find_sample_video("carphone_pristine.mp4"))) as source,
        av.open(str(path), "w", format="mpegts") as out,
    ):
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    assert read_frames(path, 2).num_available == 120
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * share) // 188 * 188])  # whole packets of the transport stream
    with pytest.raises(ValueError, match=r"cut\.ts: the video is damaged or truncated after \d+ frames"):
        read_frames(path, 2)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 11])
def test_no_flipped_bit_passes_that_the_decoder_can_tell(tmp_path: Path, seed: int) -> None:
    # Seeds 0 and 3 do damage that the decoder paints over from the frames around it; at 11 it sees none.
    rng = np.random.default_rng(seed)
    flipped = bytearray(find_sample_video("bikes.mp4").read_bytes())
    flipped[rng.integers(48, 500_000)] ^= 1 << rng.integers(8)
    path = tmp_path / "flipped.mp4"
    path.write_bytes(flipped)
    images, damaged = decode_all(path)
    assert damaged == (seed != 11)
    if damaged:
        with pytest.raises(ValueError, match=r"damaged or truncated after \d+ frames"):
            read_frames(path, 8)
    else:
        frames = read_frames(path, 8)
        np.testing.assert_array_equal(frames.images, np.stack(images)[frames.indices])


def test_a_hole_in_the_middle(tmp_path: Path) -> None:
    data = bytearray(find_sample_video("bikes.mp4").read_bytes())
    data[250_000:270_000] = bytes(20_000)
    path = tmp_path / "hole.mp4"
    path.write_bytes(data)
    # The decoder gives up there, so even a clip that lies before the hole is refused: where is the centre?
    with pytest.raises(ValueError, match=r"hole\.mp4: the video is damaged or truncated after 1\d\d frames \("):
        read_frames(path, 8)


def test_the_size_changes(encode: Encode, tmp_path: Path) -> None:
    path = tmp_path / "both.h264"
    path.write_bytes(encode("a.h264", 20).read_bytes() + encode("b.h264", 20, height=32, width=32).read_bytes())
    with pytest.raises(ValueError, match="the size changes from 64×48 to 32×32 by frame"):
        read_frames(path, 4)


# ---- what is no video


def test_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such video"):
        read_frames(tmp_path / "none.mp4", 8)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(ValueError, match=r"empty\.mp4: the file is empty"):
        read_frames(path, 8)


@pytest.mark.parametrize("name", ["words.mp4", "words.txt"])  # by its ending, text is taken for a terminal's
def test_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("I am no video.\n" * 1000)
    with pytest.raises(ValueError, match=rf"{name}: (expected a readable video|no video stream)"):
        read_frames(path, 2)


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(16000))
    with pytest.raises(ValueError, match=r"a\.wav: no video stream in it \(format wav\)"):
        read_frames(path, 2)


def test_a_single_picture_and_too_short(tmp_path: Path, encode: Encode) -> None:
    path = tmp_path / "a.png"
    iio.imwrite(path, numbered(1))
    with pytest.raises(ValueError, match=r"a\.png: expected at least 8 frames, as many as the model needs, got 1$"):
        read_frames(path, 8)
    with pytest.raises(ValueError, match=r"b\.mp4: 8 frames 9 apart need 64 frames; the video has 60"):
        read_frames(encode("b.mp4"), 8, 9)


def test_numbers_are_checked_before_reading(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_frames: expected at least 1"):
        read_frames(tmp_path / "none.mp4", 0)
    with pytest.raises(ValueError, match="stride: expected at least 1"):
        read_frames(tmp_path / "none.mp4", 8, 0)


def test_without_pyav(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode("a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r'^reading a video file needs PyAV: pip install "refvt\[demo\]"$'):
        read_frames(path, 8)


# ---- folders of images


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # not needed here
    for i in range(12):
        iio.imwrite(tmp_path / f"frame{i}.png", numbered(i))
    (tmp_path / "notes.txt").write_text("not a frame")
    frames = read_frames(tmp_path, 4, 3)
    assert frames.num_available == 12
    assert frames.rate is None
    assert frames.indices.tolist() == [1, 4, 7, 10]
    np.testing.assert_array_equal(frames.images, np.stack([numbered(i) for i in (1, 4, 7, 10)]))
    assert [number_of(image) for image in read_frames(tmp_path, 12).images] == list(range(12))


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    iio.imwrite(tmp_path / "0.png", numbered(3)[:, :, 0])
    np.testing.assert_array_equal(read_frames(tmp_path, 1).images[0], numbered(3))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="a folder without images"):
        read_frames(tmp_path, 2)
    iio.imwrite(tmp_path / "0.png", numbered(0))
    with pytest.raises(ValueError, match="expected at least 2 frames, as many as the model needs, got 1"):
        read_frames(tmp_path, 2)
    iio.imwrite(tmp_path / "1.png", numbered(1, 32, 32))
    with pytest.raises(ValueError, match=r"1\.png: 32×32, but the images before it are 64×48"):
        read_frames(tmp_path, 2)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "1.png", noise)
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"1\.png: expected a readable image"):
        read_frames(tmp_path, 2)
