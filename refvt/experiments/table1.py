"""``refvt experiment table1``: the paper's Table 1 in small.

Keep rates R of the Glimpser, each with and without the motion loss. Without it there are no static twins either: they
exist for its sake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refvt.experiments.report import Findings, Spread, Table, spread
from refvt.experiments.runs import Grid, Result, Run, without_halting
from refvt.plots.charts import COLOURS, make_accuracy_chart, plot_runs, save_chart
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
    pairs = [(one, other) for R in rates for one, other in zip(cells[R, True], cells[R, False], strict=True)]
    cost = spread([one.gflops / other.gflops - 1 for one, other in pairs])
    accuracy = spread([one.top1 - other.top1 for one, other in pairs])
    return Findings(
        title="Table 1 in small: the Glimpser's keep rate and the motion loss",
        about=(
            "The paper's Table 1 shows what the Glimpser and the motion loss do to accuracy and cost. Here on moving "
            f"digits, {grid.recipe.epochs} epochs from scratch: R is the share of patches that the last Glimpser block "
            "keeps; without the motion loss there are no static twins either. *Saved by halting* compares a model's "
            "joint blocks with the same blocks when every token lives to the end, so it is what halting alone saves at "
            "that R."
        ),
        figures={"rows": figures, "motion": {"gflops": cost._asdict(), "top1": accuracy._asdict()}},
        tables=[_table(cells)],
        reading=_reading(cells, rates, cost, accuracy),
        pictures={"": lambda path: _draw(cells, rates, path)},
    )


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
    cells: dict[tuple[float, bool], list[Result]], rates: list[float], cost: Spread, accuracy: Spread
) -> list[str]:
    saved = {
        motion: ", ".join(f"{spread([r.saved for r in cells[R, motion]]).percent()} at R = {R:g}" for R in rates)
        for motion in MOTION
    }
    said = [
        "Of the joint blocks' multiply-adds halting alone saves, with the motion loss, "
        f"{saved[True]}; without it {saved[False]}.",
        "The paper credits the motion loss with 5.4 % fewer GFLOPs. Here, over "
        f"{len(cost.values)} pairs of runs that differ in nothing else, it changes GFLOPs by {cost.change()} % and "
        f"accuracy by {accuracy.change()} points (mean and standard deviation over the pairs). "
        f"{_weigh(cost)}",
    ]
    if 1.0 in rates and len(rates) > 1:
        whole = spread([r.top1 for r in cells[1.0, True]]).mean
        dropped = [
            f"{100 * (spread([r.top1 for r in cells[R, True]]).mean - whole):+.1f} points at R = {R:g}"
            for R in rates
            if R < 1
        ]
        said.append(
            "The paper credits the Glimpser with 2.5 % accuracy. Here dropping patches, against keeping all of them "
            f"(R = 1; the same Glimpser blocks, nothing selected), changes accuracy by {', '.join(dropped)}."
        )
    return said


def _weigh(change: Spread) -> str:
    """A sentence that compares a mean change with its standard error, the deviation over √n."""
    if change.deviation is None:
        return "From one pair it cannot be said whether the change of GFLOPs is more than chance."
    error = change.deviation / len(change.values) ** 0.5
    limit = f"twice its standard error of {100 * error:.1f} %"
    if abs(change.mean) > 2 * error:
        return f"The mean change of GFLOPs is more than {limit}."
    return f"The mean change of GFLOPs cannot be told apart from zero: it is within {limit}."


def _draw(cells: dict[tuple[float, bool], list[Result]], rates: list[float], path: Path) -> None:
    figure, axes = make_accuracy_chart("Large: mean over seeds; small: every run")
    for motion, colour, marker in ((True, COLOURS[0], "o"), (False, COLOURS[1], "s")):
        for R in rates:
            found = cells[R, motion]
            label = f"{MOTION[motion]} motion loss" if rates[0] == R else None
            middle = plot_runs(axes, [r.gflops for r in found], [r.top1 for r in found], marker, colour, label)
            axes.annotate(f"R = {R:g}", middle, (7, 5), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xlim(0)
    axes.legend()
    save_chart(figure, path)
