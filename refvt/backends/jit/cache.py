"""Compiled kernels on disk: Numba's cache, for machines as they are.

Numba raises where no folder can be written, where the disk is full, and where a file of the cache was cut off. Here a
kernel that cannot be read is compiled again, and one that cannot be written is used all the same; a sentence on stderr
says what to set. A folder that can be read but not written, as in a container's image, is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numba.core import caching

from refvt.backends.progress import note
from refvt.checks import words_of

__all__ = ["KernelCache", "attach_cache"]

# their names have an underscore before Numba 0.62
CHOSEN, BESIDE, WIDE = (
    getattr(caching, name, None) or getattr(caching, f"_{name}")
    for name in ("UserProvidedCacheLocator", "InTreeCacheLocator", "UserWideCacheLocator")
)
ADVICE = "set NUMBA_CACHE_DIR to a folder that can be written"


class _ReadOnly:
    """A place of the cache that is used as it is found: nothing is made there."""

    def ensure_cache_path(self) -> None:
        """Raise OSError unless the folder holds compiled kernels."""
        folder = Path(self.get_cache_path())  # type: ignore[attr-defined]
        if not any(folder.glob("*.nbi")):
            raise FileNotFoundError(f"{folder}: no compiled kernels")


class _ReadOnlyChosen(_ReadOnly, CHOSEN):  # type: ignore[misc, valid-type]
    """The folder of NUMBA_CACHE_DIR, read only."""


class _ReadOnlyBeside(_ReadOnly, BESIDE):  # type: ignore[misc, valid-type]
    """The folder beside the source, read only."""


class _Home(WIDE):  # type: ignore[misc, valid-type]
    """The user's cache folder, if there is a user with a home: Numba would else make a folder named ``~``."""

    def ensure_cache_path(self) -> None:
        """Raise OSError without a home, or if the folder cannot be written."""
        if not os.path.isabs(self.get_cache_path()):
            raise FileNotFoundError("no home")
        super().ensure_cache_path()


class _Places(caching.CompileResultCacheImpl):  # type: ignore[misc]
    """Where kernels may lie: Numba's places, then those of them that can only be read."""

    @property
    def _locator_classes(self) -> list[type]:
        own = {WIDE: _Home}
        places = [own.get(place, place) for place in caching.CompileResultCacheImpl._locator_classes]
        return [*places, _ReadOnlyChosen, _ReadOnlyBeside]


class KernelCache(caching.FunctionCache):  # type: ignore[misc]
    """Numba's cache of one kernel, in which whatever fails counts as not cached."""

    _impl_class = _Places

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel for a signature; None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever unpickling a damaged or foreign file raises
            self._forget()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel for later processes, if it can be kept."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or words_of(error)
            note(f"compiled kernels cannot be kept in {self.cache_path} ({reason}): {ADVICE}")

    def _forget(self) -> None:
        """Replace an index that cannot be read by an empty one, so that the kernel can be kept again."""
        try:
            self.flush()
        except OSError:  # a folder that can only be read
            return


def attach_cache(dispatcher: Any) -> None:
    """Give a kernel its cache; without a place for it the kernel is compiled by every process."""
    try:
        dispatcher._cache = KernelCache(dispatcher.py_func)
    except (RuntimeError, OSError):
        note(f"every process compiles its kernels again, for there is no folder to keep them in: {ADVICE}")
