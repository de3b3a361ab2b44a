"""What is said while kernels are compiled."""

import pytest
from numba import njit

from refvt.backends.compiling import compilation_shown


def fresh(module="refvt.ops.somewhere.jit"):
    """A kernel that has not been compiled."""

    def doubled(x):
        return x + x

    doubled.__module__ = module
    return njit(doubled)


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.delenv("REFVT_QUIET")


def test_kernels_are_counted_on_one_line(capsys):
    first, second = fresh(), fresh()
    with compilation_shown(silent=0), compilation_shown(silent=0):  # as a run of the model within warmup
        assert first(2) == 4
        assert second(2) == 4
        assert first(3) == 6  # ready
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    lines = [line.strip() for line in said.split("\r")[1:]]
    assert [line.split(": ")[-1].split(",")[0] for line in lines] == ["1", "2", "2"]
    assert lines[0].endswith("doubled")
    assert lines[-1].endswith("done")


def test_nothing_is_said_of_what_is_ready_or_quick_or_not_ours(capsys, monkeypatch):
    ready = fresh()
    ready(1)
    with compilation_shown(silent=0):
        ready(2)
        fresh("somebody.elses")(2)
    with compilation_shown(silent=60):
        fresh()(2)
    monkeypatch.setenv("REFVT_QUIET", "1")
    with compilation_shown(silent=0):
        fresh()(2)
    assert capsys.readouterr().err == ""
