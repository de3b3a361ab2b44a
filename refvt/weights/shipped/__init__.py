"""The trained models that come with refvt: parameters, recipe and log of each, side by side in this folder.

`digits` was trained by the recipe of that name on moving digits, from scratch and with refvt alone:
``refvt train --recipe digits --out run`` makes it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import refvt
from refvt.model.haltingvt import HaltingVT
from refvt.training.recipe import Recipe, find_recipe

__all__ = ["SHIPPED", "ShippedFiles", "shipped", "shipped_files"]

SHIPPED = ("digits",)


class ShippedFiles(NamedTuple):
    """weights: float32 parameters; recipe: what ``find_recipe`` reads; log: a JSON object per line of the run's log."""

    weights: Path
    recipe: Path
    log: Path


def shipped_files(name: str = "digits") -> ShippedFiles:
    """Where the files of a shipped model lie. ValueError for another name, FileNotFoundError if a file is missing."""
    if name not in SHIPPED:
        raise ValueError(f"shipped model: expected one of {', '.join(SHIPPED)}, got {name!r}")
    folder = Path(__file__).resolve().parent
    files = ShippedFiles(folder / f"{name}.safetensors", folder / f"{name}.json", folder / f"{name}-log.jsonl")
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"the shipped model {name!r} is not whole, install refvt again: no {', '.join(missing)}"
        )
    return files


def shipped(name: str = "digits", backend: str | None = None) -> tuple[HaltingVT, Recipe]:
    """A shipped model and the recipe that it was trained by. Errors: those of ``shipped_files``."""
    files = shipped_files(name)
    recipe = find_recipe(str(files.recipe))
    return refvt.load(files.weights, recipe.config, backend=backend), recipe
