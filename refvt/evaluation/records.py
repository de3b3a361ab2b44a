"""Evaluating a model on a labelled data set: accuracy and cost.

Each clip gives one record, which contains its logits; all figures are computed from the records at the end. Records are
written as they are computed, one line of JSON each, so an evaluation that was killed can be resumed: batches are cut at
the same places, and the final figures are the same bit for bit.

A clip that cannot be read is skipped and listed; resuming tries it again.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refvt.checks import check_int
from refvt.data.dataset import Dataset, UnreadableClipError
from refvt.evaluation.journal import Journal, Record
from refvt.evaluation.metrics import Evaluation, summarise
from refvt.model.haltingvt import HaltingVT

__all__ = ["compute_records", "evaluate"]


def evaluate(
    model: HaltingVT,
    dataset: Dataset,
    batch: int = 8,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    observer: Callable[[Record], None] | None = None,
) -> Evaluation:
    """Run a model on every clip of a data set, without augmentation, ``batch`` clips at a time.

    out: a file for the records, written batch by batch (see ``journal``). resume: continue that file if it exists.
    observer: called with the record of every clip, including those of a file that is resumed.

    Raises FileExistsError if ``out`` exists and ``resume`` is not set; ValueError if it is not an evaluation of this
    model on these data with this batch, or if the data have another number of classes than the model.
    """
    batch = check_int("batch", batch)
    if dataset.num_classes != model.config.num_classes:
        raise ValueError(f"dataset: expected the model's {model.config.num_classes} classes, got {dataset.num_classes}")
    journal = Journal(Path(out), _header(model, dataset, batch), resume) if out is not None else None
    done = dict(journal.done) if journal else {}
    if observer:
        for record in done.values():
            observer(record)
    for first in range(0, len(dataset), batch):
        indices = range(first, min(first + batch, len(dataset)))
        if all(i in done and done[i].problem is None for i in indices):
            continue
        new = [r for r in compute_records(model, dataset, indices) if r.index not in done or done[r.index] != r]
        if journal:
            journal.write(new)
        for record in new:
            if observer and record.index not in done:
                observer(record)
            done[record.index] = record
    return summarise(done.values(), dataset.num_classes, dataset.multi_label)


def compute_records(model: HaltingVT, dataset: Dataset, indices: Sequence[int]) -> list[Record]:
    """Compute the records of some clips in one batch."""
    found: list[Record] = []
    clips = []
    for index in indices:
        target = dataset.target(index)
        labels = [int(i) for i in np.flatnonzero(target)] if dataset.multi_label else [int(target)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                clips.append(dataset.clip(index))
                problem = None
            except UnreadableClipError as error:
                problem = str(error)
        # warnings about the data; others are about the API of libraries
        notes = [str(w.message) for w in caught if issubclass(w.category, UserWarning | RuntimeWarning)]
        found.append(Record(index, labels, notes, problem))
    if not clips:
        return found
    output = model(np.stack(clips))
    rows = iter(zip(output.logits.tolist(), output.gflops.tolist(), output.tokens_per_layer.tolist(), strict=True))
    for i, record in enumerate(found):
        if record.problem is None:
            logits, gflops, tokens = next(rows)
            found[i] = replace(record, logits=logits, gflops=gflops, tokens_per_layer=tokens)
    return found


def _header(model: HaltingVT, dataset: Dataset, batch: int) -> dict[str, Any]:
    """Return what identifies an evaluation: configuration, parameters, arithmetic, data and batch."""
    digest = hashlib.sha256()
    for name in sorted(model.parameters):
        digest.update(name.encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(model.parameters[name]).tobytes())
    return {
        **{f"config.{name}": value for name, value in model.config.as_dict().items()},
        "parameters": digest.hexdigest(),
        "backend": model.backend,
        "dtype": model.dtype,
        "data": repr(dataset),
        "clips": len(dataset),
        "batch": batch,
    }
