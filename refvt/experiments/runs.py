"""A grid of training runs: named changes of one recipe, each with several seeds, one after another or several at once.

Every run has a folder of its own, ``<out>/<name>/seed<k>``, and is an ordinary ``refvt train``: it can be killed at any
moment and goes on from its checkpoint, and one that is finished is not done again. A run that changes nothing is called
``recipe`` in every experiment, so experiments with the same recipe and the same ``out`` share it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt.array import Array
from refvt.backends.jit import workspace
from refvt.data.dataset import Dataset
from refvt.data.sampling import sample_indices
from refvt.evaluation import Evaluation, evaluate
from refvt.model import flops
from refvt.model.config import HaltingVTConfig
from refvt.model.haltingvt import HaltingVT
from refvt.training.errors import DivergedError
from refvt.training.folder import BACKBONE, MODEL, is_finished, read_evaluations
from refvt.training.loop import train, train_to_end
from refvt.training.observer import Observer
from refvt.training.recipe import Recipe, make_moving_digits

__all__ = ["NO_HALTING", "Grid", "Result", "Run", "SampledFrames", "saved_by_halting", "without_halting"]

# Scores of σ(−50) = 2e-22 in every layer, whatever the state: every token lives to the end and y is its last state.
NO_HALTING: dict[str, Any] = {"config.halting_scale": 0.0, "config.halting_center": 50.0, "ponder_weight": 0.0}


@dataclass(frozen=True)
class Run:
    """A named change of the grid's recipe, in the form of ``Recipe.changed``. The name becomes a folder."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """A finished run: its last evaluation, and the seconds of work from start to end, interruptions left out.

    last_change: of the accuracy in the last epoch; None for a run of one epoch.
    """

    run: str
    seed: int
    recipe: Recipe
    folder: Path
    top1: float
    last_change: float | None
    gflops: float
    tokens_per_layer: list[float]
    seconds: float

    @property
    def saved(self) -> float:
        """Share of the joint blocks' multiply-adds saved by halting."""
        return saved_by_halting(self.recipe.config, self.gflops)

    def as_dict(self) -> dict[str, Any]:
        """The figures of the run, as JSON can hold them."""
        return {
            "run": self.run,
            "seed": self.seed,
            "top1": self.top1,
            "last_change": self.last_change,
            "gflops": self.gflops,
            "saved_by_halting": self.saved,
            "tokens_per_layer": self.tokens_per_layer,
            "seconds": self.seconds,
        }


