"""Charts with axes: runs by cost and accuracy, and the bench's growth curve."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refvt.files import MARK, write_whole

__all__ = ["COLOURS", "draw_growth", "make_accuracy_charts", "make_chart", "plot_runs", "save_chart"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by colour-blind eyes


def make_chart(width: float = 7, height: float = 4.5) -> tuple[Any, Any]:
    """An empty matplotlib figure and its axes, without matplotlib's global state. Sizes in inches."""
    figure = _make_figure(width, height)
    return figure, figure.add_subplot()


def _make_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def make_accuracy_charts(*titles: str, width: float = 7, height: float = 4.5) -> tuple[Any, list[Any]]:
    """Charts of accuracy against GFLOPs side by side, one for each title, for ``plot_runs``. Sizes in inches."""
    figure = _make_figure(width, height)
    panels = [figure.add_subplot(1, len(titles), i) for i in range(1, len(titles) + 1)]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xlabel("GFLOPs a clip (10⁹ multiply-adds)")
        axes.set_ylabel("accuracy on held-out clips [%]")
        axes.set_title(title, fontsize=10)
    return figure, panels


def plot_runs(
    axes: Any, gflops: Sequence[float], top1: Sequence[float], marker: str, colour: str, label: str | None = None
) -> tuple[float, float]:
    """Mark every run of a kind, small, and their mean, large; returns the mean's place on the axes."""
    accuracies = [100 * share for share in top1]
    style: dict[str, Any] = {"marker": marker, "color": colour, "linestyle": ""}
    axes.plot(gflops, accuracies, **style, markersize=4, alpha=0.4)
    middle = sum(gflops) / len(gflops), sum(accuracies) / len(accuracies)
    axes.plot(*middle, **style, markersize=9, label=label)
    return middle


def save_chart(figure: Any, path: str | Path) -> None:
    """Write a chart as a PNG, whole or not at all."""
    encoded = io.BytesIO()
    name, value = MARK[".png"].split("\0")
    figure.savefig(encoded, format="png", metadata={name: value})
    write_whole(path, encoded.getvalue())


def draw_growth(growth: dict[str, Any], cpu: str, path: str | Path) -> None:
    """Draw time against multiply-adds with the line fitted to it, from a report of ``refvt bench --growth``."""
    points, line = growth["points"], growth["fit"]
    x = np.array([p["multiply_adds"] / 1e9 for p in points])
    low, y, high = (np.array([1e3 * p[key] for p in points]) for key in ("lower_quartile", "median", "upper_quartile"))
    figure, axes = make_chart()
    ends = np.array([0, x.max()])
    label = (
        f"{line['intercept_ms']:.1f} ms + {line['ms_per_gflop']:.2f} ms per 10⁹ multiply-adds, R² = {line['r2']:.4f}"
    )
    axes.plot(ends, line["intercept_ms"] + line["ms_per_gflop"] * ends, color="#f08a24", label=label)
    axes.errorbar(x, y, [y - low, high - y], fmt="o", color="#1f3b6f", capsize=3, label="median and quartiles")
    for at, height, point in zip(x, y, points, strict=True):
        axes.annotate(f"{point['share']:.0%}", (at, height), (4, -11), textcoords="offset points", fontsize=8)
    axes.set_xlim(0, 1.1 * x.max())  # the last label fits inside
    axes.set_ylim(0)
    axes.set_xlabel("10⁹ multiply-adds executed; the labels are shares of tokens alive after layer 1")
    axes.set_ylabel("forward pass [ms]")
    axes.set_title(f"refvt {growth['backend']}, {growth['tokens']} tokens, on {cpu}", fontsize=10)
    axes.legend(loc="upper left")
    save_chart(figure, path)
