"""Other rules of halting, forward and backward, in NumPy: one layer's step, the output, the textbook loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.backends import Implementation
from refvt.ops.halting import check_states
from refvt.ops.halting.reference import logistic

__all__ = ["HaltingRule"]


@dataclass
class HaltingRule:
    """How tokens halt. The defaults are SPEC's rule; every field is a place where implementations differ.

    - strict: c > 1 − ε; otherwise c ≥ 1 − ε.
    - epsilon: ε, whatever the configuration says; None: the configuration's. In the last layer every token halts.
    - remainder: "gradient"; "detached" (r is a constant); "score" (a token that halts weighs h, not 1 − Σ h).
    - output: "mean" of the states under the weights, or the "last" state, x at N_k.
    - ponder: "N+r"; "N" alone, which has no gradient; "N-1+r", layers counted from 0; "r" alone.
    - rest: the r of ρ: "weight", the weight of the halting layer in y; or, whatever that weight is, "remainder"
      (1 − Σ h) or "score" (h).
    - first_layer: the number of the first layer in the halting layers that are returned.
    - ponder_gradient: False if ρ is a constant for the ponder loss.
    - cls: "halts"; "never" (score 0 until the last layer, so that y is its last state); "held" (its scores count, but
      it goes on to the last layer, where it gets 1 − Σ h, below 0 if they sum to more).
    - tokens_per_clip: for ``cls``, the places of CLS.
    - ending, given_rest, dponder: no settings. The tokens that halt in the layer just computed, r of those that have
      halted, and, where r is not the weight in y, the gradient at ρ.
    """

    strict: bool = True
    epsilon: float | None = None
    remainder: str = "gradient"
    output: str = "mean"
    ponder: str = "N+r"
    rest: str = "weight"
    first_layer: int = 1
    ponder_gradient: bool = True
    cls: str = "halts"
    tokens_per_clip: int = 0
    ending: Array = field(default_factory=lambda: np.zeros(0, bool), compare=False)
    given_rest: Array = field(default_factory=lambda: np.zeros(0), compare=False)
    dponder: Array = field(default_factory=lambda: np.zeros(0), compare=False)

    def implementations(self, table: Any) -> dict[str, Implementation]:
        """``halt``, ``accumulate`` and ``halt_tokens`` under this rule."""
        tokens = Implementation(table.halt_tokens.operation, self.tokens_forward, self.tokens_backward)
        if self.rest != "weight" and not self.tokens_per_clip:  # one step of ``halt`` has no ρ, and so no second weight
            return {"halt_tokens": tokens}
        return {
            "halt": Implementation(table.halt.operation, self.halt_forward, self.halt_backward),
            "accumulate": Implementation(table.accumulate.operation, self.accumulate_forward, self.accumulate_backward),
            "halt_tokens": tokens,
        }

    # ---- one layer

    def halt_forward(
        self,
        logit: Array,
        used: Array,
        scale: float,
        center: float,
        epsilon: float,
        last: bool,
        forced: Array | None = None,
        keep: bool = True,
    ) -> Any:
        """weight, used_next, halted [n], as the reference's; a token with used = 1 has halted before."""
        is_cls = np.zeros(used.shape, bool)
        if self.cls != "halts" and self.tokens_per_clip:
            is_cls[:: self.tokens_per_clip] = True
        score = np.ones_like(used) if last else logistic(scale * logit - center)  # [n]
        if self.cls == "never" and not last:
            score = np.where(is_cls, 0, score)
        total = used + score
        threshold = 1 - (epsilon if self.epsilon is None else self.epsilon)
        halted = (total > threshold if self.strict else total >= threshold) | last
        if forced is not None:
            halted = forced.astype(bool)
        elif not last:
            halted = halted & ~is_cls
        dead = (used >= 1) & halted & ~is_cls
        self.ending = halted & ~dead
        remainder = score if self.remainder == "score" else 1 - used
        weight = np.where(dead, 0, np.where(halted, remainder, score)).astype(used.dtype)
        used_next = np.where(halted, 1, total).astype(used.dtype)
        rest = {"weight": weight, "remainder": 1 - used, "score": score}[self.rest]
        before = self.given_rest if len(self.given_rest) == len(used) else np.zeros_like(used)
        self.given_rest = np.where(self.ending, rest, before)
        slope = 0 if last else scale * score * (1 - score) * ~(is_cls & (self.cls == "never"))  # dh / dlogit
        return (weight, used_next, halted), (slope, halted, dead) if keep else None

    def halt_backward(self, dweight: Array, dused_next: Array, cache: Any) -> Any:
        """dlogit, dused [n]."""
        slope, halted, dead = cache
        weighs_score = ~halted if self.remainder != "score" else ~dead
        drest = np.where(halted & ~dead, self.dponder, 0) if self.rest != "weight" else np.zeros_like(dweight)
        dscore = np.where(weighs_score, dweight, 0) + np.where(halted, 0, dused_next)
        dremainder = np.where(halted & ~dead, dweight, 0) if self.remainder == "gradient" else np.zeros_like(dweight)
        if self.rest == "score":
            dscore = dscore + drest
        else:
            dremainder = dremainder + drest
        return slope * dscore, np.where(halted, -dremainder, dused_next)

    def accumulate_forward(self, y: Array, x: Array, weight: Array, keep: bool = True) -> Any:
        """y + weight · x, or x itself where the token halts."""
        ending = self.ending
        if self.output == "mean" or len(ending) != len(x):  # a call of ``accumulate`` alone knows of no halting
            return y + weight[:, None] * x, (x, weight) if keep else None
        return np.where(ending[:, None], x, y), ending if keep else None

    def accumulate_backward(self, dy_next: Array, cache: Any) -> Any:
        """dy, dx, dweight."""
        if isinstance(cache, tuple):
            x, weight = cache
            return dy_next.copy(), weight[:, None] * dy_next, (dy_next * x).sum(axis=-1)
        zero = np.zeros_like(dy_next)
        return np.where(cache[:, None], zero, dy_next), np.where(cache[:, None], dy_next, zero), zero[:, 0].copy()

    # ---- all layers

    def ponder_of(self, layers: Array, remainder: Array) -> Array:
        """ρ from the halting layers and the remainders."""
        if self.ponder == "N":
            return layers.astype(remainder.dtype)
        if self.ponder == "r":
            return remainder
        return np.asarray(layers + remainder - (self.ponder == "N-1+r"), dtype=remainder.dtype)

    @property
    def ponder_has_gradient(self) -> bool:
        """Whether a gradient at ρ reaches the remainder."""
        return self.ponder_gradient and self.ponder != "N"

    def tokens_forward(
        self,
        states: Array,
        scale: float,
        center: float,
        epsilon: float,
        forced: Array | None = None,
        keep: bool = True,
    ) -> Any:
        """y, ponder and halting_layer of ``halt_tokens`` under this rule; states [L, N, D]."""
        check_states(states, epsilon, forced)
        L, N, _ = states.shape
        y, used = np.zeros_like(states[0]), np.zeros_like(states[0, :, 0])
        layers, caches = np.zeros(N, np.int64), []
        self.given_rest = np.zeros_like(used)
        for layer in range(1, L + 1):
            choice = None if forced is None else np.asarray(forced) <= layer
            (weight, used, _), halt_cache = self.halt_forward(
                states[layer - 1, :, 0], used, scale, center, epsilon, layer == L, choice
            )
            ending = self.ending
            y, output_cache = self.accumulate_forward(y, states[layer - 1], weight)
            layers[ending] = layer
            caches.append((halt_cache, output_cache, ending))
        results = y, self.ponder_of(layers, self.given_rest), layers - 1 + self.first_layer
        return results, (states.shape, caches) if keep else None

    def tokens_backward(self, dy: Array, dponder: Array, cache: Any) -> Array:
        """dstates [L, N, D]."""
        shape, caches = cache
        dstates, dused = np.zeros(shape, dy.dtype), np.zeros(shape[1], dy.dtype)
        self.dponder = dponder if self.ponder_has_gradient else np.zeros_like(dponder)
        for layer in reversed(range(shape[0])):
            halt_cache, output_cache, ending = caches[layer]
            dy, dstates[layer], dweight = self.accumulate_backward(dy, output_cache)
            if self.rest == "weight":
                dweight = dweight + np.where(ending, self.dponder, 0)
            dlogit, dused = self.halt_backward(dweight, dused, halt_cache)
            dstates[layer, :, 0] += dlogit
        return dstates
