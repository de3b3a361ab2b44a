"""``refvt experiment NAME``: train what the experiment needs, measure, write numbers, page and pictures."""

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
from refvt.backends.jit import workspace
from refvt.cli.options import (
    add_backend,
    add_checkpoint,
    add_json,
    add_overwrite,
    at_least_one,
    checkpoint_settings,
    failure_in_json,
    refuse_checkpoint_settings,
)
from refvt.cli.progress import ProgressBar, TrainingBar
from refvt.environment import describe_machine
from refvt.experiments import figure3, frontier, table1, variants
from refvt.experiments.report import Findings, file_names, render_page, write
from refvt.experiments.runs import Grid, Result, Run
from refvt.files import locked, refuse_strangers
from refvt.training.batches import steps_per_epoch
from refvt.training.recipe import Recipe, find_recipe, make_moving_digits
from refvt.weights import find_backbone, find_files

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Repeat one of the paper's experiments in small, on moving digits."
SEEDS, QUICK_SEEDS = 5, 1
# Steps of each run, in whole epochs and at most the recipe's own, and those with --quick.
STEPS = {"table1": (1024, 256), "frontier": (1024, 256), "figure3": (2048, 256), "variants": (2048, 256)}
PICTURES = {"table1": ("",), "frontier": ("",), "figure3": ("", "-curve"), "variants": ("",)}  # suffixes of their files

