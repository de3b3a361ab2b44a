"""What ``refvt bench`` prints and writes: the machine, the tables as text and as a page, the picture of the growth."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from refvt.files import writing

__all__ = ["as_markdown", "as_text", "check_options", "machine", "publish", "say"]


def say(line: str) -> None:
    """A line about what goes on, beside what is printed."""
    print(f"refvt bench: {line}", file=sys.stderr, flush=True)


def check_options(options: argparse.Namespace) -> None:
    """ValueError for a number or a file that cannot be: found before the first minute is spent."""
    for option in ("repeats", "threads"):
        number = getattr(options, option)
        if number is not None and number < 1:
            raise ValueError(f"--{option}: expected at least 1, got {number}")
    if options.json == "-" and options.markdown == "-":
        raise ValueError("--json and --markdown: only one of them can be printed")
    for option in ("json", "markdown", "growth"):
        file = getattr(options, option)
        if file not in (None, "-") and not Path(file).parent.is_dir():
            raise ValueError(f"--{option}: no such folder: {Path(file).parent}")


def machine(threads: int, with_torch: bool) -> dict[str, Any]:
    packages = {"python": platform.python_version()}
    for package in ("numpy", "numba", "numba-cuda", "torch"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    if not with_torch:
        packages.pop("torch", None)
    blas = [
        " ".join(str(lib[key]) for key in ("internal_api", "version", "architecture") if lib.get(key))
        for lib in threadpool_info()
        if lib["user_api"] == "blas"
    ]
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = named[0] if named else cpu
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "packages": packages,
        "blas": sorted(set(blas)),
    }


HEADER = ("", "ms", "quartiles", "of eager", "of sdpa", "GFLOP/s", "of peak", "extra MB")
EXPLANATION = (
    "Times are medians; ratios are of medians, below 1 is faster than PyTorch. GFLOP/s: two operations per "
    "multiply-add of the matrix products executed (a training step counts as three forward passes); the peak is the "
    "fastest matrix product measured in the same rounds. Extra MB: memory above what the model itself holds."
)


def _cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    def ratio(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    table: list[tuple[str, ...]] = [HEADER]
    for row in result["rows"]:
        memory = row["extra_memory_mb"]
        cells = (
            row["name"],
            f"{1e3 * row['median']:.1f}",
            f"{1e3 * row['lower_quartile']:.1f}–{1e3 * row['upper_quartile']:.1f}",
            ratio(row["of_eager"]),
            ratio(row["of_sdpa"]),
            f"{row['gflop_per_second']:.1f}",
            f"{row['share_of_peak']:.0%}",
            "–" if memory is None else f"{memory:.0f}",
        )
        table.append(cells)
    return table


def _title(result: dict[str, Any]) -> str:
    kind = "training step" if result["pass"] == "train" else "forward pass"
    clips = "1 clip" if result["clips"] == 1 else f"{result['clips']} clips"
    cost = ", ".join(f"{g:.1f}" for g in result["gflops"])
    return f"{result['workload']}, {kind}, {clips}: {result['describes']} (by convention {cost} GFLOPs)"


def _remarks(result: dict[str, Any]) -> list[str]:
    """What stands under a table."""
    agreement = result["agreement"]
    remarks = []
    if agreement["logits"]:
        worst = max(agreement["logits"], key=lambda name: agreement["logits"][name])
        line = (
            f"Agreement with {agreement['with']}: logits differ by at most {agreement['logits'][worst]:.1e} of the "
            f"largest, {agreement['largest_logit']:.2g} ({worst})"
        )
        for what in ("loss", "gradients"):
            if what in agreement:
                line += f", {what} by {max(agreement[what].values()):.1e}"
        apart = max(agreement["decisions_apart"].values())
        line += f"; allowed {agreement['allowed']:.1e}. {apart} of {agreement['decisions']} patches decided otherwise."
        remarks.append(line if agreement["holds"] else f"NO AGREEMENT, hence no ratios. {line}")
    for row in result["rows"]:
        if row["of_one_by_one"] is not None:
            remarks.append(f"{row['name']}: one batch takes {row['of_one_by_one']:.2f} of the time of its clips alone.")
    speeds = ", ".join(f"{row['name']} {row['median']:.1f} {row['unit']}" for row in result["ceilings"])
    return [*remarks, f"Ceilings: {speeds}."]


def _environment_lines(report: dict[str, Any]) -> list[str]:
    e = report["environment"]
    packages = ", ".join(f"{name} {found}" for name, found in e["packages"].items())
    lines = [
        f"refvt {report['refvt']}, {e['date']}, {e['cpu']}, {e['cores']} cores, {e['threads']} threads, "
        f"{report['settings']['dtype']}, {report['settings']['repeats']} rounds",
        f"{packages}, BLAS: {'; '.join(e['blas']) or 'unknown'}",
    ]
    return lines + [f"Warning: {note}." for note in report["notes"]]


def _growth_line(growth: dict[str, Any]) -> str:
    line = growth["fit"]
    return (
        f"Growth ({growth['backend']} compact, {growth['tokens']} tokens, some of which halt in layer 1): "
        f"{line['intercept_ms']:.1f} ms + {line['ms_per_gflop']:.2f} ms per 10⁹ multiply-adds, R² = {line['r2']:.4f}."
    )


def as_text(report: dict[str, Any]) -> str:
    """The tables for a terminal."""
    lines = _environment_lines(report)
    for result in report["results"]:
        cells = _cells(result)
        widths = [max(len(row[i]) for row in cells) for i in range(len(HEADER))]
        lines += ["", _title(result)]
        for row in cells:
            numbers = (f"{cell:>{width}}" for cell, width in itertools.islice(zip(row, widths, strict=True), 1, None))
            lines.append(f"  {row[0]:<{widths[0]}}  " + "  ".join(numbers))
        lines += [f"  {remark}" for remark in _remarks(result)]
    lines += ["", _growth_line(report["growth"])] if report["growth"] else []
    return "\n".join([*lines, "", EXPLANATION, ""])


def as_markdown(report: dict[str, Any]) -> str:
    """The same as a page."""
    lines = list(itertools.chain.from_iterable((line, "") for line in ["# refvt bench", *_environment_lines(report)]))
    for result in report["results"]:
        header, *table = _cells(result)
        lines += [f"## {_title(result)}", "", "| " + " | ".join(header) + " |"]
        lines.append("| --- |" + " ---: |" * (len(header) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in table]
        lines += [part for remark in _remarks(result) for part in ("", remark)] + [""]
    lines += [_growth_line(report["growth"]), ""] if report["growth"] else []
    return "\n".join([*lines, EXPLANATION, ""])


def publish(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Files are written beside their place and moved there when they are whole."""
    made: dict[str, Callable[[Path], object]] = {}
    data = json.dumps(report, indent=1, ensure_ascii=False)
    if options.json not in (None, "-"):
        made[options.json] = lambda file: file.write_text(data + "\n", encoding="utf-8")
    if options.markdown not in (None, "-"):
        made[options.markdown] = lambda file: file.write_text(as_markdown(report), encoding="utf-8")
    if options.growth is not None:
        made[options.growth] = lambda file: _draw_growth(report["growth"], report["environment"]["cpu"], file)
    for name, write in made.items():
        with writing(name) as part:
            write(part)
    if options.json == "-":
        print(data)
    elif options.markdown == "-":
        print(as_markdown(report), end="")
    else:
        print(as_text(report), end="")


