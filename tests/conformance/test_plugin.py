"""The pytest plugin: inert unless asked for; then cases and laws are items of the user's own suite."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

INSTALLED = any(point.value == "refvt.conformance.plugin" for point in entry_points(group="pytest11"))
LOAD = [] if INSTALLED else ["-p", "refvt.conformance.plugin"]

PORT = """
import numpy as np
from refvt.ops.tokens import reference

class Gather:
    gather_forward = staticmethod(reference.gather_forward)
    gather_backward = staticmethod(reference.gather_backward)

class Halves(Gather):
    @staticmethod
    def gather_backward(dy, cache):
        return reference.gather_backward(0.5 * dy, cache)
"""


@pytest.fixture
def suite(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pytester.makepyfile(port_of_gather=PORT)
    pytester.makepyfile(test_mine="def test_mine(): pass")
    return pytester


def run(suite, *arguments):
    return suite.runpytest_subprocess(*LOAD, "-p", "no:cacheprovider", "-rs", *arguments)


def test_it_is_inert_unless_asked_for(suite):
    suite.makepyfile(
        test_mine="""
        import sys
        def test_mine():
            heavy = [n for n in sys.modules if n.startswith(("refvt.", "hypothesis", "numpy", "numba"))]
            assert heavy == ["refvt.conformance", "refvt.conformance.plugin"]
        """
    )
    run(suite, "-p", "no:hypothesispytest").assert_outcomes(passed=1)


def test_cases_and_laws_become_items(suite):
    result = run(suite, "--refvt-candidate=port_of_gather:Gather", "--refvt-cases=tiny-op-g*", "-v")
    result.assert_outcomes(passed=11, skipped=1)  # the user's own test, two cases, eight laws; gelu is not given
    result.stdout.fnmatch_lines(["*refvt::tiny-op-gather-basic PASSED*", "*refvt::law::gather::adjoint PASSED*"])
    result.stdout.fnmatch_lines(["*SKIPPED*the candidate has no gelu*"])


def test_a_failure_shows_the_first_divergence_and_the_program(suite):
    suite.makeini("[pytest]\nrefvt_candidate = port_of_gather:Halves\nrefvt_cases = tiny-op-gather*\n")
    result = run(suite, "-k", "gather-basic or adjoint")
    result.assert_outcomes(failed=2, deselected=9)
    result.stdout.fnmatch_lines(
        ["*d(x) differs first (backward)*", "*check_law(candidate, 'gather', 'adjoint', inputs)*"]
    )
    assert "Traceback" not in result.stdout.str()


def test_it_runs_on_several_processes(suite):
    pytest.importorskip("xdist")
    arguments = [
        "--refvt-candidate=port_of_gather:Gather",
        "--refvt-cases=tiny-op-gather*",
        "-k",
        "basic or bits or mine",
    ]
    run(suite, "-n", "2", *arguments).assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--refvt-candidate=no_such_module:thing"], "no module 'no_such_module'"),
        (["--refvt-candidate=port_of_gather:Gather", "--refvt-dtype=int8"], "refvt-dtype: expected one of"),
        (["--refvt-candidate=port_of_gather:Gather", "--refvt-cases=nothing"], "cases: expected a pattern"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(suite, arguments, said):
    result = run(suite, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str() + result.stdout.str()


def test_the_entry_point_is_declared():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\nrefvt = "refvt.conformance.plugin"' in text
    assert sys.version_info >= (3, 11)
