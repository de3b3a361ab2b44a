"""``refvt train``: train a model by a recipe, alone or under mpiexec."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import refvt
from refvt.array import Array
from refvt.checks import brief, printable
from refvt.cli.data_sets import open_annotated_videos
from refvt.cli.options import (
    add_backend,
    add_checkpoint,
    checkpoint_settings,
    failure_in_json,
    refuse_checkpoint_settings,
)
from refvt.cli.progress import TrainingBar, headline
from refvt.data.dataset import Dataset
from refvt.evaluation import Evaluation
from refvt.training.folder import CHECKPOINT, MODEL
from refvt.training.loop import train
from refvt.training.parallel import call_on_all, open_communicator
from refvt.training.recipe import DATA, RECIPES, Recipe, find_recipe, make_moving_digits

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Train a HaltingVT by a recipe; under mpiexec, with several processes."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt train``."""
    parser.add_argument(
        "--recipe", required=True, metavar="NAME|FILE.json", help=f"a file, or one of {', '.join(RECIPES)}"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder for the log, the checkpoint and the model"
    )
    parser.add_argument("--data", default=None, choices=DATA, help="kind of data; default: the recipe's")
    parser.add_argument("--annotations", type=Path, default=None, metavar="LIST", help="annotation list for training")
    parser.add_argument(
        "--test-annotations", type=Path, default=None, metavar="LIST", help="annotation list for testing"
    )
    parser.add_argument(
        "--root", type=Path, default=None, metavar="FOLDER", help="folder that the paths in both lists are relative to"
    )
    parser.add_argument(
        "--weights", type=Path, default=None, metavar="FILE", help="checkpoint to initialise the model from"
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint in the folder, if there is one"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="remove an earlier run from the folder, its files alone, and begin"
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe: epochs=5, config.depth=8, data_settings.noise=20 (values are JSON)",
    )
    add_backend(parser)
    parser.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="STEPS", help="steps between checkpoints; default: 100"
    )
    parser.add_argument(
        "--log-every", type=int, default=10, metavar="STEPS", help="steps between lines of the log; default: 10"
    )
    parser.add_argument("--json", action="store_true", help="no progress bar; print the last evaluation as JSON")


def run(options: argparse.Namespace) -> int:
    """Train; returns 0, or 2 if another process has already said what is wrong."""
    with failure_in_json(options), open_communicator() as communicator:
        first = communicator.rank == 0
        try:
            recipe, train_set, test_set, parameters = call_on_all(communicator, lambda: _prepare(options, first))
            found = train(
                recipe,
                train_set,
                test_set,
                options.out,
                resume=options.resume,
                overwrite=options.overwrite,
                parameters=parameters,
                communicator=communicator,
                backend=options.backend,
                checkpoint_every=options.checkpoint_every,
                log_every=options.log_every,
                observer=TrainingBar(visible=first and not options.json),
            )
        except (ValueError, TypeError, OSError, ImportError):
            if first:
                raise
            return 2
        if first:
            _print(found, options)
    return 0


def _prepare(options: argparse.Namespace, first: bool) -> tuple[Recipe, Dataset, Dataset, dict[str, Array] | None]:
    """Return the recipe, both data sets, and initial parameters if they are given. first: may print."""
    recipe = find_recipe(options.recipe).changed(_settings(options.settings))
    if options.data is not None:
        recipe = recipe.changed({"data": options.data})
    try:
        train_set, test_set = _digits(recipe, options) if recipe.data == "digits" else _videos(recipe, options, first)
    except TypeError as error:  # a setting that the data set does not have
        raise TypeError(f"data_settings: {error}") from error
    parameters = None
    if options.weights is None:
        refuse_checkpoint_settings(options, "needs --weights")
        if first and not (options.resume and (options.out / CHECKPOINT).exists()):
            _warn_of_random_start(recipe)
    if options.weights is not None:
        parameters = refvt.load(
            options.weights, recipe.config, seed=recipe.seed, **checkpoint_settings(options)
        ).parameters
    return recipe, train_set, test_set, parameters


def _warn_of_random_start(recipe: Recipe) -> None:
    """Say that a recipe for fine-tuning was given no trained weights."""
    if recipe.data == "videos" and recipe.init == "paper" and recipe.backbone is None:
        print(
            "refvt: no --weights: the model starts from random numbers with the paper's initialisation, from which "
            "nothing was learnt in our runs; see docs/training.md, Train on your own videos",
            file=sys.stderr,
        )


def _settings(texts: list[str]) -> dict[str, Any]:
    """FIELD=VALUE as a dict. A value that is not JSON is taken as a string: optimiser=adam."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"--set: expected FIELD=VALUE, got {brief(text)}")
        try:
            settings[name] = json.loads(value)
        except (ValueError, RecursionError):
            settings[name] = value
    return settings


def _digits(recipe: Recipe, options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Moving digits to train and to test on."""
    for option in ("annotations", "test_annotations", "root"):
        if getattr(options, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')}: the recipe's data are moving digits; add --data videos")
    return make_moving_digits(recipe)


def _videos(recipe: Recipe, options: argparse.Namespace, first: bool) -> tuple[Dataset, Dataset]:
    """Annotated videos to train and to test on; prints the lines that cannot be used."""
    for option in ("annotations", "test_annotations", "root"):
        if getattr(options, option) is None:
            raise ValueError(f"--{option.replace('_', '-')}: required if the recipe's data are videos")
    train_set, test_set = (
        open_annotated_videos(listed, options.root, recipe.config, **recipe.data_settings)
        for listed in (options.annotations, options.test_annotations)
    )
    for problem in (*train_set.problems, *test_set.problems) if first else ():
        print(printable(f"refvt: left out: {problem}"), file=sys.stderr)
    return train_set, test_set


def _print(found: Evaluation, options: argparse.Namespace) -> None:
    """Print the last evaluation, and where the model is."""
    model = options.out / MODEL
    if options.json:
        print(json.dumps({**asdict(found), "model": str(model)}, indent=1))
        return
    print(f"{headline(found)} of {found.clips} held-out clips, {found.gflops or 0:.4g} GFLOPs per clip")
    print(f"tokens entering the joint blocks: {' '.join(f'{n:.1f}' for n in found.tokens_per_layer or [])}")
    print(printable(f"model: {model}"))
