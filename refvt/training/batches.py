"""The clips of a step: which ones, their static twins, and loading them ahead of time.

No random state is carried from step to step. Every draw comes from a generator of its own,
``default_rng([seed, purpose, …])``, whose seed names the purpose and the epoch, step, micro-batch or clip. So what a
step computes depends neither on the number of processes (except for the rounding of a sum) nor on interruptions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from refvt.array import Array
from refvt.data import static_twins
from refvt.data.dataset import Dataset, MakesTwins, UnreadableClipError
from refvt.training.recipe import Recipe

__all__ = [
    "MicroBatch",
    "generator",
    "make_micro_batch",
    "micro_batches",
    "prefetch",
    "steps_per_epoch",
    "targets",
]

# of a draw: the index is the second number of its generator's seed
PURPOSES = ("order", "clip", "twin", "drop path")
AHEAD = 2  # micro-batches that are loaded while another one is computed


def generator(recipe: Recipe, purpose: str, *numbers: int) -> np.random.Generator:
    """Return the generator of one draw; it depends only on the recipe's seed, the purpose and the numbers."""
    return np.random.default_rng([recipe.seed, PURPOSES.index(purpose), *numbers])


@dataclass(frozen=True)
class MicroBatch:
    """The clips of a micro-batch, [n, C, T, height, width], followed by their static twins if the recipe has them.

    step: counted from 0; number: of the micro-batch within its step.
    """

    step: int
    number: int
    size: int  # number of readable clips, without twins
    clips: Array
    labels: Array  # class numbers, or soft [·, K]
    motion_labels: Array | None
    unreadable: list[str]  # why each of the other clips could not be read


def batch_of(recipe: Recipe, clips: int, step: int) -> Array:
    """Return the indices of the clips of a step. An epoch is one permutation; its last batch may be smaller."""
    epoch, number = divmod(step, steps_per_epoch(recipe, clips))
    order = generator(recipe, "order", epoch).permutation(clips)
    return np.asarray(order[number * recipe.batch : (number + 1) * recipe.batch])


def steps_per_epoch(recipe: Recipe, clips: int) -> int:
    """Number of steps in which every clip is used once."""
    return -(-clips // recipe.batch)


def micro_batches(recipe: Recipe, clips: int, step: int) -> int:
    """Number of micro-batches of a step."""
    size = min(recipe.batch, clips - step % steps_per_epoch(recipe, clips) * recipe.batch)
    return -(-size // recipe.micro_batch)


def make_micro_batch(recipe: Recipe, data: Dataset, step: int, number: int) -> MicroBatch:
    """Load micro-batch ``number`` of a step; it is the same on every rank and in every session."""
    chosen = batch_of(recipe, len(data), step)[number * recipe.micro_batch : (number + 1) * recipe.micro_batch]
    epoch = step // steps_per_epoch(recipe, len(data))
    clips, twins, read, unreadable = [], [], [], []
    for index in (int(i) for i in chosen):
        try:
            clip = data.clip(index, generator(recipe, "clip", epoch, index))
            if recipe.static_twins and recipe.twins_from == "video":
                twins.append(_twin(data, index, generator(recipe, "twin", epoch, index)))
            clips.append(clip)
            read.append(index)
        except UnreadableClipError as error:
            unreadable.append(str(error))
    both: Array = np.stack(clips + twins) if clips else np.empty(0)
    labels, motion_labels = targets(data, read, recipe.divide_labels), None
    if clips and recipe.static_twins:
        if twins:
            motion_labels = np.repeat([1, 0], len(clips))
        else:
            both, motion_labels = static_twins(both, generator(recipe, "twin", step, number))
        labels = np.concatenate([labels, labels])
    return MicroBatch(step, number, len(read), both, labels, motion_labels, unreadable)


def _twin(data: Dataset, index: int, rng: np.random.Generator) -> Array:
    """Return a static twin sampled anew. TypeError if the data set makes none; ``check_data`` says so before a run."""
    if not isinstance(data, MakesTwins):
        raise TypeError(f"twins_from: 'video' needs a data set with a method twin, got {type(data).__name__}")
    return data.twin(index, rng)


def targets(data: Dataset, chosen: Sequence[int], divide: bool = True) -> Array:
    """Return class numbers [n]; for multi-label data float32 [n, K].

    At each of a clip's m classes that is 1/m if ``divide``, so that all clips count alike, else 1, as in the released
    code, where a clip with m labels counts m times.
    """
    found = [data.target(index) for index in chosen]
    if not data.multi_label:
        return np.asarray(found, np.int64)
    several = np.asarray(found, np.float32).reshape(-1, data.num_classes)
    return np.asarray(several / np.maximum(several.sum(axis=1, keepdims=True), 1)) if divide else several


def prefetch(
    make: Callable[[int, int], MicroBatch], wanted: Iterator[tuple[int, int]]
) -> Generator[MicroBatch, None, None]:
    """Yield ``make(step, number)`` for all wanted, in order; another thread makes them ahead of time."""
    with ThreadPoolExecutor(1, "refvt-clips") as thread:
        waiting: deque[Future[MicroBatch]] = deque()
        try:
            for step, number in wanted:
                waiting.append(thread.submit(make, step, number))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
