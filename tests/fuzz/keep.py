"""``python -m tests.fuzz.keep DIR``: from the files that guided fuzzing found, keep a small corpus for the tests.

DIR is what ``python -m tests.fuzz --guided DIR`` wrote. A file is kept, the shortest first, if with it refvt runs a
line that no file before it ran. What the corpus holds already stays in it.
"""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

import refvt
from tests.fuzz.engine import Fuzzing
from tests.fuzz.targets import CORPUS, corpus_of, prepare, targets

LARGEST = 4096  # bytes of a file in the corpus
MARK = os.path.dirname(refvt.__file__) + os.sep


class _Lines:
    """The lines of refvt that run inside the block."""

    def __init__(self):
        self.seen = set()

    def _trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(MARK):
            return None
        self.seen.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    def __enter__(self):
        sys.settrace(self._trace)
        return self.seen

    def __exit__(self, *_):
        sys.settrace(None)


def choose(target, found, kept, folder):
    """Of the files ``found``, those that reach lines which neither the seeds nor ``kept`` reach, nor those before."""
    fuzzing, reached, chosen = Fuzzing(target, folder), set(), []
    for data in [*target.seeds, *kept, *sorted(found, key=lambda data: (len(data), data))]:
        with _Lines() as lines:
            fuzzing.run(data)
        if not lines <= reached and data not in target.seeds:
            chosen.append(data)
        reached |= lines
    return [*kept, *(data for data in chosen if data not in kept)]


def main(given):
    for name, target in targets().items():
        kept, folder = corpus_of(name), given / name.replace(" ", "-")
        found = [path.read_bytes() for path in folder.iterdir()] if folder.is_dir() else []
        with tempfile.TemporaryDirectory() as work:
            prepare(work)
            chosen = choose(target, [data for data in found if len(data) <= LARGEST], kept, Path(work))
        if not chosen:
            continue
        CORPUS.mkdir(exist_ok=True)
        path = CORPUS / f"{name.replace(' ', '-')}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, data in enumerate(chosen):
                archive.writestr(zipfile.ZipInfo(f"{i:03d}"), data, zipfile.ZIP_DEFLATED)
        print(f"{name:18s}{len(found):6d} files found, {len(chosen):4d} in the corpus, {path.stat().st_size:7d} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
