"""The training loop.

A step takes the clips of one batch, cut into micro-batches: each is computed forward and backward, their gradients are
summed, and the optimiser updates the parameters once. The micro-batch is the unit of accumulation and of distribution:
of n processes, process r computes the micro-batches r, r + n, r + 2n, … of every step. How random numbers are drawn is
explained in ``batches``.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.checks import NotFiniteError, words_of
from refvt.data.change import change_of_patches
from refvt.data.dataset import Dataset, ShowsObject
from refvt.evaluation import Evaluation, compute_records, summarise
from refvt.evaluation.selectivity import compute_lives, summarise_lives
from refvt.files import write_whole
from refvt.model.checkpoints import read_checkpoint
from refvt.model.haltingvt import HaltingVT, load
from refvt.model.parameters import parameter_shapes
from refvt.training.batches import (
    MicroBatch,
    generator,
    make_micro_batch,
    micro_batches,
    prefetch,
    steps_per_epoch,
)
from refvt.training.data_sets import check_data
from refvt.training.errors import DivergedError, TrainingError
from refvt.training.folder import (
    BACKBONE,
    CHECKPOINT,
    LOG,
    MODEL,
    RECIPE,
    alone_in,
    check_recipe,
    claim,
    is_finished,
)
from refvt.training.observer import Observer
from refvt.training.optimiser import Adam, clip_scale, global_norm, select_no_decay
from refvt.training.parallel import Communicator, SingleProcess, call_on_all
from refvt.training.recipe import Recipe, make_moving_digits
from refvt.training.run_state import Progress, check_log, read_progress, read_state, write_state
from refvt.training.schedule import learning_rate_at, ponder_weight_at
from refvt.training.scratch import initialise
from refvt.training.vectors import Vector

__all__ = ["train", "train_to_end"]


def train(
    recipe: Recipe,
    train_set: Dataset,
    test_set: Dataset,
    out: str | os.PathLike[str],
    resume: bool = False,
    overwrite: bool = False,
    parameters: Mapping[str, Array] | None = None,
    communicator: Communicator | None = None,
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

    resume: continue from the checkpoint in that folder, or begin if there is none yet; the run then ends with the
    same parameters, to the bit, as one that was never interrupted. overwrite: remove the files of a run that is
    there already, and begin; other files in the folder stay. A lock keeps a second run out of the folder.
    parameters: initial parameters instead of the recipe's. If the recipe has a backbone and no parameters are
    given, the backbone is trained first, in the folder "backbone" of ``out``; one that is finished there is not
    trained again. communicator: the processes that share the work; None: this one alone. observer: called at every
    step, and for every clip that cannot be read and is left out (a warning by default). ``train_set.clip`` is
    called from another thread than the caller's.

    Raises TrainingError for data that do not fit the recipe and for a folder that already holds a run or files of its
    names; DivergedError, and no model is written, if the loss, a gradient, a parameter or an evaluation is not finite;
    CheckpointError for the checkpoint of another recipe, or a damaged one; BlockingIOError if another run is under way
    in the folder.
    """
    communicator, observer = communicator or SingleProcess(), observer or Observer()
    session = backends.get(backend or backends.default()).session
    for name, value in (("checkpoint_every", checkpoint_every), ("log_every", log_every)):
        if value < 1:
            raise TrainingError(f"{name}: expected at least 1, got {value}")

    out, backbone = Path(out), recipe.backbone is not None and parameters is None
    if resume and overwrite:
        raise TrainingError("overwrite: expected without resume, got both")
    call_on_all(communicator, lambda: check_data(recipe, train_set, test_set, communicator.size))
    with ExitStack() as held:

        def enter() -> None:
            if communicator.rank == 0:
                held.enter_context(alone_in(out))
                claim(out, recipe, resume, overwrite, backbone)

        call_on_all(communicator, enter)
        if backbone:
            assert recipe.backbone is not None
            same = recipe.backbone.data_settings == recipe.data_settings
            sets = (train_set, test_set) if same else make_moving_digits(recipe.backbone)
            parameters = train_to_end(
                recipe.backbone,
                *sets,
                out / BACKBONE,
                communicator=communicator,
                backend=backend,
                dtype=dtype,
                checkpoint_every=checkpoint_every,
                log_every=log_every,
                observer=observer,
            )

        def prepare() -> _Run:
            with session():
                run = _Run(recipe, train_set, test_set, out, parameters, communicator, backend, dtype)
                run.find_checkpoint(resume)
            return run

        run = call_on_all(communicator, prepare)
        with session():
            return _run(run, observer, checkpoint_every, log_every)