def _draw_growth(growth: dict[str, Any], cpu: str, file: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points, line = growth["points"], growth["fit"]
    x = np.array([p["multiply_adds"] / 1e9 for p in points])
    low, y, high = (np.array([1e3 * p[key] for p in points]) for key in ("lower_quartile", "median", "upper_quartile"))
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = np.array([0, x.max()])
    label = f"{line['intercept_ms']:.1f} ms + {line['ms_per_gflop']:.2f} ms per GFLOP, R² = {line['r2']:.4f}"
    axes.plot(ends, line["intercept_ms"] + line["ms_per_gflop"] * ends, color="#f08a24", label=label)
    axes.errorbar(x, y, [y - low, high - y], fmt="o", color="#1f3b6f", capsize=3, label="median and quartiles")
    for at, height, point in zip(x, y, points, strict=True):
        axes.annotate(f"{point['share']:.0%}", (at, height), (4, -11), textcoords="offset points", fontsize=8)
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.set_xlabel("10⁹ multiply-adds executed; the labels are shares of tokens alive after layer 1")
    axes.set_ylabel("forward pass [ms]")
    axes.set_title(f"refvt {growth['backend']}, {growth['tokens']} tokens, on {cpu}", fontsize=10)
    axes.legend(loc="upper left")
    figure.savefig(file, format="png")
