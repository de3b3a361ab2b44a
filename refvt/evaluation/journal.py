"""The file of an evaluation, from which it can be resumed after being killed at any moment.

The first line is a JSON object that says what is evaluated; one line per clip follows, appended a batch at a time. A
killed run leaves complete lines and at most one incomplete line, which is dropped. If a clip has two lines, the later
one counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


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

    header: what is evaluated, as JSON values. Raises FileExistsError if the file exists and ``resume`` is not set;
    ValueError, without changing the file, if it has another header or lines that are not records.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self.done: dict[int, Record] = {}
        first = json.dumps(header).encode("ascii") + b"\n"
        found = b""
        if path.exists():
            if not resume:
                raise FileExistsError(f"{path}: already exists; resume it (--resume) or choose another file")
            found = path.read_bytes()
        if first.startswith(found):  # empty, or killed while the header was written
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(first)
            return
        content = found[: found.rfind(b"\n") + 1]  # the clip of an incomplete line is computed again
        lines = content.splitlines()
        self._compare(lines[0] if lines else found, json.loads(first))  # as it is read back: lists for tuples
        for number, line in enumerate(lines[1:], start=2):
            record = self._parse(number, line, lambda fields: Record(**fields))
            self.done[record.index] = record
        with path.open("r+b") as file:
            file.truncate(len(content))

    def write(self, new: Sequence[Record]) -> None:
        """Append records."""
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(vars(record)) + "\n" for record in new).encode("ascii"))

    def _compare(self, line: bytes, header: dict[str, Any]) -> None:
        """Check that the first line is this header."""
        stored: dict[str, Any] = self._parse(1, line, dict)
        for name, value in header.items():
            if name not in stored or stored[name] != value:
                was = stored.get(name, "nothing")
                raise ValueError(f"{self.path}: {name}: expected {was} as in the file, got {value}")

    def _parse(self, number: int, line: bytes, make: Callable[[Any], T]) -> T:
        """Return ``make`` of a line's JSON. ValueError that names the line if either fails."""
        try:
            return make(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}:{number}: not a line of an evaluation ({error})") from None