def _run(run: _Run, observer: Observer, checkpoint_every: int, log_every: int) -> Evaluation:
    """Take the steps of a run; an error becomes a TrainingError that says how to go on, and ends all ranks."""
    communicator = run.communicator
    try:
        with run:
            observer.on_start(run.steps, run.done)
            return run.run(observer, checkpoint_every, log_every)
    except BaseException as error:
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else words_of(error)
        finite = not isinstance(error, NotFiniteError)
        message = f"{what}; {run.resume_hint(finite)}"
        if communicator.size > 1:
            observer.on_abort(f"rank {communicator.rank} of {communicator.size}: {message}")
            communicator.abort()
        if isinstance(error, Exception):
            raise (TrainingError if finite else DivergedError)(message) from error
        raise
    finally:
        observer.on_end()


def train_to_end(
    recipe: Recipe, train_set: Dataset, test_set: Dataset, folder: Path, **settings: Any
) -> dict[str, Array]:
    """Return the parameters with which a run in ``folder`` ends; it is trained, or resumed, if it has not ended yet.

    settings: those of ``train`` from communicator on. Errors: those of ``train``.
    """
    if not call_on_all(settings.get("communicator") or SingleProcess(), lambda: is_finished(folder, recipe)):
        train(recipe, train_set, test_set, folder, resume=True, **settings)
    dtype = settings.get("dtype", "float32")
    return load(folder / MODEL, recipe.config, backend=settings.get("backend"), dtype=dtype).parameters


