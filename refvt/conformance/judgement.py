"""The judgement of one tensor: does it agree with the truth, and if not, what is wrong with it.

A float tensor agrees if its L2 error and the error of every element are within their budgets (``budgets``); integers
and booleans must be equal. Only rows that count are compared: a token that has halted has no row in a later block. The
error is relative to the norm of the whole truth.

What is named in a tensor's note: a wrong shape or dtype, NaN, infinite values, values that were never written.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.conformance.budgets import Budget, budget_of
from refvt.conformance.cases import Truth
from refvt.conformance.layouts import LayoutError, rearrange
from refvt.conformance.report import TensorReport

__all__ = ["POISON", "arrange", "judge", "judge_early", "layers_outside"]

POISON = 0xFE
"""Every byte of memory that a candidate's process was given and did not write (see ``isolation``)."""

BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def judge(truth: Truth, name: str, value: Any, dtype: str, rows: Array | None = None) -> TensorReport:
    """Compare one tensor of a candidate with the truth of its name.

    value: a NumPy array. rows: leading rows (bool) that are compared in addition to what the truth's own rows say. No
    exception is raised for a value that cannot be compared: it differs, and the note says why.
    """
    tensor = truth[name]
    report = TensorReport(name, tensor.direction, "agrees")
    value = np.asarray(value)
    if value.dtype.kind not in "biuf":
        return _differs(report, f"expected numbers, got {value.dtype}")
    value, mask, note = arrange(truth, name, value)
    if value is None:
        return _differs(report, note)
    keep = [m for m in (mask, tensor.rows, rows) if m is not None]
    if keep and tensor.value.ndim:
        chosen = np.logical_and.reduce([np.broadcast_to(_as_rows(m, tensor.value), tensor.value.shape) for m in keep])
    else:
        chosen = np.ones(tensor.value.shape, bool)
    if tensor.value.dtype.kind in "biu":
        found = _judge_integers(report, tensor.value, value, chosen)
        outside = layers_outside(truth, name, value) if found.status == "differs" else ""
        return replace(found, note="; ".join(filter(None, (outside, found.note))))
    if value.dtype.kind in "biu":
        return _differs(report, f"expected floats, got {value.dtype}")
    budget = budget_of(tensor.entry, dtype, tensor.value.size)
    found = _judge_floats(report, tensor.value, value, chosen, budget)
    return replace(found, note="; ".join(filter(None, (found.note, _precision(value, dtype, found)))))


def arrange(truth: Truth, name: str, value: Array) -> tuple[Array | None, Array | None, str]:
    """A candidate's array in the layout of the truth, which of its rows count, and, if it does not fit, why not."""
    expected = truth[name].value
    if expected.size == 1 and value.size == 1:
        return value.reshape(expected.shape), None, ""
    try:
        arranged, rows = rearrange(name, value, truth)
    except LayoutError:
        return None, None, f"shape {list(value.shape)}, expected {list(expected.shape)}"
    return arranged, rows, ""


def _as_rows(mask: Array, value: Array) -> Array:
    """A mask of leading rows, or of all elements, so that it broadcasts with the value."""
    return mask if mask.ndim == value.ndim else mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))


def judge_early(truth: Truth, name: str, value: Any, dtype: str) -> TensorReport:
    """As ``judge``; what a model gives whose clips leave once CLS has halted is right too."""
    report, early, value = judge(truth, name, value, dtype), _left_early(truth, name), np.asarray(value)
    if report.status != "differs" or early is None or early.shape != value.shape:
        return report
    if early.dtype.kind != "f":
        return judge(truth, name, truth[name].value, dtype) if (early == value).all() else report
    unknown = np.isnan(early)
    if value.dtype.kind != "f" or (np.isnan(value) != unknown).any():
        return report
    return judge(truth, name, np.where(unknown, truth[name].value, value), dtype)


def _left_early(truth: Truth, name: str) -> Array | None:
    """Another right answer of a model whose clips leave once CLS has halted; None if this tensor has none.

    The ponder of tokens still alive then is NaN and their halting layer 0, and nobody is alive later.
    """
    if name not in ("ponder", "decisions.halting_layer", "alive", "tokens_per_layer") or truth.kind != "model":
        return None
    layers = truth["decisions.halting_layer"].value
    cls = layers[:, :1]
    later = np.arange(truth["alive"].value.shape[1]) >= cls  # [B, L]: CLS has halted before layer l + 1
    value = truth[name].value
    if name == "ponder":
        return np.where(layers > cls, np.nan, value)
    if name == "decisions.halting_layer":
        return np.where(layers > cls, 0, value)
    return np.where(later[:, :, None] if name == "alive" else later, 0, value)


