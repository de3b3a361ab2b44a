"""Which known variant, or which pair of them, explains what a candidate returned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.conformance.cases import ModelCase, OperationCase, Truth, TruthTensor, layout_of
from refvt.conformance.judgement import judge, left_early
from refvt.conformance.variants.recipe import Recipe, Tensors, call_operation, recipe_of, run_model
from refvt.conformance.variants.table import VARIANTS
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["Evidence", "Finder", "Judge", "Names", "compute", "evidence_of", "find"]

Judge = Callable[[Truth, str, Array], bool]
"""judge(truth, name, value): whether a value agrees with the truth's tensor of that name, within its budget."""

Names = tuple[str, ...]
"""The name of one variant, or of two that hold together."""


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


def _recipe(case: ModelCase | OperationCase, names: Sequence[str]) -> Recipe | None:
    """The case under these variants; None if one of them is the case itself or means nothing there."""
    if isinstance(case, OperationCase):
        recipe = Recipe(config=HaltingVTConfig(), settings=dict(case.settings))
    else:
        recipe = recipe_of(case)
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
    case: ModelCase | OperationCase, recipe: Recipe, decisions: Decisions | None, go_on: Callable[[Tensors], bool]
) -> Tensors:
    """The tensors of a recipe; go_on as in ``run_model``."""
    if isinstance(case, ModelCase):
        return run_model(recipe, decisions, go_on)
    results = call_operation(recipe, case.operation, case.arguments, case.cotangents)
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
        if judge(truth, name, value, dtype).status == "agrees":
            return True
        early = left_early(truth, name)
        if early is None or early.shape != value.shape:
            return False
        if early.dtype.kind != "f":
            return bool((early == value).all())
        unknown = np.isnan(early)
        if value.dtype.kind != "f" or (np.isnan(value) != unknown).any():
            return False
        return judge(truth, name, np.where(unknown, truth[name].value, value), dtype).status == "agrees"

    return Evidence(case, truth, given, agrees)


@dataclass
class _Trial:
    """How far some variants explain what was given.

    applies: they mean something in this case. agreed: how many given tensors agree before the first that does not.
    changed: the number of given tensors before the first that the variants change; None if none was seen. explains:
    somewhere the truth does not agree and the variants do. failed: some tensor does not agree.
    """

    applies: bool = True
    seen: int = 0
    agreed: int = 0
    changed: int | None = None
    explains: bool = False
    failed: bool = False

    @property
    def fits(self) -> bool:
        """Whether these variants explain everything that was given."""
        return self.applies and self.explains and not self.failed


class _Runs:
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

    def trial(self, names: Names) -> _Trial:
        """Compare with these variants. The candidate may have followed imposed decisions, or decided by itself."""
        case = self.evidence.case
        if not isinstance(case, ModelCase) or not case.force_decisions:
            return self._run(names, None)
        imposed = self._run(names, case.decisions)
        if imposed.fits or not imposed.applies:
            return imposed
        free = self._run(names, None)
        return free if free.fits or free.agreed > imposed.agreed else imposed

    def _run(self, names: Names, decisions: Decisions | None) -> _Trial:
        trial = _Trial()
        wants_gradients = any(name.startswith("d(") for name in self.evidence.given)
        plain = self._without_variants(decisions)
        compared: list[str] = []

        def after_forward(forward: Tensors) -> bool:
            compared.extend(forward)
            self._compare(trial, _Found(forward, plain, config), compared)
            return wants_gradients and not trial.failed

        recipe = _recipe(self.evidence.case, names)
        if recipe is None:
            return _Trial(applies=False)
        config = recipe.config if isinstance(self.evidence.case, ModelCase) else None
        try:
            with np.errstate(all="ignore"):
                tensors = _tensors(self.evidence.case, recipe, decisions, after_forward)
        except Exception:  # two variants that do not go together end this trial, not the check
            return _Trial(applies=False)
        rest = [name for name in tensors if name not in set(compared)]
        self._compare(trial, _Found(tensors, plain, config), rest)
        return trial

    def _without_variants(self, decisions: Decisions | None) -> Tensors:
        imposed = decisions is not None
        if imposed not in self._plain:
            recipe = _recipe(self.evidence.case, ())
            assert recipe is not None
            self._plain[imposed] = _tensors(self.evidence.case, recipe, decisions, lambda forward: True)
        return self._plain[imposed]

    def _compare(self, trial: _Trial, found: _Found, names: Sequence[str]) -> None:
        """Carry the trial on over the tensors of these names, to the first that does not agree."""
        evidence, variant = self.evidence, None
        for name in names:
            if name not in evidence.given or name not in evidence.truth or trial.failed:
                continue
            agrees = self.truth_agrees(name)
            if not found.unchanged(name):
                variant = variant or _truth_with(evidence.truth, found.tensors, found.config)
                follows = evidence.judge(variant, name, evidence.given[name])
                if not evidence.judge(evidence.truth, name, found.tensors[name][0]):  # the variants change this tensor
                    trial.changed = trial.seen if trial.changed is None else trial.changed
                    trial.explains |= follows and not agrees
                agrees = follows
            trial.seen += 1
            trial.failed |= not agrees
            trial.agreed += not trial.failed


