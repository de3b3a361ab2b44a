"""The file in which an evaluation writes down what it has done: killed at any moment, it goes on from there.

One line of JSON that says what is evaluated, then one for each clip, appended a batch at a time. What a killed run
leaves behind is whole lines and at most one that breaks off, which is dropped. Of two lines about a clip the later one
holds.
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
    """What came of one clip.

    labels: its classes, one unless multi-label. notes: warnings met while reading. problem: why it could not be read,
    or None; then there are logits [K], gflops, 10⁹ multiply-adds, and tokens_per_layer [L].
    """

    index: int
    labels: list[int]
    notes: list[str]
    problem: str | None
    logits: list[float] | None = None
    gflops: float | None = None
    tokens_per_layer: list[int] | None = None


class Journal:
    """The file `path`, begun or taken up: `done` holds what it says of clips, `write` adds to it.

    header: what is evaluated, as JSON can hold it. Raises FileExistsError for a file that is there without `resume`;
    ValueError, and leaves the file as it is, for one of another header or with lines that are no records.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self.done: dict[int, Record] = {}
        first = json.dumps(header).encode("ascii") + b"\n"
        found = b""
        if path.exists():
            if not resume:
                raise FileExistsError(f"{path}: there already; resume it, or name another file")
            found = path.read_bytes()
        if first.startswith(found):  # nothing yet, or killed while it wrote the header
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(first)
            return
        content = found[: found.rfind(b"\n") + 1]  # a line that breaks off is computed again
        lines = content.splitlines()
        self._compare(lines[0] if lines else found, json.loads(first))  # as it reads back: lists for tuples
        for number, line in enumerate(lines[1:], start=2):
            record = self._parsed(number, line, lambda fields: Record(**fields))
            self.done[record.index] = record
        with path.open("r+b") as file:
            file.truncate(len(content))

    def write(self, new: Sequence[Record]) -> None:
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(vars(record)) + "\n" for record in new).encode("ascii"))

    def _compare(self, line: bytes, header: dict[str, Any]) -> None:
        begun: dict[str, Any] = self._parsed(1, line, dict)
        for name, value in header.items():
            if name not in begun or begun[name] != value:
                was = begun.get(name, "nothing of the kind")
                raise ValueError(f"{self.path}: begun with {name} {was}, but asked for is {value}")

    def _parsed(self, number: int, line: bytes, make: Callable[[Any], T]) -> T:
        try:
            return make(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}:{number}: not a line of an evaluation ({error})") from None
