"""The report of ``refvt bench`` as text for a terminal and as a Markdown page."""

from __future__ import annotations

import itertools
from typing import Any

from refvt.bench.contestants import RIVALS

__all__ = ["render_markdown", "render_text"]

EXPLANATION = (
    "Times are medians; ratios are of medians, below 1 is faster than the other program: PyTorch eager, with fused "
    "attention (sdpa), with tokens really removed (compact), and the exported model in ONNX Runtime and OpenVINO. "
    "GFLOPs are 10⁹ multiply-adds, as the paper counts; GFLOP/s are two operations per multiply-add of the matrix "
    "products executed (a training step counts as three forward passes). The peak is the fastest matrix product "
    "measured in the same rounds. Extra MB: memory above what the model itself holds."
)


def _cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    def ratio(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    rivals = [name for name in RIVALS if any(row.get(f"of_{name}") is not None for row in result["rows"])]
    columns = [f"of {name}" for name in rivals]
    table: list[tuple[str, ...]] = [("", "ms", "quartiles", *columns, "GFLOP/s", "of peak", "extra MB")]
    for row in result["rows"]:
        memory = row["extra_memory_mb"]
        cells = (
            row["name"],
            f"{1e3 * row['median']:.1f}",
            f"{1e3 * row['lower_quartile']:.1f}–{1e3 * row['upper_quartile']:.1f}",
            *(ratio(row[f"of_{name}"]) for name in rivals),
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
    """Lines under a table: agreement, batch against single clips, ceilings."""
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
        line += (
            f"; allowed {agreement['allowed']:.1e}. {apart} of {agreement['decisions']} patches differ in decisions."
        )
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


def render_text(report: dict[str, Any]) -> str:
    """The tables for a terminal."""
    lines = _environment_lines(report)
    for result in report["results"]:
        cells = _cells(result)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["", _title(result)]
        for row in cells:
            numbers = (f"{cell:>{width}}" for cell, width in itertools.islice(zip(row, widths, strict=True), 1, None))
            lines.append(f"  {row[0]:<{widths[0]}}  " + "  ".join(numbers))
        lines += [f"  {remark}" for remark in _remarks(result)]
    lines += ["", _growth_line(report["growth"])] if report["growth"] else []
    return "\n".join([*lines, "", EXPLANATION, ""])


def render_markdown(report: dict[str, Any]) -> str:
    """The tables as a Markdown page."""
    lines = list(itertools.chain.from_iterable((line, "") for line in ["# refvt bench", *_environment_lines(report)]))
    for result in report["results"]:
        header, *table = _cells(result)
        lines += [f"## {_title(result)}", "", "| " + " | ".join(header) + " |"]
        lines.append("| --- |" + " ---: |" * (len(header) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in table]
        lines += [part for remark in _remarks(result) for part in ("", remark)] + [""]
    lines += [_growth_line(report["growth"]), ""] if report["growth"] else []
    return "\n".join([*lines, EXPLANATION, ""])
