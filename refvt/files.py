"""Files that refvt writes and reads, so that nothing of others is touched and nothing is half written.

- *Writing* is atomic: under a temporary name, flushed to the disk, then renamed. The temporary file is locked while its
  writer lives, so the next writer of the same file finds what killed ones have left behind, and removes that alone.
- *Overwriting*: a command replaces only what refvt made. Reports and pictures carry a mark by which that is seen.
- *Locks* end with their process, however it ends.
- *Reading* opens regular files alone (a pipe would wait for ever), and no more of them than ``refvt.limits`` allows.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refvt.checks import words_of
from refvt.limits import JSON_BYTES

__all__ = [
    "MARK",
    "check_regular",
    "decode_json",
    "locked",
    "made_by_refvt",
    "read_json",
    "read_regular",
    "refuse_strangers",
    "scratch_folder",
    "sweep",
    "write_whole",
    "writing",
]

MARK = {  # what says in a file of a kind that refvt made it
    ".gif": "generator=refvt",
    ".html": "<!-- generator=refvt -->",
    ".json": '"generator": "refvt"',
    ".md": "<!-- generator=refvt -->",
    ".png": "Software\0refvt",
    ".xml": "<!-- generator=refvt -->",
}
_LOOKED_AT = 8192  # bytes at the start and at the end of a file in which the mark is looked for
_LEFT = r"\.{}\.[0-9a-f]{{16}}\.refvt"


# ---- writing


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary name to write to; when the block ends the file is flushed and renamed to ``path``.

    If anything fails, an older file of that name is unchanged. A ``path`` that exists and is not a regular file (a
    pipe, /dev/null) is written to directly. IsADirectoryError for a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file, got a folder")
    if path.exists() and not path.is_file():
        yield path
        return
    sweep(path)
    temporary, held = _create(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if sys.platform == "win32":  # which renames no open file
            os.close(held)
            held = -1
        os.replace(temporary, path)
    except BaseException:
        if sys.platform == "win32" and held >= 0:  # which removes no open file either
            os.close(held)
            held = -1
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if held >= 0:
            os.close(held)
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


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to ``target``, to be filled and renamed; what is left of it in the end is removed."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    lock, held = _create(target)
    folder = _folder_of(lock)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
        lock.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove the temporary files and folders that killed writers of ``path`` have left behind, and nothing else."""
    name = re.compile(_LEFT.format(re.escape(path.name)))
    try:
        found = [path.parent / entry for entry in os.listdir(path.parent) if name.fullmatch(entry)]
    except OSError:
        return
    for left in found:
        with suppress(OSError):
            held = os.open(left, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                dead = _lock(held)
                if dead:
                    shutil.rmtree(_folder_of(left), ignore_errors=True)
                    if sys.platform != "win32":  # which removes no open file
                        left.unlink(missing_ok=True)
            finally:
                os.close(held)
            if dead and sys.platform == "win32":
                left.unlink(missing_ok=True)


def _folder_of(lock: Path) -> Path:
    return lock.with_name(lock.name + ".d")


def _create(target: Path) -> tuple[Path, int]:
    """Create a temporary file for ``target`` and lock it. Returns its path and its open descriptor."""
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.refvt")
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            mine = _lock(held)
        except OSError:  # a file system without locks
            return path, held
        with suppress(OSError):
            if mine and os.path.samestat(os.fstat(held), os.stat(path)):
                return path, held
        os.close(held)  # another writer's ``sweep`` was faster, and removes it as a dead writer's


# ---- overwriting


def refuse_strangers(paths: Iterable[Path], overwrite: bool = False) -> None:
    """FileExistsError that names files of others among those that a command is about to write.

    Devices and pipes pass, and so does an empty file, in which there is nothing to lose. IsADirectoryError for a
    folder. overwrite: the user has said that files may be replaced.
    """
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path}: expected a file to write, got a folder")
        if path.is_symlink() and not path.exists():
            strange = True
        else:
            strange = path.is_file() and path.stat().st_size > 0 and not made_by_refvt(path)
        if strange and not overwrite:
            raise FileExistsError(
                f"{path}: expected a new file or one that refvt made, got another: move it, choose another name, or "
                "replace it with --overwrite"
            )


