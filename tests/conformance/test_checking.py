"""``check`` on candidates of every form: what agrees, what differs and where, what is not given, what fails."""

import gc
import os
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from refvt.conformance import checking, compare_tensor, isolation, load_case, load_truth
from refvt.conformance.asking import Asked
from refvt.conformance.checking import select_cases
from refvt.ops.attention import reference as attention
from refvt.ops.halting import reference as halting
from tests.support.candidates import changed, check, only, run

TINY = "tiny-model-*"


def test_right_function_agrees_and_the_summary_counts_what_was_compared():
    report = check(run, cases=TINY)
    assert report.agrees
    assert report.exit_code == 0
    assert [case.status for case in report.cases] == ["agrees"] * 3
    assert all(0 < case.compared < case.total for case in report.cases)
    assert all(case.compared + len(case.not_given) == case.total for case in report.cases)
    assert "loss.total" in report.cases[0].not_given
    assert f"{report.compared} of" in report.sentence


def halve(x):
    return x / 2


def one_wrong(x):
    x.flat[7] += 0.01
    return x


def one_nan(x):
    x.flat[3] = np.nan
    return x


@pytest.mark.parametrize(
    ("name", "change", "direction", "note"),
    [
        ("blocks.0.attn.q", halve, "forward", "scaled by"),
        ("blocks.1.attn.y", one_wrong, "forward", ""),
        ("d(blocks.1.mlp)", one_nan, "backward", "1 of 72 values are NaN"),
        ("d(head.weight)", lambda x: x.T[:1], "backward", "shape [1, 3], expected [3, 8]"),
        ("d(head.weight)", lambda x: x.astype(np.int64), "backward", "expected floats, got int64"),
    ],
)
def test_first_divergence_is_the_tensor_that_is_wrong(name, change, direction, note):
    report = check(changed(name, change), cases="tiny-model-zero")
    first = only(report).first
    assert report.exit_code == 1
    assert (first.tensor, first.direction) == (name, direction)
    order = list(load_truth("tiny-model-zero"))
    assert order.index(first.last_agreeing) < order.index(name)
    assert note in first.note
    assert first.share > 1


def test_the_place_is_said_in_human_terms_and_the_snippet_runs():
    case = only(check(changed("blocks.1.attn.y", one_wrong), cases="tiny-model-zero"))
    assert case.first.index == (0, 7)
    assert case.first.place == "block 1 (joint layer 1), clip 0, CLS, head 1, channel 3 of the head"
    assert case.first.got == pytest.approx(case.first.expected + 0.01, rel=1e-3)
    case = only(check("reference", cases="tiny-model-zero"))
    assert case.status == "agrees"
    found = compare_tensor("tiny-model-zero", "embed", run(load_case("tiny-model-zero"))["embed"])
    assert found.status == "agrees"


def test_rows_of_halted_tokens_do_not_count_and_states_may_be_rectangular():
    truth = load_truth("tiny-model-zero")
    halted = ~truth["blocks.2.attn.q"].rows
    assert halted.any()

    def candidate(case):
        found = run(case)
        found["blocks.2.attn.q"][halted] = 1e9
        found["blocks.2.attn.k"] = found["blocks.2.attn.k"].reshape(1, -1, 8)
        return found

    assert only(check(candidate, cases="tiny-model-zero")).status == "agrees"


def test_outputs_alone_say_what_agrees_and_which_gradients_vanish():
    def candidate(case):
        found = run(case)
        return {"logits": found["logits"], "ponder": found["ponder"] + 1, "d(head.bias)": 0 * found["d(head.bias)"]}

    case = only(check(candidate, cases="tiny-model-zero"))
    assert case.first.tensor == "ponder"
    assert "logits agrees" in case.sentence
    assert "gradients that vanish (perhaps never used): d(head.bias)" in case.sentence


def test_a_known_variant_is_named():
    def candidate(case):
        from dataclasses import replace

        return run(replace(case, config=replace(case.config, halted_keys="masked")))

    report = check(candidate, cases="tiny-model-*")
    named = {case.name: case.variant for case in report.cases}
    assert named == {
        "tiny-model-fuse": "halted_keys=masked",
        "tiny-model-masked": None,
        "tiny-model-zero": "halted_keys=masked",
    }


# ---- operations


def halt_tokens(states, scale, center, epsilon):
    (y, ponder, layers), _ = halting.halt_tokens_forward(states, scale, center, epsilon)
    return y, ponder, layers


@pytest.mark.parametrize("candidate", [halt_tokens, SimpleNamespace(halt_tokens=halt_tokens)])
def test_halt_tokens_alone(candidate):
    case = only(check(candidate, cases="tiny-op-halt_tokens-*"))
    assert (case.status, case.compared, case.not_given) == ("agrees", 3, ("d(states)",))


