"""Which of the tensors that a module computed is which named tensor.

Three ways, the surest first:

1. *By value.* A computed tensor that agrees with a named tensor within its budget, in one of the arrangements of
   ``arrangements.py``, is that tensor. Of several the one with the smallest error is taken. Zero or constant tensors
   are never matched: they have no value of their own.
2. *By its layer.* After the first wrong tensor no value agrees any more. But parameters are known: what comes out of a
   linear layer or LayerNorm that uses ``blocks.3.norm1.bias`` is ``blocks.3.norm1``, whatever its value. The input of a
   projection is ``attn.y``; the sum of a projection and the skip input is ``attn.proj`` or ``mlp``; the input of a
   block's norms is ``entering``, ``selected`` or ``attn.proj``; the tensor that is sorted is ``scores``.
3. *By similarity.* A named tensor that is still missing is given the computed tensor that resembles it most, if they
   stand between the same neighbours and differ by less than half of their norm.

Way 3 is used only after the last tensor that agrees by value. Way 2 is used before it only for small errors, which a
skip connection can hide again, for what a layer reads or returns as it is, and for what has agreed in another block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from refvt.array import Array
from refvt.conformance.adapters.recorder import Event
from refvt.conformance.adapters.roles import Graph, roles, weights
from refvt.conformance.arrangements import Arrangement, Geometry, Rows
from refvt.conformance.layouts import NOT_GIVEN

__all__ = ["Discovery", "Found", "NamedTensors", "discover"]

SIMILAR = 0.5  # relative error below which a tensor resembles a named one
DAMPED = 1e-2  # relative error that a skip connection can make too small to be seen


@dataclass(frozen=True)
class Found:
    """A named tensor in the record: the event, its arrangement, and the part of its last axis (which of how many)."""

    name: str
    event: int
    arrangement: Arrangement
    heads_first: bool
    part: tuple[int, int]
    error: float  # relative to the truth, over the rows that count and are there
    way: str  # "value", "layer", "similarity", "map"

    @property
    def covers(self) -> int:
        """The number of rows that the tensor holds."""
        return self.arrangement.rows.size


@dataclass(frozen=True)
class NamedTensors:
    """The named tensors of a case: their values, where they stand, and the relative error that each is allowed."""

    geometry: Geometry
    truth: Mapping[str, Array]  # in the order of computation, forward alone
    allowed: Mapping[str, float]

    @property
    def heads(self) -> int:
        return self.geometry.config.num_heads

    def stored(self, found: Found, value: Array) -> Array:
        """A value of the event as the stored tensor; rows that are not there are marked as not given."""
        rows = self.geometry.rows_of(found.name)
        assert rows is not None
        given = self._placed(found.arrangement, found.heads_first, rows, _part(value, found.part))
        assert given is not None
        full = np.full((rows.count, rows.channels), NOT_GIVEN)
        full[found.arrangement.rows.ravel()] = given
        return full.reshape(self.truth[found.name].shape)

    def _placed(self, arrangement: Arrangement, heads_first: bool, rows: Rows, value: Array) -> Array | None:
        how = arrangement.apply_heads_first if heads_first else arrangement.apply
        return how(value, rows, self.heads)

    def fits(self, name: str, event: int, value: Array, part: tuple[int, int], way: str) -> Iterator[Found]:
        """Every arrangement in which the value can be read as the named tensor, with its error."""
        rows = self.geometry.rows_of(name)
        if rows is None:
            return
        value, counts = _part(value, part), self.geometry.counts(name)
        truth = self.truth[name].reshape(rows.count, rows.channels)
        for arrangement in self.geometry.arrangements(name):
            if arrangement.says == "class token alone" and name != "y":
                continue  # too little to recognise a tensor by
            for heads_first in (False, True):
                given = self._placed(arrangement, heads_first, rows, value)
                if given is None:
                    continue
                places = arrangement.rows.ravel()
                there = np.ones(len(places), bool) if counts is None else counts[places]
                error = _error(given[there], truth[places][there])
                yield Found(name, event, arrangement, heads_first, part, error, way)

    def best(
        self, name: str, event: int, value: Array, part: tuple[int, int], way: str, usual: str | None = None
    ) -> Found | None:
        """The arrangement with the smallest error, the fullest one of equals; None if no shape fits.

        usual: an order that is taken before all others, since a wrong value may resemble any.
        """
        fits = self.fits(name, event, value, part, way)
        return min(fits, key=lambda f: (f.arrangement.says != usual, f.error, -f.covers), default=None)


def _part(value: Array, part: tuple[int, int]) -> Array:
    which, of = part
    return value if of == 1 else np.split(value, of, axis=-1)[which]


def _error(given: Array, truth: Array) -> float:
    """‖given − truth‖ / ‖truth‖; infinite if that is no number or the truth is zero."""
    norm = float(np.linalg.norm(truth))
    if norm == 0:
        return float("inf")
    with np.errstate(all="ignore"):
        error = float(np.linalg.norm(given - truth)) / norm
    return error if np.isfinite(error) else float("inf")


@dataclass(frozen=True)
class Discovery:
    """What was found in a record.

    agreeing: for each name all tensors that have its value, best first. wrong: the tensor that stands in the place of a
    name whose value no tensor has. layers: the event that the layers' parameters say is a name's, whatever its value.
    misfits: the event in the place of a Glimpser's tensor, if its size is wrong.
    """

    agreeing: dict[str, list[Found]]
    layers: dict[str, int]
    wrong: dict[str, Found]
    misfits: dict[str, int]


def discover(events: list[Event], named: NamedTensors) -> Discovery:
    """Find the named tensors of a case among all that a module computed."""
    agreeing = _by_value(events, named)
    guesses, misfits = _by_layer(events, named, _usual_orders(agreeing, named))
    for name, guess in guesses.items():  # a part agrees, but the whole does not: the class token's row, or a patch's
        if name in agreeing and guess.covers > agreeing[name][0].covers and guess.error > named.allowed[name]:
            del agreeing[name]
    _add_weights(events, named, agreeing, guesses)
    proven = {_role(name, named) for name, guess in guesses.items() if guess.error <= named.allowed[name]}
    wrong: dict[str, Found] = {}
    for name in named.truth:
        if name in agreeing:
            continue
        found = guesses.get(name)
        last = _is_after_the_last(name, agreeing, named)
        if found is None and last:
            found = _by_similarity(name, events, named, agreeing, wrong)
        sure = name.endswith(_SURE) or _role(name, named) in proven
        if found is not None and (last or sure or found.error <= DAMPED):
            wrong[name] = found
    in_glimpser = [f"blocks.{g}." for g in range(named.geometry.config.glimpser_depth)]
    unfit = {
        name: number
        for name, number in misfits.items()
        if name.startswith(tuple(in_glimpser)) and name not in agreeing and _is_after_the_last(name, agreeing, named)
    }
    return Discovery(agreeing, {name: guess.event for name, guess in guesses.items()}, wrong, unfit)


_SURE = ("norm1", "norm2", ".q", ".k", ".v", "temporal_attn.proj", "norm", "features", ".selected", ".entering", ".y")
"""Tensors that a layer reads or returns as they are: its parameters say which they are."""


def _add_weights(
    events: list[Event], named: NamedTensors, agreeing: Mapping[str, list[Found]], guesses: dict[str, Found]
) -> None:
    """Guess the weights of halting from the tensor that is y, if the layers did not say which that is."""
    if "y" not in named.truth or "joint.1.weight" in guesses:
        return
    y = agreeing["y"][0] if "y" in agreeing else _by_similarity("y", events, named, agreeing, {})
    for name, number, part in weights(Graph.of(events), y.event, named.geometry.config.joint_depth) if y else ():
        best = named.best(name, number, events[number].value, part, "layer", y.arrangement.says if y else None)
        if best is not None and name in named.truth:
            guesses[name] = best


def _role(name: str, named: NamedTensors) -> str:
    """What a tensor is in its block: ``attn.y`` of a joint block, ``joint weight``."""
    head, _, part = name.partition(".")
    if head not in ("blocks", "joint"):
        return name
    number, _, what = part.partition(".")
    return f"{head if head == 'joint' or int(number) >= named.geometry.config.glimpser_depth else 'glimpser'} {what}"


# ---- 1. by value


def _by_value(events: list[Event], named: NamedTensors) -> dict[str, list[Found]]:
    """All computed tensors that agree with each named tensor: first those with most rows, of these the best."""
    found: dict[str, list[Found]] = {}
    index = _Fingerprints(named)
    for number, event in enumerate(events):
        if event.value.dtype.kind != "f" or _is_constant(event.value):
            continue
        for name in index.candidates(event.value):
            best = named.best(name, number, event.value, (0, 1), "value")
            if best is not None and best.error <= named.allowed[name]:
                found.setdefault(name, []).append(best)
    return {n: sorted(found[n], key=lambda f: (-f.covers, f.error)) for n in named.truth if n in found}


def _is_constant(value: Array) -> bool:
    return value.size == 0 or bool(np.all(value == value.flat[0]))


def _usual_orders(agreeing: Mapping[str, list[Found]], named: NamedTensors) -> dict[str, str]:
    """For each kind of rows the order of tokens in which most tensors agree: a module keeps to it."""
    counts: dict[str, dict[str, int]] = {}
    for name, places in agreeing.items():
        rows = named.geometry.rows_of(name)
        assert rows is not None
        if places[0].covers == rows.count:
            of_kind = counts.setdefault(rows.kind, {})
            of_kind[places[0].arrangement.says] = of_kind.get(places[0].arrangement.says, 0) + 1
    return {kind: max(says, key=lambda order: says[order]) for kind, says in counts.items()}


class _Fingerprints:
    """A quick test of which named tensors a value can be: its size, and one number that must stand at its place."""

    def __init__(self, named: NamedTensors) -> None:
        found: dict[int, list[tuple[int, float, float, str]]] = {}
        for name, truth in named.truth.items():
            rows = named.geometry.rows_of(name)
            if rows is None or _is_constant(truth):
                continue
            flat, counts = truth.reshape(rows.count, rows.channels), named.geometry.counts(name)
            tolerance = named.allowed[name] * float(np.linalg.norm(flat))
            for arrangement in named.geometry.arrangements(name):
                places = arrangement.rows.ravel()
                living = np.arange(len(places)) if counts is None else np.flatnonzero(counts[places])
                if not len(living):
                    continue
                expected = float(flat[places[living[0]], 0])
                for position in arrangement.positions(int(living[0]), rows, named.heads):
                    entry = position, expected, tolerance, name
                    found.setdefault(len(places) * rows.channels, []).append(entry)
        self.by_size = {
            size: (
                np.array([e[0] for e in entries]),
                np.array([e[1] for e in entries]),
                np.array([e[2] for e in entries]),
                [e[3] for e in entries],
            )
            for size, entries in found.items()
        }

    def candidates(self, value: Array) -> list[str]:
        """Names whose tensor may be this value."""
        if value.size not in self.by_size:
            return []
        positions, expected, tolerances, names = self.by_size[value.size]
        with np.errstate(invalid="ignore"):
            near = np.abs(value.ravel()[positions] - expected) <= tolerances
        return list(dict.fromkeys(names[i] for i in np.flatnonzero(near)))


# ---- 2. by layer


def _by_layer(
    events: list[Event], named: NamedTensors, usual: Mapping[str, str]
) -> tuple[dict[str, Found], dict[str, int]]:
    """The named tensors that the layers' parameters identify, and the events whose size does not fit.

    A layer that is used more than once identifies none.
    """
    found: dict[str, Found] = {}
    misfits: dict[str, int] = {}
    for name, number, part in roles(events, named.geometry.config):
        rows = named.geometry.rows_of(name)
        if name in named.truth and rows is not None and 0 <= number < len(events):
            order = usual.get(rows.kind, "")
            best = named.best(name, number, events[number].value, part, "layer", order)
            if best is not None:
                found.setdefault(name, best)
            elif part == (0, 1):
                misfits.setdefault(name, number)
    return found, misfits


# ---- 3. by similarity


def _is_after_the_last(name: str, agreeing: Iterable[str], named: NamedTensors) -> bool:
    """Whether nothing that is computed from this tensor agrees: halting and states are two chains until the output."""
    order, halting = list(named.truth), ("joint.", "y", "ponder")
    chain = [n for n in agreeing if n.startswith(halting) == name.startswith(halting)]
    return all(order.index(n) < order.index(name) for n in chain)


def _by_similarity(
    name: str,
    events: list[Event],
    named: NamedTensors,
    agreeing: Mapping[str, list[Found]],
    wrong: Mapping[str, Found],
) -> Found | None:
    """The tensor between the same neighbours that resembles the named one most."""
    order = list(named.truth)
    before = [f.event for n, found in agreeing.items() for f in found[:1] if order.index(n) < order.index(name)]
    before += [f.event for n, f in wrong.items()]
    start = max(before, default=-1) + 1
    best = None

    def rank(found: Found) -> tuple[int, float]:
        whole = name == "embed"  # the sums on the way to it hold the patches alone
        return -found.covers if whole else 0, found.error

    for number in range(start, len(events)):
        value = events[number].value
        if value.dtype.kind == "f" and not _is_constant(value):
            found = named.best(name, number, value, (0, 1), "similarity")
            if found is not None and found.error < SIMILAR and (best is None or rank(found) < rank(best)):
                best = found
    return best
