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
WIDTH = 79  # columns; a longer line would wrap, and could not be written over


class _Line(event.Listener):  # type: ignore[misc]
    """Counts the kernels of refvt that are compiled and the seconds it takes, and says so."""

    def __init__(self, silent: float) -> None:
        self.silent, self.kernels, self.seconds, self.open = silent, 0, 0.0, False
        self.under_way: list[bool] = []  # what is being compiled, one function for the other's sake: is it ours?
        self.start = 0.0

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        ours = (function.__module__ or "").startswith("refvt.")
        if ours and not any(self.under_way):
            self.start = time.perf_counter()
        self.under_way.append(ours)
        if ours:
            self.kernels += 1
            self.say(function.__name__)

    def on_end(self, event: Any) -> None:
        if self.under_way.pop() and not any(self.under_way):
            self.seconds += time.perf_counter() - self.start

    def say(self, what: str) -> None:
        seconds = self.seconds + (time.perf_counter() - self.start if any(self.under_way) else 0)
        if seconds >= self.silent:
            self.open = True
            line = f"refvt: compiling kernels, once on this machine: {self.kernels}, {seconds:.0f} s {what}"
            print(f"\r{line[:WIDTH]:{WIDTH}}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line, if there is one."""
        if self.open:
            self.say("done")
            print(file=sys.stderr)
            self.open = False


_line: _Line | None = None


@contextmanager
def compilation_shown(silent: float = SILENT) -> Iterator[None]:
    """Inside, a line tells how many kernels have been compiled, after ``silent`` seconds of it.

    Where one of these stands in another, the outer one counts, and the line ends with either. Nothing is said with
    REFVT_QUIET set.
    """
    global _line
    if os.environ.get("REFVT_QUIET"):
        yield
    elif _line is not None:
        outer = _line
        try:
            yield
        finally:
            outer.close()
    else:
        own = _line = _Line(silent)
        try:
            with event.install_listener("numba:compile", own):
                yield
        finally:
            _line = None
            own.close()
