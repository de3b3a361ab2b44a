"""No false alarm: right candidates are checked, and no tensor may exceed its budget.

    python -m tests.support.false_alarms [--seeds 20] [--only GLOB] [--out docs/results/check-false-alarms.md]

The backends of refvt run on the golden cases and on fresh inputs (``refvt.conformance.fresh``), the PyTorch port of
docs/examples in every way in which PyTorch computes it on a CPU. Exit code 1 if a case does not agree.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any

from refvt.conformance import checking
from refvt.conformance.candidates import wrap
from refvt.conformance.checking import check_case, select_cases
from refvt.conformance.fresh import fresh_case
from refvt.conformance.golden import load_arrays, load_manifest
from refvt.conformance.isolation import InProcess
from refvt.conformance.own_backends import backend_candidate
from refvt.conformance.report import CaseReport, share_text

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MODELS = ("tiny-model-zero", "tiny-model-masked", "tiny-model-fuse", "model-zero", "model-masked", "model-prune-one")


@dataclass
class Row:
    """One line of the page: what ran, on how many inputs, and the largest share of a budget."""

    candidate: str
    dtype: str
    inputs: str
    cases: int = 0
    tensors: int = 0
    share: float = 0.0
    where: str = ""
    alarms: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """What was measured."""
        return f"{self.candidate}, {self.dtype}, {self.inputs}"

    def add(self, case: CaseReport, label: str) -> None:
        """Count one case."""
        self.cases += 1
        self.tensors += case.compared
        worst = case.worst
        if worst is not None and worst.share >= self.share:
            self.share, self.where = worst.share, f"`{worst.name}` of {label}"
        if case.status not in ("agrees", "ambiguous"):
            self.alarms.append(f"{self.candidate}, {self.dtype}, {label}: {case.status}; {case.first or case.sentence}")


def run(row: Row, candidate: Any, names: list[str], seeds: list[int | None], around: Callable[[], Any]) -> Row:
    """Check a candidate, in this process, on golden cases (seed None) and on fresh ones."""
    start, runner = time.perf_counter(), InProcess(candidate, None)
    for name in names:
        for seed in seeds:
            with around():
                found = check_case(runner, load_manifest()[name], row.dtype, row.candidate, None, seed)
            row.add(found, name if seed is None else f"{name}, seed {seed}")
    row.seconds = time.perf_counter() - start
    return row


def of_backends(seeds: int) -> Iterator[tuple[Row, Callable[[Row], Row]]]:
    """The backends of the CPU: all golden cases, then fresh inputs of the tiny ones."""
    every = [case.name for case in select_cases("*")]
    tiny = [name for name in every if name.startswith("tiny-")]
    fresh: list[int | None] = list(range(seeds))
    for backend in ("reference", "jit"):
        for dtype in ("float32", "float64"):
            candidate = backend_candidate(backend, dtype)
            for inputs, names, drawn in (("golden", every, [None]), (f"fresh, {seeds} seeds", tiny, fresh)):
                row = Row(f"`{backend}`", dtype, inputs)
                yield row, partial(run, candidate=candidate, names=names, seeds=drawn, around=nullcontext)


def of_pytorch(seeds: int) -> Iterator[tuple[Row, Callable[[Row], Row]]]:
    """The port of docs/examples in PyTorch: eager, fused attention, compiled, with and without MKLDNN, autocast."""
    import torch

    from refvt.conformance import adapters

    sys.path.insert(0, str(EXAMPLES))
    import torch_port

    def mkldnn(enabled: bool) -> Callable[[], Any]:
        return lambda: torch.backends.mkldnn.flags(enabled=enabled)

    def module(config: Any, parameters: Any) -> Any:
        return torch_port.HaltingVT(config)

    def compiled(config: Any, parameters: Any) -> Any:
        return torch.compile(torch_port.HaltingVT(config), dynamic=False)  # else Inductor fails on model-zero

    eager, names = wrap(adapters.torch_model(module), "eager"), list(MODELS)
    inductor = wrap(adapters.torch_model(compiled), "compiled")
    golden: list[int | None] = [None]
    fresh: list[int | None] = list(range(seeds))
    fused = partial(fused_attention, torch_port)
    for ways, dtype, candidate, chosen, drawn, around in (
        ("eager, MKLDNN on", "float32", eager, names, golden, mkldnn(True)),
        ("eager, MKLDNN off", "float32", eager, names, golden, mkldnn(False)),
        ("eager", "float64", eager, names, golden, nullcontext),
        ("autocast", "bfloat16", eager, names, golden, nullcontext),
        ("fused attention", "float32", eager, names, golden, fused),
        ("fused attention, autocast", "bfloat16", eager, names, golden, fused),
        ("torch.compile", "float32", inductor, names[:4], golden, nullcontext),
        ("eager", "float32", eager, names[:3], fresh, nullcontext),
    ):
        row = Row(f"PyTorch, {ways}", dtype, "golden" if drawn is golden else f"fresh, {seeds} seeds")
        yield row, partial(run, candidate=candidate, names=chosen, seeds=drawn, around=around)


@contextmanager
def fused_attention(port: Any) -> Iterator[None]:
    """The port with PyTorch's ``scaled_dot_product_attention`` in all blocks that need no scores."""
    import torch
    from torch.nn import functional

    original = port.Attention.forward

    def forward(self: Any, x: Any, mask: Any = None, want_weights: bool = False) -> Any:
        if want_weights:
            return original(self, x, mask, want_weights)
        batch, n, D = x.shape
        q, k, v = self.qkv(x).reshape(batch, n, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None, :].expand(batch, 1, n, n)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        if mask is not None:
            y = torch.where(mask.any(1)[:, None, None, None], y, 0.0)
        return self.proj(y.transpose(1, 2).reshape(batch, n, D))

    port.Attention.forward = forward
    try:
        yield
    finally:
        port.Attention.forward = original


