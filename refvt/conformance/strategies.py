"""Inputs for the laws, and for your own tests: Hypothesis chooses sizes, switches and a seed, NumPy fills the arrays.

``inputs_for("attention")`` gives dictionaries for ``forward(**inputs)``; with ``edge="ties"`` it gives inputs at one
edge of the operation's domain. ``EDGES`` names and explains all edges, ``edges_of`` lists those that an operation has.
``shapes`` and ``offsets`` are parts for strategies of your own. If a test fails, Hypothesis shrinks the sizes to the
smallest that still fail.

No other module of refvt imports Hypothesis when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refvt.array import Array

__all__ = ["EDGES", "Shape", "edges_of", "inputs_for", "offsets", "shapes"]

Inputs = dict[str, Any]

EDGES = {
    "ties": "equal values: scores that are equal, logits, keys and queries that are all the same",
    "near the threshold": "a halting score that brings the sum to 1 − ε exactly, or misses it by 1e-6 or 1e-3",
    "large": "floats of both signs, 100 to 10 000 times as large as usual",
    "denormal": "floats below the smallest normal number of the dtype, and zeros of both signs",
    "one patch": "one token, one patch, one row",
    "all halting": "every token halts: in this layer, or in the first one",
    "empty": "segments, rows or lists of tokens with nothing in them",
}
"""Every edge by name, with what it holds."""

_FLOATS = (
    *("embed", "layernorm", "linear", "gelu", "mlp", "attention", "gather", "segment_mean", "cls_scores"),
    *("accumulate", "cross_entropy", "motion_loss", "squared_norm"),
)
_EDGES_OF: dict[str, tuple[str, ...]] = {
    "ties": ("attention", "cls_scores", "top_k", "fuse_dropped", "cross_entropy", "motion_loss"),
    "near the threshold": ("halt", "halt_tokens"),
    "large": (*_FLOATS, "fuse_dropped"),
    "denormal": (*_FLOATS, "fuse_dropped"),
    "one patch": (*_FLOATS, "fuse_dropped", "top_k", "halt", "halt_tokens", "compact", "mask_halted", "ponder_loss"),
    "all halting": ("halt", "halt_tokens", "compact", "mask_halted"),
    "empty": ("attention", "gather", "compact"),
}
_SINGLE = ("n", "N", "S", "rows", "columns", "segments", "frames", "B")  # sizes that are 1 at the edge "one patch"


class Shape(NamedTuple):
    """Sizes of a small model: clips, frames, patches of a frame, heads, channels of a head."""

    B: int
    T: int
    S: int
    A: int
    d: int

    @property
    def N(self) -> int:  # noqa: N802 - the paper's name
        """Tokens of a clip, 1 + S·T."""
        return 1 + self.S * self.T

    @property
    def D(self) -> int:  # noqa: N802
        """Width, A·d."""
        return self.A * self.d


def shapes(largest: int = 4, edge: str | None = None) -> st.SearchStrategy[Shape]:
    """A strategy for the sizes of a small model, each from 1 to ``largest``; edge: None or "one patch" (S = 1)."""
    if edge not in (None, "one patch"):
        raise ValueError(f"edge: expected None or 'one patch', got {edge!r}")
    size = st.integers(1, largest)
    return st.builds(Shape, size, size, st.just(1) if edge else size, size, size)


def offsets(segments: int = 4, longest: int = 6, empty: bool = True) -> st.SearchStrategy[Array]:
    """A strategy for offsets int64 [segments + 1] of 1 to ``segments`` packed segments.

    They start at 0 and end at the number of rows. empty: whether a segment may have no rows.
    """

    def summed(lengths: list[int]) -> Array:
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    return st.lists(st.integers(0 if empty else 1, longest), min_size=1, max_size=segments).map(summed)


def edges_of(operation: str) -> tuple[str, ...]:
    """The edges that the inputs of an operation have. ValueError for an unknown operation."""
    _check_operation(operation)
    return tuple(edge for edge, names in _EDGES_OF.items() if operation in names)


class _Source:
    """A source of sizes and switches, drawn by Hypothesis, and of arrays from a generator that Hypothesis seeds."""

    def __init__(self, draw: st.DrawFn, dtype: str, largest: int, edge: str | None = None) -> None:
        self.draw, self.dtype, self.largest, self.edge = draw, dtype, largest, edge
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))

    def size(self, name: str, low: int = 1, high: int | None = None) -> int:
        if self.edge == "one patch" and name in _SINGLE:
            return 1
        return self.draw(st.integers(low, self.largest if high is None else high), label=name)

    def flag(self, name: str) -> bool:
        return self.draw(st.booleans(), label=name)

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        values = scale * self.rng.standard_normal(shape)
        if self.edge == "large":
            values *= 10.0 ** self.rng.integers(2, 5)
        elif self.edge == "denormal":
            values = np.sign(values) * np.floor(4 * np.abs(values) % 16) / 16 * float(np.finfo(self.dtype).tiny)
        return values.astype(self.dtype)

    def offsets(self, segments: int, low: int = 0) -> Array:
        lengths = [self.size(f"length {i}", low) for i in range(segments)]
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def extras(self, n: int, D: int) -> Inputs:
        """The optional residual and gain of linear and mlp."""
        inputs: Inputs = {}
        if self.flag("residual"):
            inputs["residual"] = self.normal(n, D)
        if self.flag("gain"):
            inputs["gain"] = (self.rng.integers(0, 2, n) * 1.25).astype(self.dtype)
        return inputs


def _embed(m: _Source) -> Inputs:
    B, C, T, P, D = m.size("B", high=2), m.size("C", high=3), m.size("T", high=3), m.size("P", high=3), m.size("D")
    rows, columns = m.size("rows", high=3), m.size("columns", high=3)
    S = rows * columns
    return {
        "clips": m.normal(B, C, T, rows * P, columns * P),
        "weight": 0.1 + np.abs(m.normal(D, C, P, P)),  # of one sign: a changed pixel changes every channel
        "bias": m.normal(D),
        "cls_token": m.normal(1, 1, D),
        "pos_embed": m.normal(1, 1 + S, D),
        "time_embed": m.normal(1, T, D),
    }


def _layernorm(m: _Source) -> Inputs:
    n, D = m.size("n"), m.size("D", low=3, high=2 * m.largest)
    scale = m.draw(st.sampled_from([0.3, 1.0, 30.0]), label="scale")
    return {"x": m.normal(n, D, scale=scale), "weight": m.normal(D), "bias": m.normal(D)}


def _linear(m: _Source) -> Inputs:
    n, E, D = m.size("n"), m.size("E"), m.size("D")
    return {"x": m.normal(n, E), "weight": m.normal(D, E), "bias": m.normal(D), **m.extras(n, D)}


def _gelu(m: _Source) -> Inputs:
    scale = m.draw(st.sampled_from([0.1, 1.0, 5.0]), label="scale")
    return {"x": m.normal(m.size("n"), m.size("F"), scale=scale)}


def _mlp(m: _Source) -> Inputs:
    n, D, F = m.size("n"), m.size("D"), m.size("F")
    weights = {"fc1_weight": m.normal(F, D), "fc1_bias": m.normal(F), "fc2_weight": m.normal(D, F)}
    return {"x": m.normal(n, D), **weights, "fc2_bias": m.normal(D), **m.extras(n, D)}


def _attention(m: _Source) -> Inputs:
    A, d, segments = m.size("A", high=3), m.size("d", high=4), m.size("segments", high=3)
    strided = m.edge != "empty" and m.flag("strided")  # q, k and v are views of one array, as in the model
    query_offsets = m.offsets(segments)
    key_offsets = query_offsets.copy() if strided else m.offsets(segments)
    if m.edge == "empty":
        key_offsets[-1] = key_offsets[-2]  # the last segment has no key
    n, keys = int(query_offsets[-1]), int(key_offsets[-1])
    inputs: Inputs = {"q": m.normal(n, A * d)}
    if m.edge == "ties":
        row = m.normal(1, A * d)
        inputs |= {"k": np.repeat(row, keys, axis=0), "v": m.normal(keys, A * d)}
    elif strided:
        qkv = m.normal(n, 3 * A * d)
        inputs = {name: qkv[:, i * A * d : (i + 1) * A * d] for i, name in enumerate("qkv")}
    else:
        inputs |= {"k": m.normal(keys, A * d), "v": m.normal(keys, A * d)}
    inputs |= {"query_offsets": query_offsets, "key_offsets": key_offsets, "num_heads": A}
    if m.flag("key_bias"):
        choices = np.array([0, 0, np.log(2), np.log(1000), -np.inf])
        inputs["key_bias"] = m.rng.choice(choices, keys).astype(m.dtype)
    return inputs


def _gather(m: _Source) -> Inputs:
    n = m.size("n")
    index = m.rng.integers(-1, n, m.size("m", low=0, high=0 if m.edge == "empty" else 2 * m.largest))
    return {"x": m.normal(n, m.size("D")) if m.flag("2-D") else m.normal(n), "index": index}


def _segment_mean(m: _Source) -> Inputs:
    offsets = m.offsets(m.size("segments"), low=1)
    return {"x": m.normal(int(offsets[-1]), m.size("D")), "offsets": offsets}


def _cls_scores(m: _Source) -> Inputs:
    A, d, frames, S = m.size("A", high=3), m.size("d", high=4), m.size("frames", high=3), m.size("S")
    rows = frames * (1 + S)
    offsets = np.arange(frames + 1) * (1 + S)
    q, k = m.normal(rows, A * d), m.normal(rows, A * d)
    if m.edge == "ties":
        k[:] = k[0]
    return {"q": q, "k": k, "offsets": offsets, "num_heads": A}


def _top_k(m: _Source) -> Inputs:
    frames, S = m.size("frames", high=4), m.size("S", high=2 * m.largest)
    tied = m.edge == "ties" or m.flag("ties")
    scores = m.rng.integers(0, 4, (frames, S)) if tied else m.rng.random((frames, S))
    return {"scores": scores.astype(m.dtype), "k": m.size("k", high=S)}


def _fuse_dropped(m: _Source) -> Inputs:
    frames, S = m.size("frames", high=3), m.size("S")
    k = m.size("k", high=S)
    kept = np.stack([m.rng.permutation(S)[:k] for _ in range(frames)])
    scores = np.abs(m.normal(frames, S))
    if m.edge == "ties":
        scores[:] = scores[0, 0]
    return {"x": m.normal(frames * S, m.size("D")), "scores": scores, "kept": kept}


def _halting_settings(m: _Source) -> Inputs:
    scale = m.draw(st.sampled_from([5.0, 10.0]), label="scale")
    center = m.draw(st.sampled_from([5.0, 10.0, 20.0]), label="center")
    return {"scale": scale, "center": center, "epsilon": 0.01}


def _logit_of(score: Array, m: _Source, settings: Inputs) -> Array:
    """Halting logits whose score is this one, up to ±1e-3, ±1e-6 or rounding."""
    nudge = m.rng.choice([0.0, 1e-3, -1e-3, 1e-6, -1e-6], np.shape(score))
    score = np.clip(score + nudge, 1e-3, 1 - 1e-9)
    logit: Array = (np.log(score / (1 - score)) + settings["center"]) / settings["scale"]
    return logit


def _halt(m: _Source) -> Inputs:
    n, settings = m.size("n"), _halting_settings(m)
    # around the centre, where the decision may go either way
    logit = (settings["center"] + 3 * m.normal(n)) / settings["scale"]
    used = 0.98 * m.rng.random(n)
    if m.edge == "near the threshold":
        logit = _logit_of(0.99 - used, m, settings)
    elif m.edge == "all halting":
        logit = (settings["center"] + 20 + np.abs(m.normal(n))) / settings["scale"]
    inputs = {"logit": logit.astype(m.dtype), "used": used.astype(m.dtype)}
    inputs |= {**settings, "last": m.flag("last")}
    if m.flag("forced"):
        inputs["forced"] = np.ones(n, dtype=bool) if inputs["last"] else m.rng.random(n) < 0.5
    return inputs


def _accumulate(m: _Source) -> Inputs:
    n, D = m.size("n"), m.size("D")
    return {"y": m.normal(n, D), "x": m.normal(n, D), "weight": m.normal(n)}


def _halt_tokens(m: _Source) -> Inputs:
    L, N, D, settings = m.size("L", high=5), m.size("N"), m.size("D", low=2), _halting_settings(m)
    states = m.normal(L, N, D)
    states[:, :, 0] = (settings["center"] - 1 + 2 * m.normal(L, N)) / settings["scale"]
    if m.edge == "near the threshold":  # equal scores that add up to 1 − ε in a layer that is chosen for each token
        layers = m.rng.integers(1, L + 1, N)
        states[:, :, 0] = _logit_of(np.broadcast_to(0.99 / layers, (L, N)), m, settings)
    elif m.edge == "all halting":
        states[0, :, 0] = (settings["center"] + 20) / settings["scale"]
    inputs = {"states": states, **settings}
    if m.flag("forced"):
        inputs["forced"] = m.rng.integers(1, L + 1, N)
    return inputs


def _compact(m: _Source) -> Inputs:
    """One layer of a random run: some tokens have halted before, some halt in this layer."""
    B, N = m.size("B", high=4), m.size("N", high=2 * m.largest)
    cls_only, layer = m.flag("cls_only"), 3
    alive = 0.0 if m.edge == "empty" else m.draw(st.sampled_from([0.2, 0.7, 1.0]), label="share alive")
    entered = m.rng.random(B * N) < alive
    tokens = np.flatnonzero(entered)
    counts = np.stack([entered.reshape(B, N).sum(axis=1), entered[::N]]).astype(np.int64)
    halts = 1.0 if m.edge == "all halting" else m.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]), label="share that halts")
    inputs: Inputs = {"halted": m.rng.random(len(tokens)) < halts, "tokens": tokens, "counts": counts}
    inputs |= {"halting_layer": np.where(entered, 0, m.rng.integers(1, layer, B * N)), "layer": layer, "N": N}
    return inputs | {"ghosts": m.flag("ghosts"), "leave_early": m.flag("leave_early"), "cls_only": cls_only}


def _mask_halted(m: _Source) -> Inputs:
    n, layer = m.size("n"), 3
    halting_layer = m.rng.integers(0, layer, n)
    halted = (halting_layer > 0) | (m.rng.random(n) < 0.5) | (m.edge == "all halting")
    return {"halted": halted, "halting_layer": halting_layer, "layer": layer, "masked": m.flag("masked")}


def _squared_norm(m: _Source) -> Inputs:
    return {"x": m.normal(m.size("n", high=40 * m.largest))}


def _adam_step(m: _Source) -> Inputs:
    run_offsets = m.offsets(m.size("runs", high=4))
    n, runs = int(run_offsets[-1]), len(run_offsets) - 1
    inputs: Inputs = {"w": m.normal(n), "m": m.normal(n), "v": np.abs(m.normal(n)), "gradient": m.normal(n)}
    inputs |= {"run_offsets": run_offsets, "decays": m.rng.random(runs) < 0.5, "step": m.size("step", high=5)}
    settings = {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6, "weight_decay": 0.1}
    clip = m.draw(st.sampled_from([1.0, 0.25]), label="clip")
    return {**inputs, **settings, "decoupled": m.flag("decoupled"), "clip": clip}


def _loss_logits(m: _Source, B: int, K: int) -> Array:
    return np.repeat(m.normal(B, 1, scale=3), K, axis=1) if m.edge == "ties" else m.normal(B, K, scale=3)


def _cross_entropy(m: _Source) -> Inputs:
    B, K = m.size("B"), m.size("K")
    soft = m.rng.random((B, K))
    targets = (soft / soft.sum(axis=1, keepdims=True)).astype(m.dtype) if m.flag("soft") else m.rng.integers(0, K, B)
    smoothing = m.draw(st.sampled_from([0.0, 0.1]), label="label_smoothing")
    return {"logits": _loss_logits(m, B, K), "targets": targets, "label_smoothing": smoothing}


def _ponder_loss(m: _Source) -> Inputs:
    B, N = m.size("B"), m.size("N")
    inputs: Inputs = {"ponder": 2 + np.abs(m.normal(B, N))}
    return inputs | {"weights": m.normal(B, N)} if m.flag("weights") else inputs


def _motion_loss(m: _Source) -> Inputs:
    B = m.size("B")
    return {"logits": _loss_logits(m, B, 2), "moving": m.rng.integers(0, 2, B)}


_INPUTS: dict[str, Callable[[_Source], Inputs]] = {
    "embed": _embed,
    "layernorm": _layernorm,
    "linear": _linear,
    "gelu": _gelu,
    "mlp": _mlp,
    "attention": _attention,
    "gather": _gather,
    "segment_mean": _segment_mean,
    "cls_scores": _cls_scores,
    "top_k": _top_k,
    "fuse_dropped": _fuse_dropped,
    "halt": _halt,
    "accumulate": _accumulate,
    "halt_tokens": _halt_tokens,
    "compact": _compact,
    "mask_halted": _mask_halted,
    "cross_entropy": _cross_entropy,
    "ponder_loss": _ponder_loss,
    "motion_loss": _motion_loss,
    "squared_norm": _squared_norm,
    "adam_step": _adam_step,
}


def _check_operation(operation: str) -> None:
    if operation not in _INPUTS:
        raise ValueError(f"operation: expected one of {list(_INPUTS)}, got {operation!r}")


def inputs_for(
    operation: str, dtype: str = "float64", largest: int = 6, edge: str | None = None
) -> st.SearchStrategy[Inputs]:
    """A strategy for the inputs of one operation of the table: a dictionary for ``forward(**inputs)``.

    dtype: "float64" or "float32". largest: upper bound of the ordinary sizes (3 is enough for slow interpreters). edge:
    None for ordinary inputs, or one of ``edges_of(operation)``. ValueError for an unknown operation or edge.
    """
    if edge is not None and edge not in edges_of(operation):
        raise ValueError(f"edge: expected None or one of {list(edges_of(operation))} for {operation}, got {edge!r}")
    _check_operation(operation)

    @st.composite
    def inputs(draw: st.DrawFn) -> Inputs:
        return _INPUTS[operation](_Source(draw, dtype, largest, edge))

    return inputs()
