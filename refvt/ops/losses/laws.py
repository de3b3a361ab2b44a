"""What must hold for any of the losses."""

from __future__ import annotations

import numpy as np

from refvt.ops.laws import Computes, Inputs, Law, agree, backward, forward

__all__ = ["LAWS"]


def a_shift_is_nothing(op: Computes, inputs: Inputs) -> None:
    """Adding 8 to every logit changes nothing, and the gradient of every clip sums to zero."""
    logits = inputs["logits"]
    results, cache = forward(op, inputs)
    shifted = forward(op, {**inputs, "logits": logits + 8})[0]["loss"]
    weight = 1.0
    targets = inputs.get("targets")
    if targets is not None and targets.ndim == 2:
        weight = 1 + float(np.abs(targets).sum(axis=1).max())
    terms = weight * (np.abs(logits).max() + 16)
    agree("cross-entropy: shifted logits", shifted, results["loss"], terms, logits.size + 8)
    dlogits = backward(op, {"loss": np.asarray(1, dtype=logits.dtype)}, cache)["logits"]
    agree("cross-entropy: row sums of dlogits", dlogits.sum(axis=1), np.zeros(len(logits)), weight, logits.shape[1] + 8)


def even_logits_cost_log_k(op: Computes, inputs: Inputs) -> None:
    """With equal logits the loss is log K, for targets that sum to one."""
    targets = inputs.get("targets", inputs.get("moving"))
    if targets.ndim == 2:
        return
    K = inputs["logits"].shape[1]
    loss = forward(op, {**inputs, "logits": np.zeros_like(inputs["logits"])})[0]["loss"]
    agree("cross-entropy: equal logits", loss, np.log(K), np.log(K) + 1, K + len(targets) + 4)


def ponder_is_the_mean(op: Computes, inputs: Inputs) -> None:
    """The loss of a constant ponder is that constant times the mean weight; the gradients are the weights' shares."""
    ponder = inputs["ponder"]
    weights = inputs.get("weights")
    w = np.ones_like(ponder) if weights is None else weights
    results, cache = forward(op, {**inputs, "ponder": np.full_like(ponder, 3)})
    size = float(np.abs(w).max())
    agree("ponder_loss: of a constant", results["loss"], 3.0 * w.mean(), 3 * size, ponder.size)
    gradient = backward(op, {"loss": np.asarray(2, dtype=ponder.dtype)}, cache)["ponder"]
    agree("ponder_loss: its gradient", gradient, 2 * w / ponder.size, 2 * size / ponder.size, 2)


LAWS: dict[str, tuple[Law, ...]] = {
    "cross_entropy": (a_shift_is_nothing, even_logits_cost_log_k),
    "ponder_loss": (ponder_is_the_mean,),
    "motion_loss": (a_shift_is_nothing, even_logits_cost_log_k),
}