# ---- integers


def layers_outside(truth: Truth, name: str, value: Array) -> str:
    """A sentence if halting layers of a candidate are not among 1 … L; else an empty text.

    value: in the layout of the truth. A model's layer may be 0 where the clip has left before (``_left_early``).
    """
    if not name.endswith("halting_layer") or truth.kind == "training":
        return ""
    L = len(truth["d(states)"].value) if truth.config is None else truth.config.joint_depth
    early = _left_early(truth, name)
    may_be_0 = False if early is None else early == 0
    outside = value[((value < 1) & ~(may_be_0 & (value == 0))) | (value > L)]
    if not outside.size:
        return ""
    label, got = name.rpartition(".")[2], outside[0]
    expected = "layers are counted from 1" if got < 1 else f"the last layer is {L}"
    return f"{label}: {expected}, got {got:g}"


def _judge_integers(report: TensorReport, truth: Array, value: Array, chosen: Array) -> TensorReport:
    if value.dtype.kind == "f" and not (np.isfinite(value).all() and (value == np.round(value)).all()):
        return _differs(report, f"expected integers, got {value.dtype} with fractions")
    wrong = (value != truth) & chosen
    count = int(wrong.sum())
    report = replace(report, error=float(count), allowed=0.0)
    if not count:
        return report
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return replace(
        report,
        status="differs",
        share=math.inf,
        index=index,
        got=float(value[index]),
        expected=float(truth[index]),
        note=f"{count} of {int(chosen.sum())} differ",
    )


# ---- floats


def _judge_floats(report: TensorReport, truth: Array, value: Array, chosen: Array, budget: Budget) -> TensorReport:
    with np.errstate(all="ignore"):
        difference = np.where(chosen, value.astype(np.float64) - truth, 0.0)
    norm = float(np.linalg.norm(truth))
    scale = 1.0 if budget.absolute or norm == 0 else norm
    rms = 1.0 if budget.absolute or norm == 0 else norm / math.sqrt(truth.size)
    bad = ~np.isfinite(difference)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        report = replace(report, error=math.inf, share=math.inf, note=_unusable(value, bad, chosen))
    else:
        allowed = budget.element * rms + budget.element_floor * np.abs(truth)
        shares = np.abs(difference) / allowed if truth.size else np.zeros(truth.shape)
        index = tuple(int(i) for i in np.unravel_index(int(shares.argmax()), truth.shape)) if truth.size else ()
        error = float(np.linalg.norm(difference)) / scale
        share = max(error / budget.tensor, float(shares.max(initial=0.0)))
        report = replace(report, error=error, share=share)
    if truth.size:
        report = replace(report, index=index, got=float(value[index]), expected=float(truth[index]))
    report = replace(report, allowed=budget.tensor)
    if report.share <= 1:
        hides = "rounding in this dtype can hide everything here" if budget.tensor >= 1 and not budget.absolute else ""
        return replace(report, note=hides)
    wild = _unwritten(value) & chosen
    note = f"{int(wild.sum())} values were never written" if wild.any() else report.note
    return replace(report, status="differs", note=note)


def _unusable(value: Array, bad: Array, chosen: Array) -> str:
    """What is not finite, in words."""
    kinds = (("NaN", np.isnan(value) & bad), ("infinite", np.isinf(value) & bad))
    counts = [f"{int(where.sum())} of {int(chosen.sum())} values are {word}" for word, where in kinds if where.any()]
    return ", ".join(counts) or "values beyond the range of float64"


def _unwritten(value: Array) -> Array:
    """Where every byte of an element is the poison."""
    raw = np.ascontiguousarray(value).view(np.uint8).reshape(*value.shape, value.dtype.itemsize)
    return np.asarray((raw == POISON).all(axis=-1))


def _precision(value: Array, dtype: str, report: TensorReport) -> str:
    """A remark if the values have fewer bits than the dtype that was asked for, and differ."""
    asked = BITS[dtype]
    got = BITS.get(str(value.dtype), 0)
    if report.status == "differs" and got and got < asked:
        return f"{value.dtype} where {dtype} was asked for"
    return ""


def _differs(report: TensorReport, note: str) -> TensorReport:
    return replace(report, status="differs", error=math.inf, share=math.inf, note=note)
