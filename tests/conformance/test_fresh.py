"""No false alarm on inputs that the golden files do not hold, and a wrong backend is found there too."""

import numpy as np
import pytest

from refvt import backends
from refvt.conformance import check
from refvt.conformance.cases import truth_of
from refvt.conformance.fresh import fresh_case
from refvt.conformance.golden import load_arrays, load_manifest
from refvt.conformance.judgement import judge

CASES = load_manifest()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(5))
def test_no_false_alarm(seed, dtype, backend):
    if backend.name == "cuda":
        pytest.skip("one kernel launch at a time: left to the report on a GPU")
    report = check(backend.name, dtype, "tiny-*", seed=seed)
    assert [case.name for case in report.cases if case.status != "agrees"] == []
    assert report.compared == sum(case.total for case in report.cases)


@pytest.mark.parametrize(("error", "status"), [(1e-15, "agrees"), (1e-13, "differs")])
def test_a_gradient_whose_terms_cancel_may_err_by_the_rounding_of_the_terms(error, status):
    """Temporal attention over one frame: d(q) and d(k) are zero, but dy·v and dy·y (size 19) are rounded apart."""
    case = CASES["tiny-model-masked"]
    truth = truth_of(case, load_arrays(case))
    value = truth["d(blocks.0.temporal_attn.k)"].value
    assert not value.any()
    assert judge(truth, "d(blocks.0.temporal_attn.k)", value + error, "float64").status == status


def test_fresh_inputs_are_other_inputs_with_the_decisions_of_the_reference():
    case = CASES["tiny-model-fuse"]
    arrays = load_arrays(case)
    _, fresh = fresh_case(case, arrays, seed=3)
    _, again = fresh_case(case, arrays, seed=3)
    assert fresh.keys() == arrays.keys()
    assert not np.allclose(fresh["clips"], arrays["clips"])
    assert not np.allclose(fresh["forward/embed"], arrays["forward/embed"])
    assert np.array_equal(fresh["parameters/head.weight"], arrays["parameters/head.weight"])
    assert all(np.array_equal(fresh[name], again[name]) for name in fresh)


def test_a_wrong_backend_is_found(monkeypatch):
    table = backends.get("reference")
    right = table["layernorm"]

    def wrong(x, weight, bias, keep=True):
        y, cache = right.forward(x, weight, bias, keep=keep)
        return y * np.asarray(1.00001, y.dtype), cache

    broken = type(right)(right.operation, wrong, right.backward)
    truth = fresh_case(CASES["tiny-op-layernorm-basic"], load_arrays(CASES["tiny-op-layernorm-basic"]), 1)
    monkeypatch.setattr("refvt.conformance.checking.fresh_case", lambda *_: truth)
    monkeypatch.setattr(table, "layernorm", broken)
    report = check("reference", cases="tiny-op-layernorm-basic", seed=1)
    assert report.cases[0].first.tensor == "y"
