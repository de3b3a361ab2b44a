"""Which known variant, or which pair of them, explains what a candidate returned."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from refvt.array import Array
from refvt.conformance.cases import ModelCase, Truth, TruthTensor, layout_of
from refvt.conformance.variants.recipe import Recipe, Stop, call_operation, recipe_of, run_model
from refvt.conformance.variants.table import VARIANTS
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["Evidence", "Finder", "Judge", "compute", "compute_operation", "find"]

Judge = Callable[[TruthTensor, Array], bool]
"""Whether what a candidate returned under the tensor's name agrees with the tensor, within its budget."""

Names = tuple[str, ...]  # of one variant, or of a pair


# ---- the tensors of a variant


def compute(
    case: ModelCase, names: Sequence[str] = (), decisions: Decisions | None = None, only: Sequence[str] | None = None
) -> dict[str, Array] | None:
    """All tensors of the case in float64 under these variants (``VARIANTS``), with the names of ``cases.Truth``.

    Forward and backward, outputs, losses and the gradients of the parameters, in the order of computation. decisions:
    imposed; None: the variant decides. only: the names that are wanted. None if one of the variants is the case itself
    or means nothing there. ValueError for a name that is not in ``VARIANTS``. A variant that changes the order of
    tokens gives its tensors in that order.
    """
    recipe = recipe_of(case)
    if not _apply(recipe, names):
        return None
    found: dict[str, Array] = {}

    def visit(name: str, value: Array, rows: Array | None) -> None:
        if only is None or name in only:
            found[name] = value

    run_model(recipe, visit, decisions)
    return found


def compute_operation(
    operation: str,
    names: Sequence[str],
    arguments: Mapping[str, Array],
    settings: Mapping[str, object],
    cotangents: Mapping[str, Array],
) -> dict[str, Array] | None:
    """Results and gradients ``d(argument)`` of one operation under these variants; None as in ``compute``."""
    recipe = Recipe(config=HaltingVTConfig(), settings=dict(settings))
    return call_operation(recipe, operation, arguments, cotangents) if _apply(recipe, names) else None


def _apply(recipe: Recipe, names: Sequence[str]) -> bool:
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"names: expected names of refvt.conformance.variants.VARIANTS, got {name!r}")
    return all(VARIANTS[name].change(recipe) for name in names)


# ---- one case


@dataclass(frozen=True)
class Evidence:
    """What a candidate returned in one case, and how it is judged.

    truth: of the case. given: what the candidate returned, by name. judge: see ``Judge``. case: what a candidate that
    computes the whole model was given; for an operation, arguments and cotangents by name instead.
    """

    truth: Truth
    given: Mapping[str, Array]
    judge: Judge
    case: ModelCase | None = None
    arguments: Mapping[str, Array] = field(default_factory=dict)
    cotangents: Mapping[str, Array] = field(default_factory=dict)

    def explained_by(self, names: Names) -> _Trial:
        """How far these variants explain what was given."""
        if self.case is None:
            return self._trial_of_operation(names)
        trial = self._trial_of_model(names, self.case.decisions if self.case.force_decisions else None)
        if self.case.force_decisions and not trial.fits:  # the candidate may have decided all the same
            free = self._trial_of_model(names, None)
            return free if free.agreed >= trial.agreed else trial
        return trial

    def differs_from_truth(self, names: Names) -> bool:
        """Whether a candidate with these variants would have shown it in what was given here."""
        return _Trial(self, stop=False).run(names, None).distinct

    def _trial_of_model(self, names: Names, decisions: Decisions | None) -> _Trial:
        return _Trial(self).run(names, decisions)

    def _trial_of_operation(self, names: Names) -> _Trial:
        return _Trial(self).run(names, None)


