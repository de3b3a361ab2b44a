"""``refvt experiment table1``: the paper's Table 1 in small.

Keep rates R of the Glimpser, each with and without the motion loss. Without it there are no static twins either: they
exist for its sake.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refvt.experiments.report import Findings, Spread, Table, spread
from refvt.experiments.runs import Grid, Result, Run, without_halting
from refvt.plots.charts import COLOURS, make_accuracy_charts, plot_runs, save_chart
from refvt.training.recipe import Recipe

__all__ = ["HELP", "measure", "plan"]

HELP = "Table 1: accuracy and GFLOPs by the Glimpser's keep rate R, with and without the motion loss."
RATES, QUICK_RATES = (1.0, 0.7, 0.5, 0.3), (1.0, 0.5)
MOTION = {True: "with", False: "without"}


def plan(recipe: Recipe, quick: bool) -> dict[tuple[float, bool], Run]:
    """The runs by R and motion loss. ValueError for a model without a Glimpser."""
    rates = recipe.config.keep_rates
    if not rates:
        raise ValueError("recipe: expected a model with Glimpser blocks, got config.glimpser_depth 0")
    found = {}
    for R in QUICK_RATES if quick else RATES:
        keep = {"config.keep_rates": (*rates[:-1], R)}
        weight = recipe.motion_weight or 1.0
        found[R, True] = Run(f"R{R:g}", {**keep, "static_twins": True, "motion_weight": weight})
        found[R, False] = Run(f"R{R:g}-no-motion", {**keep, "static_twins": False})
    return found


def measure(grid: Grid, quick: bool) -> Findings:
    """Train every keep rate with and without the motion loss, and compare them pair by pair."""
    planned = plan(grid.recipe, quick)
    results = grid.measure(list(planned.values()))
    cells = {place: results[run.name] for place, run in planned.items()}
    rates = sorted({R for R, _ in cells}, reverse=True)
    figures = [_row(R, motion, found) for (R, motion), found in cells.items()]
    changes = {name: spread(values) for name, values in _changes(cells, rates).items()}
    return Findings(
        title="Table 1 in small: the Glimpser's keep rate and the motion loss",
        about=(
            "The paper's Table 1 shows what the Glimpser and the motion loss do to accuracy and cost. Here on moving "
            f"digits, {grid.recipe.epochs} epochs: R is the share of patches that the last Glimpser block keeps, "
            f"rounded up to whole patches ({_kept(grid.recipe, rates)} of a frame); "
            "without the motion loss there are no static twins either. *Saved by halting* compares a model's joint "
            "blocks with the same blocks when every token lives to the end, so it is what halting alone saves at that "
            "R."
        ),
        figures={"rows": figures, "changes": {name: found._asdict() for name, found in changes.items()}},
        tables=[_table(cells)],
        reading=_reading(cells, rates, changes),
        pictures={"": lambda path: _draw(cells, rates, path)},
    )


def _changes(cells: dict[tuple[float, bool], list[Result]], rates: list[float]) -> dict[str, list[float]]:
    """Changes by their names, one value per seed.

    That of the motion loss is the mean over all R of "with" against "without"; that of the Glimpser, for each R < 1,
    the mean over both settings of the motion loss of R against R = 1. Runs of one seed are compared with each other.
    """
    seeds = range(len(cells[rates[0], True]))

    def mean(change: Callable[[Result, Result], float], pairs: list[tuple[list[Result], list[Result]]]) -> list[float]:
        return [sum(change(one[k], other[k]) for one, other in pairs) / len(pairs) for k in seeds]

    motion = [(cells[R, True], cells[R, False]) for R in rates]
    found = {"motion loss, top1": mean(_top1, motion), "motion loss, GFLOPs": mean(_gflops, motion)}
    for R in rates:
        if R < 1 and 1.0 in rates:
            pairs = [(cells[R, on], cells[1.0, on]) for on in MOTION]
            found |= {f"R = {R:g}, top1": mean(_top1, pairs), f"R = {R:g}, GFLOPs": mean(_gflops, pairs)}
    return found


def _kept(recipe: Recipe, rates: list[float]) -> str:
    """Patches of a frame that each rate keeps."""
    before = recipe.config.patches_entering()[-2]
    return ", ".join(str(math.ceil(R * before)) for R in rates)


def _top1(one: Result, other: Result) -> float:
    return one.top1 - other.top1


def _gflops(one: Result, other: Result) -> float:
    return one.gflops / other.gflops - 1


def _row(R: float, motion: bool, found: list[Result]) -> dict[str, Any]:
    return {
        "R": R,
        "motion_loss": motion,
        "top1": spread([r.top1 for r in found])._asdict(),
        "gflops": spread([r.gflops for r in found])._asdict(),
        "gflops_without_halting": without_halting(found[0].recipe.config),
        "saved_by_halting": spread([r.saved for r in found])._asdict(),
    }


def _table(cells: dict[tuple[float, bool], list[Result]]) -> Table:
    header = ("R", "motion loss", "accuracy", "GFLOPs", "GFLOPs, all alive", "saved by halting in joint blocks")
    rows = [
        (
            f"{R:g}",
            MOTION[motion],
            spread([r.top1 for r in found]).percent(),
            spread([r.gflops for r in found]).number(),
            f"{without_halting(found[0].recipe.config):.4g}",
            spread([r.saved for r in found]).percent(),
        )
        for (R, motion), found in cells.items()
    ]
    return Table("Accuracy and cost", header, rows)


def _reading(
    cells: dict[tuple[float, bool], list[Result]], rates: list[float], changes: dict[str, Spread]
) -> list[str]:
    saved = {
        motion: ", ".join(f"{spread([r.saved for r in cells[R, motion]]).percent()} at R = {R:g}" for R in rates)
        for motion in MOTION
    }
    cost, accuracy = changes["motion loss, GFLOPs"], changes["motion loss, top1"]

    def of_rate(R: float) -> Spread:
        return spread([a.gflops / b.gflops - 1 for a, b in zip(cells[R, True], cells[R, False], strict=True)])

    said = [
        "Of the joint blocks' multiply-adds halting alone saves, with the motion loss, "
        f"{saved[True]}; without it {saved[False]}.",
        f"The paper credits the motion loss with 5.4 % fewer GFLOPs: {cost.verdict(-1)}. Here it changes GFLOPs by "
        f"{cost.change()} % and accuracy by {accuracy.change()} points, mean over all R; GFLOPs by "
        + ", ".join(f"{of_rate(R).change()} % at R = {R:g}" for R in rates)
        + ". With it half of the clips of a step are static twins, whose labels cannot be learnt on this task.",
    ]
    for R in rates:
        if f"R = {R:g}, top1" in changes:
            accuracy, cost = changes[f"R = {R:g}, top1"], changes[f"R = {R:g}, GFLOPs"]
            said.append(
                f"The paper credits the Glimpser with 2.5 % accuracy: at R = {R:g} {accuracy.verdict(1)}. Keeping this "
                f"share, against R = 1 (the same Glimpser blocks, nothing selected), changes accuracy by "
                f"{accuracy.change()} points and GFLOPs by {cost.change()} %, mean of with and without the motion loss."
            )
    said.append(
        "The comparisons with R = 1 share its runs, and their intervals are not corrected for several tests. The "
        "paper's 2.5 % is taken as points: the verdict is on the sign of the change, and the interval says whether it "
        "can be +2.5."
    )
    return said


def _draw(cells: dict[tuple[float, bool], list[Result]], rates: list[float], path: Path) -> None:
    figure, (axes,) = make_accuracy_charts("Large: mean over seeds; small: every run")
    for motion, colour, marker in ((True, COLOURS[0], "o"), (False, COLOURS[1], "s")):
        for R in rates:
            found = cells[R, motion]
            label = f"{MOTION[motion]} motion loss" if rates[0] == R else None
            middle = plot_runs(axes, [r.gflops for r in found], [r.top1 for r in found], marker, colour, label)
            axes.annotate(f"R = {R:g}", middle, (7, 5), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xlim(0)
    axes.legend()
    save_chart(figure, path)
