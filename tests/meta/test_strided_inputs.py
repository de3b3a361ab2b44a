"""The laws reach strided q, k and v: an attention that is wrong for them alone is caught in every CPU backend."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from refvt import backends
from refvt.conformance.adapters import on_host
from refvt.conformance.laws import laws_of
from refvt.conformance.strategies import inputs_for
from refvt.ops.laws import LawBroken


@pytest.mark.parametrize("name", ["reference", "jit"])
def test_a_bug_for_strided_rows_is_caught(name, monkeypatch):
    table = backends.get(name)
    right = table.attention

    def forward(q, k, v, *rest, **settings):
        if not v.flags.c_contiguous:  # as the model passes them: columns of one qkv
            v = 0 * v
        return right.forward(q, k, v, *rest, **settings)

    monkeypatch.setattr(table, "attention", replace(right, forward=forward))

    @settings(suppress_health_check=list(HealthCheck), max_examples=200, derandomize=True, deadline=None, database=None)
    @given(inputs=inputs_for("attention"))
    def all_laws(inputs):
        for law in laws_of("attention"):
            law(on_host(table, "attention"), inputs)

    with pytest.raises((LawBroken, ExceptionGroup)):
        all_laws()
