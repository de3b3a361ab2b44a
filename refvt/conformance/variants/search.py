"""Which known variant, or which pair of them, explains what a candidate returned."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from itertools import combinations

from refvt.conformance.variants.table import VARIANTS
from refvt.conformance.variants.trials import Evidence, Names, Runs, Trial

__all__ = ["Finder", "find", "meaning"]


# ---- singles and pairs


def find(evidence: Evidence, known: Sequence[Names] = (), seconds: float = 5.0) -> list[Names]:
    """The single variants that agree with all that was given, where the truth does not; if there are none, the pairs.

    known: what explained other cases; a single variant of them that explains this one too ends the search. Pairs are
    tried for ``seconds`` at most, and only those that can explain the first tensor that differs: one of them gives it
    as it is, or both change it.
    """
    runs = Runs(evidence)
    again: list[Names] = [names for names in known if len(names) == 1 and runs.trial(names).fits]
    if again:
        return again
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


def _pairs(singles: Mapping[str, Trial], first: int) -> list[Names]:
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


PATIENCE = 6
"""A variant explains every case that it makes differ: if no variant explains so many, the others need no search."""


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
        name, kind = evidence.truth.name, _kind(evidence)
        before = [fits for case, fits in self._fits.items() if self._kind[case] == kind]
        self._kind[name], self._fits[name] = kind, []
        if len(before) >= PATIENCE and not any(before):
            return None
        known = list(dict.fromkeys(names for fits in self._fits.values() for names in fits))
        begun = time.monotonic()
        self._fits[name] = find(evidence, known, min(5.0, max(self._left, 0.0)))
        self._left -= time.monotonic() - begun
        return _text(self._fits[name])

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
        return any(trial.applies and trial.failed for trial in (Runs(e).trial(names) for e in agreeing))


def _kind(evidence: Evidence) -> str:
    """The operation, or "model": a candidate's operations need not be those of its model."""
    return evidence.truth.operation or "model"


def _text(fits: Sequence[Names]) -> str | None:
    """One name, "X and Y" for a pair, or the alternatives."""
    if not fits:
        return None
    texts = [" and ".join(names) for names in fits]
    return texts[0] if len(texts) == 1 else f"{' or '.join(texts)}; this case cannot tell them apart"


def meaning(answer: str) -> dict[str, str]:
    """What the variants of an answer of ``Finder`` are: the sentence of each by its name."""
    names = re.split(" and | or ", answer.partition("; ")[0])
    return {name: VARIANTS[name].differs for name in names if name in VARIANTS}
