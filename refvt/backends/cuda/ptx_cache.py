"""Compiled kernels of the ``cuda`` column on disk, so that a process waits for the compiler once on a machine.

numba-cuda turns a kernel into PTX, for a kind of GPU and of numbers: a quarter of a minute for all that a model needs.
The PTX is kept where Numba keeps what it compiles for the CPU: in ``NUMBA_CACHE_DIR`` if that is set, else in
``__pycache__`` beside this file, else in ``~/.cache/refvt``. What the driver makes of it, it keeps by itself.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.core import event

from refvt.files import write_whole

__all__ = ["ENTRY", "folder", "kept_ptx"]

ENTRY = ".visible .entry "  # before the kernel's name
FORGOTTEN = 30 * 24 * 3600.0  # seconds after which the kernel of another version is removed


@cache
def folder() -> Path | None:
    """Where compiled kernels lie; None if there is no place that can be written to."""
    places = [Path(__file__).parent / "__pycache__", Path.home() / ".cache" / "refvt"]
    if os.environ.get("NUMBA_CACHE_DIR"):
        places = [Path(os.environ["NUMBA_CACHE_DIR"])]
    for place in places:
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    return None


@cache
def _origin() -> str:
    """A number that is another if a kernel's text is, or what compiles it."""
    from numba.cuda.cudadrv.nvvm import NVVM  # which the simulator does not have

    digest = hashlib.sha256()
    refvt = Path(__file__).parents[2]
    for text in [*sorted(refvt.glob("backends/cuda/*.py")), *sorted(refvt.glob("ops/*/cuda.py"))]:
        digest.update(text.read_bytes())
    for package in ("numba", "numba-cuda", "llvmlite"):
        digest.update(f"{package} {version(package)}\n".encode())
    digest.update(f"Python {sys.version}, libNVVM {NVVM().get_version()}, {NVVM().get_ir_version()}".encode())
    return digest.hexdigest()[:16]


def kept_ptx(kernel: Any, dtype: Any, capability: tuple[int, int]) -> str:
    """The PTX of a kernel for floats of a dtype and a compute capability: from disk, or compiled and put there."""
    kind = f"{np.dtype(dtype)}-{capability[0]}{capability[1]}"
    place = folder()
    path = None if place is None else place / f"{kernel.name}-{kind}-{_origin()}.ptx"
    if path is not None:
        with suppress(OSError, UnicodeDecodeError):
            text = path.read_text()
            if ENTRY in text:
                return text
    with event.trigger_event("numba:compile", {"dispatcher": SimpleNamespace(py_func=kernel.function)}):
        ptx: str = kernel.ptx(dtype, capability)
    if path is not None:
        with suppress(OSError):  # a full disk costs the next process time, no more
            for older in path.parent.glob(f"{kernel.name}-{kind}-*.ptx"):
                if older.stat().st_mtime < time.time() - FORGOTTEN:
                    older.unlink(missing_ok=True)
            write_whole(path, ptx.encode())
    return ptx
