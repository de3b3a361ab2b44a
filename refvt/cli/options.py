"""Options that several commands have, declared once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refvt import backends
from refvt.checks import NotFiniteError
from refvt.model.config import PRESETS

__all__ = [
    "DEFAULT_PRESET",
    "add_backend",
    "add_checkpoint",
    "add_dtype",
    "add_json",
    "add_overwrite",
    "add_pictures",
    "add_preset",
    "at_least_one",
    "checkpoint_settings",
    "failure_in_json",
    "refuse_checkpoint_settings",
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
    for name, value in checkpoint_settings(options).items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')}: {reason}")


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, the folder for pictures."""
    parser.add_argument("--out", type=Path, default=Path("refvt-demo"), help="folder for the pictures")
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
