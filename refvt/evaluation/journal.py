"""The file of an evaluation, from which it can be resumed after being killed at any moment.

The first line is a JSON object that says what is evaluated; one line per clip follows, appended a batch at a time. A
killed run leaves complete lines and at most one incomplete line, which is dropped. If a clip has two lines, the later
one counts. Every line ends with its CRC-32, so a flipped bit in a number is noticed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refvt.checks import brief, words_of
from refvt.files import check_regular, decode_json, write_whole

_MOST_BYTES = 16 << 30  # of the file of an evaluation: a million clips of a thousand classes


@dataclass(frozen=True)
class Record:
    """The result of one clip.

    labels: its classes, one unless multi-label. notes: warnings raised while reading it. problem: why it could not be
    read; None if it could, and then there are logits [K], gflops (10⁹ multiply-adds) and tokens_per_layer [L].
    """

    index: int
    labels: list[int]
    notes: list[str]
    problem: str | None
    logits: list[float] | None = None
    gflops: float | None = None
    tokens_per_layer: list[int] | None = None


class Journal:
    """The file ``path``, created or resumed. ``done`` holds the records of its clips by index; ``write`` appends to it.

    header: what is evaluated, as JSON values. check: raises ValueError for a record that cannot be. Raises
    FileExistsError if the file exists and ``resume`` is not set; ValueError, without changing the file, if it has
    another header or lines that are not records.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], resume: bool, check: Callable[[Record], None] = lambda _: None
    ) -> None:
        self.path = path
        self.done: dict[int, Record] = {}
        first = json.dumps(header).encode("ascii") + b"\n"
        found = b""
        if path.exists():
            if not resume:
                raise FileExistsError(f"{path}: already exists; resume it (--resume) or choose another file")
            size = check_regular(path, "the file of an evaluation").st_size
            if size > _MOST_BYTES:
                raise ValueError(f"{path}: expected the file of an evaluation, got {size} bytes")
            found = path.read_bytes()
        if first.startswith(found):  # none, empty, or killed while the header was written
            write_whole(path, first)
            return
        content = found[: found.rfind(b"\n") + 1]  # the clip of an incomplete line is computed again
        lines = content.splitlines()
        self._compare(lines[0] if lines else found, json.loads(first))  # as it is read back: lists for tuples
        for number, line in enumerate(lines[1:], start=2):
            record = self._record(number, line, check)
            self.done[record.index] = record
        with path.open("r+b") as file:
            file.truncate(len(content))

    def write(self, new: Sequence[Record]) -> None:
        """Append records."""
        with self.path.open("ab") as file:
            file.write(b"".join(_line(record) for record in new))

    def _compare(self, line: bytes, header: dict[str, Any]) -> None:
        """Check that the first line is this header."""
        stored = decode_json(line, f"{self.path}:1: not a line of an evaluation: expected what is evaluated, as JSON")
        for name, value in header.items():
            if name not in stored or stored[name] != value:
                was = brief(stored.get(name, "nothing"))
                raise ValueError(f"{self.path}: {name}: expected {was} as in the file, got {brief(value)}")

    def _record(self, number: int, line: bytes, check: Callable[[Record], None]) -> Record:
        """Return the record of a line. ValueError that names the line if there is none."""
        where = f"{self.path}:{number}"
        fields = decode_json(line, f"{where}: not a line of an evaluation: expected one as JSON")
        try:
            stored = fields.pop(_CRC, None)
            record = Record(**fields)
            check(record)
            if _line(record) != line + b"\n":
                raise ValueError(f"{_CRC}: expected that of the line, got {brief(stored)}: the line was changed")
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{where}: not a line of an evaluation ({words_of(error)})") from None
        return record


_CRC = "crc32"


def _line(record: Record) -> bytes:
    """Return the line of a record, with its CRC-32."""
    text = json.dumps(vars(record), allow_nan=False).encode("ascii")
    return text[:-1] + b', "%b": "%08x"}\n' % (_CRC.encode(), zlib.crc32(text))
