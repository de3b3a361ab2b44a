"""Progress on stderr while kernels are compiled: it happens once on a machine, and takes a while.

A terminal gets one live line. A file, a pipe or a notebook gets a plain line every ten seconds at most.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from numba.core import event

__all__ = ["at_first_compilation", "compilation_shown", "note"]

SILENT = 1.0  # seconds of compilation without a progress line
PAUSE = 10.0  # seconds between two lines where there is no terminal


def _is_terminal() -> bool:
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


class _Line(event.Listener):  # type: ignore[misc]
    """Counts refvt's kernels as they are compiled, and the seconds it takes, and prints both."""

    printed = -PAUSE  # when the last plain line was printed, by any instance

    def __init__(self, silent: float) -> None:
        self.silent, self.kernels, self.seconds, self.open = silent, 0, 0.0, False
        self.under_way: list[bool] = []  # functions being compiled, each because the one before calls it: ours or not
        self.start = 0.0

    def on_start(self, event: Any) -> None:
        """Count a function that Numba begins to compile, if it is ours."""
        function = event.data["dispatcher"].py_func
        ours = (function.__module__ or "").startswith("refvt.")
        if ours and not any(self.under_way):
            self.start = time.perf_counter()
        self.under_way.append(ours)
        if ours:
            self.kernels += 1
            self.say(function.__name__)

    def on_end(self, event: Any) -> None:
        """Add the time, when the outermost function is done."""
        if self.under_way.pop() and not any(self.under_way):
            self.seconds += time.perf_counter() - self.start

    def say(self, what: str) -> None:
        """Print the line, if compiling has taken long enough."""
        seconds = self.seconds + (time.perf_counter() - self.start if any(self.under_way) else 0)
        if seconds < self.silent:
            return
        line = f"refvt: compiling kernels (once per machine): {self.kernels} kernels, {seconds:.0f} s, {what}"
        if _is_terminal():
            self.open = True
            width = shutil.get_terminal_size().columns - 1  # a longer line would wrap, and could not be overwritten
            _print(f"\r{line[:width]:{width}}", end="")
        elif time.monotonic() - _Line.printed >= PAUSE:
            _Line.printed = time.monotonic()
            _print(line)

    def close(self) -> None:
        """End the live line, if there is one."""
        if self.open:
            self.say("done")
            _print()
            self.open = False


class _First(event.Listener):  # type: ignore[misc]
    """Calls a function when the first kernel is compiled; one that is loaded from the cache does not count."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act, self.done = act, False

    def on_start(self, event: Any) -> None:
        """Call the function, the first time."""
        if not self.done:
            self.done = True
            self.act()

    def on_end(self, event: Any) -> None:
        """Nothing to do."""


_line: _Line | None = None
_said: set[str] = set()


def note(sentence: str) -> None:
    """Print a sentence on stderr, once in a process; nothing if REFVT_QUIET is set."""
    if sentence in _said or os.environ.get("REFVT_QUIET"):
        return
    _said.add(sentence)
    if _line is not None:
        _line.close()
    _print(f"refvt: {sentence}\n", end="")


def _print(text: str = "", end: str = "\n") -> None:
    """Print on stderr; a stderr that is closed or full stops no work."""
    with suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr or io.StringIO(), flush=True)


@contextmanager
def at_first_compilation(act: Callable[[], object]) -> Iterator[None]:
    """Context in which ``act`` is called once, when a kernel is not in the cache and has to be compiled."""
    with event.install_listener("numba:compile", _First(act)):
        yield


@contextmanager
def compilation_shown(silent: float = SILENT) -> Iterator[None]:
    """Context in which a line shows the number of kernels compiled so far, once that has taken ``silent`` seconds.

    If one such context is inside another, the outer one counts, and the line ends with either. Nothing is printed if
    REFVT_QUIET is set.
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
