"""A cache of compiled kernels on disk, so that only the first process on a machine waits for the compiler.

numba-cuda compiles a kernel to PTX, for a compute capability and a dtype: about 15 s for all kernels of a model. The
PTX is kept where Numba caches CPU code: in ``NUMBA_CACHE_DIR`` if that is set, else in ``__pycache__`` next to this
file, else in ``~/.cache/refvt``. The driver caches the machine code that it makes of the PTX.
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

ENTRY = ".visible .entry "  # stands before the kernel's name
MAX_AGE = 30 * 24 * 3600.0  # seconds after which the kernel of another version is removed


@cache
def folder() -> Path | None:
    """The folder of compiled kernels; None if no folder can be written to."""
    folders = [Path(__file__).parent / "__pycache__", Path.home() / ".cache" / "refvt"]
    if os.environ.get("NUMBA_CACHE_DIR"):
        folders = [Path(os.environ["NUMBA_CACHE_DIR"])]
    for candidate in folders:
        with suppress(OSError):
            candidate.mkdir(parents=True, exist_ok=True)
            if os.access(candidate, os.W_OK):
                return candidate
    return None


@cache
def _origin() -> str:
    """A digest of the kernels' source and of the compiler's version."""
    from numba.cuda.cudadrv.nvvm import NVVM  # not available in the simulator

    digest = hashlib.sha256()
    refvt = Path(__file__).parents[2]
    for text in [*sorted(refvt.glob("backends/cuda/*.py")), *sorted(refvt.glob("ops/*/cuda*.py"))]:
        digest.update(text.read_bytes())
    for package in ("numba", "numba-cuda", "llvmlite"):
        digest.update(f"{package} {version(package)}\n".encode())
    digest.update(f"Python {sys.version}, libNVVM {NVVM().get_version()}, {NVVM().get_ir_version()}".encode())
    return digest.hexdigest()[:16]


def kept_ptx(kernel: Any, dtype: Any, capability: tuple[int, int]) -> str:
    """The PTX of a kernel for a dtype and a compute capability: loaded from the cache, or compiled and cached."""
    kind = f"{np.dtype(dtype)}-{capability[0]}{capability[1]}"
    cache_folder = folder()
    path = None if cache_folder is None else cache_folder / f"{kernel.name}-{kind}-{_origin()}.ptx"
    if path is not None:
        with suppress(OSError, UnicodeDecodeError):
            text = path.read_text()
            if ENTRY in text:
                return text
    with event.trigger_event("numba:compile", {"dispatcher": SimpleNamespace(py_func=kernel.function)}):
        ptx: str = kernel.ptx(dtype, capability)
    if path is not None:
        with suppress(OSError):  # with a full disk the next process compiles again
            for older in path.parent.glob(f"{kernel.name}-{kind}-*.ptx"):
                if older.stat().st_mtime < time.time() - MAX_AGE:
                    older.unlink(missing_ok=True)
            write_whole(path, ptx.encode())
    return ptx
