"""Inputs for the laws: Hypothesis chooses the sizes, the switches and a seed, and NumPy fills the arrays.

If a law breaks, Hypothesis shrinks the sizes to the smallest that still break it. ``inputs_for("attention")`` gives
dictionaries for ``forward(**inputs)``. This is the only module of refvt that imports Hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refvt.array import Array

__all__ = ["inputs_for"]

Inputs = dict[str, Any]


class _Source:
    """A source of sizes and switches, drawn by Hypothesis, and of arrays from a generator that Hypothesis seeds."""

    def __init__(self, draw: st.DrawFn, dtype: str, largest: int) -> None:
        self.draw, self.dtype, self.largest = draw, dtype, largest
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))

    def size(self, name: str, low: int = 1, high: int | None = None) -> int:
        return self.draw(st.integers(low, high or self.largest), label=name)

    def flag(self, name: str) -> bool:
        return self.draw(st.booleans(), label=name)

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return (scale * self.rng.standard_normal(shape)).astype(self.dtype)

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
    query_offsets, key_offsets = m.offsets(segments), m.offsets(segments)
    n, keys = int(query_offsets[-1]), int(key_offsets[-1])
    inputs: Inputs = {"q": m.normal(n, A * d)}
    if n == keys and m.flag("strided"):  # q, k and v are views of one array, as in the model
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
    index = m.rng.integers(-1, n, m.size("m", low=0, high=2 * m.largest))
    return {"x": m.normal(n, m.size("D")) if m.flag("2-D") else m.normal(n), "index": index}


def _segment_mean(m: _Source) -> Inputs:
    offsets = m.offsets(m.size("segments"), low=1)
    return {"x": m.normal(int(offsets[-1]), m.size("D")), "offsets": offsets}


def _cls_scores(m: _Source) -> Inputs:
    A, d, frames, S = m.size("A", high=3), m.size("d", high=4), m.size("frames", high=3), m.size("S")
    rows = frames * (1 + S)
    offsets = np.arange(frames + 1) * (1 + S)
    return {"q": m.normal(rows, A * d), "k": m.normal(rows, A * d), "offsets": offsets, "num_heads": A}


def _top_k(m: _Source) -> Inputs:
    frames, S = m.size("frames", high=4), m.size("S", high=2 * m.largest)
    scores = m.rng.integers(0, 4, (frames, S)) if m.flag("ties") else m.rng.random((frames, S))
    return {"scores": scores.astype(m.dtype), "k": m.size("k", high=S)}


def _fuse_dropped(m: _Source) -> Inputs:
    frames, S = m.size("frames", high=3), m.size("S")
    k = m.size("k", high=S)
    kept = np.stack([m.rng.permutation(S)[:k] for _ in range(frames)])
    return {"x": m.normal(frames * S, m.size("D")), "scores": np.abs(m.normal(frames, S)), "kept": kept}


def _halting_settings(m: _Source) -> Inputs:
    scale = m.draw(st.sampled_from([5.0, 10.0]), label="scale")
    center = m.draw(st.sampled_from([5.0, 10.0, 20.0]), label="center")
    return {"scale": scale, "center": center, "epsilon": 0.01}


def _halt(m: _Source) -> Inputs:
    n, settings = m.size("n"), _halting_settings(m)
    # around the centre, where the decision may go either way
    logit = (settings["center"] + 3 * m.normal(n)) / settings["scale"]
    inputs = {"logit": logit.astype(m.dtype), "used": (0.98 * m.rng.random(n)).astype(m.dtype)}
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
    inputs = {"states": states, **settings}
    if m.flag("forced"):
        inputs["forced"] = m.rng.integers(1, L + 1, N)
    return inputs


def _compact(m: _Source) -> Inputs:
    """One layer of a random run: some tokens have halted before, some halt in this layer."""
    B, N = m.size("B", high=4), m.size("N", high=2 * m.largest)
    cls_only, layer = m.flag("cls_only"), 3
    alive = m.draw(st.sampled_from([0.2, 0.7, 1.0]), label="share alive")
    entered = m.rng.random(B * N) < alive
    tokens = np.flatnonzero(entered)
    counts = np.stack([entered.reshape(B, N).sum(axis=1), entered[::N]]).astype(np.int64)
    halts = m.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]), label="share that halts")
    inputs: Inputs = {"halted": m.rng.random(len(tokens)) < halts, "tokens": tokens, "counts": counts}
    inputs |= {"halting_layer": np.where(entered, 0, m.rng.integers(1, layer, B * N)), "layer": layer, "N": N}
    return inputs | {"ghosts": m.flag("ghosts"), "leave_early": m.flag("leave_early"), "cls_only": cls_only}


def _mask_halted(m: _Source) -> Inputs:
    n, layer = m.size("n"), 3
    halting_layer = m.rng.integers(0, layer, n)
    halted = (halting_layer > 0) | (m.rng.random(n) < 0.5)
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


def _cross_entropy(m: _Source) -> Inputs:
    B, K = m.size("B"), m.size("K")
    soft = m.rng.random((B, K))
    targets = (soft / soft.sum(axis=1, keepdims=True)).astype(m.dtype) if m.flag("soft") else m.rng.integers(0, K, B)
    smoothing = m.draw(st.sampled_from([0.0, 0.1]), label="label_smoothing")
    return {"logits": m.normal(B, K, scale=3), "targets": targets, "label_smoothing": smoothing}


def _ponder_loss(m: _Source) -> Inputs:
    B, N = m.size("B"), m.size("N")
    inputs: Inputs = {"ponder": 2 + np.abs(m.normal(B, N))}
    return inputs | {"weights": m.normal(B, N)} if m.flag("weights") else inputs


def _motion_loss(m: _Source) -> Inputs:
    B = m.size("B")
    return {"logits": m.normal(B, 2, scale=3), "moving": m.rng.integers(0, 2, B)}


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


def inputs_for(operation: str, dtype: str = "float64", largest: int = 6) -> st.SearchStrategy[Inputs]:
    """A strategy for the inputs of one operation of the table.

    largest: upper bound of the ordinary sizes (3 is enough for slow interpreters). ValueError for an unknown operation.
    """
    if operation not in _INPUTS:
        raise ValueError(f"operation: expected one of {list(_INPUTS)}, got {operation!r}")

    @st.composite
    def inputs(draw: st.DrawFn) -> Inputs:
        return _INPUTS[operation](_Source(draw, dtype, largest))

    return inputs()