def test_operations_with_and_without_backward():
    def forward(q, k, v, query_offsets, key_offsets, heads, bias=None):  # names of its own, and no keep
        return attention.attention_forward(q, k, v, query_offsets, key_offsets, heads, bias)

    report = check(SimpleNamespace(attention_forward=forward), cases="tiny-op-*")
    given = {case.name: case.compared for case in report.cases if case.status != "not given"}
    assert given == {f"tiny-op-attention-{name}": 1 for name in ("basic", "empty", "key-bias")}
    with_backward = SimpleNamespace(attention_forward=forward, attention_backward=attention.attention_backward)
    report = check(with_backward, cases="tiny-op-attention-*")
    assert report.agrees
    assert [case.compared for case in report.cases] == [4, 4, 4]


def test_an_operation_without_an_optional_argument_is_not_given_where_it_is_needed():
    def forward(q, k, v, query_offsets, key_offsets, num_heads):
        return attention.attention_forward(q, k, v, query_offsets, key_offsets, num_heads)

    report = check(SimpleNamespace(attention_forward=forward), cases="tiny-op-attention-*")
    statuses = {case.name.rpartition("attention-")[2]: case.status for case in report.cases}
    assert statuses == {"basic": "agrees", "empty": "not given", "key-bias": "not given"}
    assert report.agrees


def test_a_wrong_forward_is_named_although_its_backward_raises():
    def forward(x):
        return np.maximum(x, 0), None

    def backward(dy, cache):
        raise RuntimeError("not yet")

    case = only(check(SimpleNamespace(gelu_forward=forward, gelu_backward=backward), cases="tiny-op-gelu-basic"))
    assert case.status == "differs"
    assert case.first.tensor == "y"
    assert "its backward raised RuntimeError: not yet" in case.sentence


# ---- what goes wrong


def rubbish(case):
    return {"logits": "hello"}


def leave(case):
    os._exit(3)


def hang(case):
    time.sleep(600)


def mutate(case):
    found = run(case)
    case.parameters["head.bias"][0] = 7
    return found


def crash(case):
    import ctypes

    ctypes.string_at(0)


def speak(case):
    print("x" * 3_000_000)
    sys.stderr.write("y" * 3_000_000)
    return run(case)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (rubbish, "logits: expected an array, got str"),
        (lambda case: 5, "expected a mapping from names to arrays, got int"),
        (lambda case: 1 / 0, "ZeroDivisionError: division by zero (test_checking.py, line"),
        (lambda case: sys.exit("bye"), "it called sys.exit(bye)"),
        (leave, "it ended its process with exit code 3"),
        (crash, "its process was ended by SIGSEGV"),
    ],
)
def test_what_a_candidate_breaks_is_one_case_and_the_others_go_on(bad, sentence, capfd):
    report = check(lambda case: bad(case) if case.name == "tiny-model-masked" else run(case), cases=TINY)
    statuses = {case.name: case.status for case in report.cases}
    assert statuses == {"tiny-model-fuse": "agrees", "tiny-model-masked": "error", "tiny-model-zero": "agrees"}
    assert sentence in next(case.sentence for case in report.cases if case.status == "error")
    assert report.exit_code == 1
    assert capfd.readouterr() == ("", "")


def test_a_mistake_of_refvt_while_it_judges_is_one_case_and_the_others_go_on(monkeypatch):
    original = Asked.judge

    def judge(self, answer):
        if self.truth.name == "tiny-model-masked":
            raise IndexError("index -1 is out of bounds")
        return original(self, answer)

    monkeypatch.setattr(Asked, "judge", judge)
    report = check(run, cases=TINY)
    statuses = {case.name: case.status for case in report.cases}
    assert statuses == {"tiny-model-fuse": "agrees", "tiny-model-masked": "error", "tiny-model-zero": "agrees"}
    assert re.fullmatch(
        r"refvt could not judge this case, which is a mistake of refvt: IndexError: index -1 is out of bounds "
        r"\(test_checking\.py, line \d+\)",
        next(case.sentence for case in report.cases if case.status == "error"),
    )
    assert report.exit_code == 1


def test_a_mistake_of_refvt_after_the_cases_costs_none_of_them(monkeypatch):
    def broken(*_):
        raise IndexError("index -1 is out of bounds")

    monkeypatch.setattr(checking, "contrast", broken)
    report = check("reference", "float64", "tiny-op-gelu-*")
    assert report.agrees
    assert report.cases
    assert report.contrast.startswith("refvt could not say what the cases have in common, which is a mistake of refvt")


class Owner:
    """Garbage that can be collected only by the process that made it, such as a frame of PyAV with its threads."""

    def __init__(self):
        self.itself, self.process = self, os.getpid()

    def __del__(self):
        if os.getpid() != self.process:
            time.sleep(60)


def test_garbage_of_this_process_does_not_stop_that_of_the_candidate():
    def collect(case):
        gc.collect()
        return run(case)

    gc.collect()
    gc.disable()
    try:
        Owner()
        report = check(collect, cases=TINY, timeout=20)
    finally:
        gc.enable()
    assert {case.status for case in report.cases} == {"agrees"}