def made_by_refvt(path: Path) -> bool:
    """Whether a file carries the mark of refvt for its kind."""
    mark = MARK.get(path.suffix.lower())
    with path.open("rb") as file:
        found = file.read(_LOOKED_AT)
        file.seek(max(0, path.stat().st_size - _LOOKED_AT))
        found += b"\n" + file.read()
    marks = MARK.values() if mark is None else [mark]
    return any(each.encode() in found for each in marks)


# ---- locks

PATIENCE = 3.0  # seconds


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock, the file ``lock``, while the block runs; BlockingIOError if another process or thread holds it.

    what: what is locked, for the message. The lock is fcntl.flock's (msvcrt's on Windows), which ends with its process:
    a killed one leaves an empty file at most, which the next holder takes over and removes. One that is being killed
    may need a moment, so a lock that is held is tried again for ``PATIENCE`` seconds. A RuntimeWarning where the file
    system knows no locks.
    """
    end = time.monotonic() + PATIENCE
    while True:
        held = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            mine = _lock(held)
        except OSError as error:
            warnings.warn(f"{lock}: its file system has no locks ({error.strerror})", RuntimeWarning, stacklevel=3)
            mine = True
        if not mine:
            os.close(held)
            if time.monotonic() < end:
                time.sleep(0.1)
                continue
            raise BlockingIOError(f"{what}: expected to be alone there, got another run that is still under way")
        with suppress(OSError):
            if os.path.samestat(os.fstat(held), os.stat(lock)):
                break
        os.close(held)  # its last holder removed it meanwhile
    try:
        yield
    finally:
        if sys.platform == "win32":
            os.close(held)
        with suppress(OSError):
            if lock.stat().st_size == 0:
                lock.unlink()
        if sys.platform != "win32":
            os.close(held)


if sys.platform == "win32":
    import msvcrt

    def _lock(held: int) -> bool:
        """Lock an open file until it is closed; False if it is locked already."""
        os.lseek(held, 1 << 30, os.SEEK_SET)  # beyond the content: its bytes stay readable
        try:
            msvcrt.locking(held, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _lock(held: int) -> bool:
        """Lock an open file until it is closed; False if it is locked already. OSError where there are no locks."""
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


# ---- reading


def check_regular(path: Path, what: str = "a file") -> os.stat_result:
    """Return the status of a regular file.

    FileNotFoundError, IsADirectoryError or, for a pipe or device, which would wait for ever, ValueError.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected {what}, got no file") from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path}: expected {what}, got a folder")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: expected {what}, got a device or pipe")
    return found


def read_regular(path: Path, most: int, what: str = "a file") -> bytes:
    """Read a whole regular file. ValueError if it is none, or has more than ``most`` bytes; OSError if unreadable."""
    size = check_regular(path, what).st_size
    if size > most:
        raise ValueError(f"{path}: expected {what} of at most {most} bytes, got {size}")
    with path.open("rb") as file:
        return file.read(most)


def read_json(path: Path, what: str, constants: bool = False) -> dict[str, Any]:
    """Read a JSON object. ValueError, with the path, for anything else; OSError if the file cannot be read.

    what: what it should be, for the message: "a recipe". constants: as in ``decode_json``.
    """
    return decode_json(read_regular(path, JSON_BYTES, what), f"{path}: expected {what} as JSON", constants)


def decode_json(content: bytes | str, expected: str, constants: bool = False) -> dict[str, Any]:
    """Return the JSON object of a text. ValueError that begins with ``expected`` for anything else.

    A name that occurs twice in an object is refused, and so are NaN and infinity, which are no JSON, unless
    ``constants``: then the caller says which field has one.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        found = json.loads(text, parse_constant=float if constants else _refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{expected}, got one that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{expected}, got another text: {words_of(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{expected}, an object with names, got {type(found).__name__}")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:60]!r} occurs twice")
    return found
