"""The report of an experiment: numbers as JSON, a page with tables and a reading, pictures.

The page is a rendering of the JSON's figures. Files are written whole or not at all, the page last, so that all files
it refers to exist once it does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from refvt.files import MARK, write_whole

__all__ = ["Findings", "Spread", "Table", "file_names", "render_page", "spread", "write"]


class Spread(NamedTuple):
    """Mean of n independent values and half the width of its 95 % interval; a single value has no interval (None).

    The interval is mean ± t · s/√n, with s the sample standard deviation and t the 97.5 % quantile of Student's
    distribution with n − 1 degrees of freedom (Student 1908).
    """

    mean: float
    interval: float | None
    values: list[float]

    def percent(self, digits: int = 1) -> str:
        """A share as per cent: mean ± half the interval."""
        return self._shown(lambda x: f"{100 * x:.{digits}f}", " %")

    def change(self) -> str:
        """A difference times 100, with its sign and without a unit."""
        return self._shown(lambda x: f"{100 * x:+z.1f}", "").replace("± +", "± ")

    def number(self) -> str:
        """Mean ± half the interval, with four figures of the mean; the mean alone if all values are equal."""
        places = max(0, 3 - math.floor(math.log10(abs(self.mean)))) if self.mean else 0
        if self.interval == 0:
            return f"{self.mean:.{places}f}"
        return self._shown(lambda x: f"{x:.{places}f}", "")

    def _shown(self, form: Callable[[float], str], unit: str) -> str:
        mean = form(self.mean)
        return f"{mean}{unit}" if self.interval is None else f"{mean} ± {form(self.interval)}{unit}"

    def verdict(self, claimed: int) -> str:
        """Compare a change with a claim: claimed is +1 if it should be above zero, −1 if below.

        "confirmed" or "contradicted" if zero is outside of the interval, on the claimed side or on the other; "not told
        apart from zero" if it is inside, or if there is no interval.
        """
        if self.interval is None or abs(self.mean) <= self.interval:
            return "not told apart from zero"
        return "confirmed" if self.mean * claimed > 0 else "contradicted"


def spread(values: Sequence[float]) -> Spread:
    """Mean and 95 % interval of independent values, one per seed."""
    from scipy.special import stdtrit

    found = [float(v) for v in values]
    n, mean = len(found), sum(found) / len(found)
    if n == 1:
        return Spread(mean, None, found)
    if len(set(found)) == 1:  # their mean may be rounded
        return Spread(found[0], 0.0, found)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in found) / (n - 1))
    return Spread(mean, float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n), found)


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; words in the first column, numbers in the others."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Findings:
    """The results of an experiment.

    title, about: what it is, and which part of the paper it repeats. figures: the numbers, as JSON can hold them.
    tables: the same to look at. reading: sentences made from the numbers. pictures: by the suffix of the file's name,
    a function that draws a PNG whole or not at all.
    """

    title: str
    about: str
    figures: dict[str, Any]
    tables: list[Table]
    reading: list[str]
    pictures: dict[str, Callable[[Path], None]]


def render_page(report: dict[str, Any], findings: Findings) -> str:
    """The Markdown page of a report and its findings."""
    e = report["environment"]
    packages = ", ".join(f"{name} {found}" for name, found in e["packages"].items())
    lines = [f"# {findings.title}", "", findings.about, "", "## Reading", ""]
    lines += [f"- {sentence}" for sentence in [*findings.reading, *_cautions(report)]]
    for extra in findings.pictures:
        lines += ["", f"![{findings.title}](experiment-{report['experiment']}{extra}.png)"]
    for table in findings.tables:
        lines += ["", f"## {table.title}", "", *_align(table)]
    threads = "1 thread" if e["threads"] == 1 else f"{e['threads']} threads"
    lines += ["", "## How it was made", "", "```sh", report["command"], "```", ""]
    lines += [
        f"refvt {report['refvt']}, {e['date']}, {e['cpu']}, {e['cores']} cores, {threads}; {packages}.",
        "",
    ]
    lines += _runs_section(report)
    return "\n".join([*lines, ""])


def _cautions(report: dict[str, Any]) -> list[str]:
    """What the numbers do not say, made from the recipe and the runs."""
    said, recipe, runs = [], report["recipe"], report["runs"]
    if recipe["changing_ponder"] != 1:
        said.append(
            "The ponder loss is refvt's variant `changing_ponder`, which rewards patches that change for living. That "
            "halting follows what moves is therefore no test of the paper's ponder loss: with its form it did not, in "
            "a shorter run (docs/training.md, photographs)."
        )
    if runs:
        top1 = sum(run["top1"] for run in runs) / len(runs)
        chance = 196 * math.sqrt(top1 * (1 - top1) / report["test_clips"])
        said.append(
            "± covers the seed of the runs alone, not other test clips or another start: by the choice of the "
            f"{report['test_clips']} test clips alone an accuracy is uncertain by ±{chance:.1f} "
            "points."
        )
    changes = [run["last_change"] for run in runs if run["last_change"] is not None]
    if changes:
        mean = 100 * sum(changes) / len(changes)
        said.append(f"In the last epoch accuracy changed by {mean:+z.1f} points, mean of all runs; see *last change*.")
    return said


def _runs_section(report: dict[str, Any]) -> list[str]:
    """What was trained: the recipe, and a table of all runs."""
    runs = report["runs"]
    recipe = ["```json", json.dumps(report["recipe"], ensure_ascii=False), "```"]
    start, jobs = report["start"], report["jobs"]
    at_once = f" (the sum over all runs; {jobs} were trained at once)" if jobs > 1 else ""
    if not runs:
        return ["The model has the shape, and the clips the settings, of this recipe:", "", *recipe]
    lines = [
        f"{report['trained']} runs, {report['seconds'] / 60:.0f} minutes of training{at_once}. {start} Seeds "
        f"{', '.join(map(str, report['seeds']))}; ± is half the width of the 95 % interval of a mean over seeds "
        "(Student's t). A change between two settings is taken seed by seed, then averaged. Accuracy is top-1 on the "
        "held-out clips after the last epoch; *last change* is its change in the last epoch, in points. GFLOPs are 10⁹ "
        "multiply-adds a clip, counted as the paper counts; a clip is done when its CLS has halted. *Saved by "
        "halting* is of the joint blocks alone. The seconds (s) are of a machine that may have done other work, too. "
        "The recipe that the runs change:",
        "",
        *recipe,
    ]
    header = (
        "run",
        "seed",
        "accuracy",
        "last change",
        "GFLOPs",
        "saved by halting",
        "tokens entering each joint block",
        "s",
    )
    rows = [
        (
            run["run"],
            str(run["seed"]),
            f"{100 * run['top1']:.1f} %",
            "" if run["last_change"] is None else f"{100 * run['last_change']:+z.1f}",
            f"{run['gflops']:.4g}",
            f"{100 * run['saved_by_halting']:z.1f} %",
            " ".join(f"{n:.1f}" for n in run["tokens_per_layer"]),
            f"{run['seconds']:.0f}",
        )
        for run in runs
    ]
    return [*lines, "", "## All runs", "", *_align(Table("", header, rows))]


def _align(table: Table) -> list[str]:
    """A Markdown table whose columns are aligned in the source too."""
    cells = [table.header, *table.rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        numbers = (f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        return "| " + " | ".join([f"{row[0]:<{widths[0]}}", *numbers]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(table.header), line(rule), *map(line, table.rows)]


def file_names(experiment: str, pictures: Iterable[str]) -> list[str]:
    """Names of the files of a report: the pictures, by their suffixes, the numbers and the page."""
    return [f"experiment-{experiment}{extra}" for extra in (*(f"{p}.png" for p in pictures), ".json", ".md")]


def write(report: dict[str, Any], findings: Findings, folder: Path) -> list[Path]:
    """Write experiment-NAME.md, .json and the pictures to an existing folder; returns the files written."""
    stem = f"experiment-{report['experiment']}"
    written = []
    for extra, draw in findings.pictures.items():
        written.append(folder / f"{stem}{extra}.png")
        draw(written[-1])
    written += [folder / f"{stem}.json", folder / f"{stem}.md"]
    data = json.dumps({"generator": "refvt", **report}, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(written[-2], f"{data}\n".encode())
    write_whole(written[-1], f"{render_page(report, findings)}\n{MARK['.md']}\n".encode())
    return written
