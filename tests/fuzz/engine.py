"""One reader, many files: run it, judge how it failed, and keep files whose failure is new for further changes.

A run is right if the reader returns, or raises ValueError, TypeError or OSError with the file's name in the message.
It is a finding if another error escapes, if the name is missing, if the process grows far beyond the file's size, if
something is executed or written elsewhere, or if it takes more than SECONDS.
"""

import collections
import contextlib
import os
import random
import re
import resource
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 20
GROWTH = 64 << 20  # bytes that a process may grow by in one run, more than any seed needs
POOL = 400  # files kept for further changes
LARGEST_KEPT = 1 << 14  # bytes of such a file
EXECUTES = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "socket.connect",
    "pickle.find_class",
)
CHANGES = ("os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")
CHANGES_TWO = ("os.rename", "os.symlink", "os.link")  # both of their paths count

_watch = {"folder": None, "seen": None}


def _audit(event, arguments):
    """Note what a reader must not do: Python tells this hook before it happens."""
    folder = _watch["folder"]
    if folder is None:
        return
    if event in EXECUTES:
        _watch["seen"] = event
    elif event in (*CHANGES, *CHANGES_TWO):
        for path in arguments[: 1 + (event in CHANGES_TWO)]:
            if not _inside(path, folder):
                _watch["seen"] = f"{event} {path!r}"
    elif event == "open":
        path, mode, flags = arguments
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
        if writes and not isinstance(path, int) and not _inside(path, folder):
            _watch["seen"] = f"writes {path!r}"


def _inside(path, folder):
    if not isinstance(path, (str, bytes, os.PathLike)):
        return True
    return (os.path.abspath(os.fsdecode(path)) + os.sep).startswith(os.path.join(folder, ""))


sys.addaudithook(_audit)


@dataclass
class Tally:
    """What became of the files of one reader."""

    runs: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    largest: int = 0  # bytes by which the process grew in one run
    shapes: set = field(default_factory=set)  # kinds of answers: message without its numbers and names
    findings: dict = field(default_factory=dict)  # what is wrong → the first file that shows it
    counts: collections.Counter = field(default_factory=collections.Counter)


def judge(target, path, tally):
    """Read one file; returns what is wrong (None if nothing) and the shape of the answer."""
    with contextlib.suppress(OSError):  # else a smaller peak than the largest so far would not be seen
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _watch["folder"], _watch["seen"] = str(path.parent), None
    start, wrong, shape = time.perf_counter(), None, "read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(path)
        tally.read += 1
    except (ValueError, TypeError, OSError) as error:
        tally.refused += 1
        text = str(error)
        shape = type(error).__name__ + re.sub(r"'[^']*'|\"[^\"]*\"|[0-9a-f]*[0-9]+|\S*/\S*", "#", text)[:160]
        # an exchange folder is named as a whole
        if path.name not in text and str(path.parent) not in text:
            wrong = f"no file name: {_place(error)}: {type(error).__name__}: {text[:100]}"
        elif len(text) > 4000:
            wrong = f"a message of {len(text)} characters: {_place(error)}"
    except MemoryError as error:
        wrong = f"MemoryError: {_place(error)}"
    except Exception as error:
        wrong = f"{type(error).__name__}: {_place(error)}: {str(error)[:100]}"
    finally:
        _watch["folder"] = None
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    tally.largest = max(tally.largest, grown)
    if grown > GROWTH:
        wrong = f"grew by {grown >> 20} MiB"
    if _watch["seen"] is not None:
        wrong = _watch["seen"]
    if time.perf_counter() - start > SECONDS:
        wrong = f"took more than {SECONDS} s"
    tally.runs += 1
    return wrong, shape


def _place(error):
    """The innermost line of refvt in a traceback."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}refvt{os.sep}" in f.filename]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"


class Fuzzing:
    """One reader under changed files: runs each, tallies what came of it, and keeps the file of each finding."""

    def __init__(self, target, folder):
        self.target, self.tally = target, Tally()
        self.path = folder / (target.suffix if not target.suffix.startswith(".") else f"fuzzed{target.suffix}")
        self.start = time.perf_counter()

    def run(self, data):
        """Read one file; returns whether the answer was of a new kind."""
        tally = self.tally
        self.path.write_bytes(data)
        wrong, shape = judge(self.target, self.path, tally)
        if wrong is not None:
            key = re.sub(r"0x[0-9a-f]+|\d{4,}", "#", wrong)
            tally.counts[key] += 1
            tally.findings.setdefault(key, data)
        tally.seconds = time.perf_counter() - self.start
        new = shape not in tally.shapes
        tally.shapes.add(shape)
        return new


def fuzz(target, folder, seed, seconds=None, runs=None, corpus=()):
    """Change and read files until the time or the number of runs is over; returns the tally."""
    rng, fuzzing = random.Random(f"{seed} {target.name}"), Fuzzing(target, folder)
    tally, pool = fuzzing.tally, [*target.seeds, *corpus]
    while (runs is None or tally.runs < runs) and (seconds is None or tally.seconds < seconds):
        if tally.runs < len(pool):
            data = pool[tally.runs]
        else:
            # the valid files half of the time, else one whose answer was new
            chosen = rng.choice(target.seeds) if rng.random() < 0.5 else rng.choice(pool)
            data = target.change(chosen, rng)
        if fuzzing.run(data) and len(pool) < POOL and len(data) < LARGEST_KEPT:
            pool.append(data)
    fuzzing.path.unlink(missing_ok=True)
    return tally
