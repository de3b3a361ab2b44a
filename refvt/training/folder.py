"""The folder of a run: who may write in it, whose files are there, and what a finished run says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refvt.checks import at_most, brief, is_number, is_whole
from refvt.files import check_regular, decode_json, locked, read_json, sweep
from refvt.training.errors import TrainingError
from refvt.training.recipe import Recipe, difference
from refvt.training.run_state import check_log, read_progress

__all__ = [
    "BACKBONE",
    "CHECKPOINT",
    "LOG",
    "MODEL",
    "RECIPE",
    "alone_in",
    "check_recipe",
    "claim",
    "is_finished",
    "read_evaluations",
]

CHECKPOINT, LOG, RECIPE, MODEL = "checkpoint.safetensors", "log.jsonl", "recipe.json", "model.safetensors"
BACKBONE = "backbone"  # folder of the run that a recipe's backbone is trained in
FILES = (CHECKPOINT, MODEL, LOG, RECIPE)
LOCK = ".refvt.lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be; BlockingIOError if another run holds it.

    A folder that was made here and is still empty in the end is removed.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK, str(folder)):
            yield
    finally:
        if new:
            with suppress(OSError):
                folder.rmdir()


def claim(folder: Path, recipe: Recipe, resume: bool, overwrite: bool, backbone: bool) -> None:
    """Check that a run may write in a folder: no file there is of another run, or of somebody else.

    backbone: whether a backbone will be trained in the folder of that name. overwrite: an earlier run is removed, its
    files alone. TrainingError names what is in the way.
    """
    found = [name for name in FILES if _there(folder / name)]
    if backbone and not resume and _there(folder / BACKBONE):
        found.append(BACKBONE)
    if overwrite:
        for place in _folders(folder, recipe if backbone else None):
            for name in FILES:
                if (place / name).is_dir() and not (place / name).is_symlink():
                    raise TrainingError(f"{place / name}: expected a file of a run, got a folder")
                (place / name).unlink(missing_ok=True)
    elif not resume and found:
        raise TrainingError(
            f"{folder}: already holds a run; resume it (--resume), replace it (--overwrite) or choose another folder "
            f"(found: {', '.join(found)})"
        )
    elif CHECKPOINT not in found:  # of a run that was killed before its first one there are recipe and log at most
        if MODEL in found:
            raise _stranger(folder / MODEL, "no model beside a run without a checkpoint")
        if RECIPE in found:
            check_recipe(folder, recipe)
        if LOG in found and (RECIPE not in found or not _is_log(folder / LOG)):
            raise _stranger(folder / LOG, "no log beside a run without a checkpoint")
    for name in FILES:
        sweep(folder / name)


def _folders(folder: Path, recipe: Recipe | None) -> Iterator[Path]:
    """The folder of a run, and those of its backbones, each in the one before; recipe None: the first alone."""
    yield folder
    while recipe is not None and recipe.backbone is not None:
        folder, recipe = folder / BACKBONE, recipe.backbone
        yield folder


def check_recipe(folder: Path, recipe: Recipe) -> None:
    """Check that recipe.json, if it is there, is this recipe. TrainingError if it is another one or none."""
    path = folder / RECIPE
    if not _there(path):
        return
    if names := difference(_stored(path).as_dict(), recipe.as_dict()):
        raise TrainingError(
            f"{path}: expected the recipe of this run, got another ({', '.join(at_most(names))} differ)"
        )


def _stored(path: Path) -> Recipe:
    """The recipe in a file. TrainingError if it is none."""
    try:
        return Recipe.from_dict(read_json(path, "a recipe"))
    except (ValueError, TypeError, OSError) as error:
        raise _stranger(path, f"the recipe of this run ({brief(str(error))})") from None


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether the run of this recipe has ended in this folder. TrainingError if the folder holds another run."""
    if not (folder / MODEL).is_file():
        return False  # train itself looks at the checkpoint, if there is one
    if not _there(folder / RECIPE):
        raise _stranger(folder / RECIPE, "the recipe of the finished run")
    if names := difference(_stored(folder / RECIPE).as_dict(), recipe.as_dict()):
        listed = ", ".join(at_most(names))
        raise TrainingError(f"{folder}: holds a finished run of another recipe ({listed} differ): take another --out")
    if not (folder / CHECKPOINT).is_file():
        return True
    progress = read_progress(folder / CHECKPOINT, recipe, None, None)
    check_log(folder / LOG, progress)
    last = read_evaluations(folder, recipe)[-1]
    return bool(last["step"] == progress.steps and last["epoch"] == recipe.epochs)


def read_evaluations(folder: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """Return all evaluations in the log of a run of this recipe, with their figures checked.

    TrainingError that names the line for a log that is damaged, and if the last evaluation read no clip.
    """
    path = folder / LOG
    found: list[dict[str, Any]] = []
    if not path.is_file():
        raise TrainingError(f"{path}: expected the log of a finished run, got no file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                entry = decode_json(line, "expected a line of a log as JSON")
                if entry.get("event") == "evaluation":
                    found.append(_checked(entry, recipe, len(found) + 1))
            except ValueError as error:
                raise TrainingError(f"{where}: {error}") from None
    if not found:
        raise TrainingError(f"{path}: expected the evaluations of a run, got none")
    if found[-1]["top1"] is None:
        raise TrainingError(f"{folder}: no clip of the test set could be read")
    return found


def _checked(entry: dict[str, Any], recipe: Recipe, epoch: int) -> dict[str, Any]:
    tokens, c = entry.get("tokens_per_layer"), recipe.config
    checks = {
        "epoch": (f"{epoch}, the next one", entry.get("epoch") == epoch and epoch <= recipe.epochs),
        "step": ("a whole number of at least 1", is_whole(entry.get("step"), 1)),
        "top1": ("a share or null", entry.get("top1") is None or is_number(entry["top1"], 0, 1)),
        "gflops": ("a number of at least 0 or null", entry.get("gflops") is None or is_number(entry["gflops"], 0)),
        "seconds": ("a number of at least 0", is_number(entry.get("seconds"), 0)),
        "tokens_per_layer": (
            f"{c.joint_depth} numbers from 0 to {c.joint_tokens}, or null",
            tokens is None
            or (
                isinstance(tokens, list)
                and len(tokens) == c.joint_depth
                and all(is_number(n, 0, c.joint_tokens) for n in tokens)
            ),
        ),
    }
    for name, (expected, right) in checks.items():
        if not right:
            raise ValueError(f"{name}: expected {expected}, got {brief(entry.get(name))}")
    return entry


def _is_log(path: Path) -> bool:
    """Whether a file is empty or begins as the log of a run does."""
    if check_regular(path, "the log of a run").st_size == 0:
        return True
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    try:
        return isinstance(json.loads(line), dict) and b'"event"' in line
    except (ValueError, RecursionError):
        return not line.endswith(b"\n") and line.startswith(b'{"event"')  # killed within its first line


def _there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _stranger(path: Path, expected: str) -> TrainingError:
    return TrainingError(f"{path}: expected {expected}, got a file of another: move it or choose another folder")
