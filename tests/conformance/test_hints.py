"""Hints: which rows of the embeddings a wrong embed holds, what to give next, what the cases that differ have."""

import numpy as np
import pytest

from refvt.conformance import check, load_case, load_truth
from refvt.conformance.contrast import contrast
from refvt.conformance.golden import load_manifest
from refvt.conformance.hints import advice, embedding_places, unused_parameters
from refvt.conformance.report import CaseReport, TensorReport

CASES = load_manifest()


@pytest.fixture
def case():
    return load_case("model-tall", "float64")


def embedded(case, positions, frames):
    """The truth's embed with other rows added: positions(s, t) and frames(s, t) give them, None for none."""
    truth = load_truth("model-tall")
    T, S = case.config.num_frames, case.config.patches_per_frame
    pos, time = case.parameters["pos_embed"][0], case.parameters["time_embed"][0]
    value = truth["embed"].value.reshape(len(case.clips), 1 + S * T, -1).copy()
    for s, t in np.ndindex(S, T):
        p, f = positions(s, t), frames(s, t)
        value[:, 1 + s * T + t] += (0 if p is None else pos[p]) - pos[1 + s] + (0 if f is None else time[f]) - time[t]
    return truth, value.reshape(truth["embed"].value.shape)


@pytest.mark.parametrize(
    ("positions", "frames", "said"),
    [
        (lambda s, t: 1 + s, lambda s, t: t, ""),
        (lambda s, t: 1 + s, lambda s, t: None, "no token gets time_embed"),
        (lambda s, t: 1 + s, lambda s, t: 1 - t, "time_embed is added in another order (patch 0 of frame 0: row 1"),
        (lambda s, t: 1 + (s ^ 1), lambda s, t: t, "pos_embed is added in another order (patch 0 of frame 0: row 2"),
        (lambda s, t: None if s == 2 else 1 + s, lambda s, t: t, "pos_embed is missing at patch 2 of frame 0, patch 2"),
    ],
)
def test_the_rows_of_the_embeddings_are_named(case, positions, frames, said):
    truth, value = embedded(case, positions, frames)
    found = embedding_places(truth, case.parameters, value)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_another_mistake_is_not_said_to_be_the_embeddings(case):
    truth, value = embedded(case, lambda s, t: 1 + s, lambda s, t: t)
    assert embedding_places(truth, case.parameters, 1.1 * value) == ""


def test_outputs_alone_are_told_what_to_give_next():
    truth = load_truth("tiny-model-zero")
    outputs = {name: truth[name].value for name in ("logits", "ponder", "loss.total", "d(head.weight)", "d(norm.bias)")}
    said = advice(truth, outputs)
    assert "embed, blocks.0.mlp, blocks.1.mlp" in said
    assert advice(truth, outputs | {"blocks.1.mlp": truth["blocks.1.mlp"].value}) == ""
    assert advice(load_truth("tiny-op-gelu-basic"), {}) == ""


def test_parameters_without_a_gradient_are_named_if_the_others_have_one():
    truth = load_truth("tiny-model-zero")
    given = {name: t.value for name, t in truth.tensors.items() if t.layout == "parameter"}
    assert unused_parameters(truth, given) == ""
    del given["d(blocks.1.norm2.weight)"]
    assert "no gradient was given for blocks.1.norm2.weight" in unused_parameters(truth, given)
    assert unused_parameters(truth, {"d(head.weight)": given["d(head.weight)"]}) == ""


def reports(statuses):
    tensor = TensorReport("logits", "forward", "agrees", allowed=1e-6)
    return [CaseReport(name, "model", "", status, tensors=[tensor]) for name, status in statuses.items()]


def test_what_the_cases_that_differ_have_in_common_is_said():
    found = {"model-zero": "differs", "model-masked": "differs", "model-no-glimpser": "agrees"}
    assert contrast(reports(found), CASES) == ""  # one case that agrees says little
    others = [n for n, c in CASES.items() if c.kind == "model" and c.config["glimpser_depth"] == 0]
    found |= dict.fromkeys(others, "agrees")
    said = contrast(reports(found), CASES)
    if len(others) > 1:
        assert said.startswith("all 2 models that differ have a Glimpser block")
    fused = {n: "differs" if c.config["fuse_dropped"] else "agrees" for n, c in CASES.items() if c.kind == "model"}
    assert "a fused token" in contrast(reports(fused), CASES)
    assert contrast(reports(dict.fromkeys(fused, "differs")), CASES) == ""


def test_one_case_that_agrees_is_enough_beside_many_that_differ():
    several = [n for n, c in CASES.items() if c.kind == "model" and c.config["num_frames"] > 1]
    one_frame = next(n for n, c in CASES.items() if c.kind == "model" and c.config["num_frames"] == 1)
    said = contrast(reports(dict.fromkeys(several, "differs") | {one_frame: "agrees"}), CASES)
    assert "several frames" in said
    assert said.endswith("; the one that agrees has not")
    assert contrast(reports(dict.fromkeys(several[:4], "differs") | {one_frame: "agrees"}), CASES) == ""


def test_a_report_holds_the_hint():
    def candidate(case):
        return {"logits": np.zeros((len(case.clips), case.config.num_classes), np.float32)}

    (found,) = check(candidate, cases="tiny-model-zero").cases
    assert found.hint.startswith("give more named tensors")
