"""The state of a training run in one file, from which it resumes as if it had never stopped.

A .safetensors file holds ``parameters/<name>`` and both moments of the optimiser, ``m/<name>`` and ``v/<name>``. Its
metadata is one JSON text with the recipe, the number of steps taken, and the number of bytes of the log that belong to
them. No random state is stored: every draw is named by the step (see ``batches``), so the recipe's seed and the number
of steps are enough.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from refvt.files import write_whole
from refvt.model.checkpoints import CheckpointError
from refvt.training.optimiser import Adam
from refvt.training.recipe import Recipe, difference
from refvt.training.vectors import Vector

__all__ = ["Progress", "read_progress", "read_state", "write_state"]

FORMAT = 1
KEY = "refvt.training"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    steps: taken so far. log_bytes: length of the log at that step. seconds: of work. clips (of the training set) and
    dtype (of the parameters) must be the same when the run is resumed.
    """

    steps: int
    log_bytes: int
    seconds: float
    clips: int
    dtype: str


def write_state(path: Path, recipe: Recipe, progress: Progress, parameters: Vector, optimiser: Adam) -> None:
    """Write the checkpoint of a run, completely or not at all."""
    groups = {"parameters": parameters, "m": optimiser.m, "v": optimiser.v}
    tensors = {
        f"{g}/{name}": vector.ops.arrays.to_numpy(a)
        for g, vector in groups.items()
        for name, a in vector.arrays.items()
    }
    state = {"format": FORMAT, "recipe": recipe.as_dict(), "progress": asdict(progress)}
    write_whole(path, safetensors.numpy.save(tensors, {KEY: json.dumps(state)}))


def read_progress(path: Path, recipe: Recipe, clips: int, dtype: str) -> Progress:
    """Return how far the run of a checkpoint is.

    Raises CheckpointError if the file is damaged, or belongs to another recipe, training set or dtype; the message
    names the fields that differ.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
        if state["format"] != FORMAT:
            raise CheckpointError(f"{path}: expected format {FORMAT} of a training run, got {state['format']!r}")
        # fields that were added after it was written have their defaults
        stored, progress = Recipe.from_dict(state["recipe"]).as_dict(), Progress(**state["progress"])
    except CheckpointError:
        raise
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the checkpoint of a training run, or damaged ({error!r})") from error
    now = recipe.as_dict()
    if names := difference(stored, now):
        listed = "\n".join(f"  {n}: the checkpoint has {_at(stored, n)!r}, now {_at(now, n)!r}" for n in names)
        raise CheckpointError(f"{path}: the checkpoint of another recipe:\n{listed}")
    for name, value in (("clips", clips), ("dtype", dtype)):
        if getattr(progress, name) != value:
            where = "of the training set" if name == "clips" else "of the parameters"
            raise CheckpointError(f"{path}: {name} {where}: the checkpoint has {getattr(progress, name)}, now {value}")
    return progress


def read_state(path: Path, progress: Progress, parameters: Vector, optimiser: Adam) -> None:
    """Set parameters and optimiser to a checkpoint's values. CheckpointError if a tensor is missing or does not fit."""
    groups = {"parameters": parameters, "m": optimiser.m, "v": optimiser.v}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for group, vector in groups.items():
                for name, array in vector.arrays.items():
                    value = file.get_tensor(f"{group}/{name}")
                    if value.shape != tuple(array.shape) or value.dtype != array.dtype:
                        expected = f"{array.dtype} {list(array.shape)}"
                        raise CheckpointError(
                            f"{path}: {group}/{name}: expected {expected}, got {value.dtype} {list(value.shape)}"
                        )
                    vector.ops.arrays.write(array, value)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    optimiser.steps = progress.steps


def _at(values: dict[str, Any], name: str) -> Any:
    """Return the value of a field like ``config.width``; None if there is none."""
    value: Any = values
    for part in name.split("."):
        if value is None:
            return None
        value = value.get(part)
    return value
