"""Annotation lists as the field writes them: offsets, quotes, byte order marks, other encodings."""

import codecs
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refvt import HaltingVTConfig
from refvt.data import AnnotatedVideos, UnreadableClipError
from refvt.data.lists import read_annotations

SIZES: dict[str, Any] = {"num_classes": 50, "frames": 4, "stride": 1, "image_size": (32, 32)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of ten frames that tell their number, and files that are never opened."""
    (tmp_path / "clip").mkdir()
    for i in range(1, 11):
        Image.new("RGB", (40, 40), (20 * i,) * 3).save(tmp_path / "clip" / f"img_{i:05d}.png")
    for name in ("a b.mp4", "take 3", "café.mp4", "it's.mp4", 'a "b".mp4'):
        (tmp_path / name).touch()
    return tmp_path


def read(root: Path, text: str | bytes, **options: Any) -> tuple[list[Any], list[str]]:
    path = root / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotations(path, root, 50, **options)


def frame_numbers(data: AnnotatedVideos, index: int = 0) -> list[int]:
    return np.round((data.clip(index)[0, :, 16, 16] * 127.5 + 127.5) / 20).astype(int).tolist()


@pytest.mark.parametrize(
    ("line", "options", "frames", "labels"),
    [
        ("clip 2 4 1", {}, [3, 4, 5, 6], (1,)),
        ("clip 0 4 1", {}, [1, 2, 3, 4], (1,)),
        ("clip 6 4 1", {"with_offset": True}, [7, 8, 9, 10], (1,)),
        ("clip 1 4 3 7", {"with_offset": True, "multi_label": True}, [2, 3, 4, 5], (3, 7)),
        ('"clip" 3 4 1', {}, [4, 5, 6, 7], (1,)),
        ("clip 10 1", {}, [4, 5, 6, 7], (1,)),
    ],
)
def test_offsets(root: Path, line: str, options: dict[str, Any], frames: list[int], labels: tuple[int, ...]) -> None:
    (root / "list.txt").write_text(line)
    data = AnnotatedVideos(root / "list.txt", root, **SIZES, **options)
    assert data.problems == []
    assert data.videos[0].labels == labels
    assert frame_numbers(data) == frames


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("clip 8 4 1", {}, "expected frames 8 to 11, counted from 0, got 10 images"),
        ("clip 2 4 1 5", {"multi_label": True}, "the list says 2 frames, the folder has 10; for a list with offsets"),
    ],
)
def test_offsets_that_do_not_fit(root: Path, line: str, options: dict[str, Any], message: str) -> None:
    (root / "list.txt").write_text(line)
    with pytest.raises(UnreadableClipError, match=rf"list\.txt:1: .*clip: {message}"):
        AnnotatedVideos(root / "list.txt", root, **SIZES, **options).clip(0)


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("clip -1 4 1", {}, "expected an offset of at least 0, got -1, and a folder of at least 1 frame, got 4"),
        ("clip 4 1", {"with_offset": True}, "clip is a folder: expected an offset, the number of its frames, then"),
        ("clip 1 2 3 4", {}, "no such video or folder|expected an offset"),
        ("a b.mp4 2 4", {}, "no such video or folder: .*a b.mp4 2|is a file: expected its label alone"),
        ('"a b.mp4" 2 4', {}, "a b.mp4 is a file: expected its label alone, got"),
        ('"a b.mp4 2', {}, "no such video or folder"),
        ('"a b.mp4" two', {}, "expected a path and its label, a whole number"),
    ],
)
def test_lines_in_doubt_are_named(root: Path, line: str, options: dict[str, Any], message: str) -> None:
    videos, problems = read(root, line, **options)
    assert videos == []
    with pytest.raises(ValueError, match=rf"list\.txt:1: .*({message})"):
        raise ValueError(problems[0])


def test_a_line_that_two_folders_fit_needs_quotes(root: Path) -> None:
    (root / "clip 2").mkdir()
    videos, problems = read(root, 'clip 2 4 1\n"clip" 2 4 1\n"clip 2" 4 1\n')
    assert [(v.name, v.offset, v.declared) for v in videos] == [("clip", 2, 4), ("clip 2", None, 4)]
    assert "'clip 2' and 'clip' exist: put the path in quotes, got 'clip 2 4 1'" in problems[0]


@pytest.mark.parametrize(
    ("line", "name", "labels"),
    [
        ('"a b.mp4" 3', "a b.mp4", (3,)),
        ("'a b.mp4'\t3", "a b.mp4", (3,)),
        ('"take 3" 4', "take 3", (4,)),
        ("it's.mp4 5", "it's.mp4", (5,)),
        ('"a ""b"".mp4" 6', 'a "b".mp4', (6,)),
        ('a "b".mp4 6', 'a "b".mp4', (6,)),
    ],
)
def test_quotes(root: Path, line: str, name: str, labels: tuple[int, ...]) -> None:
    videos, problems = read(root, line)
    assert problems == []
    assert [(v.name, v.labels) for v in videos] == [(name, labels)]
    if name == "take 3":  # in a multi-label list only the quotes tell that the 3 is no number
        assert [v.labels for v in read(root, line, multi_label=True)[0]] == [labels]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks(root: Path, encoding: str, mark: bytes, end: str) -> None:
    videos, problems = read(root, mark + f"clip 10 1{end}café.mp4 2{end}".encode(encoding))
    assert problems == []
    assert [v.name for v in videos] == ["clip", "café.mp4"]


def test_other_encodings_are_named(root: Path) -> None:
    videos, problems = read(root, "clip 10 1\ncafé.mp4 2\nclip 10 3\n".encode("latin-1"))
    assert [v.labels for v in videos] == [(1,), (3,)]
    assert ":2: 'utf-8' codec can't decode" in problems[0]
    assert "save the list as UTF-8" in problems[0]
    for data in ("clip 10 1\n".encode("utf-16-le"), codecs.BOM_UTF32_LE + "clip 10 1\n".encode("utf-32-le")):
        with pytest.raises(ValueError, match=r"list\.txt: expected text in UTF-8.*save the list as UTF-8"):
            read(root, data)
    with pytest.raises(ValueError, match=r"list\.txt: .*utf-16.*save the list as UTF-8"):
        read(root, codecs.BOM_UTF16_LE + b"\x00\xd8a")


def test_accents_that_the_file_system_has_decomposed(root: Path) -> None:
    (root / unicodedata.normalize("NFD", "été.mp4")).touch()
    videos, problems = read(root, unicodedata.normalize("NFC", "été.mp4 4"))
    assert problems == []
    assert videos[0].path.exists()


def test_a_configuration_says_the_sizes(root: Path) -> None:
    config = HaltingVTConfig(
        image_size=(32, 32), patch_size=8, num_frames=4, width=16, num_heads=2, glimpser_depth=1, depth=3,
        keep_rates=(0.5,), num_classes=50,
    )  # fmt: skip
    (root / "list.txt").write_text("clip 2 4 1\n")
    data = AnnotatedVideos(root / "list.txt", root, config, stride=1)
    assert repr(data) == repr(AnnotatedVideos(root / "list.txt", root, **SIZES))
