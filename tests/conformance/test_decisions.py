"""``check`` where a candidate decides in another way: halting layers that cannot be, and flips within rounding."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import refvt
from refvt.conformance import load_truth
from refvt.ops.halting import reference as halting
from tests.support.candidates import changed, check, only, run

# ---- halting layers


def shifted(by):
    """``halt_tokens`` with its layers counted from another number than 1."""

    def halt_tokens(states, scale, center, epsilon):
        (y, ponder, layers), _ = halting.halt_tokens_forward(states, scale, center, epsilon)
        return y, ponder, layers + by

    return SimpleNamespace(halt_tokens=halt_tokens)


def test_halting_layers_from_0_are_said_and_named():
    report = check(shifted(-1), cases="*op-halt_tokens*")
    assert {case.status for case in report.cases} == {"differs"}
    assert {case.variant for case in report.cases} == {"halting layers from 0"}
    said = {case.name: case.first.note for case in report.cases}
    assert said["op-halt_tokens-first"].startswith("halting_layer: layers are counted from 1, got 0; ")
    assert "counted from 1" not in said["op-halt_tokens-never"]  # L − 1 is a layer too


def test_a_layer_beyond_the_last_is_no_matter_of_rounding():
    """In bfloat16 some sums of scores lie within rounding of 1 − ε: their tokens might halt later, but not after L."""
    for case in check(shifted(9), cases="*op-halt_tokens*", dtype="bfloat16").cases:
        assert (case.status, case.ambiguous) == ("differs", [])
        assert re.search(r"halting_layer: the last layer is \d, got 1\d", case.first.note)


@pytest.mark.parametrize("name", ["tiny-model-zero", "model-one-joint-layer"])
def test_halting_layers_of_a_model_from_0_are_said(name):
    case = only(check(changed("decisions.halting_layer", lambda layers: layers - 1), cases=name))
    assert case.first.tensor == "decisions.halting_layer"
    assert case.first.note.startswith("halting_layer: layers are counted from 1, got 0; ")
    assert case.variant == "halting layers from 0"


@pytest.mark.parametrize("strange", [np.nan, np.inf, -(10.0**30), 1j])
def test_halting_layers_that_are_no_integers_differ(strange):
    def halt_tokens(states, scale, center, epsilon):
        (y, ponder, layers), _ = halting.halt_tokens_forward(states, scale, center, epsilon)
        return y, ponder, layers + strange

    case = only(check(SimpleNamespace(halt_tokens=halt_tokens), cases="tiny-op-halt_tokens-*"))
    assert (case.status, case.first.tensor) == ("differs", "halting_layer")


# ---- flips within rounding


def test_a_flip_inside_rounding_is_ambiguous_and_the_rest_is_compared_under_imposed_decisions():
    """In bfloat16 the smallest halting margin of this case is far within rounding."""
    wanted = load_truth("tiny-model-zero")["decisions.halting_layer"].value

    def flips(case):
        found = run(case)
        if not case.force_decisions:
            found["decisions.halting_layer"] = flipped(wanted)
        return found

    case = only(check(flips, dtype="bfloat16", cases="tiny-model-zero"))
    assert case.status == "ambiguous"
    assert "within rounding" in case.ambiguous[0]
    assert case.compared > 100
    # in float32 the same flip is an error
    case = only(check(flips, dtype="float32", cases="tiny-model-zero"))
    assert case.status == "differs"
    assert case.first.tensor == "decisions.halting_layer"


def flipped(layers):
    """The token whose running sum is nearest to 1 − ε halts in the other layer."""
    truth = load_truth("tiny-model-zero")
    config = truth.config
    scores = 1 / (1 + np.exp(config.halting_center - config.halting_scale * truth["joint.1.logit"].value))
    token = int(np.abs(scores - (1 - config.epsilon)).argmin())
    layers = layers.copy()
    layers[0, token] = 3 - layers[0, token]
    return layers


def test_without_forcing_the_comparison_ends_at_the_ambiguous_decision():
    wanted = load_truth("tiny-model-zero")["decisions.halting_layer"].value

    def flips(case):
        found = run(case)
        found["decisions.halting_layer"] = flipped(wanted)
        found["logits"] = found["logits"] + 5  # a consequence of the flip, as far as anybody can tell
        return found

    case = only(check(flips, dtype="bfloat16", cases="tiny-model-zero"))
    assert case.status == "ambiguous"
    statuses = {tensor.name: tensor.status for tensor in case.tensors}
    assert statuses["logits"] == "ambiguous"
    assert statuses["blocks.1.attn.q"] == "agrees"


def test_a_clip_that_left_early_is_right():
    def candidate(case):
        model = refvt.HaltingVT(case.config, case.parameters, backend="reference", dtype="float32")
        out = model(case.clips)
        return {"logits": out.logits, "ponder": out.ponder, "decisions.halting_layer": out.decisions.halting_layer}

    case = only(check(candidate, cases="model-cls-first"))
    assert case.status == "agrees"
    assert case.compared == 3
