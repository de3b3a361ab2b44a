"""The training loop.

A step takes the clips of one batch, cut in micro-batches: each is computed forward and backward, their gradients are
added, and the optimiser moves the parameters once. The micro-batch is the unit of adding up and of sharing out: of n
processes, process r computes the micro-batches r, r + n, r + 2n, … of every step. What is random in it is told in
``batches``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.data.dataset import Dataset, UnreadableClipError
from refvt.evaluation import Evaluation, records, summarise
from refvt.files import left_behind, write_whole
from refvt.model.haltingvt import HaltingVT
from refvt.model.parameters import parameter_shapes
from refvt.training.batches import (
    MicroBatch,
    TrainingError,
    generator,
    made_ready,
    make_micro_batch,
    micro_batches,
    steps_per_epoch,
)
from refvt.training.observer import Observer
from refvt.training.optimiser import Adam, clip_scale, global_norm, without_decay
from refvt.training.parallel import Alone, Ranks
from refvt.training.recipe import Recipe
from refvt.training.run_state import Progress, read_progress, read_state, write_state
from refvt.training.schedule import learning_rate_at, ponder_weight_at
from refvt.training.scratch import initialise
from refvt.training.vectors import Vector

__all__ = ["train"]

CHECKPOINT, LOG, RECIPE, MODEL = "checkpoint.safetensors", "log.jsonl", "recipe.json", "model.safetensors"
T = TypeVar("T")


def train(
    recipe: Recipe,
    train_set: Dataset,
    test_set: Dataset,
    out: str | os.PathLike[str],
    resume: bool = False,
    parameters: Mapping[str, Array] | None = None,
    ranks: Ranks | None = None,
    backend: str | None = None,
    dtype: str = "float32",
    checkpoint_every: int = 100,
    log_every: int = 10,
    observer: Observer | None = None,
) -> Evaluation:
    """Run a recipe and return its last evaluation.

    The folder ``out`` gets recipe.json, log.jsonl (a line for every ``log_every``-th step and one per evaluation, after
    every epoch), checkpoint.safetensors (every ``checkpoint_every`` steps and after every evaluation) and, at the end,
    model.safetensors.

    resume: continue from the checkpoint in that folder, or begin if there is none yet; the run then ends with the same
    parameters, to the bit, as one that was never interrupted. parameters: initial parameters instead of the recipe's.
    observer: called at every step, and for every clip that cannot be read and is left out (a warning by default).
    ``train_set.clip`` is called from another thread than the caller's.

    Raises TrainingError for data that do not fit the recipe, a folder that already holds a run, or a loss that is not
    finite; CheckpointError for the checkpoint of another recipe.
    """
    group, observer = ranks or Alone(), observer or Observer()
    session = backends.get(backend or backends.default()).session
    for name, value in (("checkpoint_every", checkpoint_every), ("log_every", log_every)):
        if value < 1:
            raise TrainingError(f"{name}: expected at least 1, got {value}")

    def begin() -> _Run:
        with session():
            run = _Run(recipe, train_set, test_set, Path(out), parameters, group, backend, dtype)
            run.find_start(resume)
        return run

    run = _together(group, begin)
    try:
        with session(), run:
            observer.on_start(run.steps, run.done)
            return run.to_the_end(observer, checkpoint_every, log_every)
    except BaseException as error:
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        message = f"{what}; {run.what_is_left()}"
        if group.size > 1:
            observer.on_abort(f"rank {group.rank} of {group.size}: {message}")
            group.abort()
        if isinstance(error, Exception):
            raise TrainingError(message) from error
        raise
    finally:
        observer.on_end()


def _together(ranks: Ranks, begin: Callable[[], T]) -> T:
    """Do something on every rank; if it fails on one it fails on all, so that nobody waits for the others for ever."""
    try:
        result = begin()
    except Exception as error:
        ranks.agree(str(error))
        raise
    problem = ranks.agree(None)
    if problem is not None:
        raise TrainingError(problem)
    return result


def _sums(logits: Array, labels: Array, gflops: Array, tokens_per_layer: Array) -> list[float]:
    """Sums over clips: right answers (the highest logit is a class of the clip), GFLOPs, tokens of every layer."""
    best = logits.argmax(axis=1)
    right = best == labels if labels.ndim == 1 else labels[np.arange(len(best)), best] > 0
    return [float(right.sum()), float(gflops.sum()), *(float(n) for n in tokens_per_layer.sum(axis=0))]


class _Run:
    """A run from where it stands. Nothing in the folder is touched before ``with``."""

    def __init__(
        self,
        recipe: Recipe,
        train_set: Dataset,
        test_set: Dataset,
        out: Path,
        parameters: Mapping[str, Array] | None,
        ranks: Ranks,
        backend: str | None,
        dtype: str,
    ) -> None:
        _check_data(recipe, train_set, test_set, ranks.size)
        self.recipe, self.train_set, self.test_set, self.out, self.ranks = recipe, train_set, test_set, out, ranks
        self.per_epoch = steps_per_epoch(recipe, len(train_set))
        self.steps, self.done = recipe.epochs * self.per_epoch, 0
        self.seconds, self.log_bytes = 0.0, 0
        self.checkpoint, self.log = out / CHECKPOINT, out / LOG

        self.model = HaltingVT(recipe.config, parameters or initialise(recipe, dtype), backend=backend, dtype=dtype)
        shapes = parameter_shapes(recipe.config)
        self.parameters = Vector(shapes, dtype, self.model.backend).set(self.model.parameters)
        self.model.parameters = self.parameters.arrays  # they are moved in place from now on
        self.gradients = Vector(shapes, dtype, self.model.backend)
        self.optimiser = Adam(
            self.parameters,
            without_decay(shapes, norms_and_biases=not recipe.decay_norms_and_biases),
            recipe.optimiser == "adamw",
            recipe.weight_decay,
            recipe.betas,
            recipe.adam_epsilon,
        )

    def find_start(self, resume: bool) -> None:
        """Go to where the checkpoint stands, if the run is to go on and there is one. Rank 0 reads it."""
        if self.ranks.rank != 0:
            return
        if not resume:
            if self.checkpoint.exists() or self.log.exists():
                raise TrainingError(f"{self.out}: holds a run already; go on with it (--resume) or take another folder")
        elif self.checkpoint.exists():
            found = read_progress(self.checkpoint, self.recipe, len(self.train_set), self.model.dtype)
            read_state(self.checkpoint, found, self.parameters, self.optimiser)
            self.done, self.seconds, self.log_bytes = found.steps, found.seconds, found.log_bytes
            if not self.log.is_file() or self.log.stat().st_size < self.log_bytes:
                raise TrainingError(f"{self.log}: expected the {self.log_bytes} bytes that the checkpoint speaks of")

    def __enter__(self) -> Self:
        # everybody starts where rank 0 stands
        self.done = self.optimiser.steps = self.ranks.from_first(self.done)
        for part in (self.parameters, self.optimiser.m, self.optimiser.v) if self.ranks.size > 1 else ():
            part.moves.write(part.vector, self.ranks.from_first(part.numpy()))
        self._started = time.monotonic()
        self._file = None
        if self.ranks.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            for half in left_behind(self.out):
                half.unlink()
            write_whole(self.out / RECIPE, (json.dumps(self.recipe.as_dict(), indent=1) + "\n").encode())
            self._file = self.log.open("ab")
            self._file.truncate(self.log_bytes)  # lines of steps that no checkpoint knows will be written again
            self._file.seek(self.log_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def to_the_end(self, observer: Observer, checkpoint_every: int, log_every: int) -> Evaluation:
        """All steps that are left, an evaluation after every epoch; returns the last one."""
        found: Evaluation | None = None
        wanted = ((step, number) for step in range(self.done, self.steps) for number in self._numbers(step))

        def make(step: int, number: int) -> MicroBatch:
            return make_micro_batch(self.recipe, self.train_set, step, number)

        with closing(made_ready(make, wanted)) as ready:
            for step in range(self.done, self.steps):
                line = self._step(step, (next(ready) for _ in self._numbers(step)), observer)
                self.done = step + 1
                epoch, inside = divmod(self.done, self.per_epoch)
                if self.done % log_every == 0:
                    self._write({"event": "step", **line})
                if inside == 0:
                    found = self._evaluate()
                    self._write({"event": "evaluation", "epoch": epoch, "step": self.done, **_figures(found)})
                observer.on_step(line, found)
                if inside == 0 or self.done % checkpoint_every == 0:
                    self._save()
        if self.ranks.rank == 0:
            self.model.save(self.out / MODEL)
        return found or self._evaluate()

    def what_is_left(self) -> str:
        """For the message of a run that fails."""
        if not self.checkpoint.exists():
            return "no checkpoint had been written yet"
        return f"the run goes on from {self.checkpoint} with --resume"

    def _numbers(self, step: int) -> range:
        """Which micro-batches of a step this rank computes."""
        return range(self.ranks.rank, micro_batches(self.recipe, len(self.train_set), step), self.ranks.size)

    def _evaluate(self) -> Evaluation:
        """The test set, cut in micro-batches and shared out like a step."""
        size, clips = self.recipe.micro_batch, len(self.test_set)
        starts = range(0, clips, size)[self.ranks.rank :: self.ranks.size]
        cuts = [range(start, min(start + size, clips)) for start in starts]
        own = [record for cut in cuts for record in records(self.model, self.test_set, cut)]
        return summarise(self.ranks.everybodys(own), self.test_set.num_classes, self.test_set.multi_label)

    def _step(self, step: int, share: Iterable[MicroBatch], observer: Observer) -> dict[str, Any]:
        """One step on this rank's micro-batches and everybody's gradients; returns the line of the log."""
        recipe, gradients = self.recipe, self.gradients
        gradients.clear()
        ponder_weight = ponder_weight_at(step, self.per_epoch, recipe.ponder_weight, recipe.ponder_warmup_epochs)
        # clips; then sums over clips: loss, recognition, ponder, motion, right answers, GFLOPs, tokens of every layer
        sums = np.zeros(7 + recipe.config.joint_depth)
        for batch in share:
            for problem in batch.unreadable:
                observer.on_unreadable_clip(problem)
            if batch.size == 0:
                continue
            loss, found = self.model.loss_and_gradients(
                batch.clips,
                batch.labels,
                batch.motion_labels,
                ponder_weight,
                recipe.motion_weight,
                recipe.label_smoothing,
                drop_path=recipe.drop_path,
                rng=generator(recipe, "drop path", step, batch.number),
                arrays="device",  # gradients stay where they are added up
            )
            if not np.isfinite(loss.total):
                raise TrainingError(f"the loss of step {step + 1} is {loss.total}")
            n, out = batch.size, loss.output
            gradients.add(found, n)  # a mean over clips becomes a sum, and below a mean again
            losses = [n * x for x in (loss.total, loss.recognition, loss.ponder, loss.motion)]
            # right answers and cost are those of the moving clips: their twins would flatter both
            logits = gradients.moves.to_numpy(out.logits)
            own = _sums(logits[:n], batch.labels[:n], out.gflops[:n], out.tokens_per_layer[:n])
            sums += [n, *losses, *own]
        if self.ranks.size > 1:
            everybodys = gradients.numpy()
            self.ranks.add_up(everybodys)
            gradients.moves.write(gradients.vector, everybodys)
        self.ranks.add_up(sums)
        if sums[0] == 0:
            raise TrainingError(f"none of the clips of step {step + 1} can be read")
        norm = global_norm(gradients) / sums[0]
        if not np.isfinite(norm):
            raise TrainingError(f"the gradients of step {step + 1} have the norm {norm}")
        learning_rate = learning_rate_at(
            step,
            self.per_epoch,
            recipe.epochs,
            recipe.learning_rate,
            recipe.warmup_epochs,
            recipe.warmup_start,
            recipe.lr_per,
        )
        self.optimiser.step(gradients, learning_rate, clip_scale(norm, recipe.max_grad_norm) / sums[0])
        total, recognition, ponder, motion, right, gflops, *tokens = (float(x) for x in sums[1:] / sums[0])
        return {
            "step": step + 1,
            "epoch": step // self.per_epoch + 1,
            "clips": int(sums[0]),
            "learning_rate": learning_rate,
            "loss": total,
            "recognition": recognition,
            "ponder": ponder,
            "motion": motion,
            "accuracy": right,
            "gradient_norm": norm,
            "gflops": gflops,
            "tokens_per_layer": tokens,
        }

    def _passed(self) -> float:
        return self.seconds + time.monotonic() - self._started

    def _write(self, line: dict[str, Any]) -> None:
        """A line of the log, by the first rank alone."""
        if self._file is not None:
            self._file.write((json.dumps({**line, "seconds": round(self._passed(), 3)}) + "\n").encode())
            self._file.flush()

    def _save(self) -> None:
        """A checkpoint, by the first rank alone, once the log it speaks of is on the disk."""
        if self._file is None:
            return
        os.fsync(self._file.fileno())
        progress = Progress(self.done, self._file.tell(), self._passed(), len(self.train_set), self.model.dtype)
        write_state(self.checkpoint, self.recipe, progress, self.parameters, self.optimiser)


def _check_data(recipe: Recipe, train_set: Dataset, test_set: Dataset, processes: int) -> None:
    c = recipe.config
    expected = [c.channels, c.num_frames, *c.image_size]
    for name, data in (("training set", train_set), ("test set", test_set)):
        if len(data) == 0:
            raise TrainingError(f"{name}: expected at least one clip, got none")
        if data.num_classes != c.num_classes:
            raise TrainingError(
                f"{name}: expected the {c.num_classes} classes of config.num_classes, got {data.num_classes}"
            )
        shape = _shape(data, name)
        if shape != expected:
            raise TrainingError(f"{name}: expected clips {expected} (C, T, height, width) by config, got {shape}")
    shares = recipe.batch // recipe.micro_batch
    if processes > shares:
        raise TrainingError(
            f"a batch of {recipe.batch} in micro-batches of {recipe.micro_batch} makes {shares} shares, too few for "
            f"{processes} processes: take smaller micro-batches"
        )


def _shape(data: Dataset, name: str) -> list[int]:
    """The shape of a set's first clip that can be read."""
    for index in range(len(data)):
        try:
            return list(data.clip(index).shape)
        except UnreadableClipError:
            continue
    raise TrainingError(f"{name}: none of its {len(data)} clips can be read")


def _figures(found: Evaluation) -> dict[str, Any]:
    """What the log keeps of an evaluation: its figures, and how many clips were skipped."""
    figures = {**asdict(found), "skipped": len(found.skipped)}
    del figures["notes"]
    return figures