class SampledFrames:
    """The clips of a data set with fewer frames: ``frames`` of the ``of`` frames, evenly spaced around the middle."""

    def __init__(self, data: Dataset, of: int, frames: int) -> None:
        self.data, self.indices = data, sample_indices(of, frames, of // frames, place=0.5)
        self.num_classes, self.multi_label = data.num_classes, data.multi_label

    def __repr__(self) -> str:
        return f"SampledFrames({self.data!r}, {self.indices.tolist()})"

    def __len__(self) -> int:
        return len(self.data)

    def clip(self, index: int, rng: np.random.Generator | None = None) -> Array:
        return np.ascontiguousarray(self.data.clip(index, rng)[:, self.indices])

    def target(self, index: int) -> int | Array:
        return self.data.target(index)


class Grid:
    """Runs of one recipe on moving digits. ``results`` holds all that were measured, in order.

    recipe: what the runs change. seeds: 0 … seeds − 1 take the place of the recipe's. out: the folder of the runs. If
    the recipe has a backbone, all runs start from the same one: ``start`` or, if that is None, the one that is trained
    once, in the folder "backbone" of ``out``. ``start_sentence`` says which, for the page.
    observer: sees every step of every run. track: passes on the (run, seed) pairs; it may count them, as tqdm does.
    jobs: runs trained at once, each by a process of its own with its share of the threads; if there are several,
    the observer sees only the backbone.
    """

    def __init__(
        self,
        recipe: Recipe,
        seeds: int,
        out: Path,
        backend: str | None = None,
        observer: Observer | None = None,
        track: Callable[[Sequence[tuple[Run, int]]], Iterable[tuple[Run, int]]] = iter,
        start: Mapping[str, Array] | None = None,
        jobs: int = 1,
    ) -> None:
        self.recipe, self.seeds, self.out, self.backend, self.start = recipe, seeds, out, backend, start
        self.jobs = jobs
        self.start_sentence = "Each starts from an initialisation of its own seed."
        if start is not None:
            self.start_sentence = "All start from the trained backbone that comes with refvt; its time comes on top."
        self.observer, self.track = observer, track
        self.results: list[Result] = []
        self.data = make_moving_digits(recipe)

    def measure(self, runs: Sequence[Run]) -> dict[str, list[Result]]:
        """Results of runs by name, one per seed; runs that are not finished yet are trained.

        ValueError for two runs of one name. TrainingError for a folder that holds the run of another recipe.
        """
        names = [run.name for run in runs]
        if self.start is None and self.recipe.backbone is not None:
            folder, sets = self.out / BACKBONE, make_moving_digits(self.recipe.backbone)
            self.start = train_to_end(self.recipe.backbone, *sets, folder, backend=self.backend, observer=self.observer)
            minutes = read_evaluations(folder, self.recipe.backbone)[-1]["seconds"] / 60
            self.start_sentence = f"All start from one backbone, whose {minutes:.0f} minutes of training come on top."
        if len(set(names)) < len(names):
            raise ValueError(f"runs: expected a name for each, got {', '.join(names)}")
        planned = [(run, seed) for seed in range(self.seeds) for run in runs]
        found: dict[str, list[Result]] = {name: [] for name in names}
        with self._several_at_once(planned) as under_way:
            for run, seed in self.track(planned):
                folder, _ = self._place(run, seed)
                if folder in under_way:
                    under_way[folder].result()
                found[run.name].append(self._result(run, seed))
        for name in names:
            self.results += found[name]
        return found

    def model(self, result: Result, changes: Mapping[str, Any] | None = None) -> HaltingVT:
        """The model a run ended with, under another configuration if ``changes`` are given."""
        config = result.recipe.changed(changes or {}).config
        return refvt.load(result.folder / MODEL, config, backend=self.backend)

    def test(self, result: Result, name: str, changes: Mapping[str, Any]) -> Evaluation:
        """Evaluation of a trained model on the test set under another configuration; records go to the run's folder."""
        model = self.model(result, changes)
        test_set = self._data_of(result.recipe)[1]
        records = result.folder / f"test-{name}.jsonl"
        return evaluate(model, test_set, result.recipe.micro_batch, out=records, resume=True)

    @contextmanager
    def _several_at_once(self, planned: Sequence[tuple[Run, int]]) -> Iterator[dict[Path, Future[Result]]]:
        """Train the runs that are not finished in ``jobs`` processes; yields their results to come, by folder."""
        missing = {}
        for run, seed in planned:
            folder, recipe = self._place(run, seed)
            if not is_finished(folder, recipe):
                missing[folder] = run, seed
        jobs = min(self.jobs, len(missing))
        if jobs < 2:
            yield {}
            return
        context = multiprocessing.get_context("spawn")
        start = dict(self.start) if self.start else None
        settings = {
            "recipe": self.recipe,
            "seeds": self.seeds,
            "out": self.out,
            "backend": self.backend,
            "start": start,
        }
        reader, writer = context.Pipe(duplex=False)
        share = workspace.num_threads() // jobs or 1
        with reader, writer, ProcessPoolExecutor(jobs, context, _start_process, (share, reader)) as pool:
            futures = {folder: pool.submit(_train_one, settings, *job) for folder, job in missing.items()}
            try:
                yield futures
            except BaseException:
                writer.close()  # ends the processes; their runs go on from their checkpoints the next time
                pool.shutdown(cancel_futures=True)
                raise

    def _place(self, run: Run, seed: int) -> tuple[Path, Recipe]:
        """Folder and recipe of a run."""
        recipe = self.recipe.changed(run.changes)
        name = "recipe" if recipe == self.recipe else run.name
        return self.out / name / f"seed{seed}", recipe.changed({"seed": seed})

    def _result(self, run: Run, seed: int) -> Result:
        folder, recipe = self._place(run, seed)
        if not is_finished(folder, recipe):
            train_set, test_set = self._data_of(recipe)
            try:
                train(
                    recipe,
                    train_set,
                    test_set,
                    folder,
                    resume=True,
                    parameters=self._start_of(recipe),
                    backend=self.backend,
                    observer=self.observer,
                )
            except DivergedError as error:
                raise DivergedError(f"{folder}: {error}") from error
        *before, last = read_evaluations(folder, recipe)
        return Result(
            run.name,
            seed,
            recipe,
            folder,
            last["top1"],
            last["top1"] - before[-1]["top1"] if before else None,
            last["gflops"],
            last["tokens_per_layer"],
            last["seconds"],
        )

    def _start_of(self, recipe: Recipe) -> dict[str, Array] | None:
        """Parameters that a run starts from; time_embed of a model of fewer frames is sampled like its frames."""
        if self.start is None:
            return None
        of, frames = self.recipe.config.num_frames, recipe.config.num_frames
        found = dict(self.start)
        if frames < of:
            found["time_embed"] = found["time_embed"][:, sample_indices(of, frames, of // frames, place=0.5)]
        return found

    def _data_of(self, recipe: Recipe) -> tuple[Dataset, Dataset]:
        """The grid's own clips for every run; a model of fewer frames gets some of their frames."""
        of, frames = self.recipe.config.num_frames, recipe.config.num_frames
        train_set, test_set = self.data
        if frames == of:
            return train_set, test_set
        return SampledFrames(train_set, of, frames), SampledFrames(test_set, of, frames)


def _start_process(threads: int, parent: Connection) -> None:
    """Prepare a process of _several_at_once: its threads, and no life beyond that of the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes; only the first one says so
    workspace.set_num_threads(threads)

    def watch() -> None:
        parent.poll(None)  # nothing is ever sent: it returns when the other end is closed, by a kill too
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train_one(settings: dict[str, Any], run: Run, seed: int) -> Result:
    return Grid(**settings)._result(run, seed)


def without_halting(config: HaltingVTConfig) -> float:
    """GFLOPs of a clip in which every token lives to the last layer."""
    return float(flops.clip_gflops(config, np.full((1, config.joint_depth), config.joint_tokens))[0])


def saved_by_halting(config: HaltingVTConfig, gflops: float) -> float:
    """Share of the joint blocks' multiply-adds that a clip of ``gflops`` saves; the other parts cannot be saved."""
    fixed = sum(flops.fixed_multiply_adds(config).values()) / 1e9
    return (without_halting(config) - gflops) / (without_halting(config) - fixed)
