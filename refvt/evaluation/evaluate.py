"""``refvt evaluate``: how often a model is right on labelled clips, and what that costs.

Each clip gives one record, its logits among them, and every figure is made of the records at the end. So records can
be written down as they come, one line of JSON each, and an evaluation that was killed goes on where it was: batches are
cut at the same places, and the final figures are the same to the bit.

A clip that cannot be read is skipped and listed, and a later ``--resume`` tries it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt import backends
from refvt.array import Array
from refvt.data.annotations import AnnotatedVideos
from refvt.data.dataset import Dataset, UnreadableClipError
from refvt.data.moving_digits import MovingDigits
from refvt.data.sampling import whole
from refvt.evaluation.journal import Journal, Record
from refvt.model.config import PRESETS, HaltingVTConfig
from refvt.model.haltingvt import HaltingVT
from refvt.training.recipe import Recipe
from refvt.weights.shipped import shipped, shipped_files

__all__ = ["Evaluation", "Record", "add_arguments", "average_precision", "evaluate", "records", "run", "summarise"]


@dataclass(frozen=True)
class Evaluation:
    """The figures of an evaluation; those that do not apply, or for which no clip was read, are None.

    clips: how many were read. top1, top5: share of clips whose class has the largest logit, or one of the five largest.
    mean_average_precision: for multi-label data; classes_without_clips counts the classes it leaves out. loss: the
    recognition loss, mean over clips. gflops: mean per clip in the literature's convention. tokens_per_layer: mean per
    clip of the tokens that enter each joint block. skipped: why clips could not be read. notes: what was doubtful.
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


