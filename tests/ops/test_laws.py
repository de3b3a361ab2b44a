"""Every law of every operation, in every backend, on inputs that Hypothesis makes."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refvt.conformance.adapters import on_host
from refvt.conformance.laws import laws_of
from refvt.conformance.strategies import inputs_for
from refvt.ops import operations

CASES = [(name, law) for name in operations() for law in laws_of(name)]


@pytest.mark.parametrize(("operation", "law"), CASES, ids=[f"{name}-{law.__name__}" for name, law in CASES])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_law(operation, law, data, backend):
    law(on_host(backend, operation), data.draw(inputs_for(operation)))


FLOAT32 = [(name, law) for name, law in CASES if law.__name__ != "adjoint"]  # a difference quotient needs float64


@pytest.mark.parametrize(("operation", "law"), FLOAT32, ids=[f"{name}-{law.__name__}" for name, law in FLOAT32])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(data=st.data())
def test_law_float32(operation, law, data, backend):
    law(on_host(backend, operation), data.draw(inputs_for(operation, dtype="float32")))


def test_the_page_of_operations_is_the_table():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    for name, operation in operations().items():
        (line,) = [row for row in page.splitlines() if f"`{name}(" in row and row.startswith("|")]
        signature, results = line.split("|")[2:4]
        named = [part.split("[")[0].strip(" `") for part in signature.split("(", 1)[1].replace("]", ",").split(",")]
        for argument, shape in operation.arguments.items():
            assert f"{argument}{'' if argument in operation.gradients else '†'} [{shape}]" in signature
        assert set(operation.settings) <= {name.split("=")[0].rstrip(")") for name in named}
        assert all(result in results for result in operation.results)
