"""Which rearrangement of the right tensor an array is.

A candidate may give a named tensor as it is stored, with merged or split leading axes (``[B, N, D]``,
``[B, S, T, D]``), or with the rows of the living tokens alone: ``rearrange`` brings all of these into the stored
layout. Everything else is a difference, and ``explain`` says which: another order of tokens or axes, a constant factor,
no skip connection, another named tensor. It claims only what it has computed: the rearranged array agrees with the
truth within the budget, and the array as it was given does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from refvt.array import Array
from refvt.conformance.arrangements import Arrangement, Geometry, bare_name
from refvt.conformance.budgets import budget_of
from refvt.conformance.cases import Truth, TruthTensor

__all__ = ["NOT_GIVEN", "LayoutError", "explain", "geometry_of", "rearrange"]


_MARK = 0x7FF8_0000_5EF7_0001
NOT_GIVEN = float(np.array(_MARK, dtype=np.int64).view(np.float64))
"""A NaN of its own: rows of a float64 array that consist of it were not given by the candidate and do not count."""


class LayoutError(ValueError):
    """An array that is no layout of the named tensor; the message says what was expected and what came."""


def rearrange(name: str, value: Array, truth: Truth) -> tuple[Array, Array | None]:
    """(the array in the truth's layout, the rows that count [rows] bool; None: all).

    Rows that the candidate did not compute are filled with zero and do not count: those of halted tokens in a joint
    block, and in the last joint block every row but the class token's, where only that one was given. LayoutError if
    the shape is no layout of the tensor.
    """
    expected, value = truth[name], np.asarray(value)
    if value.shape == expected.value.shape:
        return value, _counted(name, value, expected, truth)
    if expected.layout in ("number", "parameter", "cls", "operation", "decision") or truth.config is None:
        if _without_ones(value.shape) == _without_ones(expected.value.shape):
            return value.reshape(expected.value.shape), expected.rows
    else:
        geometry = geometry_of(truth)
        for arrangement in geometry.arrangements(name):
            placed = _placed(arrangement, name, value, geometry) if arrangement.plain else None
            if placed is not None:
                full, there = placed
                full = full.reshape(expected.value.shape)
                counts = _counted(name, full, expected, truth)
                if not there.all():
                    counts = there if counts is None else counts & there
                return full, counts
    raise LayoutError(f"{name}: expected shape {list(expected.value.shape)}, got {list(value.shape)}")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _placed(
    arrangement: Arrangement, name: str, value: Array, geometry: Geometry, heads_first: bool = False
) -> tuple[Array, Array] | None:
    """(stored rows [rows, channels], which of them are there), or None if the shape does not fit."""
    rows = geometry.rows_of(name)
    assert rows is not None
    how = arrangement.apply_heads_first if heads_first else arrangement.apply
    given = how(value, rows, geometry.config.num_heads)
    if given is None:
        return None
    full = np.zeros((rows.count, rows.channels), dtype=value.dtype)
    there = np.zeros(rows.count, dtype=bool)
    full[arrangement.rows.ravel()] = given
    there[arrangement.rows.ravel()] = True
    return full, there


def _counted(name: str, value: Array, expected: TruthTensor, truth: Truth) -> Array | None:
    """The rows that count: not those that are marked as not given.

    In the last joint block patches do not count if none of their rows was computed (zero or NaN).
    """
    rows = None if truth.config is None or value.dtype.kind != "f" else geometry_of(truth).rows_of(name)
    counts = expected.rows
    if rows is None:
        return counts
    if value.dtype == np.float64:
        absent = (np.ascontiguousarray(value).view(np.int64) == _MARK).reshape(rows.count, -1).all(axis=1)
        if absent.any():
            counts = ~absent if counts is None else counts & ~absent
    if not rows.cls_alone or counts is None:
        return counts
    patches = value.reshape(*rows.axes, -1)[:, 1:]
    if not np.all((patches == 0) | np.isnan(patches)):
        return counts
    is_cls = np.zeros(rows.axes, dtype=bool)
    is_cls[:, 0] = True
    return counts & is_cls.ravel()


def geometry_of(truth: Truth) -> Geometry:
    """Where the rows of a model case's tensors stand. ValueError for the case of an operation."""
    if truth.config is None:
        raise ValueError(f"truth: expected that of a model case, got {truth.name}")
    return Geometry(truth.config, truth.batch, truth["decisions.halting_layer"].value)


# ---- what an array that differs is


def explain(name: str, value: Array, truth: Truth, dtype: str = "float32") -> str | None:
    """A short phrase that says what a wrong array is, or None if nothing is known.

    For example "the right tensor, transposed", "the right tensor, frame-major token order", "the right tensor scaled by
    1/√d", "the right tensor without its skip connection", "equals blocks.3.attn.q". dtype: that of the candidate, which
    sets the budget.
    """
    value = np.asarray(value)
    expected = truth[name]
    if value.dtype.kind not in "fiub" or value.size == 0 or expected.value.dtype.kind != "f":
        return None
    value = value.astype(np.float64)
    if not np.isfinite(value).any() or not np.any(expected.value):
        return None
    judge = _Judge(truth, dtype)
    try:
        stored, counts = rearrange(name, value, truth)
    except LayoutError:
        pass
    else:
        if judge.agrees(name, stored, counts):
            return None
    return next(_phrases(name, value, judge), None)


class _Judge:
    """Whether an array agrees with a named tensor of the truth, within its budget."""

    def __init__(self, truth: Truth, dtype: str) -> None:
        self.truth, self.dtype = truth, dtype

    def agrees(self, name: str, value: Array, there: Array | None = None) -> bool:
        """``value`` has the shape of the truth; ``there`` are the rows that were given."""
        tensor = self.truth[name]
        counts = tensor.rows
        if there is not None:
            counts = there if counts is None else counts & there
        expected = tensor.value
        if counts is not None:
            value = value.reshape(len(counts), -1)[counts]
            expected = expected.reshape(len(counts), -1)[counts]
        norm = float(np.linalg.norm(expected))
        with np.errstate(all="ignore"):
            error = float(np.linalg.norm(value - expected))
        return norm > 0 and error <= norm * budget_of(tensor.entry, self.dtype, tensor.value.size).tensor


def _phrases(name: str, value: Array, judge: _Judge) -> Iterator[str]:
    yield from (f"the right tensor, {phrase}" for phrase in _other_orders(name, value, judge))
    expected = judge.truth[name]
    if value.shape != expected.value.shape:
        try:
            value, _ = rearrange(name, value, judge.truth)
        except LayoutError:
            yield from _equal_tensors(name, value, judge)
            return
    yield from (f"the right tensor {phrase}" for phrase in _scales(name, value, judge))
    if _has_skip_connection(name, value, judge):
        yield "the right tensor without its skip connection"
    yield from _equal_tensors(name, value, judge)


# ---- order of tokens, axes, heads


def _other_orders(name: str, value: Array, judge: _Judge) -> Iterator[str]:
    truth, shape = judge.truth, judge.truth[name].value.shape
    if value.ndim >= 2 and value.size == truth[name].value.size:
        for axes in _permutations(value.ndim):
            turned = value.transpose(axes)
            if turned.shape == shape and judge.agrees(name, turned):
                yield "transposed" if value.ndim == 2 else f"its axes in the order {list(np.argsort(axes))}"
        if value.shape != shape and judge.agrees(name, value.reshape(shape)):
            yield f"in another shape: expected {list(shape)}, got {list(value.shape)}"
    if truth.config is None:
        return
    geometry = geometry_of(truth)
    for heads_first in (False, True):
        for arrangement in geometry.arrangements(name):
            if arrangement.plain and not heads_first:
                continue
            for flipped, given in (("", value), ("transposed, ", value.T)) if value.ndim == 2 else (("", value),):
                placed = _placed(arrangement, name, given, geometry, heads_first)
                if placed is not None and judge.agrees(name, placed[0].reshape(shape), placed[1]):
                    says = "heads before tokens" if heads_first else ""
                    yield flipped + ", ".join(part for part in (arrangement.says, says) if part)
    yield from _interleaved_heads(name, value, judge, geometry)


def _permutations(axes: int) -> list[tuple[int, ...]]:
    """The orders of 2 or 3 axes but the identity; of more, none."""
    return list(itertools.permutations(range(axes)))[1:] if axes in (2, 3) else []


def _interleaved_heads(name: str, value: Array, judge: _Judge, geometry: Geometry) -> Iterator[str]:
    """Channel c of head a stands at c·A + a instead of a·d + c."""
    rows, heads = geometry.rows_of(name), geometry.config.num_heads
    if rows is not None and rows.has_heads and heads > 1 and value.size == rows.count * rows.channels:
        turned = value.reshape(rows.count, rows.channels // heads, heads).swapaxes(1, 2)
        if judge.agrees(name, turned.reshape(judge.truth[name].value.shape)):
            yield "its heads interleaved"


# ---- a constant factor


def _scales(name: str, value: Array, judge: _Judge) -> Iterator[str]:
    """The constants of the model as factors; any other factor if the tensor is large enough to tell."""
    expected = judge.truth[name]
    truth = expected.value
    if not np.isfinite(value).all():
        return
    known: dict[float, list[str]] = {}
    for says, constant in _constants(judge.truth):
        known.setdefault(constant, []).append(says)
    for constant, names in known.items():
        if constant != 0 and judge.agrees(name, value / constant):
            more = f" (as is {', '.join(names[1:])})" if names[1:] else ""
            yield f"scaled by {names[0]}{more}" if constant != -1 else "with the opposite sign"
    given, wanted = (value, truth) if expected.rows is None else (value[expected.rows], truth[expected.rows])
    if given.size >= 4:
        factor = float(np.vdot(given, wanted)) / float(np.vdot(wanted, wanted))
        if abs(factor) > 1e-3 and judge.agrees(name, value / factor):
            yield f"scaled by {factor:.6g}"


def _constants(truth: Truth) -> list[tuple[str, float]]:
    """Factors that a mistake can bring in, with their names."""
    config = truth.config
    if config is None:
        heads = int(truth.settings.get("num_heads", 0))
        q = truth.tensors.get("d(q)")
        width = q.value.shape[-1] if q is not None else 0
        found = _head_constants(width // heads) if heads and width else []
        return [("−1", -1.0), ("2", 2.0), ("1/2", 0.5), *found]
    sizes = {
        "B": truth.batch,
        "T": config.num_frames,
        "N": config.joint_tokens,
        "A": config.num_heads,
        "γ": config.halting_scale,
        "the ponder weight": float(truth.settings.get("ponder_weight") or 1),
        "the motion weight": float(truth.settings.get("motion_weight") or 1),
    }
    found = [("−1", -1.0), *_head_constants(config.width // config.num_heads)]
    for says, size in sizes.items():
        inverse = f"1/{says}" if len(says) == 1 else f"1/({says})"
        found += [(says, float(size)), (inverse, 1 / size)] if size not in (0, 1) else []
    found += [("2", 2.0), ("1/2", 0.5)]
    return found


def _head_constants(d: int) -> list[tuple[str, float]]:
    return [("1/√d", 1 / math.sqrt(d)), ("√d", math.sqrt(d)), ("1/d", 1 / d), ("d", float(d))] if d > 1 else []


# ---- other tensors


@lru_cache
def _skip_source(name: str, glimpser_depth: int) -> str | None:
    """The named tensor that a sublayer adds to, of those whose rows stand in the same places."""
    if not name.startswith("blocks."):
        return None
    _, i, part = name.split(".", 2)
    in_glimpser = int(i) < glimpser_depth
    sources = {"mlp": "selected" if in_glimpser else "attn.proj"}
    if not in_glimpser:
        sources["attn.proj"] = "entering"
    return f"blocks.{i}.{sources[part]}" if part in sources else None


def _has_skip_connection(name: str, value: Array, judge: _Judge) -> bool:
    """Whether the array plus the input of the skip connection is the named tensor."""
    config = judge.truth.config
    source = None if config is None else _skip_source(name, config.glimpser_depth)
    if source is None or source not in judge.truth:
        return False
    return judge.agrees(name, value + judge.truth[source].value)


def _equal_tensors(name: str, value: Array, judge: _Judge) -> Iterator[str]:
    """Other named tensors that this array is; those of the same direction and, of these, the same part first."""
    truth, part = judge.truth, bare_name(name).split(".", 2)[-1]
    others = [other for other in truth if other != name and truth[other].value.dtype.kind == "f"]
    others.sort(key=lambda other: (truth[other].direction != truth[name].direction, part not in other))
    for other in others:
        tensor = truth[other].value
        if tensor.shape == value.shape and tensor.size > 1 and judge.agrees(other, value):
            yield f"equals {other}"