def evaluate(
    model: HaltingVT,
    dataset: Dataset,
    batch: int = 8,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Run a model on every clip of a data set, in evaluation form, `batch` clips at a time.

    out: a file for the records, one JSON line per clip, written batch by batch after a line that says what is
    evaluated; `resume` continues such a file (and starts it, if it is not there). progress: show a bar.
    Raises FileExistsError if `out` is there without `resume`; ValueError if it holds no evaluation of this model on
    these data with this batch, and for data of another number of classes than the model's.
    """
    batch = whole("batch", batch)
    if dataset.num_classes != model.config.num_classes:
        raise ValueError(f"the data have {dataset.num_classes} classes, the model has {model.config.num_classes}")
    journal = Journal(Path(out), _header(model, dataset, batch), resume) if out is not None else None
    done = dict(journal.done) if journal else {}
    with _Bar(len(dataset), progress) as bar:
        for record in done.values():
            bar.add(record)
        for first in range(0, len(dataset), batch):
            indices = range(first, min(first + batch, len(dataset)))
            if all(i in done and done[i].problem is None for i in indices):
                continue
            new = [r for r in records(model, dataset, indices) if r.index not in done or done[r.index] != r]
            if journal:
                journal.write(new)
            for record in new:
                if record.index not in done:
                    bar.add(record)
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


# ---- figures


def summarise(found: Iterable[Record], num_classes: int, multi_label: bool) -> Evaluation:
    """The figures of records in any order; they depend on nothing else."""
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
        # How many classes come before the right one; of equals the lower number first, and NaN is never right.
        rank = (~(logits < own) & ((logits != own) | (np.arange(num_classes) < labels[:, None]))).sum(axis=1)
        top1, top5 = float((rank < 1).mean()), float((rank < 5).mean())
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
    """Σ (R_n − R_{n−1}) · P_n over the thresholds n, precision P and recall R of what scores at least so much.

    scores [clips]; relevant [clips], 0 or 1. Equal scores share a threshold. None if nothing is relevant. The mean over
    classes is mAP; scores are the softmax over a clip's classes, as the released configurations average them.
    """
    total = relevant.sum()
    if total == 0:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(relevant[order])
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each run of equal scores
    recall = hits[last] / total
    return float((np.diff(recall, prepend=0) * hits[last] / (last + 1)).sum())


# ---- while it runs


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


class _Bar:
    """A progress bar with running figures, or nothing."""

    def __init__(self, total: int, show: bool) -> None:
        self._bar = None
        self._read, self._right, self._gflops, self._skipped = 0, 0, 0.0, 0
        if show:
            try:
                from tqdm import tqdm
            except ModuleNotFoundError as error:
                message = 'a progress bar needs tqdm: pip install "refvt[demo]"'
                raise ModuleNotFoundError(message, name="tqdm") from error
            self._bar = tqdm(total=total, unit="clip")

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, record: Record) -> None:
        if self._bar is None:
            return
        if record.logits is not None and record.gflops is not None:
            self._read += 1
            self._right += int(np.argmax(record.logits)) in record.labels
            self._gflops += record.gflops
        else:
            self._skipped += 1
        said = {}
        if self._read:
            said = {"right": f"{self._right / self._read:.1%}", "GFLOPs": f"{self._gflops / self._read:.2f}"}
        if self._skipped:
            said["skipped"] = str(self._skipped)
        self._bar.set_postfix(said, refresh=False)
        self._bar.update()


# ---- the command

DEFAULT_PRESET = "minik-g03-b10"
_LISTED = 20  # skipped videos, at most, in the report for people


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``refvt evaluate``."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--preset", default=None, choices=list(PRESETS), help=f"configuration; default: {DEFAULT_PRESET}"
    )
    which.add_argument("--config", type=Path, default=None, metavar="FILE.json", help="another one, as JSON")
    parser.add_argument(
        "--weights",
        type=Path,
        default=None,
        help="a checkpoint: .pth, .safetensors or .npz; default for --data digits: the model that comes with refvt",
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--annotations", type=Path, metavar="LIST", help="an annotation list, as MMAction's")
    data.add_argument("--data", choices=["digits"], help="moving digits, in the size that the configuration asks for")
    parser.add_argument("--root", type=Path, default=None, help="where the list's paths start; default: its own folder")
    parser.add_argument("--stride", type=int, default=None, help="frames between samples; default: 32, anet-…: 64")
    parser.add_argument("--multi-label", action="store_true", help="several labels a video: mAP instead of top-1")
    parser.add_argument("--strict", action="store_true", help="refuse a list with any line that cannot be used")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=N", help="of --data digits: clips, clutter, noise, seed …"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="clips at a time")
    parser.add_argument(
        "--backend", default=None, choices=list(backends.COLUMNS), help="default: the fastest on the CPU"
    )
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.jsonl", help="a line of JSON for every video")
    parser.add_argument("--resume", action="store_true", help="go on with --out where it was broken off")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(options: argparse.Namespace) -> int:
    """Evaluate and print; 0, or 1 if no clip could be read. ValueError or OSError for a request that cannot be met."""
    if options.resume and options.out is None:
        raise ValueError("--resume needs --out, the file to go on with")
    if options.weights is None:
        model, recipe = _shipped(options)
        config, options.weights = recipe.config, shipped_files().weights
        dataset, problems = _dataset(options, config, recipe.data_settings)
    else:
        config = _config(options)
        dataset, problems = _dataset(options, config, {})
        model = refvt.load(options.weights, config, backend=options.backend)
    done = evaluate(model, dataset, options.batch, out=options.out, resume=options.resume, progress=not options.json)
    done = replace(done, skipped=[*problems, *done.skipped])
    if options.json:
        print(json.dumps({"weights": str(options.weights), "data": repr(dataset), **asdict(done)}, indent=1))
    else:
        print(f"{options.weights} on {dataset!r}")
        print("\n".join(_report(done, config)))
    return 0 if done.clips else 1


def _shipped(options: argparse.Namespace) -> tuple[HaltingVT, Recipe]:
    if options.data != "digits":
        raise ValueError(
            "--weights: needed with --annotations; the model that comes with refvt knows moving digits only"
        )
    for option, given in (("--preset", options.preset), ("--config", options.config)):
        if given is not None:
            raise ValueError(f"{option}: needs --weights; the model that comes with refvt has its own configuration")
    return shipped("digits", options.backend)


def _config(options: argparse.Namespace) -> HaltingVTConfig:
    path = options.config
    if path is None:
        return HaltingVTConfig.preset(options.preset or DEFAULT_PRESET)
    try:
        return HaltingVTConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: no configuration: {error}") from None


def _dataset(
    options: argparse.Namespace, config: HaltingVTConfig, settings: Mapping[str, Any]
) -> tuple[Dataset, Sequence[str]]:
    """The labelled clips, and what is wrong with an annotation list. settings: those of the model's own recipe."""
    if options.annotations is not None:
        if options.set:
            raise ValueError("--set is for --data digits")
        stride = options.stride
        if stride is None:
            stride = 64 if (options.preset or "").startswith("anet-") else 32
        root = options.annotations.parent if options.root is None else options.root
        videos = AnnotatedVideos(options.annotations, root, config, stride, options.multi_label, strict=options.strict)
        return videos, videos.problems
    if config.image_size[0] != config.image_size[1]:
        raise ValueError(f"--data digits: expected a square image_size in the configuration, got {config.image_size}")
    known = {"clips", "digit_size", "clutter", "noise", "seed"}
    asked: dict[str, int] = {name: value for name, value in settings.items() if name in known}
    for setting in options.set:
        name, _, number = setting.partition("=")
        try:
            asked[name] = int(number)
        except ValueError:
            raise ValueError(f"--set: expected NAME=N with a whole number N, got {setting!r}") from None
    if asked.keys() - known:
        raise ValueError(f"--set: expected settings among {', '.join(sorted(known))}, got {', '.join(asked)}")
    size, T, channels = config.image_size[0], config.num_frames, config.channels
    return MovingDigits("test", frames=T, size=size, channels=channels, **asked), ()


def _report(done: Evaluation, config: HaltingVTConfig) -> Iterator[str]:
    yield f"clips read        {done.clips}"
    if done.clips:
        if done.mean_average_precision is not None:
            left_out = f"  ({done.classes_without_clips} classes without a clip left out)"
            yield f"mAP               {done.mean_average_precision:.2%}{left_out if done.classes_without_clips else ''}"
        if done.top1 is not None and done.top5 is not None:
            yield f"top-1, top-5      {done.top1:.2%}, {done.top5:.2%}"
        yield f"recognition loss  {done.loss:.4f}"
        yield f"GFLOPs            {done.gflops:.3f}"
        tokens = ", ".join(f"{n:.1f}" for n in done.tokens_per_layer or ())
        yield f"tokens per layer  {tokens}  (of {config.joint_tokens})"
    for title, lines in (("notes", done.notes), ("skipped", done.skipped)):
        if lines:
            yield f"{title}: {len(lines)}"
            yield from (f"  {line}" for line in lines[:_LISTED])
            if len(lines) > _LISTED:
                yield f"  … and {len(lines) - _LISTED} more; --json lists all"
