"""The progress line while kernels are compiled."""

import pytest
from numba import njit

from refvt.backends import progress
from refvt.backends.progress import at_first_compilation, compilation_shown


def fresh(module="refvt.ops.somewhere.jit"):
    """A kernel that has not been compiled yet."""

    def doubled(x):
        return x + x

    doubled.__module__ = module
    return njit(doubled)


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.delenv("REFVT_QUIET", raising=False)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 0.0)  # a busy machine compiles slowly
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")


def test_kernels_are_counted_on_one_line(capsys):
    first, second = fresh(), fresh()
    with compilation_shown(silent=0):
        assert first(2) == 4
        assert second(2) == 4
        assert first(3) == 6  # compiled already
    said = capsys.readouterr().err
    begun = [line.strip() for line in said.split("\r")[1:-1]]
    assert [line.split(": ")[-1].split(" ")[0] for line in begun] == ["1", "2"]
    assert all(line.endswith("doubled") for line in begun)
    assert said.split("\r")[-1].strip() == "refvt: compiling kernels (once per machine): 2 kernels, 0 s, done"
    assert all(len(line) <= 79 for line in said.replace("\n", "").split("\r"))


def test_the_outer_block_counts_and_the_inner_block_ends_the_line(capsys):
    """Nested blocks, as for the runs of a model in warmup or the steps of a training."""
    with compilation_shown(silent=0):
        for number in (1, 2):
            with compilation_shown():
                fresh()(2)
            said = capsys.readouterr().err
            assert said.split("\r")[-1].rstrip(" \n").endswith(f": {number} kernels, 0 s, done")
            assert said.endswith("\n")
        with compilation_shown():
            pass
    assert capsys.readouterr().err == ""


def test_the_first_compilation_is_told_once():
    told, known = [], fresh()
    known(2)
    with at_first_compilation(lambda: told.append("first")):
        known(3)
        assert told == []
        fresh()(2)
        fresh()(2)
    fresh()(2)
    assert told == ["first"]


def test_only_compilation_takes_time(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    with compilation_shown(silent=0):
        fresh()(2)
        now = 3600.0
        fresh()(2)
    assert capsys.readouterr().err.rstrip().endswith(": 2 kernels, 0 s, done")


def test_nothing_is_shown_for_kernels_that_are_ready_or_quick_or_not_of_refvt(capsys, monkeypatch):
    ready = fresh()
    ready(1)
    with compilation_shown(silent=0):
        ready(2)
        fresh("another.package")(2)
        fresh(None)(2)
    with compilation_shown(silent=60):
        fresh()(2)
    monkeypatch.setenv("REFVT_QUIET", "1")
    with compilation_shown(silent=0):
        fresh()(2)
    assert capsys.readouterr().err == ""


def test_the_line_is_not_wider_than_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with compilation_shown(silent=0):
        fresh()(2)
    said = capsys.readouterr().err.rstrip("\n").split("\r")[1:]
    assert [len(line) for line in said] == [39, 39]


def test_a_pipe_gets_a_plain_line_every_ten_seconds_at_most(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress, "_is_terminal", lambda: False)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress._Line, "printed", -progress.PAUSE)
    for _ in range(2):  # two contexts, one after the other: together
        with compilation_shown(silent=0):
            for _ in range(6):
                fresh()(2)
                now += 2.0
    said = capsys.readouterr().err
    assert "\r" not in said
    assert [line.split(" kernels, ")[0].split(": ")[-1] for line in said.splitlines()] == ["1", "6", "5"]