Measure = Callable[[Grid, bool], Findings]
GRIDS: dict[str, tuple[str, Measure]] = {
    "table1": (table1.HELP, table1.measure),
    "frontier": (frontier.HELP, frontier.measure),
    "variants": (variants.HELP, variants.measure),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the experiments and their options."""
    names = parser.add_subparsers(required=True, metavar="NAME", dest="experiment")
    helps = {**{name: help for name, (help, _) in GRIDS.items()}, "figure3": figure3.HELP}
    for name, help in helps.items():
        sub = names.add_parser(name, help=help, description=help)
        sub.add_argument("--quick", action="store_true", help="fewer runs, seeds and epochs: minutes instead of hours")
        if name == "figure3":
            sub.add_argument("--weights", type=Path, default=None, metavar="FILE", help="a model of the recipe's shape")
            add_checkpoint(sub)
        else:
            at_once = "runs trained at once, each with its share of the threads; default: one a thread, on a GPU one"
            sub.add_argument("--jobs", type=int, default=None, metavar="N", help=at_once)
            sub.add_argument(
                "--seeds", type=int, default=None, metavar="N", help=f"default: {SEEDS}, --quick: {QUICK_SEEDS}"
            )
        steps = "default: what fits in {} steps, --quick: {}; never more than the recipe's".format(*STEPS[name])
        sub.add_argument("--epochs", type=int, default=None, metavar="N", help=steps)
        changed = "the recipe that the runs change; default: photographs"
        sub.add_argument("--recipe", default=None, metavar="NAME|FILE.json", help=changed)
        out = f"folder of the runs, resumed if it exists; default: refvt-experiments/{name}, with --quick {name}-quick"
        sub.add_argument("--out", type=Path, default=None, metavar="FOLDER", help=out)
        sub.add_argument(
            "--publish", type=Path, default=None, metavar="FOLDER", help="write page, numbers and pictures here too"
        )
        add_overwrite(sub)
        add_backend(sub)
        add_json(sub, "no progress bars; print the numbers as JSON")


def run(options: argparse.Namespace) -> int:
    """Run an experiment to its end, or resume one; 0. ValueError or OSError for a request that cannot be met."""
    recipe, seeds = _read_request(options)
    out = options.out or Path("refvt-experiments", options.experiment + ("-quick" if options.quick else ""))
    folders = [_make_folder("--out", out)]
    folders += [_make_folder("--publish", options.publish)] if options.publish else []
    names = file_names(options.experiment, PICTURES[options.experiment])
    refuse_strangers([folder / name for folder in folders for name in names], options.overwrite)
    with failure_in_json(options), locked(out / ".refvt.lock", str(out)):
        return _run(options, recipe, seeds, out, folders)


def _run(options: argparse.Namespace, recipe: Recipe, seeds: int, out: Path, folders: list[Path]) -> int:
    """Measure, write and print; 0."""
    observer = TrainingBar(visible=not options.json)
    start = find_backbone(recipe)
    track = iter if options.json else _track
    grid = Grid(recipe, seeds, out, options.backend, observer, track, start, _jobs(options))
    if options.experiment == "figure3":
        findings = figure3.measure(grid, options.quick, options.weights, checkpoint_settings(options))
    else:
        findings = GRIDS[options.experiment][1](grid, options.quick)
    report = _report(options, grid, findings)
    written = [write(report, findings, folder) for folder in folders][-1]
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print(render_page(report, findings))
        print("\n".join(f"written: {path}" for path in written))
    return 0


def _read_request(options: argparse.Namespace) -> tuple[Recipe, int]:
    """Return the recipe, with the epochs of the runs, and the number of seeds. Errors are found before any work."""
    weights = getattr(options, "weights", None)
    if weights is not None and options.recipe is None:
        # γ, β and ε are not in the weights, so another recipe's would go unnoticed
        raise ValueError("--recipe: needed with --weights, the recipe.json of the run that made them")
    if options.experiment == "figure3" and weights is None:
        refuse_checkpoint_settings(options, "needs --weights")
    if options.experiment == "figure3" and options.recipe is None:
        options.recipe = "photographs"
        options.weights = weights = find_files("photographs").weights
    options.recipe = options.recipe or "photographs"
    recipe = find_recipe(options.recipe)
    if recipe.data != "digits":
        raise ValueError(f"--recipe: expected one on moving digits, got one on {recipe.data}")
    if weights is not None and not weights.is_file():
        raise ValueError(f"--weights: expected a file, got {weights}")
    if weights is not None and options.epochs is not None:
        raise ValueError("--epochs: nothing is trained if --weights are given")
    _jobs(options)
    epochs = at_least_one("--epochs", options.epochs, _epochs(recipe, STEPS[options.experiment][options.quick]))
    seeds = at_least_one("--seeds", getattr(options, "seeds", None), QUICK_SEEDS if options.quick else SEEDS)
    if find_spec("matplotlib") is None:  # hours before the pictures are drawn
        raise ModuleNotFoundError('experiments draw pictures with matplotlib: pip install "refvt[demo]"')
    if weights is None:
        # The ponder weight is left alone: if it grew in fewer epochs too, tokens would halt before anything is learnt,
        # and nothing could be learnt from them any more.
        recipe = recipe.changed({"epochs": epochs, "warmup_epochs": min(recipe.warmup_epochs, epochs)})
    return recipe, 1 if options.experiment == "figure3" else seeds


def _jobs(options: argparse.Namespace) -> int:
    """Number of runs to train at once. Small models gain more from it than from threads that share one run."""
    own = 1 if (options.backend or backends.default()) == "cuda" else workspace.num_threads()
    return at_least_one("--jobs", getattr(options, "jobs", None), own)


def _track(runs: Sequence[tuple[Run, int]]) -> Iterator[tuple[Run, int]]:
    """Pass on the runs and count them in a bar."""
    with ProgressBar(len(runs), "run") as bar:
        for run, seed in runs:
            bar.describe(f"{run.name} seed {seed}")
            yield run, seed
            bar.advance()


def _report(options: argparse.Namespace, grid: Grid, findings: Findings) -> dict[str, Any]:
    runs = _runs(grid.results)
    return {
        "experiment": options.experiment,
        "command": _command(options),
        "quick": options.quick,
        "refvt": refvt.__version__,
        "environment": describe_machine(workspace.num_threads(), with_torch=False),
        "backend": options.backend or backends.default(),
        "recipe": grid.recipe.as_dict(),
        "seeds": list(range(grid.seeds)),
        "jobs": grid.jobs,
        "test_clips": len(grid.data[1]),
        "trained": len(runs),
        "seconds": sum(run["seconds"] for run in runs),
        "start": grid.start_sentence,
        "figures": findings.figures,
        "reading": findings.reading,
        "runs": runs,
    }


def _runs(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The figures of every run once: one that has several names gets them all."""
    found: dict[Path, dict[str, Any]] = {}
    for result in results:
        known = found.setdefault(result.folder, result.as_dict())
        if result.run not in known["run"].split(" = "):
            known["run"] += f" = {result.run}"
    return list(found.values())


def _command(options: argparse.Namespace) -> str:
    """The command line with all options that influence the numbers, without folders of this machine."""
    words = ["refvt", "experiment", options.experiment]
    words += ["--quick"] if options.quick else []
    for name, value in (
        ("--weights", None if options.recipe == "photographs" else getattr(options, "weights", None)),
        ("--seeds", getattr(options, "seeds", None)),
        ("--epochs", options.epochs),
        ("--recipe", None if options.recipe == "photographs" else options.recipe),
        ("--backend", options.backend),
    ):
        if value is not None:
            # only the names of files: the recipe itself is in the report
            words += [name, Path(value).name if name in ("--weights", "--recipe") else str(value)]
    return shlex.join(words)


def _epochs(recipe: Recipe, steps: int) -> int:
    """Number of whole epochs that fit in a number of steps, at least one and at most the recipe's."""
    per_epoch = steps_per_epoch(recipe, len(make_moving_digits(recipe)[0]))
    return max(1, min(recipe.epochs, steps // per_epoch))


def _make_folder(name: str, path: Path) -> Path:
    """Make sure that a folder exists."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name}: expected a folder, got the file {path}")
    path.mkdir(parents=True, exist_ok=True)
    return path
