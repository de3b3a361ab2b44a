"""Laws that every operation obeys, on any backend: plain functions law(op, inputs).

``op`` has ``.operation`` (names), ``.forward`` and ``.backward``; ``inputs`` maps the names of its arguments and
settings to arrays and numbers. A law returns nothing if it holds and raises ``LawBroken`` with the numbers if it does
not. The laws of a single operation are in its folder's ``laws.py``; this file holds what they share.

Tolerances are derived, not chosen: a sum of n terms computed in floating point errs by at most n · eps · Σ|terms| (to
first order), so every comparison states its terms and their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from refvt.array import Array
from refvt.ops import Operation

__all__ = ["GENERIC_LAWS", "Computes", "Inputs", "Law", "LawBroken", "agree", "backward", "cotangents", "forward"]

Inputs = Mapping[str, Any]
"""Arrays and settings of one call, by the names of the arguments."""


class Computes(Protocol):
    """What a law needs of an implementation: the operation's names, its forward and its backward."""

    @property
    def operation(self) -> Operation:
        """Its names."""

    @property
    def forward(self) -> Callable[..., Any]:
        """``y, cache = forward(**inputs, keep=True)``; without a backward the results alone."""

    @property
    def backward(self) -> Callable[..., Any] | None:
        """``dx, … = backward(dy, …, cache)``, or None."""


Law = Callable[[Computes, Inputs], None]
"""A law: it returns nothing if it holds, and raises ``LawBroken`` if it does not."""


class LawBroken(AssertionError):  # noqa: N818 - it reads as what happened
    """A law does not hold; the message says which quantity, by how much, and how much rounding could explain."""


def forward(op: Computes, inputs: Inputs, keep: bool = True) -> tuple[dict[str, Array], Any]:
    """Run the forward: the results by name, and the cache (None for a decision)."""
    if op.backward is None:
        results, cache = op.forward(**inputs), None
    else:
        results, cache = op.forward(**inputs, keep=keep)
    values = results if isinstance(results, tuple) else () if results is None else (results,)
    return dict(zip(op.operation.results, values, strict=True)), cache


def backward(op: Computes, cotangent: Mapping[str, Array], cache: Any) -> dict[str, Array]:
    """Run the backward: the gradients by argument name, without those of absent optional arguments."""
    assert op.backward is not None
    gradients = op.backward(*(cotangent[name] for name in op.operation.differentiable), cache)
    values = gradients if isinstance(gradients, tuple) else (gradients,)
    return {n: g for n, g in zip(op.operation.gradients, values, strict=True) if g is not None}


def cotangents(op: Computes, results: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Random normal cotangents for the differentiable results. Never ones: those hide errors in softmax and norms."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(rng.standard_normal(np.shape(results[name])), dtype=np.asarray(results[name]).dtype)
        for name in op.operation.differentiable
    }


def agree(what: str, actual: Any, expected: Any, terms: Any, count: int) -> None:
    """LawBroken unless |actual − expected| ≤ 2 · count · eps · terms everywhere.

    terms: Σ|terms| of the sums that both were computed by (an array or a number); count: the length of the longest sum;
    the factor 2, because both sides are computed; eps is that of the actual's dtype.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        raise LawBroken(f"{what}: expected shape {expected.shape}, got {actual.shape}")
    allowed = 2 * max(count, 1) * np.finfo(actual.dtype).eps * np.abs(np.asarray(terms, dtype=np.float64))
    error = np.abs(actual.astype(np.float64) - expected)
    if not (error <= allowed).all():  # NaN fails too
        worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error - allowed)), error.shape)
        limit = np.broadcast_to(allowed, error.shape)[worst]
        raise LawBroken(
            f"{what}: off by {error[worst]:.3g} at {[int(i) for i in worst]}, rounding explains {limit:.3g}"
        )


def decided(op: Computes, inputs: Inputs) -> dict[str, Any]:
    """The inputs with the operation's own decision forced, so that a nearby input is decided in the same way."""
    inputs = dict(inputs)
    if "forced" in op.operation.arguments and inputs.get("forced") is None:
        results, _ = forward(op, inputs)
        inputs["forced"] = results["halted" if "halted" in results else "halting_layer"]
    return inputs


def adjoint(op: Computes, inputs: Inputs) -> None:
    """Adjoint identity: ⟨Jv, u⟩ = ⟨v, Jᵀu⟩ for random v and u, Jv by an extrapolated central difference, in float64.

    With step h the difference errs by O(h⁴) in truncation, below 1e-9 of the terms for inputs of order one, and by
    rounding: each result y is exact to eps · (1 + |y|), as its terms are of order one or of y's own size, which the
    division by 12 h makes at most 18/12 · eps/h · (1 + |y|).
    """
    rng = np.random.default_rng(1)
    inputs = decided(op, inputs)
    moved = [name for name in op.operation.gradients if inputs.get(name) is not None]
    direction = {name: rng.standard_normal(np.shape(inputs[name])) for name in moved}

    def at(step: float) -> dict[str, Array]:
        return forward(op, {**inputs, **{n: inputs[n] + step * direction[n] for n in moved}})[0]

    results, cache = forward(op, inputs)
    u = cotangents(op, results, seed=2)
    gradients = backward(op, u, cache)
    h = 2e-5
    near, far = (at(h), at(-h)), (at(2 * h), at(-2 * h))
    left = terms = rounding = 0.0
    for name in op.operation.differentiable:
        Jv = (8 * (near[0][name] - near[1][name]) - (far[0][name] - far[1][name])) / (12 * h)
        left += float((Jv * u[name]).sum())
        terms += float(np.abs(Jv * u[name]).sum())
        rounding += (
            1.5 * float(np.finfo(np.float64).eps) / h * float(((1 + np.abs(results[name])) * np.abs(u[name])).sum())
        )
    products = [gradients[name] * direction[name] for name in moved]
    right = float(sum(p.sum() for p in products))
    terms += float(sum(np.abs(p).sum() for p in products))
    if not abs(left - right) <= 1e-9 * max(terms, 1e-3) + rounding:
        raise LawBroken(f"{op.operation.name}: ⟨Jv, u⟩ = {left:.12g} but ⟨v, Jᵀu⟩ = {right:.12g} (terms {terms:.3g})")


