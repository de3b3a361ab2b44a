"""Every reader refuses what was changed with an error of refvt that names the file; a small part of the fuzzing."""

import mmap

import pytest

from tests.fuzz.engine import fuzz, judge
from tests.fuzz.targets import Target, corpus_of, prepare, targets

TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused_by_name(tmp_path, name):
    prepare(tmp_path)
    target = TARGETS[name]
    corpus = corpus_of(name)
    tally = fuzz(target, tmp_path, seed=1, runs=len(corpus) + (60 if target.slow else 400), corpus=corpus)
    assert tally.findings == {}
    assert tally.read > 0  # the valid files, and changes that do not matter
    assert tally.refused > 0


def _takes_memory(path):
    """200 MiB of fresh pages; from malloc they could be pages that the process has freed but still holds."""
    pages = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages[:: mmap.PAGESIZE] = bytes([1]) * (len(pages) // mmap.PAGESIZE)
    pages.close()


def _leaves_a_trace(path):
    (path.parent.parent / "elsewhere").write_bytes(b"")


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda path: [][1], "IndexError"),
        (lambda path: int("x"), "no file name"),
        (_takes_memory, "grew by"),
        (_leaves_a_trace, "writes"),
    ],
)
def test_the_engine_sees_what_is_wrong(tmp_path, read, said):
    folder = tmp_path / "inside"
    folder.mkdir()
    target = Target("planted", (b"seed",), lambda seed, rng: seed, read, ".bin")
    tally = fuzz(target, folder, seed=0, runs=1)
    assert len(tally.findings) == 1
    assert said in next(iter(tally.findings))
    path = folder / "again.bin"
    path.write_bytes(b"seed")
    assert judge(target, path, tally)[0] is not None or said == "grew by"