def page(rows: list[Row]) -> str:
    """The results as Markdown."""
    lines = [
        "# No false alarm",
        "",
        "What `refvt check` says of right candidates. `python -m tests.support.false_alarms` writes this page. A",
        "share above 100 % would be a false alarm. *golden*: the golden cases as they are, all of them for the",
        "backends, six models for PyTorch (four for `torch.compile`). *fresh*: the tiny cases (three models for",
        "PyTorch) with inputs drawn again from as many seeds as the row says",
        "([fresh.py](../../refvt/conformance/fresh.py)). A way to compute without a row was not measured.",
        "",
        "| candidate | dtype | inputs | cases | tensors compared | false alarms | largest share of a budget |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row.candidate} | {row.dtype} | {row.inputs} | {row.cases} | {row.tensors} | {len(row.alarms)} "
            f"| {share_text(row.share)}, {row.where} |"
        )
    count = sum(len(row.alarms) for row in rows)
    lines += ["", f"False alarms: {count} of {sum(row.cases for row in rows)} cases.", ""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 1 if there was a false alarm."""
    parser = argparse.ArgumentParser(prog="tests.support.false_alarms", description="Check right candidates.")
    parser.add_argument("--seeds", type=int, default=20, help="fresh inputs of every case")
    parser.add_argument(
        "--only", default="*", help="glob over 'candidate, dtype, inputs'; other rows stay as they were"
    )
    parser.add_argument("--out", type=Path, help="the page to write; its figures stand beside it as JSON")
    options = parser.parse_args(argv)
    checking.fresh_case = cached_fresh_case
    done = []
    for row, measure in (*of_backends(options.seeds), *of_pytorch(options.seeds)):
        if not fnmatchcase(row.key, options.only):
            continue
        done.append(measure(row))
        print(f"{row.key}: {row.cases} cases, {row.tensors} tensors, {share_text(row.share)} {row.where} "
              f"({row.seconds:.0f} s)", *row.alarms, sep="\n   ", flush=True)  # fmt: skip
        if options.out is not None:
            store(options.out, row)
    return int(any(row.alarms for row in done))


def store(out: Path, row: Row) -> None:
    """Put one row among those that were measured before, and write the page again."""
    figures = out.with_suffix(".json")
    rows = [Row(**entry) for entry in json.loads(figures.read_text(encoding="utf-8"))] if figures.exists() else []
    rows = sorted([*(other for other in rows if other.key != row.key), row], key=lambda row: row.key)
    figures.write_text(json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    out.write_text(page(rows), encoding="utf-8")


@cache
def _fresh(name: str, seed: int) -> Any:
    case = load_manifest()[name]
    return fresh_case(case, load_arrays(case), seed)


def cached_fresh_case(case: Any, arrays: Any, seed: int) -> Any:
    """``fresh_case``, drawn once for all candidates."""
    return _fresh(case.name, seed)


if __name__ == "__main__":
    sys.exit(main())
