"""What a declared size may cost: the one place that decides it, before memory is taken.

A file says how large its contents are, and a few bytes can declare gigabytes; so can one number of a request. Every
reader asks here first. The contents of a file may be large if the file is large; a small file may declare up to a
floor. What a request needs may not be more than the memory of the machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = [
    "GOLDEN_BYTES",
    "JSON_BYTES",
    "LIST_BYTES",
    "check_frames",
    "check_request",
    "check_unpacked",
    "machine_memory",
    "most_pixels",
]

JSON_BYTES = 64 << 20  # of a recipe, a manifest, a journal's line, …
GOLDEN_BYTES = 64 << 20  # of a golden file
LIST_BYTES = 256 << 20  # of an annotation list: a million long lines
UNPACKED_FLOOR, UNPACKED_RATIO = 64 << 20, 100  # of packed arrays: weights can hardly be compressed
FRAMES_FLOOR, FRAMES_RATIO = 128 << 20, 2000  # of the frames of a clip: still pictures compress well


def check_unpacked(what: str, declared: int, stored: int) -> None:
    """ValueError if arrays of ``declared`` bytes are too many for a file of ``stored`` bytes."""
    allowed = UNPACKED_FLOOR + UNPACKED_RATIO * stored
    if declared > allowed:
        raise ValueError(f"{what} unpack to {declared} bytes: expected at most {allowed} from a file of {stored}")


def check_frames(what: str, count: int, width: int, height: int, stored: int) -> None:
    """ValueError if ``count`` frames of width × height, in RGB, are too many for files of ``stored`` bytes."""
    allowed = most_pixels(count, stored)
    if width * height > allowed:
        raise ValueError(
            f"{what}: expected at most {allowed} pixels in each of {count} frames of a file of {stored} bytes, got "
            f"{width}×{height}"
        )


def most_pixels(count: int, stored: int) -> int:
    """Return how many pixels each of ``count`` frames from a file of ``stored`` bytes may have."""
    return (FRAMES_FLOOR + FRAMES_RATIO * stored) // (3 * max(1, count))


def check_request(what: str, shapes: Sequence[Sequence[int]], itemsize: int) -> None:
    """ValueError if arrays of these shapes need more memory than the machine has."""
    needed, most = itemsize * sum(math.prod(shape) for shape in shapes), machine_memory()
    if needed > most:
        raise ValueError(f"{what}: expected at most the {_size(most)} of this machine's memory, got {_size(needed)}")


def machine_memory() -> int:
    """Bytes of main memory that this process may have; 1 TiB where the system does not say."""
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        most = 1 << 40
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        with suppress(OSError, ValueError):
            most = min(most, int(Path(name).read_text(encoding="ascii")))
    return most


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count < 2**60 else f"more than {2**30} GiB"
