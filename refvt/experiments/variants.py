"""``refvt experiment variants``: the two places where the released model and the text differ.

``halted_keys`` zero or masked, ``cls_skip`` off or on: trained with each, and each trained model also tested with the
other. The parameters are the same in all of them, so a switch can be thrown at test time alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refvt.experiments.report import Findings, Table, spread
from refvt.experiments.runs import Grid, Run
from refvt.plots.charts import COLOURS, make_accuracy_charts, plot_runs, save_chart

__all__ = ["HELP", "SWITCHES", "measure"]

HELP = "zero against masked keys and cls_skip off against on: trained with each, and switched at test time alone."
SWITCHES: dict[str, dict[Any, str]] = {  # field of the model: its two values, and what they are called
    "halted_keys": {"zero": "zero", "masked": "masked"},
    "cls_skip": {False: "cls_skip-off", True: "cls_skip-on"},
}
Cell = tuple[str, Any, Any]  # switch, value in training, value in testing


def measure(grid: Grid, quick: bool) -> Findings:  # fewer seeds and epochs are all that makes it quick
    """Train with every value of every switch, and test each trained model with both."""
    cells = _measure_cells(grid)
    return Findings(
        title="Variants: what live tokens see of halted ones, and whether CLS keeps its skip connection",
        about=(
            "The released model sets halted tokens to zero and leaves them as keys (`zero`); the text says they are "
            "removed (`masked`). The released model loses the skip connection of CLS where the Glimpser selects "
            "(`cls_skip` off); a text-book block keeps it (on). Trained with each, and each trained model tested with "
            f"both, on moving digits, {grid.recipe.epochs} epochs. The runs that change nothing of the recipe stand in "
            "both comparisons."
        ),
        figures={
            "cells": [
                {
                    "switch": switch,
                    "trained": here,
                    "tested": there,
                    "top1": spread(accuracy)._asdict(),
                    "gflops": spread(cost)._asdict(),
                }
                for (switch, here, there), (accuracy, cost) in cells.items()
            ]
        },
        tables=[_table(switch, cells) for switch in SWITCHES],
        reading=[sentence for switch in SWITCHES for sentence in _reading(switch, cells)],
        pictures={"": lambda path: _draw(cells, path)},
    )


def _measure_cells(grid: Grid) -> dict[Cell, tuple[list[float], list[float]]]:
    """Accuracies and GFLOPs of every cell, one of each per seed."""
    cells: dict[Cell, tuple[list[float], list[float]]] = {}
    planned = [
        Run(name, {f"config.{switch}": value}) for switch, values in SWITCHES.items() for value, name in values.items()
    ]
    trained = grid.measure(planned)
    for switch, values in SWITCHES.items():
        for here, name in values.items():
            for there in values:
                accuracy, cost = [], []
                for result in trained[name]:
                    top1, gflops = result.top1, result.gflops
                    if there != here:
                        found = grid.test(result, values[there], {f"config.{switch}": there})
                        assert found.top1 is not None
                        assert found.gflops is not None
                        top1, gflops = found.top1, found.gflops
                    accuracy.append(top1)
                    cost.append(gflops)
                cells[switch, here, there] = accuracy, cost
    return cells


def _name(switch: str, value: Any) -> str:
    return SWITCHES[switch][value].removeprefix(f"{switch}-")


def _table(switch: str, cells: dict[Cell, tuple[list[float], list[float]]]) -> Table:
    header = ("trained with", "tested with", "accuracy", "GFLOPs")
    rows = [
        (_name(switch, here), _name(switch, there), spread(accuracy).percent(), spread(cost).number())
        for (which, here, there), (accuracy, cost) in cells.items()
        if which == switch
    ]
    return Table(f"`{switch}`", header, rows)


def _reading(switch: str, cells: dict[Cell, tuple[list[float], list[float]]]) -> list[str]:
    one, other = SWITCHES[switch]

    def change(before: Cell, after: Cell) -> str:
        accuracy = [b - a for a, b in zip(cells[before][0], cells[after][0], strict=True)]
        cost = [b / a - 1 for a, b in zip(cells[before][1], cells[after][1], strict=True)]
        return f"{spread(accuracy).change()} points of accuracy, {spread(cost).change()} % of GFLOPs"

    first, second = _name(switch, one), _name(switch, other)
    said = [
        f"`{switch}`: trained and tested with {second} instead of {first}: "
        f"{change((switch, one, one), (switch, other, other))}."
    ]
    for here, there in ((one, other), (other, one)):
        said.append(
            f"`{switch}`: trained with {_name(switch, here)}, switched to {_name(switch, there)} at test time alone: "
            f"{change((switch, here, here), (switch, here, there))}."
        )
    return said


def _draw(cells: dict[Cell, tuple[list[float], list[float]]], path: Path) -> None:
    figure, (axes,) = make_accuracy_charts("Crosses: switched at test time alone. Large: mean over seeds", width=7.5)
    colours = {(switch, value): COLOURS[i] for i, (switch, value, _) in enumerate(list(cells)[::2])}
    for (switch, here, there), (accuracy, cost) in cells.items():
        label = f"{switch}: trained {_name(switch, here)}, tested {_name(switch, there)}"
        plot_runs(axes, cost, accuracy, "o" if here == there else "X", colours[switch, here], label)
    axes.margins(0.15)
    axes.legend(fontsize=7)
    save_chart(figure, path)
