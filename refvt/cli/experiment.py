"""``refvt experiment NAME``: trains what the experiment needs, measures, writes numbers, page and pictures."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import refvt
from refvt import backends
from refvt.backends.jit import workspace as pool
from refvt.bench.report import machine
from refvt.cli.progress import ProgressBar, TrainingBar
from refvt.experiments import figure3, frontier, table1, variants
from refvt.experiments.report import Findings, as_markdown, write
from refvt.experiments.runs import Grid, Run
from refvt.training.batches import steps_per_epoch
from refvt.training.recipe import Recipe, find_recipe, make_moving_digits

__all__ = ["add_arguments", "run"]

SEEDS, QUICK_SEEDS = 3, 1
# Steps of each run, in whole epochs and at most the recipe's own, and those with --quick. At 0.06 s a step, twice that
# with static twins (the recipe digits on two cores), an experiment takes up to two hours, and --quick five minutes.
STEPS = {"table1": (2560, 512), "frontier": (2560, 512), "figure3": (8192, 2048), "variants": (6144, 1024)}

Measure = Callable[[Grid, bool], Findings]
GRIDS: dict[str, tuple[str, Measure]] = {
    "table1": (table1.HELP, table1.measure),
    "frontier": (frontier.HELP, frontier.measure),
    "variants": (variants.HELP, variants.measure),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiments and their options."""
    names = parser.add_subparsers(required=True, metavar="NAME", dest="experiment")
    helps = {**{name: help for name, (help, _) in GRIDS.items()}, "figure3": figure3.HELP}
    for name, help in helps.items():
        sub = names.add_parser(name, help=help, description=help)
        sub.add_argument("--quick", action="store_true", help="fewer runs, seeds and epochs: minutes instead of hours")
        if name == "figure3":
            sub.add_argument("--weights", type=Path, default=None, metavar="FILE", help="a model of the recipe's shape")
        else:
            sub.add_argument(
                "--seeds", type=int, default=None, metavar="N", help=f"default: {SEEDS}, --quick: {QUICK_SEEDS}"
            )
        sub.add_argument(
            "--epochs",
            type=int,
            default=None,
            metavar="N",
            help="default: as many as make {} steps, --quick: {}; never more than the recipe's".format(*STEPS[name]),
        )
        sub.add_argument(
            "--recipe", default=None, metavar="NAME|FILE.json", help="what the runs change; default: digits"
        )
        sub.add_argument(
            "--out",
            type=Path,
            default=None,
            metavar="FOLDER",
            help=f"runs go here and go on from here; default: refvt-experiments/{name}, with --quick {name}-quick",
        )
        sub.add_argument(
            "--publish", type=Path, default=None, metavar="FOLDER", help="write page, numbers and pictures here too"
        )
        sub.add_argument(
            "--backend", default=None, choices=list(backends.BACKENDS), help="default: the fastest there is"
        )
        sub.add_argument("--json", action="store_true", help="no progress bars; print the numbers as JSON")


def run(options: argparse.Namespace) -> int:
    """Run an experiment to its end, or go on with one; 0. ValueError or OSError for a request that cannot be met."""
    if getattr(options, "weights", None) is not None and options.recipe is None:
        # γ, β and ε are not in the weights, so another recipe's would go unnoticed
        raise ValueError("--recipe: needed with --weights, the recipe.json of the run that made them")
    options.recipe = options.recipe or "digits"
    recipe = find_recipe(options.recipe)
    if recipe.data != "digits":
        raise ValueError(f"--recipe: expected one on moving digits, got one on {recipe.data}")
    weights = getattr(options, "weights", None)
    if weights is not None and not weights.is_file():
        raise ValueError(f"--weights: expected a file, got {weights}")
    if weights is not None and options.epochs is not None:
        raise ValueError("--epochs: nothing is trained where --weights are given")
    epochs = _at_least_one("--epochs", options.epochs, _epochs(recipe, STEPS[options.experiment][options.quick]))
    seeds = _at_least_one("--seeds", getattr(options, "seeds", None), QUICK_SEEDS if options.quick else SEEDS)
    if options.experiment == "figure3":
        seeds = 1
    if find_spec("matplotlib") is None:  # hours before the pictures are drawn
        raise ModuleNotFoundError('experiments draw pictures with matplotlib: pip install "refvt[demo]"')
    out = options.out or Path("refvt-experiments", options.experiment + ("-quick" if options.quick else ""))
    folders = [_folder("--out", out)] + ([_folder("--publish", options.publish)] if options.publish else [])

    if weights is None:
        # the ponder weight is left alone: were it to grow in fewer epochs too, tokens would halt before anything is
        # learnt, and with them what could be learnt
        recipe = recipe.changed({"epochs": epochs, "warmup_epochs": min(recipe.warmup_epochs, epochs)})
    grid = Grid(
        recipe, seeds, out, options.backend, TrainingBar(visible=not options.json), iter if options.json else _track
    )
    if options.experiment == "figure3":
        findings = figure3.measure(grid, options.quick, weights)
    else:
        findings = GRIDS[options.experiment][1](grid, options.quick)
    report = _report(options, grid, findings)
    written = [write(report, findings, folder) for folder in folders][-1]
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print(as_markdown(report, findings))
        print("\n".join(f"written: {path}" for path in written))
    return 0


def _track(runs: Sequence[tuple[Run, int]]) -> Iterator[tuple[Run, int]]:
    """Pass on the runs and count them in a bar."""
    with ProgressBar(len(runs), "run") as bar:
        for run, seed in runs:
            bar.describe(f"{run.name} seed {seed}")
            yield run, seed
            bar.advance()


def _report(options: argparse.Namespace, grid: Grid, findings: Findings) -> dict[str, Any]:
    trained = {result.folder: result.seconds for result in grid.results}  # two names may be one run
    return {
        "experiment": options.experiment,
        "command": _command(options),
        "quick": options.quick,
        "refvt": refvt.__version__,
        "environment": machine(pool.num_threads(), with_torch=False),
        "backend": options.backend or backends.default(),
        "recipe": grid.recipe.as_dict(),
        "seeds": list(range(grid.seeds)),
        "trained": len(trained),
        "seconds": sum(trained.values()),
        "figures": findings.figures,
        "reading": findings.reading,
        "runs": [result.as_dict() for result in grid.results],
    }


def _command(options: argparse.Namespace) -> str:
    """The command with everything that decides about the numbers, and no folders of this machine."""
    words = ["refvt", "experiment", options.experiment]
    words += ["--quick"] if options.quick else []
    for name, value in (
        ("--weights", getattr(options, "weights", None)),
        ("--seeds", getattr(options, "seeds", None)),
        ("--epochs", options.epochs),
        ("--recipe", None if options.recipe == "digits" else options.recipe),
        ("--backend", options.backend),
    ):
        if value is not None:
            # of a file its name: the recipe stands in the report as it is
            words += [name, Path(value).name if name in ("--weights", "--recipe") else str(value)]
    return shlex.join(words)


def _epochs(recipe: Recipe, steps: int) -> int:
    """As many whole epochs as fit in so many steps, at least one and at most the recipe's."""
    per_epoch = steps_per_epoch(recipe, len(make_moving_digits(recipe)[0]))
    return max(1, min(recipe.epochs, steps // per_epoch))


def _at_least_one(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value


def _folder(name: str, path: Path) -> Path:
    """A folder that is there from now on."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name}: expected a folder, got the file {path}")
    path.mkdir(parents=True, exist_ok=True)
    return path
