"""What a step is made of: which clips, their static twins, and having them ready in time.

Nothing random is carried along. Every draw comes from a generator of its own, ``default_rng([seed, purpose, …])``, that
is named by what it is for and by epoch, step, micro-batch or clip. So what a step computes depends neither on the
number of processes (but for the rounding of a sum) nor on whether the run was interrupted before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from refvt.array import Array
from refvt.data import static_twins
from refvt.data.dataset import Dataset, UnreadableClipError
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

# what a draw is for: the second number of its generator's seed
PURPOSES = ("order", "clip", "twin", "drop path")
AHEAD = 2  # micro-batches that are made ready while another one is computed


def generator(recipe: Recipe, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator of one draw, a function of the recipe's seed, the purpose and the numbers alone."""
    return np.random.default_rng([recipe.seed, PURPOSES.index(purpose), *numbers])


@dataclass(frozen=True)
class MicroBatch:
    """Clips [n, C, T, height, width] and, if wanted, their static twins behind them; number: its place in the step."""

    step: int
    number: int
    size: int  # clips that could be read, twins not counted
    clips: Array
    labels: Array  # class numbers, or soft [·, K]
    motion_labels: Array | None
    unreadable: list[str]  # what is wrong with the others


def batch_of(recipe: Recipe, clips: int, step: int) -> Array:
    """The clips' numbers in the batch of a step: every epoch is one permutation, its last batch may be smaller."""
    epoch, place = divmod(step, steps_per_epoch(recipe, clips))
    order = generator(recipe, "order", epoch).permutation(clips)
    return np.asarray(order[place * recipe.batch : (place + 1) * recipe.batch])


def steps_per_epoch(recipe: Recipe, clips: int) -> int:
    """Every clip is seen once an epoch."""
    return -(-clips // recipe.batch)


def micro_batches(recipe: Recipe, clips: int, step: int) -> int:
    """How many micro-batches a step has."""
    size = min(recipe.batch, clips - step % steps_per_epoch(recipe, clips) * recipe.batch)
    return -(-size // recipe.micro_batch)


def make_micro_batch(recipe: Recipe, data: Dataset, step: int, number: int) -> MicroBatch:
    """Micro-batch ``number`` of a step, the same whoever makes it."""
    chosen = batch_of(recipe, len(data), step)[number * recipe.micro_batch : (number + 1) * recipe.micro_batch]
    epoch = step // steps_per_epoch(recipe, len(data))
    clips, read, unreadable = [], [], []
    for index in (int(i) for i in chosen):
        try:
            clips.append(data.clip(index, generator(recipe, "clip", epoch, index)))
            read.append(index)
        except UnreadableClipError as error:
            unreadable.append(str(error))
    both: Array = np.stack(clips) if clips else np.empty(0)
    labels, motion_labels = targets(data, read), None
    if clips and recipe.static_twins:
        both, motion_labels = static_twins(both, generator(recipe, "twin", step, number))
        labels = np.concatenate([labels, labels])
    return MicroBatch(step, number, len(read), both, labels, motion_labels, unreadable)


def targets(data: Dataset, chosen: Sequence[int]) -> Array:
    """Class numbers [n]; or, where a clip may have several classes, float32 [n, K], each one's share of a clip."""
    found = [data.target(index) for index in chosen]
    if not data.multi_label:
        return np.asarray(found, np.int64)
    several = np.asarray(found, np.float32).reshape(-1, data.num_classes)
    return np.asarray(several / np.maximum(several.sum(axis=1, keepdims=True), 1))


def prefetch(
    make: Callable[[int, int], MicroBatch], wanted: Iterator[tuple[int, int]]
) -> Generator[MicroBatch, None, None]:
    """``make`` of everything wanted, in order, by one thread that stays a little ahead."""
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
