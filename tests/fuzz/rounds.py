"""One reader in a process of its own for a while, so that a crash is counted as one."""

import faulthandler
import multiprocessing
import os
import tempfile
from pathlib import Path

from tests.fuzz.engine import SECONDS, fuzz
from tests.fuzz.targets import prepare, targets

CORPUS = Path(__file__).parent / "corpus"


def corpus_of(name):
    """Files that once showed a fault of a reader."""
    folder = CORPUS / name.replace(" ", "-")
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def _work(name, seed, seconds, folder, sender):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # FFmpeg complains about every damaged video
    target = targets(video=name in ("container", "video"))[name]
    folder = Path(folder)
    prepare(folder)
    faulthandler.dump_traceback_later(2 * seconds + 5 * SECONDS, exit=True)  # a run that hangs counts as a crash
    tally = fuzz(target, folder, seed, seconds=seconds, corpus=corpus_of(name))
    found = {what: (tally.counts[what], data) for what, data in tally.findings.items()}
    sender.send((tally.runs, tally.read, tally.refused, tally.seconds, tally.largest, len(tally.shapes), found))


def one_round(name, seed, seconds):
    """One process on one reader; its figures, or None and the file that was being read when it died."""
    spawn = multiprocessing.get_context("spawn")
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="refvt-fuzz-", dir=shared) as folder:
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_work, args=(name, seed, seconds, folder, sender))
        process.start()
        sender.close()
        try:
            return receiver.recv(), None
        except EOFError:
            left = [p.read_bytes() for p in Path(folder).iterdir() if p.name.startswith("fuzzed")]
            return None, left[0] if left else b""
        finally:
            process.join()
