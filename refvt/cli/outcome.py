"""How a command meets the machine and how it ends: its streams, and the sentence and exit code of every error.

This is the one place where an error, of refvt or from the depths of a library, becomes one line on stderr.
``REFVT_TRACEBACK=1`` shows where it was raised.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from refvt.checks import printable

__all__ = ["CLOSED_PIPE", "INTERRUPTED", "flush", "interrupt_ends_at_once", "prepare", "report"]

FAILED, INTERRUPTED, CLOSED_PIPE = 2, 130, 141  # the last two: 128 + the number of SIGINT and of SIGPIPE
FULL = (errno.ENOSPC, errno.EDQUOT)
LONGEST = 2000  # characters of a sentence


def prepare() -> None:
    """Make the streams of this process ready for any text, and libraries ready for a machine without a screen."""
    for descriptor in range(3):  # a file that is opened must not get the number of a closed standard stream
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    os.environ["MPLBACKEND"] = "agg"  # not that of the notebook in which this process was started


@contextmanager
def interrupt_ends_at_once() -> Iterator[None]:
    """Context of imports, when nothing is written yet: Ctrl-C ends the process, whatever a library would do with it."""
    at_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not at_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"refvt: interrupted\n")
    os._exit(INTERRUPTED)


def flush() -> None:
    """Write what is still in stdout's buffer. OSError if that fails, on a full disk or a closed pipe."""
    sys.stdout.flush()


def report(error: BaseException) -> int:
    """Print the sentence of an error on stderr; returns the exit code of the command."""
    if os.environ.get("REFVT_TRACEBACK"):
        traceback.print_exception(error, file=sys.stderr)
    _abandon_stdout()
    if isinstance(error, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE  # the reader of stdout has seen enough
    _say(_sentence(error))
    return FAILED


def _sentence(error: BaseException) -> str:
    from refvt.backends import DeviceError

    text = _one_line(str(error))
    if isinstance(error, MemoryError):
        return "this machine has too little memory for that" + (f": {text}" if text else "")
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{_one_line(str(error.filename or 'the output'))}: the disk is full, or its quota is used up"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply: {text}"
    if isinstance(error, FileNotFoundError) and "temporary directory" in text:
        return f"{text}: set TMPDIR to a folder that can be written"
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, OverflowError, DeviceError)):
        return text or type(error).__name__
    return f"unexpected {type(error).__name__}: {text} (REFVT_TRACEBACK=1 shows where)"


def _one_line(text: str) -> str:
    """A message as one line of bounded length that cannot steer a terminal."""
    text = printable(" ".join(text[: 2 * LONGEST].split("\n")))
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _say(sentence: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be closed or full: the exit code says it too
        print(f"refvt: {sentence}", file=sys.stderr, flush=True)


def _abandon_stdout() -> None:
    """Flush stdout; where it takes nothing more, point it nowhere."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python writes what is left in the buffer when it ends: that must not fail again
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
