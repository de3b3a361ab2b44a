"""All checks and timings that need a GPU, in one run of a few minutes: golden cases, laws, memory, times.

    python -m refvt.bench.gpu_report --out gpu-report

writes gpu-report.json and gpu-report.md. No network is needed. If one part fails, its error is in the report and the
other parts follow; the longest parts come last. ``--only`` selects parts. The exit code is 0 only if all parts that ran
hold. Times are compared with PyTorch where it is installed with CUDA; otherwise refvt is timed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt import backends
from refvt.backends.jit import workspace
from refvt.bench import forward as bench
from refvt.bench import torch_model as bench_torch
from refvt.bench.ceilings_gpu import device_description
from refvt.bench.report import render_markdown
from refvt.bench.training_step import WORKLOADS as TRAINING_WORKLOADS
from refvt.bench.training_step import measure_steps, render_steps
from refvt.environment import describe_machine
from refvt.files import MARK, write_whole
from refvt.ops.laws import Computes, Law

__all__ = ["main"]

CLIPS = 4
SANITIZER_CODE = 9  # with which compute-sanitizer ends if it found something
SANITIZER_SECONDS = 480  # a kernel runs ten to a hundred times slower there

# the parts by name: their titles in the report, and their functions. The longest come last
PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], dict[str, Any]]]] = {
    "golden32": ("golden cases, float32", lambda o: _golden("float32")),
    "graphs": ("replayed CUDA graphs", lambda o: _graphs(o.repeats)),
    "dense": (f"dense, {CLIPS} clips", lambda o: _bench("dense", o.repeats)),
    "paper9": ("the profile of 9.9 GFLOPs", lambda o: _bench("paper9", o.repeats)),
    "step": ("a training step", lambda o: _training_step(o.repeats)),
    "kernels": ("every kernel against the GPU's ceilings", lambda o: _kernels(o.repeats)),
    "golden64": ("golden cases, float64", lambda o: _golden("float64")),
    "laws": ("laws", lambda o: _laws(o.examples)),
    "memcheck": ("compute-sanitizer, memcheck", lambda o: _sanitized("memcheck")),
    "racecheck": ("compute-sanitizer, racecheck", lambda o: _sanitized("racecheck")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and write the report; 0 if all hold, 1 if not, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="path without .json and .md")
    parser.add_argument("--examples", type=int, default=20, metavar="N", help="of every law (default: 20)")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="rounds of the timings (default: 9)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    options = parser.parse_args(arguments)
    for name in ("examples", "repeats"):
        if getattr(options, name) < 1:
            print(f"refvt: --{name}: expected at least 1, got {getattr(options, name)}", file=sys.stderr)
            return 2
    try:
        backends.get("cuda")
    except backends.Unavailable as error:
        print(f"refvt: {error}", file=sys.stderr)
        return 2
    if not options.out.resolve().parent.is_dir():
        print(f"refvt: --out: no such folder: {options.out.resolve().parent}", file=sys.stderr)
        return 2
    report: dict[str, Any] = {
        "refvt": refvt.__version__,
        "environment": {**describe_machine(1, bench_torch.finds_gpu()), **device_description()},
        "parts": {},
    }
    for name, part in (part for key, part in PARTS.items() if options.only is None or key in options.only):
        _say(name)
        start = time.perf_counter()
        try:
            found = part(options)
        except Exception as error:  # the other parts still run
            found = {"holds": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        report["parts"][name] = {**found, "seconds": time.perf_counter() - start}
        _write(report, options.out)  # after every part, so that an interrupted run leaves a report
    held = all(part["holds"] for part in report["parts"].values())
    _say(f"{'everything holds' if held else 'NOT everything holds'}; see {options.out}.md")
    return 0 if held else 1


def _say(line: str) -> None:
    print(f"refvt gpu report: {line}", file=sys.stderr, flush=True)


def _golden(dtype: str) -> dict[str, Any]:
    from refvt.conformance.golden import load_manifest
    from refvt.conformance.verify import verify

    results = verify(load_manifest().values(), "cuda", dtype)
    failed = {
        r.name: r.sentence if r.first is None else f"{r.first.tensor}: {r.first.share:.2f} of its budget"
        for r in results
        if not r.holds
    }
    worst = max((r for r in results if r.worst), key=lambda r: r.share, default=None)
    return {
        "holds": not failed,
        "cases": len(results),
        "comparisons": sum(len(r.tensors) for r in results),
        "largest_share_of_budget": None if worst is None else worst.share,
        "largest_share_in": None if worst is None or worst.worst is None else f"{worst.name}: {worst.worst.name}",
        "ambiguous": {r.name: r.ambiguous for r in results if r.ambiguous},
        "failed": failed,
    }


def _laws(examples: int) -> dict[str, Any]:
    """Every law of every operation, in both dtypes, on inputs that Hypothesis makes."""
    from refvt.conformance.adapters import on_host
    from refvt.conformance.laws import laws_of
    from refvt.conformance.strategies import inputs_for
    from refvt.ops import operations

    backend, checked = backends.get("cuda"), 0
    failed: dict[str, str] = {}
    for operation in operations():
        op = on_host(backend, operation)
        for law in laws_of(operation):
            for dtype in ("float64", "float32"):
                if law.__name__ == "adjoint" and dtype == "float32":  # a difference quotient needs float64
                    continue
                checked += 1
                try:
                    _hold(law, op, inputs_for(operation, dtype=dtype), examples)
                except Exception as error:
                    failed[f"{operation}, {law.__name__}, {dtype}"] = f"{type(error).__name__}: {error}"
    return {"holds": not failed, "laws": checked, "examples_each": examples, "failed": failed}


def _hold(law: Law, op: Computes, strategy: Any, examples: int) -> None:
    from hypothesis import HealthCheck, given, settings

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs=strategy)
    def holds(inputs: dict[str, Any]) -> None:
        law(op, inputs)

    holds()


def _sanitized(tool: str) -> dict[str, Any]:
    """The tiny golden cases under a tool that checks every memory access, in a process of its own."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"holds": True, "left_out": "compute-sanitizer (of the CUDA toolkit) is not installed"}
    asked = ["-m", "refvt", "golden", "verify", "--tiny", "--backend", "cuda", "--dtype", "float32"]
    watched = [program, "--tool", tool, "--error-exitcode", str(SANITIZER_CODE), sys.executable, *asked]
    # a session of its own, so that its children can be ended with it before anything is timed
    process = subprocess.Popen(
        watched,
        env={**os.environ, "REFVT_CUDA_KEEP_MEMORY": "0"},  # an allocation per array, or the tool finds nothing
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = process.communicate(timeout=SANITIZER_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"holds": True, "left_out": f"it did not finish within {SANITIZER_SECONDS} s"}
    except BaseException:  # Ctrl-C, which does not reach another session
        os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = [line.strip("= ") for line in out.splitlines() if line.startswith("=========")]
    if any("Device not supported" in line for line in lines):  # as inside some virtual machines
        return {"holds": True, "left_out": "compute-sanitizer says: Device not supported"}
    found = {"holds": process.returncode == 0, "summary": lines[-1] if lines else errors.strip()[-500:]}
    if found["holds"]:
        return found
    said = lines[:40] if process.returncode == SANITIZER_CODE else [*out.splitlines()[-20:], *errors.splitlines()[-20:]]
    return {**found, "failed": {"output": "\n".join(said)}}


def _bench(workload: str, repeats: int) -> dict[str, Any]:
    """The tables of ``refvt bench --backend cuda`` for one workload."""
    settings = bench.Settings(
        ["cuda"],
        {workload: bench.WORKLOADS[workload]},
        workspace.num_threads(),
        clips=CLIPS,
        repeats=repeats,
        with_torch=bench_torch.finds_gpu(),
    )
    report = bench.measure(settings, _say)
    return _tables(report, render_markdown(report))


def _training_step(repeats: int) -> dict[str, Any]:
    """The tables of ``refvt bench --backend cuda --training-step``."""
    with_torch = bench_torch.finds_gpu()
    report = measure_steps(
        ["cuda"], TRAINING_WORKLOADS, workspace.num_threads(), _say, repeats=repeats, with_torch=with_torch
    )
    return _tables(report, f"# A training step\n\n```\n{render_steps(report['results'])}```\n")


def _tables(report: dict[str, Any], markdown: str) -> dict[str, Any]:
    holds = all(result["agreement"]["holds"] for result in report["results"])
    return {"holds": holds, "bench": report, "markdown": markdown}


def _graphs(repeats: int) -> dict[str, Any]:
    """Replayed graphs give the results of launched passes to the last bit, also for other clips than those captured."""
    from refvt.bench.contestants import make_material

    m = make_material(bench.WORKLOADS["paper9"], CLIPS, "float32")
    arrays = backends.get("cuda").arrays
    replayed = refvt.HaltingVT(m.config, m.parameters, backend="cuda")
    seconds: dict[str, list[float]] = {"launched": [], "replayed": []}
    failed, lives = {}, set()
    for call in range(max(3, repeats)):
        clips = arrays.from_numpy(np.roll(m.clips, call, axis=2) * m.clips.dtype.type(1 - 0.02 * call))
        found = {}
        # a model's first pass is launched kernel by kernel, the second is captured, later ones are replayed
        for name, model in (
            ("launched", refvt.HaltingVT(m.config, m.parameters, backend="cuda")),
            ("replayed", replayed),
        ):
            arrays.wait()
            start = time.perf_counter()
            found[name] = model(clips)
            seconds[name].append(time.perf_counter() - start)
        a, b = found["launched"], found["replayed"]
        pairs = [(name, getattr(a, name), getattr(b, name)) for name in ("logits", "features", "ponder", "alive")]
        for name, right, mine in pairs:
            if not np.array_equal(right, mine, equal_nan=name == "ponder"):
                failed[f"call {call}, {name}"] = f"differs by {np.nanmax(np.abs(1.0 * right - 1.0 * mine)):.3g}"
        lives.add(tuple(b.tokens_per_layer.ravel().tolist()))
    differs = bool(failed)
    captured = [kind.graph is not None for kind in replayed._graphs._passes.values()]
    if captured != [True]:
        failed["graph"] = "there is none: passes were launched kernel by kernel"
    if len(lives) < 2:
        failed["lives"] = "the same tokens halted in every pass: nothing was tested"
    medians = {name: 1e3 * statistics.median(values[2:]) for name, values in seconds.items()}
    summary = (
        f"{len(seconds['replayed'])} passes of {CLIPS} clips with {len(lives)} kinds of halting: "
        f"{'NOT ' if differs else ''}the same numbers, "
        f"{medians['replayed']:.2f} ms replayed, {medians['launched']:.2f} ms launched, outputs copied to the host"
    )
    return {"holds": not failed, "summary": summary, "failed": failed, "milliseconds": medians}


def _kernels(repeats: int) -> dict[str, Any]:
    """Every kernel of a forward pass and of a training step against the GPU's ceilings, with and without halting."""
    from refvt.bench.ceilings_gpu import GpuCeilings
    from refvt.bench.contestants import RefvtModel, make_material
    from refvt.bench.kernels import as_markdown, kernel_times
    from refvt.bench.timing import interleave, quartiles

    sizes = bench.Sizes()
    ceilings = GpuCeilings("float32", bench_torch.finds_gpu(), sizes.gemm, sizes.copy)
    tables, text = [], []
    for workload in ("dense", "paper9"):
        m = make_material(bench.WORKLOADS[workload], CLIPS, "float32")
        given = (m.config, m.parameters, m.clips, m.labels, m.motion_labels, m.dtype)
        model = RefvtModel(*given, backend="cuda", execution="compact", singly=False)
        for train in (False, True):
            run = partial(model.run, train, m.forced)
            rows = kernel_times(run, ceilings.ahead)
            samples = interleave({"pass": run, **ceilings.runs}, repeats)
            wall = quartiles(samples.pop("pass"))[1]
            peak: dict[str, float] = {}
            for name, seconds in samples.items():
                found = ceilings.row(name, seconds)
                peak[found["unit"]] = max(peak.get(found["unit"], 0.0), found["median"])
            title = f"{workload}, {'training step' if train else 'forward pass'}, {CLIPS} clips"
            tables.append({"title": title, "seconds": wall, "ceilings": peak, "kernels": rows})
            limits = f"Ceilings: {peak['GFLOP/s'] / 1e3:.1f} TFLOP/s, copy {peak['GB/s']:.0f} GB/s."
            text.append(f"# {title}\n\n{limits} {as_markdown(rows, wall, peak)}")
    return {"holds": True, "tables": tables, "markdown": "\n".join(text)}


def _write(report: dict[str, Any], out: Path) -> None:
    data = json.dumps({"generator": "refvt", **report}, indent=1)
    for ending, text in ((".json", f"{data}\n"), (".md", f"{_markdown(report)}\n{MARK['.md']}\n")):
        write_whole(out.with_name(out.name + ending), text.encode())


def _markdown(report: dict[str, Any]) -> str:
    e = report["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in e["packages"].items())
    lines = [
        "# refvt on a GPU",
        "",
        f"refvt {report['refvt']}, {e['date']}, {e['gpu']} (compute capability {e['compute_capability']}, "
        f"{e['multiprocessors']} multiprocessors, {e['memory_bytes'] / 2**30:.0f} GiB), driver for CUDA {e['driver']}, "
        f"{packages}.",
    ]
    for name, part in report["parts"].items():
        lines += ["", f"## {name}: {'holds' if part['holds'] else 'DOES NOT HOLD'} ({part['seconds']:.0f} s)", ""]
        if "error" in part:
            lines += [part["error"], "", "```", part["traceback"].rstrip(), "```"]
        elif "markdown" in part:
            lines += _below(part["markdown"])
        elif "left_out" in part:
            lines.append(f"Left out: {part['left_out']}.")
        elif "summary" in part:
            lines.append(f"{part['summary']}.")
        elif "laws" in part:
            lines.append(f"{part['laws']} laws, {part['examples_each']} examples each.")
        else:
            share = part["largest_share_of_budget"]
            worst = "" if share is None else f", at most {share:.1%} of the error budget ({part['largest_share_in']})"
            lines.append(f"{part['cases']} cases, {part['comparisons']} comparisons{worst}.")
        for what in ("failed", "ambiguous"):
            lines += [f"- {what}: {place}: {why}" for place, why in part.get(what, {}).items()]
    return "\n".join(lines) + "\n"


def _below(markdown: str) -> list[str]:
    """The tables below a heading of this page, two levels deeper."""
    return [f"##{line}" if line.startswith("#") else line for line in markdown.splitlines()]


if __name__ == "__main__":
    sys.exit(main())