class _Trial:
    """One run under some variants, compared with what was given, until the first tensor that does not agree.

    agreed: how many given tensors agree before that. changed: the number of given tensors before the first that the
    variants change, None if they change none of those seen. fits: all that was given agrees, and somewhere the truth
    does not.
    """

    def __init__(self, evidence: Evidence, stop: bool = True) -> None:
        self.evidence, self.stop = evidence, stop
        self.agreed, self.seen = 0, 0
        self.changed: int | None = None
        self.failed = False
        self.distinct = False  # a tensor that was given differs between truth and variants
        self.explains = False  # and there the candidate follows the variants
        self.applies = True

    @property
    def fits(self) -> bool:
        """Whether these variants explain everything."""
        return self.applies and not self.failed and self.explains

    def run(self, names: Names, decisions: Decisions | None) -> _Trial:
        evidence, case = self.evidence, self.evidence.case
        if case is None:
            assert evidence.truth.operation is not None
            settings = evidence.truth.settings
            tensors = compute_operation(
                evidence.truth.operation, names, evidence.arguments, settings, evidence.cotangents
            )
            self.applies = tensors is not None
            for name, value in (tensors or {}).items():
                if not self.failed or not self.stop:
                    self._see(name, value, None, None)
            return self
        recipe = recipe_of(case)
        self.applies = _apply(recipe, names)
        if not self.applies:
            return self

        def visit(name: str, value: Array, rows: Array | None) -> None:
            self._see(name, value, rows, recipe.config)
            if self.failed and self.stop:
                raise Stop

        backward = any(name.startswith("d(") for name in evidence.given)
        try:
            with np.errstate(all="ignore"):
                run_model(recipe, visit, decisions, backward)
        except Stop:
            pass
        return self

    def _see(self, name: str, value: Array, rows: Array | None, config: HaltingVTConfig | None) -> None:
        evidence = self.evidence
        if name not in evidence.given or name not in evidence.truth:
            return
        truth = evidence.truth[name]
        tensor = replace(truth, value=value, rows=rows)
        if config is not None and truth.layout != "parameter":
            layout, patches = layout_of(name.removeprefix("d(").removesuffix(")"), config)
            tensor = replace(tensor, layout=layout, patches=patches)
        agrees = evidence.judge(tensor, evidence.given[name])
        if not evidence.judge(truth, value):
            self.distinct = True
            self.changed = self.seen if self.changed is None else self.changed
            self.explains |= agrees and not evidence.judge(truth, evidence.given[name])
        self.seen += 1
        self.failed |= not agrees
        self.agreed += not self.failed


def find(evidence: Evidence, known: Sequence[Names] = (), seconds: float = 5.0) -> list[Names]:
    """The single variants that agree with all that was given, where the truth does not; if there are none, the pairs.

    known: what explained other cases, tried first. Pairs are tried for ``seconds`` at most, and only those that can
    explain the first tensor that differs: one of them gives it as it is, or both change it.
    """
    singles = {name: evidence.explained_by((name,)) for name in VARIANTS}
    fitting: list[Names] = [(name,) for name, trial in singles.items() if trial.fits]
    if fitting:
        return fitting
    again = [names for names in known if len(names) > 1 and evidence.explained_by(names).fits]
    if again:
        return again
    first = _first_difference(evidence)
    reached = [n for n, trial in singles.items() if trial.applies and trial.agreed > first]
    changing = [n for n, trial in singles.items() if trial.applies and trial.changed == first and n not in reached]
    pairs = [(a, b) for a in reached for b in VARIANTS if b not in reached] + [
        *combinations(reached, 2),
        *combinations(changing, 2),
    ]
    end = time.monotonic() + seconds
    for a, b in pairs:
        if time.monotonic() > end:
            break
        if VARIANTS[a].part == VARIANTS[b].part or not singles[b].applies:
            continue
        if evidence.explained_by((a, b)).fits:
            fitting.append((a, b))
    return fitting


def _first_difference(evidence: Evidence) -> int:
    """How many given tensors agree with the truth before the first that does not."""
    return _Trial(evidence).run((), None).agreed


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

    def look(self, evidence: Evidence) -> str | None:
        """What is known after this case: the answer for it."""
        known = list(dict.fromkeys(names for fits in self._fits.values() for names in fits))
        begun = time.monotonic()
        self._fits[evidence.truth.name] = find(evidence, known, min(5.0, max(self._left, 0.0)))
        self._left -= time.monotonic() - begun
        return _text(self._fits[evidence.truth.name])

    def agreed(self, evidence: Evidence) -> None:
        """A case in which all that was given agrees with the truth."""
        self._agreeing.append(evidence)

    def answers(self) -> dict[str, str | None]:
        """The text for every case that differs, by its name."""
        counts: dict[Names, int] = {}
        for fits in self._fits.values():
            for names in fits:
                counts[names] = counts.get(names, 0) + 1
        refuted = {names for names in counts if any(_would_show(names, case) for case in self._agreeing)}
        found: dict[str, str | None] = {}
        for case, fits in self._fits.items():
            likely = [names for names in fits if names not in refuted]
            most = max((counts[names] for names in likely), default=0)
            found[case] = _text([names for names in likely if counts[names] == most])
        return found


def _would_show(names: Names, evidence: Evidence) -> bool:
    return evidence.differs_from_truth(names)


def _text(fits: Sequence[Names]) -> str | None:
    """One name, "X and Y" for a pair, or the alternatives."""
    if not fits:
        return None
    texts = [" and ".join(names) for names in fits]
    return texts[0] if len(texts) == 1 else f"{' or '.join(texts)}; this case cannot tell them apart"
