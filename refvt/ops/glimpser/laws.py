"""What must hold for any Glimpser selection."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from refvt.ops.laws import Computes, Inputs, Law, LawBroken, agree, backward, cotangents, forward

__all__ = ["LAWS"]


def scores_are_a_share(op: Computes, inputs: Inputs) -> None:
    """Scores are not negative and, since the weight of CLS itself is left out, add up to less than one."""
    scores = forward(op, inputs)[0]["scores"]
    eps = np.finfo(scores.dtype).eps
    if not ((scores >= 0).all() and (scores.sum(axis=1) <= 1 + scores.shape[1] * eps).all()):  # NaN fails too
        raise LawBroken("cls_scores: the scores of a frame do not add up to less than one")


def scores_follow_the_patches(op: Computes, inputs: Inputs) -> None:
    """Reversing the patches of every frame reverses the scores; other frames have no influence."""
    offsets = inputs["offsets"]
    index = np.concatenate([[a, *range(b - 1, a, -1)] for a, b in pairwise(offsets)])
    scores = forward(op, inputs)[0]["scores"]
    reversed_scores = forward(op, {**inputs, "q": inputs["q"][index], "k": inputs["k"][index]})[0]["scores"]
    d = inputs["q"].shape[1] // inputs["num_heads"]
    logits = np.abs(inputs["q"]).max() * np.abs(inputs["k"]).max() * np.sqrt(d)
    count = int((scores.shape[1] + d) * (4 + 2 * logits))
    agree("cls_scores: reversed patches", reversed_scores[:, ::-1], scores, scores, count)


def only_cls_asks(op: Computes, inputs: Inputs) -> None:
    """Only the CLS row's query is read, so only it gets a gradient."""
    results, cache = forward(op, inputs)
    dq = backward(op, cotangents(op, results, seed=17), cache)["q"]
    others = np.setdiff1d(np.arange(len(dq)), inputs["offsets"][:-1])
    if dq[others].any():
        raise LawBroken("cls_scores: the query of a patch got a gradient")


def top_k_is_a_sorted_choice(op: Computes, inputs: Inputs) -> None:
    """The k patches are different, in descending order of score, ties by index, and none dropped scores higher."""
    scores, k = inputs["scores"], inputs["k"]
    for f, kept in enumerate(forward(op, inputs)[0]["kept"]):
        expected = sorted(range(scores.shape[1]), key=lambda s: (-scores[f, s], s))[:k]
        if list(kept) != expected:
            raise LawBroken(f"top_k: row {f} kept {list(kept)}, expected {expected}")


def fused_and_kept_make_the_whole(op: Computes, inputs: Inputs) -> None:
    """fused + Σ kept scores · x = Σ scores · x over all patches."""
    scores, kept = inputs["scores"], inputs["kept"]
    x = inputs["x"].reshape(*scores.shape, -1)
    weighted = scores[:, :, None] * x  # [segments, S, D]
    chosen = np.take_along_axis(weighted, kept[:, :, None], axis=1).sum(axis=1)
    fused = forward(op, inputs)[0]["fused"]
    agree(
        "fuse_dropped: fused + kept", fused + chosen, weighted.sum(axis=1), np.abs(weighted).sum(axis=1), x.shape[1] + 2
    )


def the_kept_are_not_fused(op: Computes, inputs: Inputs) -> None:
    """A kept patch gets no gradient from the fused token, neither its state nor its score."""
    results, cache = forward(op, inputs)
    gradients = backward(op, cotangents(op, results, seed=18), cache)
    dx = gradients["x"].reshape(*inputs["scores"].shape, -1)
    kept = inputs["kept"]
    if np.take_along_axis(gradients["scores"], kept, axis=1).any() or np.take_along_axis(dx, kept[:, :, None], 1).any():
        raise LawBroken("fuse_dropped: a kept patch got a gradient from the fused token")


LAWS: dict[str, tuple[Law, ...]] = {
    "cls_scores": (scores_are_a_share, scores_follow_the_patches, only_cls_asks),
    "top_k": (top_k_is_a_sorted_choice,),
    "fuse_dropped": (fused_and_kept_make_the_whole, the_kept_are_not_fused),
}
