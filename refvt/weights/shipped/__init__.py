"""The trained models that come with refvt: parameters, recipe and log of each lie in this folder.

``digits`` was trained on moving digits by the recipe of that name, from scratch and with refvt alone; ``photographs``
on moving digits over photographs, by fine-tuning a backbone without halting, whose parameters and log are here too. The
command ``refvt train --recipe NAME --out run`` trains each of them again, the backbone included.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import refvt
from refvt.array import Array
from refvt.model.haltingvt import HaltingVT
from refvt.training.recipe import Recipe, find_recipe

__all__ = ["SHIPPED", "ShippedFiles", "find_backbone", "find_files", "load"]

SHIPPED = ("digits", "photographs")
"""The names of the trained models that come with refvt."""


class ShippedFiles(NamedTuple):
    """The files of a shipped model.

    weights: float32 parameters; recipe: JSON for ``find_recipe``; log: of the training run, one JSON object per line.
    """

    weights: Path
    recipe: Path
    log: Path


def find_files(name: str = "digits") -> ShippedFiles:
    """Return the files of a shipped model. ValueError for an unknown name, FileNotFoundError if a file is missing."""
    if name not in SHIPPED:
        raise ValueError(f"shipped model: expected one of {', '.join(SHIPPED)}, got {name!r}")
    folder = Path(__file__).resolve().parent
    files = ShippedFiles(folder / f"{name}.safetensors", folder / f"{name}.json", folder / f"{name}-log.jsonl")
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"the shipped model {name!r} is incomplete, install refvt again: missing {', '.join(missing)}"
        )
    return files


def load(name: str = "digits", backend: str | None = None) -> tuple[HaltingVT, Recipe]:
    """Return a shipped model and the recipe it was trained by. Raises the errors of ``find_files``."""
    files = find_files(name)
    recipe = find_recipe(str(files.recipe))
    return refvt.load(files.weights, recipe.config, backend=backend), recipe


def find_backbone(recipe: Recipe) -> dict[str, Array] | None:
    """Return the parameters of a recipe's backbone if it is one that comes with refvt, else None."""
    for name in SHIPPED:
        files = find_files(name)
        shipped = find_recipe(str(files.recipe)).backbone
        if shipped is not None and shipped == recipe.backbone:
            weights = files.weights.with_name(f"{name}-backbone.safetensors")
            return refvt.load(weights, shipped.config).parameters
    return None
