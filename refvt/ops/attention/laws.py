"""What must hold for any attention over packed segments."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.array import Array
from refvt.ops.laws import Computes, Inputs, Law, LawBroken, agree, backward, cotangents, forward

__all__ = ["LAWS"]


def _bias(inputs: Inputs) -> Array:
    """The key bias [m], zeros if there is none."""
    bias = inputs.get("key_bias")
    return np.zeros(len(inputs["k"]), dtype=inputs["k"].dtype) if bias is None else bias


def _count(inputs: Inputs) -> int:
    """Number of terms of the longest sum, raised because the rounding error of a logit grows with the logit."""
    d = inputs["q"].shape[1] // inputs["num_heads"]
    largest = np.abs(inputs["q"]).max(initial=0) * np.abs(inputs["k"]).max(initial=0) * np.sqrt(d)
    finite = np.abs(_bias(inputs)[np.isfinite(_bias(inputs))]).max(initial=0)
    return int((len(inputs["k"]) + d) * (4 + 2 * largest + finite))


def _rebuilt(inputs: Inputs, pieces: list[list[int]], bias: list[list[float]]) -> dict[str, Any]:
    """The inputs with other keys: segment i gets the rows pieces[i] of k and v, with the biases bias[i]."""
    index = np.concatenate([np.asarray(p, dtype=np.int64) for p in pieces])
    offsets = np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
    values = np.concatenate([np.asarray(b, dtype=inputs["k"].dtype) for b in bias])
    return {
        **inputs,
        "k": inputs["k"][index],
        "v": inputs["v"][index],
        "key_offsets": offsets,
        "key_bias": values,
    }


def _segments(inputs: Inputs) -> list[list[int]]:
    """The key rows of each segment."""
    offsets = inputs["key_offsets"]
    return [list(range(offsets[i], offsets[i + 1])) for i in range(len(offsets) - 1)]


def weights_sum_to_one(op: Computes, inputs: Inputs) -> None:
    """If all values are one, so is y in every segment that has a key; in a segment without keys y is zero."""
    y = forward(op, {**inputs, "v": np.ones_like(inputs["v"])})[0]["y"]
    expected = np.zeros_like(y)
    for i, keys in enumerate(_segments(inputs)):
        if np.isfinite(_bias(inputs)[keys]).any():
            expected[inputs["query_offsets"][i] : inputs["query_offsets"][i + 1]] = 1
    agree("attention: the weights' sum", y, expected, 1, len(inputs["k"]) + 4)


def order_of_keys_is_nothing(op: Computes, inputs: Inputs) -> None:
    """Reversing the keys of every segment changes nothing."""
    pieces = [keys[::-1] for keys in _segments(inputs)]
    swapped = _rebuilt(inputs, pieces, [[_bias(inputs)[k] for k in keys] for keys in pieces])
    y = forward(op, inputs)[0]["y"]
    largest = np.abs(inputs["v"]).max(initial=0)
    agree("attention: the order of keys", forward(op, swapped)[0]["y"], y, largest, _count(inputs))


def segments_do_not_meet(op: Computes, inputs: Inputs) -> None:
    """Nothing passes from one segment to another, neither forward nor as a gradient."""
    rows = {n: inputs[n].copy() for n in "qkv"}
    first_q, first_k = inputs["query_offsets"][1], inputs["key_offsets"][1]
    rows["q"][first_q:] += 1
    rows["k"][first_k:] -= 2
    rows["v"][first_k:] += 3
    before, cache = forward(op, inputs)
    after, _ = forward(op, {**inputs, **rows})
    if not np.array_equal(before["y"][:first_q], after["y"][:first_q]):
        raise LawBroken("attention: the first segment's answers changed with the others' rows")
    u = cotangents(op, before, seed=13)
    u["y"][:first_q] = 0
    gradients = backward(op, u, cache)
    if any(gradients[n][: first_q if n == "q" else first_k].any() for n in "qkv"):
        raise LawBroken("attention: a gradient crossed from one segment into another")


def log_m_is_m_copies(op: Computes, inputs: Inputs) -> None:
    """A key with bias + log 3 equals three such keys: the same y, and the sum of their three gradients."""
    pieces, biases, raised, row = [], [], _bias(inputs).copy(), []
    for keys in _segments(inputs):
        copies = keys[:1] * 2 + keys
        row += copies
        pieces.append(copies)
        biases.append([_bias(inputs)[k] for k in copies])
        raised[keys[:1]] += np.log(3)
    one, one_cache = forward(op, {**inputs, "key_bias": raised})
    three, three_cache = forward(op, _rebuilt(inputs, pieces, biases))
    largest = np.abs(inputs["v"]).max(initial=0)
    agree("attention: log 3 against three copies", one["y"], three["y"], largest, _count(inputs))
    u = cotangents(op, one, seed=14)
    single, triple = backward(op, u, one_cache), backward(op, u, three_cache)
    scale = (1 + largest) * np.abs(u["y"]).max(initial=0) * (1 + max(np.abs(inputs[n]).max(initial=0) for n in "qk"))
    for name in "kv":
        summed = np.zeros(single[name].shape)
        np.add.at(summed, row, triple[name])
        terms = scale * len(u["y"]) * u["y"].shape[1]
        agree(f"attention: d{name} of log 3 against three copies", single[name], summed, terms, _count(inputs))


def minus_infinity_is_absence(op: Computes, inputs: Inputs) -> None:
    """A key with bias −∞ equals a key that is removed, whatever its row holds; it gets no gradient."""
    hidden = _bias(inputs).copy()
    pieces, biases = [], []
    for keys in _segments(inputs):
        hidden[keys[-1:]] = -np.inf
        pieces.append(keys[:-1])
        biases.append([_bias(inputs)[k] for k in keys[:-1]])
    masked, cache = forward(op, {**inputs, "key_bias": hidden})
    removed, _ = forward(op, _rebuilt(inputs, pieces, biases))
    largest = np.abs(inputs["v"]).max(initial=0)
    agree("attention: −∞ against removal", masked["y"], removed["y"], largest, _count(inputs))
    gradients = backward(op, cotangents(op, masked, seed=15), cache)
    if gradients["k"][np.isneginf(hidden)].any() or gradients["v"][np.isneginf(hidden)].any():
        raise LawBroken("attention: a key with bias −∞ got a gradient")


LAWS: dict[str, tuple[Law, ...]] = {
    "attention": (
        weights_sum_to_one,
        order_of_keys_is_nothing,
        segments_do_not_meet,
        log_m_is_m_copies,
        minus_infinity_is_absence,
    )
}
