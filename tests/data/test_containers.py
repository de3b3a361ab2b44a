"""A file that was cut short declares more bytes than it has."""

from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from refvt.data.containers import missing_bytes


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


@pytest.mark.parametrize(
    ("name", "codec", "clue"),
    [
        ("a.mp4", "libx264", "the mdat box"),
        ("a.mov", "libx264", "the mdat box"),
        ("a.avi", "mpeg4", "the RIFF chunk"),
        ("a.mkv", "libx264", "the Matroska segment"),
        ("a.webm", "libvpx", "the Matroska segment"),
    ],
)
def test_any_cut_shows(encode: Callable[..., Path], name: str, codec: str, clue: str) -> None:
    # The index of an MP4 is moved to the front, so that a cut falls into the pictures.
    faststart = {"movflags": "faststart"} if name.startswith("a.m") and name != "a.mkv" else None
    path = encode(name, codec=codec, container=faststart)
    whole = path.read_bytes()
    assert missing_bytes(path) is None
    for kept in (len(whole) - 1, len(whole) * 2 // 3):
        path.write_bytes(whole[:kept])
        cut = missing_bytes(path)
        assert cut == f"{clue} ends at byte {len(whole)}, the file at byte {kept}"


def test_gif_without_its_trailer(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    iio.imwrite(path, np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3))
    whole = path.read_bytes()
    assert missing_bytes(path) is None
    path.write_bytes(whole + bytes(5))
    assert missing_bytes(path) is None
    path.write_bytes(whole[:-1])
    assert missing_bytes(path) == "the trailer of the GIF is missing"


def test_boxes_of_all_lengths(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    start = box(b"ftyp", b"isom")
    long = (1).to_bytes(4, "big") + b"mdat" + (16 + 30).to_bytes(8, "big")  # a length of 64 bits
    path.write_bytes(start + long + bytes(30))
    assert missing_bytes(path) is None
    path.write_bytes(start + long + bytes(29))
    assert missing_bytes(path) == "the mdat box ends at byte 58, the file at byte 57"
    path.write_bytes(start + (0).to_bytes(4, "big") + b"mdat" + bytes(9))  # to the end, wherever that is
    assert missing_bytes(path) is None
    path.write_bytes(start + box(b"moov", b"index") + b"\x7f\xff\xff\xfftail of something else")
    assert missing_bytes(path) is None


def test_lengths_that_were_never_filled_in(tmp_path: Path, encode: Callable[..., Path]) -> None:
    live = encode("live.mkv", container={"live": "1"})  # a stream: its segment has the size "unknown"
    live.write_bytes(live.read_bytes()[:-1])
    assert missing_bytes(live) is None
    for length in (0, 0xFFFFFFFF):
        path = tmp_path / "a.avi"
        path.write_bytes(b"RIFF" + length.to_bytes(4, "little") + b"AVI LIST" + bytes(40))
        assert missing_bytes(path) is None


@pytest.mark.parametrize("content", [b"", b"RIFF", b"hello, I am no video", b"\x1aE\xdf\xa3", bytes(100)])
def test_other_files_declare_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert missing_bytes(path) is None
