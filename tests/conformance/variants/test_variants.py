"""Variants, computed by the model's own text under changed operations, and found again from what they return."""

from pathlib import Path

import numpy as np
import pytest

from refvt.conformance.cases import OperationCase, Truth, TruthTensor, model_case, operation_case, truth_of
from refvt.conformance.golden import load_arrays, load_manifest
from refvt.conformance.judgement import judge
from refvt.conformance.variants import VARIANTS, Finder, compute, evidence_of, find, meaning, search
from refvt.conformance.variants.table import markdown_table

CASES = load_manifest()


def evidence(name, change=None, dtype="float64", only=None):
    """A case, with what a candidate gives that computes it right, but for ``change(tensors)``."""
    golden = CASES[name]
    arrays = load_arrays(golden)
    case = (operation_case if golden.kind == "op" else model_case)(golden, arrays, dtype)
    truth = truth_of(golden, arrays)
    given = {key: truth[key].value.copy() for key in truth if only is None or key in only}
    return evidence_of(case, truth, given if change is None else change(case, given), dtype)


def under(*names, only=None):
    """What a candidate gives that has these variants."""

    def change(case, given):
        found = compute(case, names)
        assert found is not None
        return {key: found[key] for key in given if key in found and (only is None or key in only)}

    return change


@pytest.mark.parametrize("name", ["tiny-model-zero", "tiny-model-masked", "tiny-model-fuse", "op-halt_tokens-beta5"])
def test_without_variants_all_tensors_of_the_case_are_the_truth(name):
    found = evidence(name)
    computed = compute(found.case)
    assert set(found.truth) <= set(computed)
    for key in found.truth:
        report = judge(found.truth, key, computed[key], "float64")
        assert report.status == "agrees", (key, report)
    assert find(found) == []


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="names: expected names of"):
        compute(evidence("tiny-model-zero").case, ["gelu=tan"])


def test_a_variant_that_means_nothing_in_a_case_gives_nothing():
    assert compute(evidence("tiny-model-zero").case, ["halted_keys=zero"]) is None
    assert compute(evidence("tiny-op-layernorm-basic").case, ["gelu=tanh"]) is None


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("tiny-model-zero", ("halted_keys=masked", "gelu=tanh")),
        ("tiny-model-fuse", ("gelu=tanh", "motion labels swapped")),
        ("tiny-model-fuse", ("epsilon=0", "layernorm eps=1e-5")),
        ("tiny-model-masked", ("no 1/√d", "qkv order k, q, v")),
        ("tiny-model-zero", ("remainder detached", "ponder weight 1")),
        ("tiny-model-zero", ("halting layers from 0", "ponder=N−1+r")),
        ("op-halt_tokens-beta5", ("halting layers from 0", "ponder=N−1+r")),
    ],
)
def test_a_pair_is_found(name, variants):
    assert find(evidence(name, under(*variants)), seconds=60) == [variants]


def test_a_pair_is_found_from_outputs_alone():
    only = ("logits", "motion_logits", "ponder", "loss.total")
    names = ("gelu=tanh", "no 1/√d")
    assert find(evidence("tiny-model-zero", under(*names, only=only)), seconds=60) == [names]


def test_two_that_cannot_be_told_apart_are_both_named():
    finder = Finder()
    text = finder.look(evidence("op-halt_tokens-first", under("ponder=N")))
    assert text == "ponder=N or ponder=N−1+r or ponder=r; this case cannot tell them apart"
    # another case tells them apart, and answers for both
    assert finder.look(evidence("op-halt_tokens-beta5", under("ponder=N"))) == "ponder=N"
    assert finder.answers() == {"op-halt_tokens-first": "ponder=N", "op-halt_tokens-beta5": "ponder=N"}


def test_a_step_of_halting_has_one_weight():
    """``halt`` gives no ρ: whether ρ has the remainder is then not asked."""
    assert find(evidence("tiny-op-halt-basic", under("no remainder"))) == [("no remainder",)]


def test_a_case_that_agrees_refutes_a_variant():
    finder = Finder()
    assert finder.look(evidence("op-halt_tokens-beta20", under("ponder=N"))) == "ponder=N"
    finder.agreed(evidence("op-halt_tokens-beta5"))
    assert finder.answers() == {"op-halt_tokens-beta20": None}


def test_the_search_ends_after_cases_that_nothing_explains(monkeypatch):
    searched = []
    monkeypatch.setattr(search, "find", lambda evidence, *rest: searched.append(evidence.truth.name) or [])
    finder = Finder()
    names = [name for name, case in CASES.items() if case.operation == "attention"]
    assert len(names) > search.PATIENCE
    assert [finder.look(evidence(name)) for name in names] == [None] * len(names)
    assert searched == names[: search.PATIENCE]
    finder.look(evidence("tiny-op-gelu-basic"))  # another kind
    assert searched[-1] == "tiny-op-gelu-basic"


def test_the_cases_of_an_operation_say_nothing_about_the_model():
    finder = Finder()
    assert finder.look(evidence("tiny-model-zero", under("gelu=tanh"))) == "gelu=tanh"
    finder.agreed(evidence("tiny-op-gelu-basic"))
    assert finder.answers() == {"tiny-model-zero": "gelu=tanh"}


