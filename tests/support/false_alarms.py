"""No false alarm: right candidates are checked, and no tensor may exceed its budget.

    python -m tests.support.false_alarms [--seeds 20] [--out docs/results/check-false-alarms.md]

The backends of refvt run on the golden cases and on fresh inputs (``refvt.conformance.fresh``), the PyTorch port of
docs/examples in every way in which PyTorch computes it on a CPU. Exit code 1 if a case does not agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
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


def of_backends(seeds: int) -> Iterator[Row]:
    """The backends of the CPU: all golden cases, then fresh inputs of the tiny ones."""
    every = [case.name for case in select_cases("*")]
    tiny = [name for name in every if name.startswith("tiny-")]
    fresh: list[int | None] = list(range(seeds))
    for backend in ("reference", "jit"):
        for dtype in ("float32", "float64"):
            candidate = backend_candidate(backend, dtype)
            yield run(Row(f"`{backend}`", dtype, "golden"), candidate, every, [None], nullcontext)
            inputs = f"fresh, {seeds} seeds"
            yield run(Row(f"`{backend}`", dtype, inputs), candidate, tiny, fresh, nullcontext)


def of_pytorch(seeds: int) -> Iterator[Row]:
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
        return torch.compile(torch_port.HaltingVT(config))

    eager, names = wrap(adapters.torch_model(module), "eager"), list(MODELS)
    yield run(Row("PyTorch, eager, MKLDNN on", "float32", "golden"), eager, names, [None], mkldnn(True))
    yield run(Row("PyTorch, eager, MKLDNN off", "float32", "golden"), eager, names, [None], mkldnn(False))
    yield run(Row("PyTorch, eager", "float64", "golden"), eager, names, [None], nullcontext)
    yield run(Row("PyTorch, autocast", "bfloat16", "golden"), eager, names, [None], nullcontext)
    with fused_attention(torch_port):
        yield run(Row("PyTorch, fused attention", "float32", "golden"), eager, names, [None], mkldnn(True))
        yield run(Row("PyTorch, fused attention, autocast", "bfloat16", "golden"), eager, names, [None], nullcontext)
    fresh: list[int | None] = list(range(seeds))
    yield run(Row("PyTorch, eager", "float32", f"fresh, {seeds} seeds"), eager, names[:3], fresh, nullcontext)
    candidate = wrap(adapters.torch_model(compiled), "compiled")
    yield run(Row("PyTorch, torch.compile", "float32", "golden"), candidate, names[:4], [None], nullcontext)


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
        "What `refvt check` says of right candidates. `python -m tests.support.false_alarms` writes this page. A share",
        "above 100 % would be a false alarm. *golden*: the golden cases as they are: all of operations and models for the",
        "backends, six models for PyTorch (four for `torch.compile`). *fresh*: the tiny cases with inputs drawn again from",
        "a seed ([fresh.py](../../refvt/conformance/fresh.py)).",
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
    parser.add_argument("--only", choices=["backends", "pytorch"], help="one part of the candidates")
    parser.add_argument("--out", type=Path, help="the page to write")
    options = parser.parse_args(argv)
    checking.fresh_case = cached_fresh_case
    parts = {"backends": of_backends, "pytorch": of_pytorch}
    rows = []
    for name, part in parts.items():
        for row in part(options.seeds) if options.only in (None, name) else ():
            rows.append(row)
            print(f"{row.candidate:36s} {row.dtype:9s} {row.inputs:16s} {row.cases:4d} cases {row.tensors:6d} tensors "
                  f"{share_text(row.share):>6s} {row.where} ({row.seconds:.0f} s)", flush=True)  # fmt: skip
            for alarm in row.alarms:
                print(f"   {alarm}", flush=True)
    if options.out is not None:
        options.out.write_text(page(rows), encoding="utf-8")
    return int(any(row.alarms for row in rows))


@cache
def _fresh(name: str, seed: int) -> Any:
    case = load_manifest()[name]
    return fresh_case(case, load_arrays(case), seed)


def cached_fresh_case(case: Any, arrays: Any, seed: int) -> Any:
    """``fresh_case``, drawn once for all candidates."""
    return _fresh(case.name, seed)


if __name__ == "__main__":
    sys.exit(main())
