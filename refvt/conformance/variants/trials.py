"""What a candidate returned in one case, compared with the case under some variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.conformance.cases import ModelCase, OperationCase, Truth, TruthTensor, layout_of
from refvt.conformance.judgement import judge_early
from refvt.conformance.variants.recipe import Recipe, Tensors, call_operation, recipe_of, run_model
from refvt.conformance.variants.table import VARIANTS
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["Evidence", "Judge", "Names", "Runs", "Trial", "compute", "evidence_of"]

Judge = Callable[[Truth, str, Array], bool]
"""judge(truth, name, value): whether a value agrees with the truth's tensor of that name, within its budget."""

Names = tuple[str, ...]
"""The name of one variant, or of two that hold together."""

ONE_RUN = 8.0
"""How much larger than the error of one run the largest of PyTorch's eight runs is taken to be (see ``budgets``)."""


def compute(
    case: ModelCase | OperationCase, names: Sequence[str] = (), decisions: Decisions | None = None
) -> dict[str, Array] | None:
    """All tensors of a case in float64 under these variants (names of ``VARIANTS``), with the names of ``Truth``.

    Results and gradients of an operation; of a model every named tensor, decision, output, loss and gradient, in the
    order of computation. decisions: imposed on a model; None: it decides under the variants. None is returned if one of
    the variants is the case itself or means nothing there. A variant that changes the order of tokens gives them in
    that order. ValueError for an unknown name.
    """
    recipe = _recipe(case, names)
    if recipe is None:
        return None
    tensors = _tensors(case, recipe, decisions, lambda forward: True)
    return {name: value for name, (value, _) in tensors.items()}


def _recipe(case: ModelCase | OperationCase, names: Sequence[str], dtype: str = "float64") -> Recipe | None:
    """The case under these variants; None if one of them is the case itself or means nothing there."""
    if isinstance(case, OperationCase):
        recipe = Recipe(config=HaltingVTConfig(), settings=dict(case.settings))
    else:
        recipe = recipe_of(case, dtype)
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"names: expected names of refvt.conformance.variants.VARIANTS, got {name!r}")
    if not all(VARIANTS[name].change(recipe) for name in names):
        return None
    return None if names and isinstance(case, OperationCase) and _is_plain(recipe, case) else recipe


def _is_plain(recipe: Recipe, case: OperationCase) -> bool:
    """Whether the operation and its settings are as they were."""
    same = recipe.table()[case.operation] is backends.get("reference")[case.operation]
    return same and recipe.settings == case.settings


def _tensors(
    case: ModelCase | OperationCase,
    recipe: Recipe,
    decisions: Decisions | None,
    go_on: Callable[[Tensors], bool],
    dtype: str = "float64",
) -> Tensors:
    """The tensors of a recipe; go_on as in ``run_model``."""
    if isinstance(case, ModelCase):
        return run_model(recipe, decisions, go_on)
    results = call_operation(recipe, case.operation, case.arguments, case.cotangents, dtype)
    return {name: (value, None) for name, value in results.items()}


# ---- one case


@dataclass(frozen=True)
class Evidence:
    """What a candidate returned in one case: the case as it was given, its truth, the tensors, and a judge."""

    case: ModelCase | OperationCase
    truth: Truth
    given: Mapping[str, Array]
    judge: Judge


def evidence_of(case: ModelCase | OperationCase, truth: Truth, given: Mapping[str, Array], dtype: str) -> Evidence:
    """Evidence with the judge of ``check``: the budgets of a candidate in this dtype; clips may leave early."""

    def agrees(truth: Truth, name: str, value: Array) -> bool:
        return judge_early(truth, name, value, dtype).status == "agrees"

    return Evidence(case, truth, given, agrees)


@dataclass
class Trial:
    """How far some variants explain what was given.

    applies: they mean something in this case. agreed: how many given tensors agree before the first that does not.
    changed: the number of given tensors before the first that the variants change; None if none was seen. explains:
    somewhere the truth does not agree and the variants do. failed: some tensor does not agree. measured: the variants'
    own rounding errors are in the budgets.
    """

    applies: bool = True
    seen: int = 0
    agreed: int = 0
    changed: int | None = None
    explains: bool = False
    failed: bool = False
    measured: bool = False

    @property
    def fits(self) -> bool:
        """Whether these variants explain everything that was given."""
        return self.applies and self.explains and not self.failed


