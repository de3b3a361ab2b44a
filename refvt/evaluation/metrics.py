"""The figures of an evaluation, computed from the records of its clips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from refvt.array import Array
from refvt.evaluation.journal import Record

__all__ = ["Evaluation", "average_precision", "summarise"]


@dataclass(frozen=True)
class Evaluation:
    """The figures of an evaluation. Those that do not apply are None; without any readable clip all of them are.

    clips: number of clips read. top1, top5: fraction of clips whose class has the largest logit, or one of the five
    largest. mean_average_precision: for multi-label data; classes_without_clips: number of classes that it leaves out.
    loss: the cross-entropy with a target of 1 at each of the clip's labels, without label smoothing, mean over clips.
    gflops: mean per clip in the literature's convention. tokens_per_layer: mean over clips of the number of tokens that
    enter each joint block. skipped: why clips could not be read. notes: warnings raised while reading.
    """

    clips: int
    top1: float | None
    top5: float | None
    mean_average_precision: float | None
    classes_without_clips: int | None
    loss: float | None
    gflops: float | None
    tokens_per_layer: list[float] | None
    skipped: list[str]
    notes: list[str]


def summarise(found: Iterable[Record], num_classes: int, multi_label: bool) -> Evaluation:
    """Compute the figures from records in any order; they depend on nothing else."""
    ordered = sorted(found, key=lambda record: record.index)
    read = [record for record in ordered if record.problem is None]
    skipped = [record.problem for record in ordered if record.problem is not None]
    notes = [note for record in ordered for note in record.notes]
    if not read:
        return Evaluation(0, None, None, None, None, None, None, None, skipped, notes)
    logits = np.array([record.logits for record in read], np.float64)  # [clips, K], float64
    targets = np.zeros((len(read), num_classes))
    for row, record in zip(targets, read, strict=True):
        row[record.labels] = 1
    log_softmax = logits - logits.max(axis=1, keepdims=True)
    log_softmax -= np.log(np.exp(log_softmax).sum(axis=1, keepdims=True))
    top1 = top5 = precision = without = None
    if multi_label:
        by_class = [average_precision(np.exp(log_softmax[:, k]), targets[:, k]) for k in range(num_classes)]
        with_clips = [p for p in by_class if p is not None]
        precision, without = float(np.mean(with_clips)) if with_clips else None, num_classes - len(with_clips)
    else:
        labels = targets.argmax(axis=1)
        own = logits[np.arange(len(read)), labels][:, None]
        # number of classes ranked before the right one: equal logits by class number, and NaN is never right
        rank = (~(logits < own) & ((logits != own) | (np.arange(num_classes) < labels[:, None]))).sum(axis=1)
        top1, top5 = (float((rank < min(k, num_classes)).mean()) for k in (1, 5))
    return Evaluation(
        clips=len(read),
        top1=top1,
        top5=top5,
        mean_average_precision=precision,
        classes_without_clips=without,
        loss=float(-(targets * log_softmax).sum(axis=1).mean()),
        gflops=float(np.array([record.gflops for record in read]).mean()),
        tokens_per_layer=np.array([record.tokens_per_layer for record in read]).mean(axis=0).tolist(),
        skipped=skipped,
        notes=notes,
    )


def average_precision(scores: Array, relevant: Array) -> float | None:
    """Average precision of one class: Σ (R_n − R_{n−1}) · P_n over the thresholds n; None if no clip has the class.

    P_n and R_n are precision and recall of the clips that score at least threshold n; equal scores share a threshold.
    scores [clips]; relevant [clips], 1 where a clip has the class, else 0. mAP is the mean over classes. The scores are
    the softmax over a clip's classes, as in the released configurations.
    """
    total = relevant.sum()
    if total == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(relevant[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each run of equal scores
    recall = hits[last] / total
    return float((np.diff(recall, prepend=0) * hits[last] / (last + 1)).sum())
