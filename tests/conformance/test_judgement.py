"""Budgets of tensors and of single elements, in every dtype, and decisions within rounding."""

from dataclasses import replace

import numpy as np
import pytest

from refvt.conformance import load_truth
from refvt.conformance.budgets import DTYPES, FLOOR, MULTIPLE, budget_of
from refvt.conformance.cases import Truth, TruthTensor
from refvt.conformance.golden import load_manifest
from refvt.conformance.judgement import judge

ENTRY = {"float32_error": 1e-6, "float32_peak": 5e-6, "condition": None}


def truth_with(value, **entry):
    tensor = TruthTensor("y", value, "forward", "operation", ENTRY | entry)
    return Truth("a case", "op", "", {"y": tensor}, {}, operation="gelu")


def test_a_budget_is_a_multiple_of_torch_with_a_floor():
    budget = budget_of(ENTRY, "float32", 100)
    assert budget.tensor == MULTIPLE * 1e-6 + FLOOR * 2.0**-23
    assert budget.element == MULTIPLE * 5e-6 + FLOOR * 2.0**-23
    assert budget_of(ENTRY, "float64", 100).tensor == pytest.approx(budget.tensor * 2.0**-29)
    scaled = budget_of(ENTRY, "bfloat16", 100)
    assert scaled.tensor == pytest.approx(budget.tensor * 2.0**16)
    measured = budget_of(ENTRY | {"bfloat16_error": 0.5, "bfloat16_peak": 0.9}, "bfloat16", 100)
    assert measured.tensor == pytest.approx(MULTIPLE * 0.5 + FLOOR * DTYPES["bfloat16"])
    without_peak = budget_of({"float32_error": 1e-6}, "float32", 100)
    assert without_peak.element == pytest.approx(MULTIPLE * 1e-5 + FLOOR * 2.0**-23)


def test_one_wrong_element_of_a_million_does_not_drown():
    value = np.random.default_rng(0).standard_normal((1000, 1000))
    truth = truth_with(value, float32_error=4e-8, float32_peak=3e-7, bfloat16_error=3e-3, bfloat16_peak=2e-2)
    rounded = value * (1 + 2e-3 * np.random.default_rng(1).uniform(-1, 1, value.shape))
    assert judge(truth, "y", rounded.astype(np.float32), "bfloat16").status == "agrees"
    rounded[123, 456] += 1
    found = judge(truth, "y", rounded.astype(np.float32), "bfloat16")
    assert found.status == "differs"
    assert found.error < found.allowed  # the L2 norm does not see it
    assert found.index == (123, 456)


@pytest.mark.parametrize(
    ("value", "note"),
    [
        (np.full((2, 3), np.nan, np.float32), "6 of 6 values are NaN"),
        (np.array([[1, np.inf, 1], [1, 1, 1]], np.float32), "1 of 6 values are infinite"),
        (np.ones((3, 2), np.float32), "shape [3, 2], expected [2, 3]"),
        (np.ones((2, 3), np.int32), "expected floats, got int32"),
        (np.ones((2, 3), complex), "expected numbers, got complex128"),
        (np.full((2, 3), 0xFEFEFEFE, np.uint32).view(np.float32), "6 values were never written"),
        ((np.ones((2, 3)) * 1.01).astype(np.float16), "float16 where float32 was asked for"),
    ],
)
def test_what_is_wrong_is_named(value, note):
    found = judge(truth_with(np.ones((2, 3))), "y", value, "float32")
    assert found.status == "differs"
    assert note in found.note
    assert judge(truth_with(np.ones((2, 3))), "y", np.ones((2, 3), np.float32), "float32").status == "agrees"


def test_a_truth_of_zero_is_compared_absolutely():
    truth = truth_with(np.zeros(4), absolute=True)
    assert judge(truth, "y", np.full(4, 1e-7), "float32").status == "agrees"
    assert judge(truth, "y", np.full(4, 1e-3), "float32").status == "differs"


def test_integers_must_be_equal_and_may_come_as_whole_floats():
    truth = load_truth("tiny-op-top_k-basic")
    kept = truth["kept"].value
    assert judge(truth, "kept", kept.astype(np.float32), "float32").status == "agrees"
    assert "fractions" in judge(truth, "kept", kept + 0.5, "float32").note
    found = judge(truth, "kept", np.where(kept == kept.flat[0], 4, kept), "float32")
    assert found.status == "differs"
    assert found.error >= 1


def test_rows_that_do_not_count_are_not_compared():
    truth = truth_with(np.ones((3, 2)))
    tensor = replace(truth["y"], rows=np.array([True, False, True]))
    value = np.ones((3, 2), np.float32)
    value[1] = np.nan
    assert judge(replace(truth, tensors={"y": tensor}), "y", value, "float32").status == "agrees"


def test_every_computed_tensor_of_the_manifest_has_its_errors():
    """In float32 all, in the other dtypes wherever no run leaves the range of float16."""
    for case in load_manifest().values():
        for name, entry in case.tensors.items():
            if entry["float32_error"] is not None:
                assert entry["float32_peak"] >= 0, (case.name, name)
                if case.kind != "training":
                    assert "bfloat16_error" in entry
                    assert "bfloat16_peak" in entry
