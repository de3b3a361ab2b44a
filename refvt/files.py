"""Files that are whole: written under another name, brought to the disk, renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["left_behind", "write_whole", "writing"]


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The name to write a file under; when the block ends it is brought to the disk and gets the name ``path``.

    Whatever goes wrong, an older file of that name stays as it was. What is there and is no file (a pipe, /dev/null) is
    written to as it is.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if (
        os.name == "posix"
    ):  # the new name is on the disk only when the folder is; not every folder can be asked for that
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def left_behind(folder: Path) -> list[Path]:
    """What killed processes left in a folder while they were writing."""
    return sorted(folder.glob(".*.tmp"))
