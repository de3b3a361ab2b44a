"""``refvt train``: a recipe, some data, a folder."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import refvt
from refvt import backends
from refvt.array import Array
from refvt.cli.progress import TrainingBar, headline
from refvt.data.annotations import AnnotatedVideos
from refvt.data.dataset import Dataset
from refvt.evaluation import Evaluation
from refvt.training.batches import TrainingError
from refvt.training.loop import train
from refvt.training.parallel import Ranks, ranks
from refvt.training.recipe import DATA, RECIPES, Recipe, find_recipe, make_moving_digits

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``refvt train``."""
    parser.add_argument(
        "--recipe", required=True, metavar="NAME|FILE.json", help=f"a file, or one of {', '.join(RECIPES)}"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="log, checkpoint and model go here")
    parser.add_argument("--data", default=None, choices=DATA, help="default: what the recipe says")
    parser.add_argument("--annotations", type=Path, default=None, metavar="LIST", help="videos to learn from")
    parser.add_argument("--test-annotations", type=Path, default=None, metavar="LIST", help="videos to test with")
    parser.add_argument("--root", type=Path, default=None, metavar="FOLDER", help="where both lists' paths begin")
    parser.add_argument("--weights", type=Path, default=None, metavar="FILE", help="a checkpoint to start from")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in the folder, if there is one"
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe: epochs=5, config.depth=8, data_settings.noise=20 (a value is JSON)",
    )
    parser.add_argument(
        "--backend", default=None, choices=list(backends.BACKENDS), help="default: the fastest on the CPU"
    )
    parser.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS", help="default: 100")
    parser.add_argument("--log-every", type=int, default=10, metavar="STEPS", help="default: 10")
    parser.add_argument("--json", action="store_true", help="no progress bar; print the last evaluation as JSON")


def run(options: argparse.Namespace) -> int:
    """Train, alone or as one of several processes; 0, or 2 where another process has said what was wrong."""
    with ranks() as group:
        try:
            recipe, train_set, test_set, parameters = _prepare(options, group)
            found = train(
                recipe,
                train_set,
                test_set,
                options.out,
                resume=options.resume,
                parameters=parameters,
                ranks=group,
                backend=options.backend,
                checkpoint_every=options.checkpoint_every,
                log_every=options.log_every,
                observer=TrainingBar(visible=group.rank == 0 and not options.json),
            )
        except (ValueError, TypeError, OSError, ImportError):
            if group.rank == 0:
                raise
            return 2
        if group.rank == 0:
            _print(found, options)
    return 0


def _prepare(options: argparse.Namespace, group: Ranks) -> tuple[Recipe, Dataset, Dataset, dict[str, Array] | None]:
    """Everything the run needs; what is wrong for one process is wrong for all."""
    try:
        recipe = find_recipe(options.recipe).changed(_settings(options.settings))
        if options.data is not None:
            recipe = recipe.changed({"data": options.data})
        train_set, test_set = _data_sets(recipe, options, group)
        parameters = None
        if options.weights is not None:
            parameters = refvt.load(options.weights, recipe.config, seed=recipe.seed).parameters
    except (ValueError, TypeError, OSError, ImportError) as error:
        group.agree(str(error))
        raise
    problem = group.agree(None)
    if problem is not None:
        raise TrainingError(problem)
    return recipe, train_set, test_set, parameters


def _settings(texts: list[str]) -> dict[str, Any]:
    """FIELD=VALUE as a dict. A value that is no JSON is taken as a word: optimiser=adam."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"--set: expected FIELD=VALUE, got {text!r}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


def _data_sets(recipe: Recipe, options: argparse.Namespace, group: Ranks) -> tuple[Dataset, Dataset]:
    """What to learn from and what to test with."""
    try:
        return _digits(recipe, options) if recipe.data == "digits" else _videos(recipe, options, group)
    except TypeError as error:  # a setting that the data set does not know
        raise TypeError(f"data_settings: {error}") from error


def _digits(recipe: Recipe, options: argparse.Namespace) -> tuple[Dataset, Dataset]:
    for option in ("annotations", "test_annotations", "root"):
        if getattr(options, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')}: the recipe's data are moving digits; --data videos")
    return make_moving_digits(recipe)


def _videos(recipe: Recipe, options: argparse.Namespace, group: Ranks) -> tuple[Dataset, Dataset]:
    for option in ("annotations", "test_annotations", "root"):
        if getattr(options, option) is None:
            raise ValueError(f"--{option.replace('_', '-')}: needed where the recipe's data are videos")
    train_set, test_set = (
        AnnotatedVideos(listed, options.root, recipe.config, **recipe.data_settings)
        for listed in (options.annotations, options.test_annotations)
    )
    for problem in (*train_set.problems, *test_set.problems) if group.rank == 0 else ():
        sys.stderr.write(f"refvt: left out: {problem}\n")
    return train_set, test_set


def _print(found: Evaluation, options: argparse.Namespace) -> None:
    model = options.out / "model.safetensors"
    if options.json:
        print(json.dumps({**asdict(found), "model": str(model)}, indent=1))
        return
    print(f"{headline(found)} of {found.clips} held-out clips, {found.gflops or 0:.4g} GFLOPs a clip")
    print(f"tokens entering the joint blocks: {' '.join(f'{n:.1f}' for n in found.tokens_per_layer or [])}")
    print(f"model: {model}")