class Runs:
    """The runs that explain one case's evidence. Tensors that a variant leaves as they are need no second judgement."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self._plain: dict[bool, Tensors] = {}  # without variants, free and with imposed decisions
        self._truth_agrees: dict[str, bool] = {}

    def truth_agrees(self, name: str) -> bool:
        """Whether what was given under this name agrees with the truth."""
        if name not in self._truth_agrees:
            self._truth_agrees[name] = self.evidence.judge(self.evidence.truth, name, self.evidence.given[name])
        return self._truth_agrees[name]

    def trial(self, names: Names) -> Trial:
        """Compare with these variants. The candidate may have followed imposed decisions, or decided by itself."""
        case = self.evidence.case
        if not isinstance(case, ModelCase) or not case.force_decisions:
            return self._run(names, None)
        imposed = self._run(names, case.decisions)
        if imposed.fits or not imposed.applies:
            return imposed
        free = self._run(names, None)
        return free if free.fits or free.agreed > imposed.agreed else imposed

    def _run(self, names: Names, decisions: Decisions | None) -> Trial:
        trial = Trial()
        wants_gradients = any(name.startswith("d(") for name in self.evidence.given)
        plain = self._without_variants(decisions)
        compared: list[str] = []

        def after_forward(forward: Tensors) -> bool:
            compared.extend(forward)
            self._compare(trial, _Found(names, forward, plain, config), compared)
            return wants_gradients and not trial.failed

        recipe = _recipe(self.evidence.case, names)
        if recipe is None:
            return Trial(applies=False)
        config = recipe.config if isinstance(self.evidence.case, ModelCase) else None
        try:
            with np.errstate(all="ignore"):
                tensors = _tensors(self.evidence.case, recipe, decisions, after_forward)
        except Exception:  # two variants that do not go together end this trial, not the check
            return Trial(applies=False)
        rest = [name for name in tensors if name not in set(compared)]
        self._compare(trial, _Found(names, tensors, plain, config), rest)
        return trial

    def _without_variants(self, decisions: Decisions | None) -> Tensors:
        imposed = decisions is not None
        if imposed not in self._plain:
            recipe = _recipe(self.evidence.case, ())
            assert recipe is not None
            self._plain[imposed] = _tensors(self.evidence.case, recipe, decisions, lambda forward: True)
        return self._plain[imposed]

    def _compare(self, trial: Trial, found: _Found, names: Sequence[str]) -> None:
        """Carry the trial on over the tensors of these names, to the first that does not agree."""
        evidence, variant = self.evidence, None
        trial.measured = False
        for name in names:
            if name not in evidence.given or name not in evidence.truth or trial.failed:
                continue
            agrees = self.truth_agrees(name)
            if not found.unchanged(name):
                variant = variant or _truth_with(evidence.truth, found.tensors, found.config)
                follows = evidence.judge(variant, name, evidence.given[name])
                near = trial.explains or self._is_near(name, variant)
                if not follows and near and not trial.measured:
                    variant, trial.measured = self._with_measured_errors(variant, found), True
                    follows = evidence.judge(variant, name, evidence.given[name])
                if not evidence.judge(evidence.truth, name, found.tensors[name][0]):  # the variants change this tensor
                    trial.changed = trial.seen if trial.changed is None else trial.changed
                    trial.explains |= follows and not agrees
                agrees = follows
            trial.seen += 1
            trial.failed |= not agrees
            trial.agreed += not trial.failed

    def _is_near(self, name: str, variant: Truth) -> bool:
        """Whether the variant explains 99 % of the difference from the truth: the rest may be rounding."""
        truth, given = self.evidence.truth[name].value, self.evidence.given[name]
        expected, rows = variant[name].value, variant[name].rows
        if given.shape != expected.shape or truth.shape != expected.shape or given.dtype.kind != "f":
            return False
        rest, difference = given - expected, given - truth
        if rows is not None and rest.ndim:
            rest, difference = rest[rows], difference[rows]
        return bool(np.linalg.norm(rest) < 1e-2 * np.linalg.norm(difference))

    def _with_measured_errors(self, variant: Truth, found: _Found) -> Truth:
        """``variant`` with budgets that hold its own rounding errors: a variant may cancel where the truth does not.

        The error is that of one float32 run of the reference under the float64 run's decisions, times ``ONE_RUN``.
        """
        case, decisions = self.evidence.case, None
        recipe = _recipe(case, found.names, "float32")
        assert recipe is not None
        if isinstance(case, ModelCase):
            kept = [name for name in found.tensors if name.startswith("decisions.kept.")]
            layers = found.tensors["decisions.halting_layer"][0] + 1 - recipe.rule.first_layer
            decisions = Decisions(tuple(found.tensors[name][0] for name in kept), layers)
        with np.errstate(all="ignore"):
            rounded = _tensors(case, recipe, decisions, lambda forward: True, "float32")
            exact = _tensors(case, _again(case, found.names), decisions, lambda forward: True)
        changed = dict(variant.tensors)
        for name, tensor in variant.tensors.items():
            if name in rounded and tensor.value.dtype.kind == "f" and rounded[name][0].shape == exact[name][0].shape:
                entry = _with_error(tensor.entry, rounded[name][0], exact[name][0], tensor.rows)
                changed[name] = replace(tensor, entry=entry)
        return replace(variant, tensors=changed)


def _again(case: ModelCase | OperationCase, names: Names) -> Recipe:
    recipe = _recipe(case, names)
    assert recipe is not None
    return recipe


def _with_error(entry: Mapping[str, Any], rounded: Array, exact: Array, rows: Array | None) -> Mapping[str, Any]:
    """The entry with this float32 error, where it is larger."""
    difference = np.abs(rounded.astype(np.float64) - exact)
    if rows is not None:
        difference = difference[rows]
    norm = 1.0 if entry.get("absolute") else float(np.linalg.norm(exact))
    if not norm or not difference.size or not np.isfinite(difference).all():
        return entry
    rms = 1.0 if entry.get("absolute") else norm / np.sqrt(exact.size)
    error, peak = ONE_RUN * float(np.linalg.norm(difference)) / norm, ONE_RUN * float(difference.max()) / rms
    before = float(entry.get("float32_error") or 0.0)
    spread = float(entry.get("float32_peak", before * np.sqrt(exact.size)))
    return {**entry, "float32_error": max(before, error), "float32_peak": max(spread, peak)}


@dataclass(frozen=True)
class _Found:
    """The tensors of one run, those of the run without variants, and the configuration that the variants lead to."""

    names: Names
    tensors: Tensors
    plain: Tensors
    config: HaltingVTConfig | None

    def unchanged(self, name: str) -> bool:
        """Whether the variants left a tensor, and the rows of it that count, bit for bit as they were."""
        if name not in self.plain:
            return False
        (value, rows), (before, rows_before) = self.tensors[name], self.plain[name]
        same_rows = rows is rows_before or np.array_equal(rows, rows_before)  # type: ignore[arg-type]
        return same_rows and value.shape == before.shape and bool(np.array_equal(value, before))


def _truth_with(truth: Truth, tensors: Tensors, config: HaltingVTConfig | None) -> Truth:
    """The truth with other values, and with the rows and layouts that go with them."""
    changed = dict(truth.tensors)
    for name, (value, rows) in tensors.items():
        if name not in changed:
            continue
        tensor = changed[name]
        entry = _entry(truth, tensor, value)
        layout, patches = tensor.layout, tensor.patches
        if config is not None and layout != "parameter":
            layout, patches = layout_of(name.removeprefix("d(").removesuffix(")"), config)
        changed[name] = replace(tensor, value=value, rows=rows, entry=entry, layout=layout, patches=patches)
    return replace(truth, tensors=changed, config=truth.config if config is None else config)


def _entry(truth: Truth, tensor: TruthTensor, value: Array) -> Mapping[str, Any]:
    """The manifest's entry; where the truth is zero and the variant is not, that of the least exact tensor."""
    if not tensor.entry.get("absolute") or not np.any(value):
        return tensor.entry
    others = [t.entry for t in truth.tensors.values() if t.entry.get("float32_error") and not t.entry.get("absolute")]
    return max(others, key=lambda entry: float(entry["float32_error"]), default=tensor.entry)
