"""Running a labelled set: how often a model is right on labelled clips, and what that costs.

Each clip gives one record, its logits among them, and every figure is made of the records at the end. So records can
be written down as they come, one line of JSON each, and an evaluation that was killed goes on where it was: batches are
cut at the same places, and the final figures are the same to the bit.

A clip that cannot be read is skipped and listed, and a later ``--resume`` tries it again.
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

__all__ = ["evaluate", "records"]


def evaluate(
    model: HaltingVT,
    dataset: Dataset,
    batch: int = 8,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    observer: Callable[[Record], None] | None = None,
) -> Evaluation:
    """Run a model on every clip of a data set, in evaluation form, `batch` clips at a time.

    out: a file for the records, one JSON line per clip, written batch by batch after a line that says what is
    evaluated; `resume` continues such a file (and starts it, if it is not there). observer: called with the record of
    every clip, those of a file that is continued included.
    Raises FileExistsError if `out` is there without `resume`; ValueError if it holds no evaluation of this model on
    these data with this batch, and for data of another number of classes than the model's.
    """
    batch = check_int("batch", batch)
    if dataset.num_classes != model.config.num_classes:
        raise ValueError(f"the data have {dataset.num_classes} classes, the model has {model.config.num_classes}")
    journal = Journal(Path(out), _header(model, dataset, batch), resume) if out is not None else None
    done = dict(journal.done) if journal else {}
    if observer:
        for record in done.values():
            observer(record)
    for first in range(0, len(dataset), batch):
        indices = range(first, min(first + batch, len(dataset)))
        if all(i in done and done[i].problem is None for i in indices):
            continue
        new = [r for r in records(model, dataset, indices) if r.index not in done or done[r.index] != r]
        if journal:
            journal.write(new)
        for record in new:
            if observer and record.index not in done:
                observer(record)
            done[record.index] = record
    return summarise(done.values(), dataset.num_classes, dataset.multi_label)


def records(model: HaltingVT, dataset: Dataset, indices: Sequence[int]) -> list[Record]:
    """The records of some clips, computed in one batch."""
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
        about_data = [
            w for w in caught if issubclass(w.category, UserWarning | RuntimeWarning)
        ]  # not of libraries' API
        found.append(Record(index, labels, [str(w.message) for w in about_data], problem))
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
    digest = hashlib.sha256()
    for name in sorted(model.parameters):
        digest.update(name.encode())
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