class _Run:
    """A run and how far it is. Nothing in the folder is touched before ``with``."""

    def __init__(
        self,
        recipe: Recipe,
        train_set: Dataset,
        test_set: Dataset,
        out: Path,
        parameters: Mapping[str, Array] | None,
        communicator: Communicator,
        backend: str | None,
        dtype: str,
    ) -> None:
        self.recipe, self.train_set, self.test_set, self.out = recipe, train_set, test_set, out
        self.communicator = communicator
        self.per_epoch = steps_per_epoch(recipe, len(train_set))
        self.steps, self.done = recipe.epochs * self.per_epoch, 0
        self.seconds, self.log_bytes = 0.0, 0  # of work, and of the log, before this session
        self.log_digest = hashlib.sha256()
        self.checkpoint, self.log = out / CHECKPOINT, out / LOG

        self.model = HaltingVT(recipe.config, parameters or initialise(recipe, dtype), backend=backend, dtype=dtype)
        shapes = parameter_shapes(recipe.config)
        self.parameters = Vector(shapes, dtype, self.model.backend).set(self.model.parameters)
        self.model.parameters = self.parameters.arrays  # updated in place from now on
        self.gradients = Vector(shapes, dtype, self.model.backend)
        self.optimiser = Adam(
            self.parameters,
            select_no_decay(shapes, not recipe.decay_norms_and_biases, not recipe.decay_embeddings),
            recipe.optimiser == "adamw",
            recipe.weight_decay,
            recipe.betas,
            recipe.adam_epsilon,
        )

    def find_checkpoint(self, resume: bool) -> None:
        """On rank 0, read the checkpoint of a run to resume, and check that the files beside it are of this run."""
        if self.communicator.rank != 0 or not resume or not self.checkpoint.exists():
            return
        found = read_progress(self.checkpoint, self.recipe, len(self.train_set), self.model.dtype)
        check_recipe(self.out, self.recipe)
        self.log_digest = check_log(self.log, found)
        read_state(self.checkpoint, found, self.parameters, self.optimiser)
        self.done, self.seconds, self.log_bytes = found.steps, found.seconds, found.log_bytes
        if (self.out / MODEL).exists() and not (self.done == self.steps and self._is_own_model()):
            raise TrainingError(
                f"{self.out / MODEL}: expected the model of this run or none yet, got another: move it or choose "
                "another folder"
            )

    def _is_own_model(self) -> bool:
        """Whether the model in the folder has the parameters that the run ended with."""
        stored, own = read_checkpoint(self.out / MODEL), self.parameters.arrays
        to_numpy = self.parameters.ops.arrays.to_numpy
        return stored.keys() == own.keys() and all(np.array_equal(stored[n], to_numpy(a)) for n, a in own.items())

    def __enter__(self) -> Self:
        # all ranks start from rank 0's state
        self.done = self.optimiser.steps = self.communicator.broadcast(self.done)
        for part in (self.parameters, self.optimiser.m, self.optimiser.v) if self.communicator.size > 1 else ():
            part.ops.arrays.write(part.vector, self.communicator.broadcast(part.numpy()))
        self._started = time.monotonic()
        self._file = None
        if self.communicator.rank == 0:
            write_whole(self.out / RECIPE, (json.dumps(self.recipe.as_dict(), indent=1) + "\n").encode())
            self._file = self.log.open("ab")
            self._file.truncate(self.log_bytes)  # lines after the checkpoint will be written again
            self._file.seek(self.log_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def run(self, observer: Observer, checkpoint_every: int, log_every: int) -> Evaluation:
        """Take the remaining steps, evaluate after every epoch, and return the last evaluation."""
        found: Evaluation | None = None
        wanted = ((step, number) for step in range(self.done, self.steps) for number in self._numbers(step))

        def make(step: int, number: int) -> MicroBatch:
            return make_micro_batch(self.recipe, self.train_set, step, number)

        with closing(prefetch(make, wanted)) as ready:
            for step in range(self.done, self.steps):
                line = self._step(step, (next(ready) for _ in self._numbers(step)), observer)
                self.done = step + 1
                epoch, inside = divmod(self.done, self.per_epoch)
                if self.done % log_every == 0:
                    self._write({"event": "step", **line})
                saved = inside == 0 or self.done % checkpoint_every == 0
                if saved:
                    self._check_finite()
                if inside == 0:
                    found = self._evaluate()
                    self._write(
                        {
                            "event": "evaluation",
                            "epoch": epoch,
                            "step": self.done,
                            **_figures(found),
                            **self._evaluate_selectivity(),
                        }
                    )
                observer.on_step(line, found)
                if saved:
                    self._save()
        if self.communicator.rank == 0 and not (self.out / MODEL).exists():
            self.model.save(self.out / MODEL)
        return found or self._evaluate()

    def resume_hint(self, finite: bool) -> str:
        """Return a clause for the message of a failed run: whether and how it can be resumed.

        finite: it would not fail again at the same step.
        """
        if not finite and self.checkpoint.exists():
            return f"no model is written; the last good checkpoint is {self.checkpoint}"
        if not self.checkpoint.exists():
            return "no checkpoint had been written yet"
        return f"resume from {self.checkpoint} with --resume"

    def _numbers(self, step: int) -> range:
        """The micro-batches of a step that this rank computes."""
        total = micro_batches(self.recipe, len(self.train_set), step)
        return range(self.communicator.rank, total, self.communicator.size)

    def _evaluate(self) -> Evaluation:
        """Evaluate the test set; its micro-batches are distributed over the ranks like those of a step."""
        size, clips = self.recipe.micro_batch, len(self.test_set)
        starts = range(0, clips, size)[self.communicator.rank :: self.communicator.size]
        cuts = [range(start, min(start + size, clips)) for start in starts]
        own = [record for cut in cuts for record in compute_records(self.model, self.test_set, cut)]
        found = summarise(self.communicator.allgather(own), self.test_set.num_classes, self.test_set.multi_label)
        if found.loss is not None and not np.isfinite(found.loss):
            raise DivergedError(f"step {self.done}: expected a finite loss of the test set, got {found.loss}")
        return found

    def _check_finite(self) -> None:
        """Raise DivergedError unless all parameters and moments are finite: the last good checkpoint is kept."""
        for name, part in (("parameters", self.parameters), ("m", self.optimiser.m), ("v", self.optimiser.v)):
            if not np.isfinite(part.numpy()).all():
                raise DivergedError(f"step {self.done}: {name}: expected finite numbers, got NaN or infinity")

    def _evaluate_selectivity(self) -> dict[str, Any]:
        """What the log keeps of how halting follows the object; nothing for data without a known object."""
        if not isinstance(self.test_set, ShowsObject):
            return {}
        size, clips = self.recipe.micro_batch, len(self.test_set)
        own = range(0, clips, size)[self.communicator.rank :: self.communicator.size]
        lives = [
            x for start in own for x in compute_lives(self.model, self.test_set, range(start, min(start + size, clips)))
        ]
        found = summarise_lives(self.communicator.allgather(lives))
        return {} if found is None else {"selectivity": asdict(found)}

    def _step(self, step: int, batches: Iterable[MicroBatch], observer: Observer) -> dict[str, Any]:
        """Take one step, to which this rank contributes ``batches``; returns the line of the log."""
        recipe, gradients = self.recipe, self.gradients
        sums = self._sum_gradients(step, batches, observer)
        if self.communicator.size > 1:
            total = gradients.numpy()
            self.communicator.allreduce(total)
            gradients.ops.arrays.write(gradients.vector, total)
        self.communicator.allreduce(sums)
        if sums[0] == 0:
            raise TrainingError(f"step {step + 1}: none of its clips can be read")
        norm = global_norm(gradients) / sums[0]
        if not np.isfinite(norm):
            raise DivergedError(f"step {step + 1}: expected finite gradients, got the norm {norm}")
        learning_rate = learning_rate_at(
            step,
            self.per_epoch,
            recipe.epochs,
            recipe.learning_rate,
            recipe.warmup_epochs,
            recipe.warmup_start,
            recipe.lr_per,
            recipe.lr_schedule,
        )
        clip = clip_scale(norm, recipe.max_grad_norm, recipe.clip_epsilon)
        self.optimiser.step(gradients, learning_rate, clip / sums[0])
        loss, recognition, ponder, motion, accuracy, gflops, *tokens = (float(x) for x in sums[1:] / sums[0])
        return {
            "step": step + 1,
            "epoch": step // self.per_epoch + 1,
            "clips": int(sums[0]),
            "learning_rate": learning_rate,
            "loss": loss,
            "recognition": recognition,
            "ponder": ponder,
            "motion": motion,
            "accuracy": accuracy,
            "gradient_norm": norm,
            "gflops": gflops,
            "tokens_per_layer": tokens,
        }

    def _sum_gradients(self, step: int, batches: Iterable[MicroBatch], observer: Observer) -> Array:
        """Set ``gradients`` to their sum over the clips of ``batches`` and return the sums of the figures.

        They are, in float64 [7 + L]: the number of clips, then sums over them of total, recognition, ponder and motion
        loss, correct answers, GFLOPs, and the tokens of each of the L joint blocks.
        """
        recipe, gradients = self.recipe, self.gradients
        ponder_weight = ponder_weight_at(step, self.per_epoch, recipe.ponder_weight, recipe.ponder_warmup_epochs)
        sums = np.zeros(7 + recipe.config.joint_depth)
        gradients.clear()
        for batch in batches:
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
                arrays="device",  # gradients stay where they are summed
                patch_ponder_weights=_patch_ponder_weights(recipe, batch.clips),
            )
            if not np.isfinite(loss.total):
                raise DivergedError(f"step {step + 1}: expected a finite loss, got {loss.total}")
            n, out = batch.size, loss.output
            gradients.add(found, n)  # a mean over clips becomes a sum; the optimiser divides by all clips
            losses = [n * x for x in (loss.total, loss.recognition, loss.ponder, loss.motion)]
            # accuracy and cost are those of the moving clips: their twins would flatter both
            logits = gradients.ops.arrays.to_numpy(out.logits)
            sums += [n, *losses, *_sums(logits[:n], batch.labels[:n], out.gflops[:n], out.tokens_per_layer[:n])]
        return sums

    def _elapsed(self) -> float:
        """Seconds of work in all sessions of the run."""
        return self.seconds + time.monotonic() - self._started

    def _write(self, line: dict[str, Any]) -> None:
        """Append a line to the log; rank 0 alone."""
        if self._file is not None:
            entry = {**line, "seconds": round(self._elapsed(), 3)}
            content = (json.dumps(entry, allow_nan=False) + "\n").encode()
            self._file.write(content)
            self._file.flush()
            self.log_digest.update(content)

    def _save(self) -> None:
        """Write a checkpoint once the log it refers to is on the disk; rank 0 alone."""
        if self._file is None:
            return
        os.fsync(self._file.fileno())
        log = self._file.tell(), self.log_digest.hexdigest()
        progress = Progress(self.done, *log, self._elapsed(), len(self.train_set), self.model.dtype)
        write_state(self.checkpoint, self.recipe, progress, self.parameters, self.optimiser)


def _sums(logits: Array, labels: Array, gflops: Array, tokens_per_layer: Array) -> list[float]:
    """Sums over clips: correct answers (the highest logit is a class of the clip), GFLOPs, tokens of every layer."""
    best = logits.argmax(axis=1)
    right = best == labels if labels.ndim == 1 else labels[np.arange(len(best)), best] > 0
    return [float(right.sum()), float(gflops.sum()), *(float(n) for n in tokens_per_layer.sum(axis=0))]


def _patch_ponder_weights(recipe: Recipe, clips: Array) -> Array | None:
    """How much each patch counts in the ponder loss [B, T, patches]; None for 1 each."""
    if recipe.changing_ponder == 1:
        return None
    change = 127.5 * change_of_patches(clips, recipe.config.patch_size)  # in grey levels
    return np.where(change > recipe.change_threshold, recipe.changing_ponder, 1.0)


def _figures(found: Evaluation) -> dict[str, Any]:
    """What the log keeps of an evaluation: its figures, and the number of skipped clips."""
    figures = {**asdict(found), "skipped": len(found.skipped)}
    del figures["notes"]
    return figures
