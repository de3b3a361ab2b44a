"""What an experiment hands out: numbers as JSON, a page with tables and a reading, pictures.

The page is a rendering of the JSON's figures. Files are written whole or not at all, the page last, so that whoever
finds it finds what it speaks of.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from refvt.files import write_whole

__all__ = ["COLOURS", "Findings", "Spread", "Table", "as_markdown", "chart", "save_chart", "spread", "write"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by colour-blind eyes


class Spread(NamedTuple):
    """Mean and sample standard deviation of n values; None for a single one, which has no spread."""

    mean: float
    deviation: float | None
    values: list[float]

    def percent(self, digits: int = 1) -> str:
        return self._shown(lambda x: f"{100 * x:.{digits}f}", " %")

    def change(self) -> str:
        """A difference, times 100 and with its sign; the unit is the caller's."""
        return self._shown(lambda x: f"{100 * x:+z.1f}", "").replace("± +", "± ")

    def number(self) -> str:
        """With so many places that the mean has four figures."""
        places = max(0, 3 - math.floor(math.log10(abs(self.mean)))) if self.mean else 0
        return self._shown(lambda x: f"{x:.{places}f}", "")

    def _shown(self, form: Callable[[float], str], unit: str) -> str:
        mean = form(self.mean)
        return f"{mean}{unit}" if self.deviation is None else f"{mean} ± {form(self.deviation)}{unit}"


def spread(values: Sequence[float]) -> Spread:
    found = [float(v) for v in values]
    mean = sum(found) / len(found)
    if len(found) == 1:
        return Spread(mean, None, found)
    return Spread(mean, math.sqrt(sum((v - mean) ** 2 for v in found) / (len(found) - 1)), found)


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column is words, the others are numbers."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Findings:
    """What an experiment found.

    title, about: what it is and what it stands for in the paper. figures: the numbers, as JSON can hold them. tables:
    the same to look at. reading: sentences made from the numbers. pictures: by what is added to the file's name, a
    function that draws a PNG whole or not at all.
    """

    title: str
    about: str
    figures: dict[str, Any]
    tables: list[Table]
    reading: list[str]
    pictures: dict[str, Callable[[Path], None]]


def as_markdown(report: dict[str, Any], findings: Findings) -> str:
    """The page of a report and the findings in it."""
    e = report["environment"]
    packages = ", ".join(f"{name} {found}" for name, found in e["packages"].items())
    runs = report["runs"]
    lines = [f"# {findings.title}", "", findings.about, "", "## Reading", ""]
    lines += [f"- {sentence}" for sentence in findings.reading]
    for extra in findings.pictures:
        lines += ["", f"![{findings.title}](experiment-{report['experiment']}{extra}.png)"]
    for table in findings.tables:
        lines += ["", f"## {table.title}", "", *_padded(table)]
    threads = "1 thread" if e["threads"] == 1 else f"{e['threads']} threads"
    lines += ["", "## How it was made", "", "```sh", report["command"], "```", ""]
    lines += [
        f"refvt {report['refvt']}, {e['date']}, {e['cpu']}, {e['cores']} cores, {threads}; {packages}.",
        "",
    ]
    recipe = ["```json", json.dumps(report["recipe"], ensure_ascii=False), "```"]
    if not runs:
        lines += ["The model has the shape, and the clips the settings, of this recipe:", "", *recipe]
    else:
        lines += [
            f"{report['trained']} runs, {report['seconds'] / 60:.0f} minutes of training. Seeds "
            f"{', '.join(map(str, report['seeds']))}; ± is the sample standard deviation over them. Accuracy is top-1 "
            "on the held-out clips after the last epoch. GFLOPs are 10⁹ multiply-adds a clip, counted as the paper "
            "counts; a clip is done when its CLS has halted. The recipe that the runs change:",
            "",
            *recipe,
        ]
        header = ("run", "seed", "accuracy", "GFLOPs", "saved by halting", "tokens entering each joint block", "s")
        rows = [
            (
                run["run"],
                str(run["seed"]),
                f"{100 * run['top1']:.1f} %",
                f"{run['gflops']:.4g}",
                f"{100 * run['saved_by_halting']:z.1f} %",
                " ".join(f"{n:.1f}" for n in run["tokens_per_layer"]),
                f"{run['seconds']:.0f}",
            )
            for run in runs
        ]
        lines += ["", "## All runs", "", *_padded(Table("", header, rows))]
    return "\n".join([*lines, ""])


def _padded(table: Table) -> list[str]:
    """A Markdown table that can be read as it stands."""
    cells = [table.header, *table.rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        numbers = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        return "| " + " | ".join([f"{row[0]:<{widths[0]}}", *numbers]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(table.header), line(rule), *map(line, table.rows)]


def write(report: dict[str, Any], findings: Findings, folder: Path) -> list[Path]:
    """Write experiment-NAME.md, .json and the pictures to a folder that is there; returns what was written."""
    stem = f"experiment-{report['experiment']}"
    written = []
    for extra, draw in findings.pictures.items():
        written.append(folder / f"{stem}{extra}.png")
        draw(written[-1])
    written += [folder / f"{stem}.json", folder / f"{stem}.md"]
    write_whole(written[-2], (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(written[-1], as_markdown(report, findings).encode())
    return written


# ---- pictures


def chart(width: float = 7, height: float = 4.5) -> tuple[Any, Any]:
    """An empty matplotlib figure and its axes, without matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_chart(figure: Any, path: Path) -> None:
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png")
    write_whole(path, encoded.getvalue())
