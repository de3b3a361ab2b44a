"""Laws run on candidates: what they find, what they leave out, and programs that fail by themselves."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refvt import backends
from refvt.backends import Implementation
from refvt.conformance.candidates import Candidate, OperationCandidate, wrap
from refvt.conformance.law_runs import GRADIENT_LAWS, check_law, laws_for, run_law, run_laws
from refvt.conformance.laws import laws_of
from refvt.ops import operations
from refvt.ops.laws import LawBroken
from refvt.ops.tokens import reference as tokens

PORTS = '''
import numpy as np
from refvt.ops.attention import reference

def halt_tokens(states, scale, center, epsilon):
    return halting(states, scale, center, epsilon, remainder=True)

class Overshoots:
    """Adds the last score instead of the remainder."""
    @staticmethod
    def halt_tokens(states, scale, center, epsilon):
        return halting(states, scale, center, epsilon, remainder=False)

def halting(states, scale, center, epsilon, remainder):
    score = 1 / (1 + np.exp(center - scale * states[:, :, 0]))
    score[-1] = 1
    layer = (np.cumsum(score, axis=0) > 1 - epsilon).argmax(axis=0)
    before = np.arange(len(states))[:, None] < layer
    at = np.arange(len(states))[:, None] == layer
    rest = 1 - (score * before).sum(axis=0)
    weight = score * before + (rest if remainder else score) * at
    return (weight[:, :, None] * states).sum(axis=0), layer + 1 + rest, layer + 1

class Attention:
    attention_forward = staticmethod(reference.attention_forward)

    @staticmethod
    def attention_backward(dy, cache):
        dq, dk, dv = reference.attention_backward(dy, cache)
        return dq, dk, 1.01 * dv
'''


@pytest.fixture
def ports(tmp_path, monkeypatch):
    (tmp_path / "ports_of_laws.py").write_text(PORTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def run_text(text, folder):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(folder)])}
    return subprocess.run([sys.executable, "-c", text], cwd=folder, env=environment, capture_output=True, text=True)


def by_law(reports):
    return {report.law: report for report in reports}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_smallest_halting_keeps_every_law_that_a_forward_can(ports, dtype):
    found = by_law(run_laws("ports_of_laws:halt_tokens", dtype, max_examples=30))
    assert {law for law, report in found.items() if report.status == "agrees"} == {
        "adjoint",
        "nothing_is_mutated",
        "weights_are_a_distribution",
        "nothing_after_halting_matters",  # it multiplies by zero: NaN is no fault
        "closed_form_gradient",
    }
    assert all(report.status in ("agrees", "not given") for report in found.values())
    assert "no backward" in found["linear_in_cotangent"].sentence


def test_a_broken_law_comes_with_a_program_that_fails(ports):
    report = run_law("ports_of_laws:Overshoots", "halt_tokens", "weights_are_a_distribution")
    assert report.status == "differs"
    assert "sum" in report.sentence
    assert "random" not in report.reproduce
    ran = run_text(report.reproduce, ports)
    assert ran.returncode == 1
    assert "LawBroken" in ran.stderr
    assert report.sentence in ran.stderr
    mended = run_text(report.reproduce.replace(":Overshoots", ":halt_tokens"), ports)
    assert mended.returncode == 0, mended.stderr


def test_a_wrong_gradient_is_found_in_a_run_of_float32(ports):
    report = run_law("ports_of_laws:Attention", "attention", "adjoint", dtype="float32")
    assert report.status == "differs"
    assert "float64" in report.reproduce
    assert run_text(report.reproduce, ports).returncode == 1
    assert run_law("ports_of_laws:Attention", "attention", "weights_sum_to_one").status == "agrees"


def test_two_runs_agree(ports):
    first, second = (run_law("ports_of_laws:Overshoots", "halt_tokens", "adjoint") for _ in range(2))
    assert (first.sentence, first.reproduce) == (second.sentence, second.reproduce)
    assert not list(ports.glob(".hypothesis"))


def spoiled(operation):
    """A forward that returns NaN and writes to its inputs."""

    def forward(**inputs):
        answer = backends.get("reference")[operation].forward(**inputs)[0]
        for value in inputs.values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value += 1
        values = answer if isinstance(answer, tuple) else (answer,)
        spoil = tuple(np.full_like(v, np.nan) if np.asarray(v).dtype.kind == "f" else v for v in values)
        return spoil if isinstance(answer, tuple) else spoil[0]

    return OperationCandidate(operations()[operation], forward, None, cached=False)


@pytest.mark.parametrize("operation", [name for name, op in operations().items() if op.has_backward])
def test_gradient_laws_are_those_that_no_forward_breaks(operation):
    candidate = Candidate("spoiled", None, {operation: spoiled(operation)})
    for law in laws_of(operation):
        name = law.__name__
        report = run_law(candidate, operation, name, "float64", max_examples=10)
        expected = "not given" if name in (*GRADIENT_LAWS, "keep_changes_nothing") else "differs"
        assert report.status == expected, (name, report.sentence)


def test_a_complaint_says_whose_backward_was_used():
    """``adjoint`` needs a backward, the formula of gelu does not."""

    def forward(x, keep=True):
        return 1.01 * x, x if keep else None

    gelu = operations()["gelu"]
    without = Candidate("mine", None, {"gelu": OperationCandidate(gelu, forward, None, cached=True)})
    whole = Candidate("mine", None, {"gelu": OperationCandidate(gelu, forward, lambda dy, x: dy, cached=True)})
    said = "; no backward was given: refvt's own was used"
    found = [run_law(one, "gelu", law) for one in (without, whole) for law in ("adjoint", "gelu_is_half_odd")]
    assert [report.status for report in found] == ["differs"] * 4
    assert [report.sentence.endswith(said) for report in found] == [True, False, False, False]


def test_an_exception_is_an_error_with_a_program():
    def forward(x, index, keep=True):
        if len(index) > 2:
            raise RuntimeError("more than two rows")
        return tokens.gather_forward(x, index, keep)

    broken = Implementation(operations()["gather"], forward, tokens.gather_backward)
    report = run_law(broken, "gather", "gather_copies_bits")
    assert report.status == "error"
    assert report.sentence == "raised RuntimeError: more than two rows"
    assert "candidate = ..." in report.reproduce  # it has no name that could be imported


def test_a_view_of_columns_stays_a_view():
    """A candidate that reads strided rows wrongly is caught, and the program keeps the strides."""
    reference = backends.get("reference")["attention"]

    def forward(q, k, v, keep=True, **others):
        wrong = q if q.flags.c_contiguous else q[::-1]  # as if a stride were negative
        return reference.forward(wrong, k, v, **others, keep=keep)

    broken = Implementation(operations()["attention"], forward, reference.backward)
    report = run_law(broken, "attention", "segments_do_not_meet")
    assert report.status == "differs"
    assert "shared0[:, 0 : 1]" in report.reproduce
    names = {}
    exec(report.reproduce.replace("candidate = ...", "candidate = None").rpartition("check_law")[0], names)
    assert not names["inputs"]["q"].flags.c_contiguous
    with pytest.raises(LawBroken):
        check_law(broken, "attention", "segments_do_not_meet", names["inputs"])


def test_a_candidate_that_computes_in_float32_has_no_adjoint_law():
    reference = backends.get("reference")["gelu"]

    def forward(x, keep=True):
        return reference.forward(x.astype(np.float32), keep=keep)

    found = by_law(run_laws(Implementation(operations()["gelu"], forward, reference.backward), max_examples=5))
    assert found["adjoint"].status == "not given"
    assert "float32" in found["adjoint"].sentence
    assert found["gelu_is_half_odd"].status == "agrees"


def test_time_is_bounded():
    def forward(x, keep=True):
        import time

        time.sleep(0.05)
        return backends.get("reference")["gelu"].forward(x, keep=keep)

    candidate = Implementation(operations()["gelu"], forward, backends.get("reference")["gelu"].backward)
    report = run_law(candidate, "gelu", "gelu_is_half_odd", max_examples=10_000, seconds=0.5)
    assert report.status == "agrees"
    assert report.seconds < 5


def test_what_cannot_be_asked():
    assert run_law("reference", "gelu", "gelu_is_half_odd", dtype="bfloat16").status == "not given"
    with pytest.raises(ValueError, match="law: expected one of"):
        run_law("reference", "gelu", "no_such_law")
    with pytest.raises(ValueError, match="operation: expected one that the candidate has"):
        check_law(tokens.gather_forward, "gelu", "gelu_is_half_odd", {})


def test_laws_for_lists_the_operations_of_a_candidate():
    assert {operation for operation, _ in laws_for(wrap(tokens, "tokens"))} == {"gather", "segment_mean"}
    assert len(laws_for("reference")) == sum(len(laws_of(name)) for name in operations())
