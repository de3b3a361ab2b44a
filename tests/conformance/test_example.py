"""The example in the documentation of ``refvt.conformance`` runs, and would find a mistake."""

import inspect
import textwrap

import pytest

from refvt import conformance
from refvt.ops.laws import LawBroken

_, _, AFTER = inspect.getdoc(conformance).partition("::\n")
EXAMPLE = textwrap.dedent("\n".join(line for line in AFTER.splitlines() if not line or line.startswith("    ")))


def test_the_example_runs():
    assert "laws_of" in EXAMPLE
    exec(compile(EXAMPLE, "example", "exec"), {})


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("- normed * (d * normed).mean(axis=1, keepdims=True)", ""),
        ("d = dy * weight", "d = dy"),
        ("(dy * normed).sum(axis=0)", "dy.sum(axis=0)"),
        ("+ 1e-6", "+ 1e-5"),
    ],
)
def test_the_example_finds_a_mistake(right, wrong):
    assert right in EXAMPLE
    with pytest.raises(LawBroken):
        exec(compile(EXAMPLE.replace(right, wrong), "example", "exec"), {})
