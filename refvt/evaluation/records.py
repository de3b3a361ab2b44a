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

from refvt.checks import NotFiniteError, brief, check_int, is_number, is_whole
from refvt.data.dataset import Dataset, UnreadableClipError
from refvt.evaluation.journal import Journal, Record
from refvt.evaluation.metrics import Evaluation, summarise
from refvt.files import locked
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

    Raises FileExistsError if ``out`` exists and ``resume`` is not set; BlockingIOError if another evaluation is writing
    it; ValueError if it is not an evaluation of this model on these data with this batch, if a line of it is damaged,
    or if the data have another number of classes than the model; NotFiniteError for logits that are not finite.
    """
    batch = check_int("batch", batch)
    if dataset.num_classes != model.config.num_classes:
        raise ValueError(f"dataset: expected the model's {model.config.num_classes} classes, got {dataset.num_classes}")
    if out is None:
        return _evaluate(model, dataset, batch, None, observer)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), str(path)):
        journal = Journal(path, _header(model, dataset, batch), resume, lambda r: _check_record(r, model, dataset))
        return _evaluate(model, dataset, batch, journal, observer)


def _evaluate(
    model: HaltingVT,
    dataset: Dataset,
    batch: int,
    journal: Journal | None,
    observer: Callable[[Record], None] | None,
) -> Evaluation:
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
        labels = _labels(dataset, index)
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
    if not np.isfinite(output.logits).all():
        bad = [r.index for r in found if r.problem is None][int(np.isfinite(output.logits).all(axis=1).argmin())]
        raise NotFiniteError(
            f"clip {bad}: expected finite logits, got NaN or infinity: the model's numbers overflow in {model.dtype}"
        )
    rows = iter(zip(output.logits.tolist(), output.gflops.tolist(), output.tokens_per_layer.tolist(), strict=True))
    for i, record in enumerate(found):
        if record.problem is None:
            logits, gflops, tokens = next(rows)
            found[i] = replace(record, logits=logits, gflops=gflops, tokens_per_layer=tokens)
    return found


def _labels(dataset: Dataset, index: int) -> list[int]:
    """Return the classes of a clip."""
    target = dataset.target(index)
    return [int(i) for i in np.flatnonzero(target)] if dataset.multi_label else [int(target)]


def _check_record(record: Record, model: HaltingVT, dataset: Dataset) -> None:
    """ValueError that names a value of a stored record that this evaluation cannot have written."""
    c, r = model.config, record
    read = r.problem is None

    def check(right: bool, name: str, expected: str) -> None:
        if not right:
            raise ValueError(f"{name}: expected {expected}, got {brief(getattr(r, name))}")

    check(is_whole(r.index, 0, len(dataset) - 1), "index", f"a clip from 0 to {len(dataset) - 1}")
    check(r.labels == _labels(dataset, r.index), "labels", f"the labels of clip {r.index}")
    check(isinstance(r.notes, list) and all(isinstance(n, str) for n in r.notes), "notes", "a list of texts")
    check(read or isinstance(r.problem, str), "problem", "a text or null")
    for name, number, low, high in (
        ("logits", c.num_classes, -np.inf, np.inf),
        ("tokens_per_layer", c.joint_depth, 0, c.joint_tokens),
    ):
        value = getattr(r, name)
        right = isinstance(value, list) and len(value) == number and all(is_number(x, low, high) for x in value)
        check(right if read else value is None, name, f"{number} numbers" if read else "nothing")
    check(
        is_number(r.gflops, 0) if read else r.gflops is None, "gflops", "a number of at least 0" if read else "nothing"
    )


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