@dataclass(frozen=True)
class _Found:
    """The tensors of one run, those of the run without variants, and the configuration that the variants lead to."""

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


# ---- singles and pairs


def find(evidence: Evidence, known: Sequence[Names] = (), seconds: float = 5.0) -> list[Names]:
    """The single variants that agree with all that was given, where the truth does not; if there are none, the pairs.

    known: what explained other cases, tried first. Pairs are tried for ``seconds`` at most, and only those that can
    explain the first tensor that differs: one of them gives it as it is, or both change it.
    """
    runs = _Runs(evidence)
    singles = {name: runs.trial((name,)) for name in VARIANTS}
    fitting: list[Names] = [(name,) for name, trial in singles.items() if trial.fits]
    if fitting:
        return fitting
    again = [names for names in known if len(names) > 1 and runs.trial(names).fits]
    if again:
        return again
    end = time.monotonic() + seconds
    for pair in _pairs(singles, runs.trial(()).agreed):
        if time.monotonic() > end:
            break
        if runs.trial(pair).fits:
            fitting.append(pair)
    return fitting


def _pairs(singles: Mapping[str, _Trial], first: int) -> list[Names]:
    """The pairs that can explain the first tensor that differs: one of the two gives it, or both change it there.

    first: how many given tensors agree with the truth before that one.
    """
    applying = [name for name, trial in singles.items() if trial.applies]
    reaching = [name for name in applying if singles[name].agreed > first]
    changing = [name for name in applying if singles[name].changed == first and name not in reaching]
    pairs = [(a, b) for a in reaching for b in applying if b not in reaching]
    pairs += [*combinations(reaching, 2), *combinations(changing, 2)]
    order = list(VARIANTS)
    ordered = [(a, b) if order.index(a) < order.index(b) else (b, a) for a, b in pairs]
    return [(a, b) for a, b in ordered if VARIANTS[a].part != VARIANTS[b].part]


# ---- all cases of a candidate


class Finder:
    """Looks for the variant that a candidate is, over all of its cases.

    ``look(evidence)`` after every case that differs, ``agreed(evidence)`` after every case that agrees (optional: it
    refutes variants that would have shown there), then ``answers()``: for each case that differs, the text that names
    the variant, or None. Time for pairs is limited: ``seconds`` in all.
    """

    def __init__(self, seconds: float = 20.0) -> None:
        self._left = seconds
        self._fits: dict[str, list[Names]] = {}
        self._agreeing: list[Evidence] = []
        self._kind: dict[str, str] = {}

    def look(self, evidence: Evidence) -> str | None:
        """What is known after this case: the answer for it."""
        known = list(dict.fromkeys(names for fits in self._fits.values() for names in fits))
        self._kind[evidence.truth.name] = _kind(evidence)
        begun = time.monotonic()
        self._fits[evidence.truth.name] = find(evidence, known, min(5.0, max(self._left, 0.0)))
        self._left -= time.monotonic() - begun
        return _text(self._fits[evidence.truth.name])

    def agreed(self, evidence: Evidence) -> None:
        """A case in which all that was given agrees with the truth. Of each kind the first eight are kept."""
        kind = _kind(evidence)
        if sum(_kind(other) == kind for other in self._agreeing) < 8:
            self._agreeing.append(evidence)

    def answers(self) -> dict[str, str | None]:
        """The text for every case that differs, by its name."""
        counts: dict[Names, int] = {}
        for fits in self._fits.values():
            for names in fits:
                counts[names] = counts.get(names, 0) + 1
        refuted = {names for names in counts if self._is_refuted(names)}
        found: dict[str, str | None] = {}
        for case, fits in self._fits.items():
            likely = [names for names in fits if names not in refuted]
            most = max((counts[names] for names in likely), default=0)
            found[case] = _text([names for names in likely if counts[names] == most])
        return found

    def _is_refuted(self, names: Names) -> bool:
        """Whether a case of the kind that these explain agrees with the truth where it would not with them."""
        kinds = {self._kind[case] for case, fits in self._fits.items() if names in fits}
        agreeing = [evidence for evidence in self._agreeing if _kind(evidence) in kinds]
        return any(trial.applies and trial.failed for trial in (_Runs(e).trial(names) for e in agreeing))


def _kind(evidence: Evidence) -> str:
    """The operation, or "model": a candidate's operations need not be those of its model."""
    return evidence.truth.operation or "model"


def _text(fits: Sequence[Names]) -> str | None:
    """One name, "X and Y" for a pair, or the alternatives."""
    if not fits:
        return None
    texts = [" and ".join(names) for names in fits]
    return texts[0] if len(texts) == 1 else f"{' or '.join(texts)}; this case cannot tell them apart"
