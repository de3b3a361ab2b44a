"""Options that several commands have, declared once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from refvt import backends
from refvt.checks import NotFiniteError, at_most, brief, words_of
from refvt.files import read_json
from refvt.model.config import PRESETS, HaltingVTConfig
from refvt.training.recipe import Recipe

__all__ = [
    "DEFAULT_PRESET",
    "add_backend",
    "add_checkpoint",
    "add_config",
    "add_dtype",
    "add_json",
    "add_overwrite",
    "add_pictures",
    "add_preset",
    "at_least_one",
    "checkpoint_settings",
    "failure_in_json",
    "read_config",
    "refuse_checkpoint_settings",
    "refuse_options",
]

DEFAULT_PRESET = "minik-g03-b10"


def add_backend(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add ``--backend``, the name of a backend; a default of None means the fastest on the CPU."""
    help = f"default: {default or 'the fastest on the CPU'}"
    parser.add_argument("--backend", default=default, choices=list(backends.BACKENDS), help=help)


def add_dtype(parser: argparse.ArgumentParser, default: str = "float32") -> None:
    """Add ``--dtype``, float32 or float64."""
    parser.add_argument("--dtype", default=default, choices=["float32", "float64"], help=f"default: {default}")


def add_json(parser: argparse.ArgumentParser, help: str = "print as JSON") -> None:
    """Add ``--json``, a switch."""
    parser.add_argument("--json", action="store_true", help=help)


def add_preset(parser: argparse.ArgumentParser) -> None:
    """Add ``--preset``, the name of a configuration."""
    help = f"configuration; default: {DEFAULT_PRESET}"
    parser.add_argument("--preset", default=DEFAULT_PRESET, choices=list(PRESETS), help=help)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--preset`` and ``--config``, of which one may be given; see ``read_config``."""
    which = parser.add_mutually_exclusive_group()
    help = f"configuration of the model; default: {DEFAULT_PRESET}"
    which.add_argument("--preset", default=None, choices=list(PRESETS), help=help)
    which.add_argument(
        "--config",
        type=Path,
        default=None,
        metavar="FILE.json",
        help="the same as JSON; or the recipe.json of a run, whose config, and whose settings of the data, are used",
    )


def read_config(options: argparse.Namespace) -> tuple[HaltingVTConfig, Recipe | None]:
    """Return the configuration that ``--preset`` or ``--config`` names, and the recipe if it is one of a recipe.

    ValueError, with the path, for a file that holds neither.
    """
    path = options.config
    if path is None:
        return HaltingVTConfig.preset(options.preset or DEFAULT_PRESET), None
    values = read_json(path, "a configuration or a recipe", constants=True)
    try:
        if "config" in values:
            recipe = Recipe.from_dict(values)
            return recipe.config, recipe
        known = {f.name for f in fields(HaltingVTConfig)}
        unknown = [brief(name)[1:-1] for name in values if name not in known]
        if unknown:
            raise ValueError(f"unknown: {', '.join(at_most(unknown))}; expected some of {', '.join(sorted(known))}")
        return HaltingVTConfig(**values), None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected a configuration or a recipe as JSON: {words_of(error)}") from None


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint-grid`` and ``--weights-key``, which say how to read the file of ``--weights``."""
    parser.add_argument(
        "--checkpoint-grid",
        type=int,
        nargs=2,
        default=None,
        metavar=("ROWS", "COLUMNS"),
        help="patches of a frame in the checkpoint, if they are no square and not those of the configuration",
    )
    parser.add_argument(
        "--weights-key",
        default=None,
        metavar="NAME",
        help="which weights of the checkpoint, if it holds several: state_dict, model_ema …",
    )


def checkpoint_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of ``add_checkpoint`` as arguments of ``refvt.load``."""
    grid = None if options.checkpoint_grid is None else tuple(options.checkpoint_grid)
    return {"checkpoint_grid": grid, "weights_key": options.weights_key}


def refuse_checkpoint_settings(options: argparse.Namespace, reason: str) -> None:
    """Raise ValueError if an option of ``add_checkpoint`` is given although no checkpoint is read."""
    refuse_options(options, ("checkpoint_grid", "weights_key"), reason)


def refuse_options(options: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Raise ValueError if one of these options is given, which would be ignored. names: as in ``options``."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False:
            raise ValueError(f"--{name.replace('_', '-')}: {reason}")


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, the folder for pictures."""
    folder = Path("refvt-demo")
    parser.add_argument("--out", type=Path, default=folder, help=f"folder for the pictures; default: {folder}")
    add_overwrite(parser)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``, a switch: files that refvt did not make may be replaced."""
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names that refvt did not make")


@contextmanager
def failure_in_json(options: argparse.Namespace) -> Iterator[None]:
    """With ``--json``, print what became NaN or infinite as JSON before the error ends the command."""
    try:
        yield
    except NotFiniteError as error:
        if options.json:
            print(json.dumps({"error": str(error), "model": None}, indent=1))
        raise


def at_least_one(option: str, value: int | None, default: int) -> int:
    """Return the value of an option, or its default. ValueError below 1."""
    if value is None:
        return default
    if value < 1:
        raise ValueError(f"{option}: expected at least 1, got {value}")
    return value
