"""A kernel is computed wherever its cache lies, cannot be read or cannot be written; and is kept where it can be."""

import os
import pickle
import subprocess
import sys

import pytest

MODULE = """
from refvt.backends.jit.kernel import kernel

@kernel
def twice(x):
    return x + x
"""
RUN = """
import sys
sys.path.insert(0, sys.argv[1])
{before}
import kept
assert kept.twice(21) == 42
print(sum(kept.twice.stats.cache_hits.values()), sum(kept.twice.stats.cache_misses.values()))
"""
# what Numba's places do in a folder that cannot be written, also for root
NOT_WRITABLE = """
from numba.core import caching

def refuse(self):
    raise PermissionError("read-only")

caching._CacheLocator.ensure_cache_path = refuse
"""
FULL = """
import errno
from numba.core import caching

def refuse(self, path):
    raise OSError(errno.ENOSPC, "No space left on device")

caching.IndexDataCacheFile._open_for_write = refuse
"""


@pytest.fixture
def run(tmp_path):
    """Run the kernel in a new process; returns (cache hits, misses) and what it printed on stderr."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "kept.py").write_text(MODULE, encoding="utf-8")

    def start(before="", **changes):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "REFVT_"))}
        environment |= {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.getcwd(), **changes}
        code = RUN.format(before=before)
        done = subprocess.run(
            [sys.executable, "-c", code, source], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        hits, misses = map(int, done.stdout.split())
        return (hits, misses), done.stderr

    return start


def test_a_kernel_is_kept(run):
    assert run() == ((0, 1), "")
    assert run() == ((1, 0), "")


class Foreign:
    """A class that no other process can find."""


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["empty", "cut off", "foreign", "folder"])
def test_a_damaged_file_is_replaced(run, tmp_path, damage, ending):
    run()
    (path,) = (tmp_path / "cache").rglob(f"*.{ending}")
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
        (path / "of others").touch()
    else:
        foreign = pickle.dumps(Foreign())
        if ending == "nbi":  # after the version, which Numba compares first
            foreign = content[: content.index(b".") + 1] + foreign
        path.write_bytes({"empty": b"", "cut off": content[: len(content) // 2], "foreign": foreign}[damage])
    found, said = run()
    assert found == (0, 1)
    if damage == "folder":
        assert "set NUMBA_CACHE_DIR to a folder that can be written" in said
        assert (path / "of others").exists()
    else:
        assert said == ""
        assert run() == ((1, 0), "")


def test_without_any_folder_one_sentence_says_what_to_set(run, tmp_path):
    found, said = run(NOT_WRITABLE)
    assert found[0] == 0
    assert said.startswith("refvt: every process compiles its kernels again")
    assert said.count("\n") == 1
    assert "set NUMBA_CACHE_DIR" in said
    assert run(NOT_WRITABLE, REFVT_QUIET="1")[1] == ""


def test_kernels_in_a_folder_that_can_only_be_read_are_used(run):
    """As in a container's image: compiled when it was made, read only ever since."""
    run()
    assert run(NOT_WRITABLE) == ((1, 0), "")


def test_a_full_disk_stops_no_kernel(run):
    found, said = run(FULL)
    assert found == (0, 1)
    assert said.startswith("refvt: compiled kernels cannot be kept in ")
    assert "(No space left on device): set NUMBA_CACHE_DIR" in said


@pytest.mark.skipif(sys.platform == "win32", reason="a home is found otherwise there")
def test_without_a_home_no_folder_is_made_in_the_current_one(run, tmp_path):
    (tmp_path / "source" / "__pycache__").touch()  # a file: no folder beside the source either
    before = sorted(tmp_path.rglob("*"))
    said = run(NUMBA_CACHE_DIR="", HOME="~", XDG_CACHE_HOME="~/.cache")[1]
    assert "set NUMBA_CACHE_DIR" in said
    assert sorted(tmp_path.rglob("*")) == before
