"""The state of a training run in one file, from which it resumes as if it had never stopped.

A .safetensors file holds ``parameters/<name>`` and both moments of the optimiser, ``m/<name>`` and ``v/<name>``. Its
metadata is one JSON text with the recipe, the number of steps taken, the number of bytes of the log that belong to
them and their SHA-256; and a checksum of this text and all tensors. No random state is stored: every draw is named by
the step (see ``batches``), so the recipe's seed and the number of steps are enough.

Nothing is computed from a file that does not pass: its checksum, and the range of every number in it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from refvt.array import Array
from refvt.checks import at_most, brief, is_number, is_whole, words_of
from refvt.files import check_regular, decode_json, write_whole
from refvt.model.checkpoints import CheckpointError
from refvt.model.checkpoints.checksum import CHECKSUM, checksum
from refvt.training.batches import steps_per_epoch
from refvt.training.optimiser import Adam
from refvt.training.recipe import Recipe, difference
from refvt.training.vectors import Vector

__all__ = ["Progress", "check_log", "read_progress", "read_state", "write_state"]

FORMAT = 2
KEY = "refvt.training"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    steps: taken so far. log_bytes and log_sha256: length and digest of the log at that step. seconds: of work. clips
    (of the training set) and dtype (of the parameters) must be the same when the run is resumed.
    """

    steps: int
    log_bytes: int
    log_sha256: str
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
    text = json.dumps({"format": FORMAT, "recipe": recipe.as_dict(), "progress": asdict(progress)}, allow_nan=False)
    write_whole(path, safetensors.numpy.save(tensors, {KEY: text, CHECKSUM: checksum(tensors, text)}))


def read_progress(path: Path, recipe: Recipe, clips: int | None, dtype: str | None) -> Progress:
    """Return how far the run of a checkpoint is. clips, dtype: None for any.

    Raises CheckpointError if the file is damaged or holds a value out of its range, or belongs to another recipe,
    training set or dtype; the message names the fields that differ.
    """
    try:
        state = _read_text(path)
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: expected format {FORMAT} of a training run, got {brief(state.get('format'))}"
            )
        # fields that were added after it was written have their defaults
        stored, progress = Recipe.from_dict(state["recipe"]).as_dict(), _progress(state["progress"])
    except CheckpointError:
        raise
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        what = "not the checkpoint of a training run, or damaged"
        raise CheckpointError(f"{path}: {what} ({words_of(error)})") from error
    now = recipe.as_dict()
    if names := difference(stored, now):
        lines = (f"  {n}: the checkpoint has {brief(_at(stored, n))}, now {brief(_at(now, n))}" for n in names)
        raise CheckpointError(f"{path}: the checkpoint of another recipe:\n" + "\n".join(at_most(lines)))
    for name, value in (("clips", clips), ("dtype", dtype)):
        if value is not None and getattr(progress, name) != value:
            where = "of the training set" if name == "clips" else "of the parameters"
            raise CheckpointError(f"{path}: {name} {where}: the checkpoint has {getattr(progress, name)}, now {value}")
    steps = recipe.epochs * steps_per_epoch(recipe, progress.clips)
    if progress.steps > steps:
        raise CheckpointError(f"{path}: steps: expected at most the {steps} of the recipe, got {progress.steps}")
    return progress


def _read_text(path: Path) -> dict[str, Any]:
    """Return the state in the metadata of a file whose checksum is right."""
    check_regular(path, "the checkpoint of a training run")
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        if KEY not in metadata:
            raise ValueError(f"expected {KEY} in its metadata, got none")
        state = decode_json(metadata[KEY], f"expected {KEY} as JSON")
        if state.get("format") != FORMAT:
            return state
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = checksum(tensors, metadata[KEY])
    if metadata.get(CHECKSUM) != found:
        stored = metadata.get(CHECKSUM, "none")
        raise ValueError(f"{CHECKSUM}: expected {brief(stored[:12])} as in the file, got {found[:12]!r}")
    return state


def _progress(values: Any) -> Progress:
    """Return a progress from JSON. ValueError that names a value out of its range."""
    names = [field.name for field in fields(Progress)]
    if not isinstance(values, dict) or sorted(values) != sorted(names):
        raise ValueError(f"progress: expected an object of {', '.join(names)}, got {brief(values)}")
    checks = {
        "steps": ("a whole number of at least 0", is_whole(values["steps"])),
        "log_bytes": ("a whole number of at least 0", is_whole(values["log_bytes"])),
        "log_sha256": ("64 hexadecimal digits", isinstance(values["log_sha256"], str)),
        "seconds": ("a number of at least 0", is_number(values["seconds"], 0)),
        "clips": ("a whole number of at least 1", is_whole(values["clips"], 1)),
        "dtype": ("'float32' or 'float64'", values["dtype"] in ("float32", "float64")),
    }
    for name, (expected, right) in checks.items():
        if not right:
            raise ValueError(f"progress.{name}: expected {expected}, got {brief(values[name])}")
    return Progress(**values)


def check_log(path: Path, progress: Progress) -> hashlib._Hash:
    """Return the running digest of the part of a log that a checkpoint knows. CheckpointError if it is another log."""
    size = check_regular(path, "the log of the run").st_size if path.exists() else 0
    if size < progress.log_bytes:
        raise CheckpointError(
            f"{path}: expected at least the {progress.log_bytes} bytes the checkpoint names, got {size}"
        )
    digest = hashlib.sha256()
    if progress.log_bytes:
        with path.open("rb") as file:
            digest.update(file.read(progress.log_bytes))
    if digest.hexdigest() != progress.log_sha256:
        raise CheckpointError(
            f"{path}: expected the log that the checkpoint beside it knows, got another or a damaged one"
        )
    return digest


def read_state(path: Path, progress: Progress, parameters: Vector, optimiser: Adam) -> None:
    """Set parameters and optimiser to a checkpoint's values.

    CheckpointError if a tensor is missing, does not fit, or is not finite.
    """
    groups = {"parameters": parameters, "m": optimiser.m, "v": optimiser.v}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for group, vector in groups.items():
                for name, array in vector.arrays.items():
                    value: Array = file.get_tensor(f"{group}/{name}")
                    if value.shape != tuple(array.shape) or value.dtype != array.dtype:
                        expected = f"{array.dtype} {list(array.shape)}"
                        raise CheckpointError(
                            f"{path}: {group}/{name}: expected {expected}, got {value.dtype} {list(value.shape)}"
                        )
                    if not np.isfinite(value).all() or (group == "v" and value.min(initial=0) < 0):
                        expected = "finite numbers" if group != "v" else "finite numbers of at least 0"
                        raise CheckpointError(f"{path}: {group}/{name}: expected {expected}, got others")
                    vector.ops.arrays.write(array, value)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({words_of(error)})") from error
    optimiser.steps = progress.steps


def _at(values: dict[str, Any], name: str) -> Any:
    """Return the value of a field like ``config.width``; None if there is none."""
    value: Any = values
    for part in name.split("."):
        if value is None:
            return None
        value = value.get(part)
    return value