def test_a_clip_may_leave_early_under_a_variant_too():
    """Without gradients a clip leaves when its CLS has halted: ρ of the others is then not known."""

    def leave(case, given):
        found = under("gelu=tanh", only=("logits", "ponder", "decisions.halting_layer"))(case, given)
        layers = found["decisions.halting_layer"]
        later = layers > layers[:, :1]
        assert later.any()
        return found | {
            "ponder": np.where(later, np.nan, found["ponder"]),
            "decisions.halting_layer": np.where(later, 0, layers),
        }

    assert find(evidence("model-cls-first", leave), seconds=0) == [("gelu=tanh",)]


def test_the_docs_list_all_variants():
    page = Path(__file__).parents[3] / "docs" / "variants.md"
    assert markdown_table() in page.read_text(encoding="utf-8")


def test_names_are_different_and_sentences_end():
    assert all(variant.differs.endswith(".") and variant.who for variant in VARIANTS.values())
    assert not any(word in name for name in VARIANTS for word in (" and ", " or ", "; ", '"'))


def test_every_variant_of_an_answer_has_its_sentence():
    pair = search._text([("gelu=tanh", "no 1/√d")])
    either = search._text([("ponder=N",), ("ponder=r",)])
    for answer, names in ((pair, ("gelu=tanh", "no 1/√d")), (either, ("ponder=N", "ponder=r"))):
        assert meaning(answer) == {name: VARIANTS[name].differs for name in names}
    for name in VARIANTS:
        assert list(meaning(name)) == [name]


def test_a_tie_tells_at_least_from_more_than():
    """0.5 + 0 = 1 − 0.5 exactly, in every dtype: the score of a logit of −1000 is 0."""
    used, logit = np.array([0.5, 0.2, 0.5, 0.4]), np.array([-1000.0, 1.05, 1.1, -1000.0])
    settings = {"scale": 10.0, "center": 10.0, "epsilon": 0.5, "last": False}
    cotangents = {"weight": np.array([1.0, -2.0, 0.5, 3.0]), "used_next": np.array([0.3, 1.0, -1.0, 2.0])}
    case = OperationCase("tie", "halt", {"logit": logit, "used": used}, settings, cotangents)

    def halt(at_least):
        score = 1 / (1 + np.exp(-np.clip(10 * logit - 10, -500, None)))
        halted = used + score >= 0.5 if at_least else used + score > 0.5
        dscore = np.where(halted, 0, cotangents["weight"] + cotangents["used_next"])
        return {
            "weight": np.where(halted, 1 - used, score),
            "used_next": np.where(halted, 1, used + score),
            "halted": halted,
            "d(logit)": 10 * score * (1 - score) * dscore,
            "d(used)": np.where(halted, -cotangents["weight"], cotangents["used_next"]),
        }

    tensors = {
        key: TruthTensor(key, value, "backward" if key.startswith("d(") else "forward", "operation", {})
        for key, value in halt(False).items()
    }
    truth = Truth("tie", "op", "a tie", tensors, {}, operation="halt", settings=settings)
    assert find(evidence_of(case, truth, halt(True), "float64"), seconds=0) == [("halting at ≥",)]
    assert find(evidence_of(case, truth, halt(False), "float64"), seconds=0) == []


def test_the_last_state_as_output_is_named():
    def last_state(case, given):
        states, layers = case.arguments["states"], given["halting_layer"]
        tokens = np.arange(states.shape[1])
        y = states[layers - 1, tokens]
        return {"y": y, "ponder": given["ponder"], "halting_layer": layers}

    assert find(evidence("op-halt_tokens-beta5", last_state), seconds=0) == [("output is the last state",)]


def test_frame_major_tokens_are_named():
    def frame_major(case, given):
        T, truth = case.config.num_frames, evidence("tiny-model-zero").truth

        def reorder(key, value):
            tokens = {"tokens": 0, "halting": 0, "ponder": 1}.get(truth[key].layout)
            tokens = {"decisions.halting_layer": 1, "alive": 2}.get(key, tokens)
            if tokens is None:
                return value
            patches = np.arange(1, value.shape[tokens]).reshape(-1, T).T.ravel()  # one clip
            return np.take(value, np.concatenate([[0], patches]), axis=tokens)

        return {key: reorder(key, value) for key, value in given.items()}

    assert find(evidence("tiny-model-zero", frame_major), seconds=0) == [("frame-major tokens",)]


def scaled(key, factor):
    return lambda case, given: given | {key: given[key] * factor}


def with_wrong_element(key):
    def change(case, given):
        given[key].reshape(-1)[3] += 1
        return given

    return change


BUGS = {
    "a gradient off by a thousandth": scaled("d(blocks.1.attn.qkv.weight)", 1.001),
    "a gradient with the opposite sign": scaled("d(joint.1.weight)", -1),
    "a tensor of zeros": scaled("blocks.1.attn.y", 0),
    "one wrong element": with_wrong_element("blocks.2.mlp"),
    "twice the ponder": scaled("loss.ponder", 2),
    "logits with noise": lambda case, given: given | {"logits": given["logits"] + 0.01 * np.arange(3)},
    "q and k exchanged": lambda case, given: (
        given | {"blocks.1.attn.q": given["blocks.1.attn.k"], "blocks.1.attn.k": given["blocks.1.attn.q"]}
    ),
    "a halting layer too late": lambda case, given: (
        given | {"decisions.halting_layer": np.minimum(given["decisions.halting_layer"] + 1, 2)}
    ),
    "a mean that is a sum, in one gradient": scaled("d(ponder)", 9.0),
    "NaN": lambda case, given: given | {"features": given["features"] * np.nan},
}


@pytest.mark.parametrize("bug", BUGS)
def test_nothing_is_claimed_for_a_bug(bug):
    assert find(evidence("tiny-model-zero", BUGS[bug]), seconds=2) == []