def test_a_candidate_that_hangs_is_ended():
    start = time.monotonic()
    report = check(lambda case: hang(case) if case.name == "tiny-model-fuse" else {}, cases=TINY, timeout=5)
    assert [case.status for case in report.cases] == ["error", "not given", "not given"]
    assert report.cases[0].sentence == "it did not return within 5 s"
    assert time.monotonic() - start < 590


def test_megabytes_of_output_are_discarded(capfd):
    assert check(speak, cases=TINY).agrees
    assert capfd.readouterr() == ("", "")


def test_changed_inputs_are_a_difference():
    case = only(check(mutate, cases="tiny-model-zero"))
    assert case.status == "differs"
    assert "it changed its inputs head.bias" in case.sentence


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of other C libraries is not filled with a pattern")
def test_values_that_were_never_written_are_named():
    def candidate(case):
        found = run(case)
        found["embed"] = np.empty((4096, *found["embed"].shape), np.float32)[4000]
        return found

    assert "values were never written" in only(check(candidate, cases="tiny-model-zero")).first.note


def test_a_candidate_that_ends_the_process_where_it_cannot_be_isolated(monkeypatch):
    """Without fork it runs in this process: ``sys.exit(0)`` in it must not end the check, least of all with code 0."""
    monkeypatch.setattr(isolation, "_fork_is_safe", lambda: False)
    for exception in (SystemExit(0), OSError("no such library")):

        def load(exception=exception):
            raise exception

        said = r"candidate: it could not be loaded: .*(exit\(0\)|no such library)"
        with pytest.raises(isolation.CannotLoad, match=said):
            isolation.runner_for(load, 5.0)
    runner = isolation.runner_for(lambda: None, 5.0)
    answer = runner.call(lambda candidate: sys.exit(0))
    assert (answer.status, answer.sentence) == ("error", "it called sys.exit(0)")


def test_laws_of_a_candidate_that_has_ended_its_process_are_an_error(monkeypatch):
    report = check(run, cases="tiny-model-zero", laws=True)
    assert report.laws == []  # it has no operations
    monkeypatch.setattr("refvt.conformance.law_runs.laws_for", leave)
    report = check(run, cases="tiny-model-zero", laws=True)
    assert [law.status for law in report.laws] == ["error"]
    assert report.laws[0].sentence == "it ended its process with exit code 3"
    assert report.exit_code == 1


def test_nothing_compared_is_exit_code_2():
    for candidate in (lambda case: {}, lambda case: None, lambda case: {"logit": np.zeros(3)}):
        report = check(candidate, cases=TINY)
        assert report.exit_code == 2
        assert not report.agrees
        assert all(case.status == "not given" for case in report.cases)
    assert "names that this case does not know: logit" in report.cases[0].sentence


@pytest.mark.parametrize(
    ("candidate", "options", "message"),
    [
        (5, {}, "expected a function of a case"),
        (SimpleNamespace(), {}, "expected a function of a case"),
        ("nonsense", {}, "expected a backend"),
        ("nowhere_at_all:candidate", {}, "no module 'nowhere_at_all'"),
        ("json:candidate", {}, "json has no 'candidate'; it has .*: write json:"),
        ("nowhere.py", {}, "there is no file 'nowhere.py'"),
        ("nowhere.py:candidate", {}, "there is no file 'nowhere.py'"),
        (":candidate", {}, "expected a backend .*, file.py:object or an exchange folder, got ':candidate'$"),
        (lambda x, gamma, beta, eps: x, {}, r"of one argument, the case, got a function of \(x, gamma, beta, eps\)\."),
        (lambda: {}, {}, r"got a function of \(\)\. Is it an operation\?"),
        (run, {"cases": "halt*"}, r"that some golden case matches, got 'halt\*'; did you mean '\*halt\*'\?"),
        (run, {"cases": "training-*"}, r"that some golden case matches, got 'training-\*'$"),
        (run, {"dtype": "int8"}, "dtype: expected one of"),
        (run, {"cases": "nothing*"}, "cases: expected a pattern"),
        (run, {"timeout": 0}, "timeout: expected"),
    ],
)
def test_bad_arguments_are_one_clear_sentence(candidate, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check(candidate, **options)


def test_a_gather_that_wraps_minus_one_to_the_last_row_is_caught():
    class Wraps:
        @staticmethod
        def gather_forward(x, index):
            return x[index], None

    (found,) = check(Wraps(), cases="tiny-op-gather-last-unread").cases
    assert found.status == "differs"
    assert found.first.tensor == "y"
    assert found.first.index[0] in (1, 4)  # the rows whose index is −1


def test_the_first_case_is_a_tiny_operation():
    assert [select_cases()[0].kind, select_cases()[0].tiny] == ["op", True]
