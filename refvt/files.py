"""Writing files atomically: under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["left_behind", "write_whole", "writing"]


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name to write to; when the block ends the file is flushed and renamed to ``path``.

    If anything fails, an older file of that name is unchanged. A ``path`` that exists and is not a regular file (a
    pipe, /dev/null) is written to directly.
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
    # the new name is on the disk only once the folder is; not every file system allows fsync of a folder
    if os.name == "posix":
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file completely or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def left_behind(folder: Path) -> list[Path]:
    """Return the temporary files that killed processes have left in a folder."""
    return sorted(folder.glob(".*.tmp"))
