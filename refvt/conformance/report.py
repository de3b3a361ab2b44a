"""What ``check`` returns: a report, its cases, their tensors, and the first divergence of each case.

Everything here is plain data. ``Report.as_dict()`` gives it as JSON has it, with a number that JSON cannot write (NaN,
infinity) as text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np

__all__ = [
    "STATUSES",
    "CaseReport",
    "Divergence",
    "LawReport",
    "Report",
    "TensorReport",
    "count_text",
    "describe_case",
    "describe_law",
    "quoted",
    "share_text",
    "variant_lines",
]

STATUSES = ("agrees", "differs", "ambiguous", "not given", "error")
"""Every status of a case, of a tensor, and of a law."""


@dataclass(frozen=True)
class TensorReport:
    """One named tensor of one case: its error, the error that is allowed, and its worst element.

    status: "agrees", "differs", "ambiguous" (it differs, but only after a decision that rounding can change) or "not
    given". error: relative L2 error (absolute where the truth is zero), the number of wrong elements for integers.
    share: the largest share used of a budget, of the whole tensor or of one element; above 1 the tensor differs. index:
    the worst element, in the truth's layout; got and expected: its two values. note: what else is known ("the right
    tensor, transposed"; "3 values are NaN"), or an empty text.
    """

    name: str
    direction: str  # "forward" or "backward"
    status: str
    error: float = 0.0
    allowed: float = 0.0
    share: float = 0.0
    index: tuple[int, ...] | None = None
    got: float | None = None
    expected: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Divergence:
    """The first tensor that differs, in the order of computation: forward, then backward.

    last_agreeing: the tensor before it that was given and agrees, None if there is none. index, got, expected: the
    worst element and its two values. place: where that is ("clip 0, frame 1, patch row 2 column 3, channel 5"). error
    and allowed: of the whole tensor, relative L2; share: the largest share used of a budget. note: as in TensorReport.
    """

    tensor: str
    direction: str  # "forward" or "backward"
    last_agreeing: str | None
    index: tuple[int, ...] | None
    place: str
    got: float | None
    expected: float | None
    error: float
    allowed: float
    share: float
    note: str = ""


@dataclass
class CaseReport:
    """One golden case: its status, every tensor that was compared, and what was found about a difference.

    status: "agrees"; "differs"; "ambiguous" (all agrees but for decisions that rounding can change); "not given"
    (the candidate returned nothing of this case); "error" (it raised, hung, ended its process or returned what
    cannot be read). sentence: the reason, for the last two statuses, and what the other outputs say, for "differs".
    tensors: in the order of computation, those that were given. not_given: the names of the case's other tensors.
    total: the number of the case's tensors. hint: what to give next, for "differs". variant: the known variant that
    all given tensors agree with, or None. reproduce: a few lines of Python that show the first divergence again.
    neighbourhood: the values around the worst element, for a picture: two lists of rows, got and expected. warnings:
    what an adapter says about the candidate, such as a names map that contradicts the values. operation: its name, in
    a case of one operation.
    """

    name: str
    kind: str  # "model", "op" or "training"
    describes: str
    status: str = "not given"
    sentence: str = ""
    tensors: list[TensorReport] = field(default_factory=list)
    not_given: tuple[str, ...] = ()
    total: int = 0
    first: Divergence | None = None
    ambiguous: list[str] = field(default_factory=list)
    hint: str = ""
    variant: str | None = None
    reproduce: str = ""
    neighbourhood: tuple[list[list[float]], list[list[float]]] | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    operation: str | None = None

    @property
    def variant_means(self) -> dict[str, str]:
        """What each variant that ``variant`` names is, in a sentence."""
        from refvt.conformance.variants import meaning  # it knows the model, which plain data need not

        return {} if self.variant is None else meaning(self.variant)

    @property
    def compared(self) -> int:
        """How many of the case's tensors were compared; one that several runs gave ("compact: logits") counts once.

        A tensor whose budget is its whole norm, as happens in bfloat16, counts only if it differs.
        """
        told = (t for t in self.tensors if t.status == "differs" or (t.status == "agrees" and t.allowed < 1))
        return len({t.name.rpartition(": ")[2] for t in told})

    @property
    def holds(self) -> bool:
        """True if something was compared and nothing differs but decisions within rounding."""
        return self.status in ("agrees", "ambiguous") and self.compared > 0

    @property
    def worst(self) -> TensorReport | None:
        """The tensor that used the largest share of its budget, of those that were compared."""
        compared = [tensor for tensor in self.tensors if tensor.status in ("agrees", "differs")]
        return max(compared, key=lambda tensor: tensor.share, default=None)

    @property
    def share(self) -> float:
        """The largest share of a budget that a tensor of this case used."""
        return 0.0 if self.worst is None else self.worst.share


@dataclass(frozen=True)
class LawReport:
    """One law of one operation: "agrees", "differs", "not given" or "error"; the sentence says why.

    reproduce: a Python program with the smallest inputs that were found to break the law, for "differs" and "error".
    """

    operation: str
    law: str
    status: str
    sentence: str = ""
    reproduce: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """The whole check of a candidate. ``agrees`` is the answer; ``exit_code`` is what ``refvt check`` returns.

    contrast: what the models that differ have and those that agree have not, or an empty text.
    """

    candidate: str
    dtype: str
    cases: list[CaseReport] = field(default_factory=list)
    laws: list[LawReport] = field(default_factory=list)
    contrast: str = ""
    seconds: float = 0.0

    @property
    def compared(self) -> int:
        """How many tensors were compared, over all cases."""
        return sum(case.compared for case in self.cases)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all cases, each once."""
        return tuple(dict.fromkeys(text for case in self.cases for text in case.warnings))

    @property
    def agrees(self) -> bool:
        """True if something was compared, and no case and no law differs or ended in an error."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """0: all that was given agrees. 1: something differs or failed. 2: nothing could be compared."""
        if not self.compared and not any(law.status in ("agrees", "differs") for law in self.laws):
            return 2
        statuses = [case.status for case in self.cases] + [law.status for law in self.laws]
        return int("differs" in statuses or "error" in statuses)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        counts = {status: sum(case.status == status for case in self.cases) for status in STATUSES}
        listed = ", ".join(count_text(status, count) for status, count in counts.items() if count)
        cases = f"{len(self.cases)} case{'s' * (len(self.cases) != 1)}, {listed}" if listed else "no case"
        total = sum(case.total for case in self.cases if case.status != "not given")
        asked = [law.status for law in self.laws if law.status != "not given"]
        laws = f"; laws: {asked.count('agrees')} of {len(asked)} hold" if self.laws else ""
        verdict = ("agrees", "differs", "could not be checked")[self.exit_code]
        where = "in the cases that were given, " if counts["not given"] else ""
        tensors = f"{where}{self.compared} of {total} tensors were compared" if total else "nothing was compared"
        return f"{self.candidate} {verdict}: {cases}; {tensors}{laws}"

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        extra = {"agrees": self.agrees, "exit_code": self.exit_code, "compared": self.compared}
        plain: dict[str, Any] = _plain(self)
        for case, listed in zip(self.cases, plain["cases"], strict=True):
            listed |= {"compared": case.compared, "share": _plain(case.share), "variant_means": case.variant_means}
        return {**extra, "sentence": self.sentence, **plain}


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


# ---- as text


def describe_case(case: CaseReport) -> str:
    """A case in a few lines: what differs first, where, by how much, and how to see it again."""
    if case.first is None:
        return "\n".join(filter(None, (case.sentence or f"{case.name}: {case.status}", *case.ambiguous)))
    first = case.first
    lines = [f"{case.name}: {first.tensor} differs first ({first.direction})"]
    lines.append(f"last agreeing: {first.last_agreeing or 'none before it was given'}")
    lines += [first.note] if first.note else []
    if first.index is not None and first.got is not None and first.expected is not None:
        place = f", {first.place}" if first.place else ""
        lines.append(f"worst element {list(first.index)}{place}: got {first.got:.9g}, expected {first.expected:.9g}")
    lines.append(f"error {first.error:.3g}, allowed {first.allowed:.3g}, share of the budget {share_text(first.share)}")
    lines += [f"agrees with variant {variant_lines(case)[0]}", *variant_lines(case)[1:]] if case.variant else []
    warned = [f"warning: {text}" for text in case.warnings]
    lines += [text for text in (case.sentence, *case.ambiguous, case.hint, *warned) if text]
    return "\n".join([*lines, *(["reproduce:", case.reproduce] if case.reproduce else [])])


def variant_lines(case: CaseReport) -> list[str]:
    """The variants that a case agrees with, in quotes, and what each is; no line if there is none."""
    if case.variant is None:
        return []
    name, means = quoted(case.variant), case.variant_means
    if len(means) == 1:
        return [f"{name}: {text}" for text in means.values()]
    return [name, *(f"{quoted(one)}: {text}" for one, text in means.items())]


def quoted(variant: str) -> str:
    """The text of ``CaseReport.variant`` with each name in quotes."""
    names, semicolon, rest = variant.partition("; ")
    parts = re.split("( and | or )", names)
    return "".join(part if i % 2 else f'"{part}"' for i, part in enumerate(parts)) + semicolon + rest


def count_text(status: str, count: int) -> str:
    """A number of cases of one status in words: "1 agrees", "7 agree", "2 errors"."""
    plural = {"agrees": "agree", "differs": "differ", "error": "errors"}
    return f"{count} {status if count == 1 else plural.get(status, status)}"


def describe_law(law: LawReport) -> str:
    """A law in a few lines, with the program that breaks it."""
    said = f": {law.sentence}" if law.sentence else ""
    return "\n".join(filter(None, (f"{law.operation}, {law.law}: {law.status}{said}", law.reproduce)))


def share_text(share: float) -> str:
    """A share of a budget for people: <1 %, 12 %, 310 %, 12×, 10^6×, ∞."""
    if not math.isfinite(share):
        return "∞"
    if share < 10:
        return f"{100 * share:.0f} %" if share >= 0.01 or not share else "<1 %"
    return f"{share:.0f}×" if share < 1e5 else f"10^{math.floor(math.log10(share))}×"
