"""A line on stderr while kernels are compiled: once on a machine, and long enough to wonder what is going on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event

__all__ = ["compilation_shown"]

SILENT = 1.0  # seconds of compilation that nobody needs to be told of


class _Line(event.Listener):  # type: ignore[misc]
    """Counts the kernels of refvt whose compilation begins, and says so."""

    def __init__(self, silent: float) -> None:
        self.silent, self.kernels, self.shown = silent, 0, False
        self.start: float | None = None

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        if not function.__module__.startswith("refvt."):
            return
        if self.start is None:
            self.start = time.perf_counter()
        self.kernels += 1
        self.say(function.__name__)

    def on_end(self, event: Any) -> None:
        """One that is ready is followed by the next, or by the end."""

    def say(self, name: str, end: str = "") -> None:
        if self.start is not None and (seconds := time.perf_counter() - self.start) >= self.silent:
            self.shown = True
            line = f"refvt: compiling kernels, once on this machine: {self.kernels}, {seconds:.0f} s {name}"
            print(f"\r{line:90s}", end=end, file=sys.stderr, flush=True)


_active = False


@contextmanager
def compilation_shown(silent: float = SILENT) -> Iterator[None]:
    """Inside, a line tells how many kernels are being compiled, after ``silent`` seconds of it.

    Nothing is said with REFVT_QUIET set, nor twice where one of these stands in another.
    """
    global _active
    if _active or os.environ.get("REFVT_QUIET"):
        yield
        return
    line, _active = _Line(silent), True
    try:
        with event.install_listener("numba:compile", line):
            yield
    finally:
        _active = False
        if line.shown:
            line.say("done", end="\n")
