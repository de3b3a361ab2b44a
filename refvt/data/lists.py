"""The lines of an annotation list: a text file that names one video per line, with its labels.

The lists have MMAction's format, which the released configurations use::

    some/folder of frames 250 17      a folder of images, the number of images, the label
    some/untrimmed 40 250 17          an offset: the clip is 250 images of the folder, after its first 40
    some/video.mp4 17                 a video file, the label
    "some/video 3.mp4" 17             a path in quotes, where its own words could be taken for numbers
    some/video.mp4 17 42              multi-label: one label or more

Paths are relative to a root (or absolute) and may contain spaces: numbers are read from the end of the line. The form
of a line depends on whether its path is a folder or a file. In a multi-label list a path without quotes must not end in
a word that is a number, and offsets are read only if the list is said to have them. Empty lines and lines that begin
with # are ignored. The text is UTF-8, or UTF-16 with a byte order mark.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from refvt.checks import brief, words_of
from refvt.files import read_regular
from refvt.limits import LIST_BYTES

_NUMBER = re.compile(r"-?[0-9]+")
_QUOTED = re.compile(r'"((?:[^"]|"")+)"\s+(.*)|\'([^\']+)\'\s+(.*)')
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass(frozen=True)
class AnnotatedVideo:
    """One line of an annotation list.

    where: "list:line". name: the path as written there. path: the same below the root. declared: a folder's number of
    images, None for a file. offset: how many images of the folder come before the clip; None if the clip is the folder.
    """

    where: str
    name: str
    path: Path
    labels: tuple[int, ...]
    declared: int | None
    offset: int | None = None


def read_annotations(
    annotations: str | Path, root: str | Path, num_classes: int, multi_label: bool = False, with_offset: bool = False
) -> tuple[list[AnnotatedVideo], list[str]]:
    """Return the usable lines of an annotation list, and a problem "list:line: …" for each other line.

    with_offset: every line with a folder has an offset; needed only for multi-label lists, in others three numbers say
    so. A line is unusable if it has another form, a label outside 0 … num_classes − 1, or a path that does not exist.
    No video is opened. Raises OSError if the list itself cannot be read, ValueError if it has no line at all or is in
    another encoding.
    """
    annotations, root = Path(annotations), Path(root)
    videos: list[AnnotatedVideo] = []
    problems: list[str] = []
    for number, line in enumerate(_read_lines(annotations), start=1):
        where = f"{annotations}:{number}"
        try:
            text = line.decode("utf-8").strip()
            if text and not text.startswith("#"):
                videos.append(_parse(where, text, root, num_classes, multi_label, with_offset))
        except UnicodeDecodeError as error:
            problems.append(f"{where}: {words_of(error)}: save the list as UTF-8")
        except (ValueError, OSError) as error:
            problems.append(f"{where}: {words_of(error)}")
    if not videos and not problems:
        raise ValueError(f"{annotations}: no line in it names a video")
    return videos, problems


def _read_lines(annotations: Path) -> list[bytes]:
    """Return the lines of a list in UTF-8, each by itself: one that is damaged does not spoil the others."""
    data = read_regular(annotations, LIST_BYTES, "an annotation list")
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    if data.startswith(codecs.BOM_UTF32_LE):  # begins as UTF-16 does
        mark = b""
    if _MARKS.get(mark, "utf-8") == "utf-8":
        if b"\0" in data:
            raise ValueError(f"{annotations}: expected text in UTF-8, got zero bytes (UTF-16?): save the list as UTF-8")
        return data.removeprefix(mark).splitlines()
    try:
        return data.removeprefix(mark).decode(_MARKS[mark]).encode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{annotations}: {error}: save the list as UTF-8") from None


def _parse(where: str, text: str, root: Path, num_classes: int, multi_label: bool, with_offset: bool) -> AnnotatedVideo:
    """Parse one line. Raises ValueError or OSError if it cannot be used."""
    quoted = _QUOTED.fullmatch(text)
    words = (quoted[2] or quoted[4]).split() if quoted else text.split()
    count = 0  # of whole numbers at the end of the line
    while count < len(words) - (not quoted) and _NUMBER.fullmatch(words[-1 - count]):
        count += 1
    if count == 0 or (quoted and count != len(words)):
        raise ValueError(f"expected a path and its label, a whole number, got {brief(text)}")
    if quoted:
        name = quoted[1].replace('""', '"') if quoted[1] else quoted[3]
        path = _find(root, name)
    else:
        if not multi_label:
            count = _count_numbers(text, root, count, with_offset)
        name = _before(text, count)
        path = _find(root, name)
    numbers = [int(word) for word in words[-count:]]
    declared = offset = None
    if path.is_dir():
        declared, offset, numbers = _read_part(path, text, numbers, multi_label, with_offset)
    elif not path.exists():
        raise ValueError(f"no such video or folder: {brief(str(path))[1:-1]}, got {brief(text)}")
    elif not multi_label and len(numbers) > 1:
        raise ValueError(f"{path} is a file: expected its label alone, got {brief(text)}")
    for label in numbers:
        if not 0 <= label < num_classes:
            raise ValueError(f"label {label} is out of range: expected 0 to {num_classes - 1}")
    return AnnotatedVideo(where, name, path, tuple(numbers), declared, offset)


def _count_numbers(text: str, root: Path, count: int, with_offset: bool) -> int:
    """Return how many of the ``count`` numbers at the end of a single-label line are not part of its path.

    A path is followed by 1 number if it is a file, by 2 if it is a folder, by 3 if it is a folder with an offset.
    """
    forms = (3,) if with_offset else (2, 3)
    folders = [n for n in forms if n <= count and _find(root, _before(text, n)).is_dir()]
    if count > 1 and _find(root, _before(text, 1)).is_file():
        folders.append(1)
    if len(folders) > 1:
        both = " and ".join(repr(_before(text, n)) for n in folders)
        raise ValueError(f"{both} exist: put the path in quotes, got {brief(text)}")
    if not folders and count > 1:  # no such path: the message names the shortest form
        return min(count, 3 if with_offset else 2) if _find(root, _before(text, count)).exists() else 1
    return folders[0] if folders else 1


def _read_part(
    path: Path, text: str, numbers: list[int], multi_label: bool, with_offset: bool
) -> tuple[int, int | None, list[int]]:
    """Split the numbers after a folder: how many images, the offset if there is one, the labels."""
    has_offset = with_offset or (not multi_label and len(numbers) > 2)
    if len(numbers) < 2 + has_offset or (not multi_label and len(numbers) > 3):
        what = "an offset, the number of its frames" if has_offset else "the number of its frames"
        raise ValueError(f"{path} is a folder: expected {what}, then the label, got {brief(text)}")
    offset = numbers.pop(0) if has_offset else None
    declared, *labels = numbers
    if declared < 1 or (offset is not None and offset < 0):
        start = "" if offset is None else f"an offset of at least 0, got {offset}, and "
        raise ValueError(f"expected {start}a folder of at least 1 frame, got {declared} in {brief(text)}")
    return declared, offset, labels


def _before(text: str, count: int) -> str:
    """Return ``text`` without its last ``count`` words."""
    return text.rsplit(maxsplit=count)[0]


def _find(root: Path, name: str) -> Path:
    """Return the path below the root; with its accents composed or decomposed if only that form exists."""
    path = root / name
    if not name.isascii() and not path.exists():
        for form in ("NFC", "NFD"):  # macOS decomposes the accents in names of files
            other = root / unicodedata.normalize(form, name)
            if other.exists():
                return other
    return path
