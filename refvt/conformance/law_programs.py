"""Inputs that break a law, made simpler and written as a Python program."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.backends import BACKENDS
from refvt.ops.laws import Law, LawBroken

__all__ = ["program", "simplify"]

Inputs = dict[str, Any]


def simplify(inputs: Inputs, breaks: Callable[[Inputs], bool], until: float) -> Inputs:
    """Inputs with simpler numbers that still break the law: whole numbers, or few digits.

    breaks: whether inputs still break it. until: a time of ``time.monotonic`` after which nothing more is tried.
    """
    for name in list(inputs):
        for simpler in _simpler(inputs[name]):
            if time.monotonic() > until:
                return inputs
            changed = {**inputs, name: simpler}
            if breaks(changed):
                inputs = changed
                break
    return inputs


def _simpler(value: Any) -> Iterator[Array]:
    """An array that stands alone, and one with fewer digits: the simplest first."""
    if not isinstance(value, np.ndarray):
        return
    if value.dtype.kind == "f" and value.size:
        yield np.zeros_like(value)
        yield np.ones_like(value)
        for digits in range(4):
            yield np.round(value, digits) + 0.0  # no −0
    if value.base is not None and not value.flags.c_contiguous:
        yield np.ascontiguousarray(value)


def program(candidate: str, operation: str, law: Law, inputs: Inputs, error: Exception) -> str:
    """A Python program that asks the law of the candidate with these inputs, and fails as it did.

    candidate: its name, as ``refvt check`` takes it. If it is no such name, the program has a line to fill in.
    """
    what = "does not hold" if isinstance(error, LawBroken) else "cannot be computed"
    seen = str(error) if isinstance(error, LawBroken) else f"{type(error).__name__}: {error}"
    statement = (inspect.getdoc(law) or law.__name__).split("\n\n")[0].replace("\n", " ")
    lines = [
        f"# A law of {operation}, {law.__name__}, {what} for {_comment(candidate)}.",
        f"# The law: {statement}",
        f"# What was seen: {_comment(seen)}",
        "import numpy as np",
        "from numpy import inf, nan",
        "",
        "from refvt.conformance.law_runs import check_law",
        "",
    ]
    if ":" in candidate or candidate in BACKENDS:
        lines.append(f"candidate = {candidate!r}")
    else:
        lines.append(f"candidate = ...  # put the candidate here: {_comment(candidate)}")
    shared, texts = _texts(inputs)
    lines += [*shared, "inputs = {", *(f"    {name!r}: {text}," for name, text in texts.items()), "}"]
    lines.append(f"check_law(candidate, {operation!r}, {law.__name__!r}, inputs)")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    """Text for a comment: one line."""
    return " ".join(text.split())[:400]


def _texts(inputs: Inputs) -> tuple[list[str], dict[str, str]]:
    """Lines that make shared arrays, and an expression for every input. Views of columns stay views."""
    shared: list[str] = []
    texts: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, value in inputs.items():
        if not isinstance(value, np.ndarray):
            texts[name] = repr(value.item() if isinstance(value, np.generic) else value)
            continue
        base = value.base
        if isinstance(base, np.ndarray) and base.ndim == value.ndim == 2 and not value.flags.c_contiguous:
            if id(base) not in names:
                names[id(base)] = f"shared{len(names)}"
                shared.append(f"{names[id(base)]} = {_array(base, len(names[id(base)]) + 3)}")
            address = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            first = (address % base.strides[0]) // value.itemsize
            texts[name] = f"{names[id(base)]}[:, {first} : {first + value.shape[1]}]"
        else:
            texts[name] = _array(value, len(repr(name)) + 6)
    return shared, texts


def _array(value: Array, indent: int) -> str:
    """An expression for an array, every element in full; indent: the column that it starts in."""
    if value.size == 0:
        return f"np.zeros({value.shape}, dtype={str(value.dtype)!r})"
    with np.printoptions(threshold=sys.maxsize, floatmode="unique", linewidth=100, suppress=False):
        text = np.array2string(value, separator=", ", prefix=" " * (indent + 9)).replace("\n\n", "\n")
    if value.ndim == 0:
        text = repr(value.item())
    return f"np.array({text}, dtype={str(value.dtype)!r})"
