"""One case while it is checked: what the candidate is given, how it is asked, how its answer is judged."""

from __future__ import annotations

from dataclasses import replace

from refvt.array import Array
from refvt.conformance.cases import DECISIONS, AnyCase, Truth, base_name, model_case, operation_case, training_case
from refvt.conformance.golden import Case
from refvt.conformance.isolation import Answer, Request, Runner
from refvt.conformance.judgement import judge_early
from refvt.conformance.report import TensorReport

__all__ = ["Asked"]


class Asked:
    """One case while it is checked: its truth, and how the candidate is asked."""

    def __init__(self, runner: Runner, case: Case, arrays: dict[str, Array], truth: Truth, dtype: str) -> None:
        self.runner, self.case, self.arrays, self.truth, self.dtype = runner, case, arrays, truth, dtype
        self.names = frozenset(truth)
        self.given: dict[str, Array] = {}
        self.forced = False  # whether ``given`` was computed under imposed decisions

    def what(self, force: bool = False) -> AnyCase:
        """What the candidate is given; every question has fresh arrays."""
        if self.case.kind == "op":
            return operation_case(self.case, self.arrays, self.dtype)
        if self.case.kind == "training":
            return training_case(self.case, self.arrays, self.dtype)
        return model_case(self.case, self.arrays, self.dtype, force)

    def what_was_given(self) -> AnyCase:
        """The case in float64, as it was when ``given`` was computed."""
        if self.case.kind == "op":
            return operation_case(self.case, self.arrays, "float64")
        if self.case.kind == "training":
            return training_case(self.case, self.arrays, "float64")
        return model_case(self.case, self.arrays, "float64", self.forced)

    def ask(self, force: bool = False) -> Answer:
        """The candidate's answer, with the decisions of the truth imposed or not."""
        forced = None
        if force and self.case.kind == "training":
            return Answer("not given")
        if force and self.case.kind == "op":
            forced = self._forced()
            if forced is None:
                return Answer("not given")
        return self.runner.ask(Request(self.what(force), self.names, forced))

    def _forced(self) -> dict[str, Array] | None:
        decision = DECISIONS.get(self.truth.operation or "")
        return None if decision is None else {"forced": self.truth[decision].value.copy()}

    def judge(self, answer: Answer) -> list[TensorReport]:
        """All tensors that were given, in the order of computation."""
        order = {name: i for i, name in enumerate(self.truth)}
        found = sorted(answer.tensors, key=lambda key: order[base_name(key)])
        return [self._judge_one(key, answer.tensors[key]) for key in found]

    def _judge_one(self, key: str, value: Array) -> TensorReport:
        return replace(judge_early(self.truth, base_name(key), value, self.dtype), name=key)
