"""One reader in a process of its own for a while, so that a crash is counted as one."""

import faulthandler
import multiprocessing
import os
import tempfile
from pathlib import Path


def _said(folder):
    """Where a process writes what it says: on the disk, for FFmpeg says much; the folder may lie in memory."""
    return Path(tempfile.gettempdir(), f"{Path(folder).name}.stderr")


def _work(name, seed, seconds, folder, reached, sender):
    folder = Path(folder)
    os.dup2(os.open(_said(folder), os.O_WRONLY | os.O_CREAT), 2)

    def done(tally):
        found = {what: (tally.counts[what], data) for what, data in tally.findings.items()}
        sender.send((tally.runs, tally.read, tally.refused, tally.seconds, tally.largest, len(tally.shapes), found))

    # a run that hangs counts as a crash; a round may end later by some slow runs
    faulthandler.dump_traceback_later(2 * seconds + 100, exit=True)
    if reached is not None:
        from tests.fuzz.guided import fuzz_guided

        fuzz_guided(name, folder, seed, seconds, reached, done)
    from tests.fuzz.engine import fuzz
    from tests.fuzz.targets import corpus_of, prepare, targets

    prepare(folder)
    target = targets(video=name in ("container", "video"))[name]
    done(fuzz(target, folder, seed, seconds=seconds, corpus=corpus_of(name)))


def one_round(name, seed, seconds, reached=None):
    """One process on one reader; its figures, or None, the file that was being read when it died, and its last words.

    reached: guided by coverage, with this folder of files that reach new branches.
    """
    spawn = multiprocessing.get_context("spawn")
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="refvt-fuzz-", dir=shared) as folder:
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_work, args=(name, seed, seconds, folder, reached, sender))
        process.start()
        sender.close()
        said = _said(folder)
        try:
            return receiver.recv(), b"", ""
        except EOFError:
            left = [path for path in Path(folder).iterdir() if path.is_file()]
            killer = max(left, key=lambda path: path.stat().st_mtime_ns).read_bytes() if left else b""
            return None, killer, said.read_text(encoding="utf-8", errors="replace")[-2000:]
        finally:
            process.join()
            said.unlink(missing_ok=True)