def gradient_shapes(op: Computes, inputs: Inputs) -> None:
    """Every gradient has the shape and dtype of its argument, and every argument that was given has one."""
    results, cache = forward(op, inputs)
    gradients = backward(op, cotangents(op, results, seed=3), cache)
    given = {name for name in op.operation.gradients if inputs.get(name) is not None}
    if set(gradients) != given:
        raise LawBroken(f"{op.operation.name}: gradients of {sorted(gradients)}, arguments given {sorted(given)}")
    for name, gradient in gradients.items():
        argument = np.asarray(inputs[name])
        if gradient.shape != argument.shape or gradient.dtype != argument.dtype:
            expected = f"{argument.dtype} {argument.shape}"
            raise LawBroken(f"{op.operation.name}: d{name} is {gradient.dtype} {gradient.shape}, {name} is {expected}")


def linear_in_cotangent(op: Computes, inputs: Inputs) -> None:
    """The backward is linear: Jᵀ(2u) = 2 Jᵀu to the last bit, and Jᵀ(u + w) = Jᵀu + Jᵀw to rounding.

    The terms inside a backward are products of a cotangent with each argument at most once (and, where something was
    divided by a standard deviation, with the gradient's own size): that bounds Σ|terms| for any operation.
    """
    results, cache = forward(op, inputs)
    u, w = cotangents(op, results, seed=4), cotangents(op, results, seed=5)
    one, two = backward(op, u, cache), backward(op, w, cache)
    double = backward(op, {n: 2 * u[n] for n in u}, cache)
    both = backward(op, {n: u[n] + w[n] for n in u}, cache)
    size = sum(np.asarray(value).size for value in u.values())
    largest = max(float(np.abs(value).max(initial=0)) for value in (*u.values(), *w.values()))
    for name in op.operation.gradients:
        largest *= 1 + float(np.abs(inputs[name]).max(initial=0)) if inputs.get(name) is not None else 1
    for name, gradient in both.items():
        if not np.array_equal(double[name], 2 * one[name]):
            raise LawBroken(f"{op.operation.name}: twice the dy is not twice d{name}")
        terms = largest + np.abs(one[name]).max(initial=0) + np.abs(two[name]).max(initial=0)
        agree(f"{op.operation.name}: d{name} is not additive in dy", gradient, one[name] + two[name], terms, size)


def nothing_is_mutated(op: Computes, inputs: Inputs) -> None:
    """Neither forward nor backward writes to inputs, to dy or to a result already given; results are fresh arrays."""
    inputs = {n: np.array(value) if n in op.operation.in_place else value for n, value in inputs.items()}
    arrays = {
        name: value
        for name, value in inputs.items()
        if isinstance(value, np.ndarray) and name not in op.operation.in_place
    }
    before = {name: value.copy() for name, value in arrays.items()}
    results, cache = forward(op, inputs)
    results = {name: value for name, value in results.items() if value is not None}
    kept = {name: np.array(value) for name, value in results.items()}
    everything: list[tuple[str, Any, Any]] = [(name, arrays[name], before[name]) for name in arrays]
    everything += [(name, results[name], kept[name]) for name in results]
    outcome = dict(results)
    if op.backward is not None:
        u = cotangents(op, results, seed=6)
        u_before = {name: np.array(value) for name, value in u.items()}
        first = backward(op, u, cache)
        again = backward(op, u, cache)  # the cache must not change either
        everything += [(f"d{name}", u[name], u_before[name]) for name in u]
        everything += [(f"second d{name}", again[name], first[name]) for name in first]
        outcome.update({f"d{name}": value for name, value in first.items()})
        arrays.update({f"cotangent of {name}": value for name, value in u.items()})
    for name, now, then in everything:
        if not np.array_equal(now, then, equal_nan=True):
            raise LawBroken(f"{op.operation.name}: {name} was written to")
    for name, value in outcome.items():
        for other, array in arrays.items():
            if np.ndim(value) and np.may_share_memory(value, array):
                raise LawBroken(f"{op.operation.name}: result {name} shares memory with {other}")


def keep_changes_nothing(op: Computes, inputs: Inputs) -> None:
    """keep=False gives the same results, bit for bit, and no cache."""
    with_cache, _ = forward(op, inputs, keep=True)
    without, cache = forward(op, inputs, keep=False)
    if cache is not None:
        raise LawBroken(f"{op.operation.name}: keep=False returned a cache")
    for name in with_cache:
        if not np.array_equal(with_cache[name], without[name], equal_nan=True):
            raise LawBroken(f"{op.operation.name}: {name} differs between keep=True and keep=False")


GENERIC_LAWS: tuple[Law, ...] = (
    adjoint,
    gradient_shapes,
    linear_in_cotangent,
    nothing_is_mutated,
    keep_changes_nothing,
)
"""The laws that every operation obeys; of an operation without a backward only ``nothing_is_mutated``."""
