"""``refvt bench``: how long HaltingVT takes on this machine, beside PyTorch and beside what the machine can do at all.

All contestants run in one process, each once per round, every round in another order, so that a neighbour's load or a
falling clock hits them alike. All get the same clips, weights and threads. First it is checked that they agree: under
one run's decisions their logits (and, in training, losses and gradients) must be the same to half the digits of the
dtype, and left to themselves they must take the same decisions. If not, no ratio is given.

Ceilings are measured in the same rounds: the fastest matrix products to be had, and the fastest copy.

The ``cuda`` backend is timed by itself: PyTorch, the clips and the ceilings are then on the same GPU, in float32
without TF32, and every run is waited for before the clock stops.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import refvt
from refvt.array import Array
from refvt.backends.jit import workspace
from refvt.bench import torch_model as bench_torch
from refvt.bench.agreement import check_agreement
from refvt.bench.contestants import (
    EAGER,
    SDPA,
    Contestant,
    Material,
    RefvtModel,
    Workload,
    chosen_backends,
    contestants_of,
    limited_threads,
    material_of,
)
from refvt.bench.memory import add_memory
from refvt.bench.report import check_options, machine, publish, say
from refvt.bench.timing import Ceilings, interleave, quartiles
from refvt.model import flops
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["WORKLOADS", "Workload", "add_arguments", "run"]


WORKLOADS: dict[str, Workload] = {
    "dense": Workload("nothing pruned, nothing halts", HaltingVTConfig(keep_rates=(1.0, 1.0)), dense=True),
    "r07": Workload("R = 0.7, nothing halts", HaltingVTConfig(keep_rates=(1.0, 0.7))),
    "r03": Workload("R = 0.3, nothing halts", HaltingVTConfig(keep_rates=(1.0, 0.3))),
    "paper24": Workload("minik-g07-b20 at 24.2 GFLOPs", HaltingVTConfig.preset("minik-g07-b20"), 24.2, dense=True),
    "paper9": Workload("minik-g03-b10 at 9.9 GFLOPs", HaltingVTConfig.preset("minik-g03-b10"), 9.9, dense=True),
}
QUICK = ("r03", "paper9")


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are that are not of the model."""

    gemm: int = 2048  # side of the square matrices
    copy: int = 1 << 28  # bytes copied
    growth: int = 10  # points of the growth curve
    # Thread pools spin before they sleep: OpenBLAS's for some 100 ms, OpenMP's for a few. A pause between two
    # contestants lets the first one's threads go to sleep before the second one's clock starts.
    pause: float = 0.2


# ---- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``refvt bench``."""
    parser.add_argument("--backend", nargs="+", default=None, metavar="NAME", help="default: the fastest on the CPU")
    parser.add_argument(
        "--workload", nargs="+", default=None, metavar="NAME", help=f"default: all of {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--clips", type=int, default=1, choices=[1, 4], help="clips in a batch; 4 halt unequally")
    parser.add_argument("--pass", dest="passes", default=None, choices=["forward", "train", "both"])
    parser.add_argument("--repeats", type=int, default=None, metavar="N", help="rounds, default: 9")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="default: all this process may use")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--json", default=None, metavar="FILE", help="write every sample; - prints nothing but that")
    parser.add_argument("--markdown", default=None, metavar="FILE", help="write the tables; - prints nothing but them")
    parser.add_argument("--growth", default=None, metavar="FILE.png", help="plot time against multiply-adds too")
    parser.add_argument("--training-step", action="store_true", help="with AdamW, at the sizes of training recipes")
    parser.add_argument("--quick", action="store_true", help="3 rounds of two forward passes, no memory: a first look")


def run(
    options: argparse.Namespace, *, _workloads: Mapping[str, Workload] = WORKLOADS, _sizes: Sizes | None = None
) -> int:
    """Measure, print, write; 0, or 1 if contestants disagree. ValueError for a request that cannot be met."""
    if options.training_step:
        from refvt.bench import training_step as bench_training

        return bench_training.run(options)
    sizes = _sizes or Sizes()
    names = options.workload or [name for name in _workloads if not options.quick or name in QUICK]
    chosen = chosen_backends(options.backend)
    _check(options, names, _workloads)
    passes = {"forward": [False], "train": [True], "both": [False, True]}[
        options.passes or ("forward" if options.quick else "both")
    ]
    repeats = options.repeats or (3 if options.quick else 9)
    threads = options.threads or workspace.num_threads()
    why_not = "--no-torch was given" if options.no_torch else bench_torch.missing()
    notes = [] if why_not is None else [f"PyTorch left out: {why_not}"]
    if "OPENBLAS_CORETYPE" in os.environ:
        kind = os.environ["OPENBLAS_CORETYPE"]
        notes.append(f"OPENBLAS_CORETYPE={kind} is set: these are not the numbers of this CPU's best kernels")
    for note in notes:
        say(f"warning: {note}")

    results: list[dict[str, Any]] = []
    growth: dict[str, Any] | None = None
    with limited_threads(threads, chosen, why_not is None):
        environment = machine(threads, why_not is None)
        for name in names:
            workload = _workloads[name]
            say(f"{name}: making clips and weights ({workload.describes})")
            material = material_of(workload, options.clips, options.dtype)
            contestants = contestants_of(workload, chosen, options.clips, why_not is None)
            for train in passes:
                say(f"{name}: {'training step' if train else 'forward pass'}, {repeats} rounds")
                result = _result(material, contestants, train, repeats, threads, sizes)
                if not options.quick and "cuda" not in chosen:  # a process's memory says nothing of a GPU's
                    add_memory(result, material, contestants, train, threads)
                results.append({"workload": name, "describes": workload.describes, **result})
        if options.growth:
            say("growth: forward pass with a constant number of tokens alive")
            workload = _workloads.get("dense") or next(iter(_workloads.values()))
            growth = _growth(workload, chosen[0], options.dtype, repeats, sizes)
    report = {
        "refvt": refvt.__version__,
        "environment": environment,
        "settings": {"repeats": repeats, "dtype": options.dtype, "clips": options.clips, "backends": chosen},
        "notes": notes,
        "results": results,
        "growth": growth,
    }
    publish(report, options)
    return 0 if all(result["agreement"]["holds"] for result in results) else 1


def _check(options: argparse.Namespace, names: Sequence[str], workloads: Mapping[str, Workload]) -> None:
    """Everything that can be wrong with a request is found before the first minute is spent."""
    for name in names:
        if name not in workloads:
            raise ValueError(f"--workload: expected some of {', '.join(workloads)}, got {name!r}")
    check_options(options)
    if options.growth is not None:
        if not options.growth.endswith(".png"):
            raise ValueError(f"--growth: expected a name that ends in .png, got {options.growth!r}")
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError('drawing pictures needs matplotlib: pip install "refvt[demo]"')


# ---- timing


def _result(
    material: Material,
    contestants: Sequence[Contestant],
    train: bool,
    repeats: int,
    threads: int,
    sizes: Sizes,
) -> dict[str, Any]:
    """One table: agreement, then everybody's samples beside the ceilings'."""
    models = {contestant.name: contestant.build(material) for contestant in contestants}
    agreement, alive = check_agreement(models, material, train)
    runs: dict[str, Callable[[], object]] = {
        name: partial(model.run, train, material.forced) for name, model in models.items()
    }
    on_gpu = any(contestant.backend == "cuda" for contestant in contestants)
    ceilings: Ceilings
    if on_gpu:
        from refvt.bench.ceilings_gpu import GpuCeilings

        ceilings = GpuCeilings(material.dtype, EAGER in models, sizes.gemm, sizes.copy)
    else:
        from refvt.bench.ceilings_cpu import CpuCeilings  # compiles: not at the start of every command

        ceilings = CpuCeilings(material.dtype, threads, EAGER in models, sizes.gemm, sizes.copy)
    for warm_up in ceilings.runs.values():
        warm_up()
    samples = interleave({**runs, **ceilings.runs}, repeats, sizes.pause)
    of_ceilings = [ceilings.row(name, samples[name]) for name in ceilings.runs]
    peak = max(row["median"] for row in of_ceilings if row["unit"] == "GFLOP/s")
    work = {
        c.name: multiply_adds(material.config, alive, c.execution == "compact", train, c.backend is None)
        for c in contestants
    }
    return {
        "pass": "train" if train else "forward",
        "clips": len(material.clips),
        "config": material.config.as_dict(),
        "tokens_per_layer": alive.sum(axis=2).tolist(),
        "gflops": [float(g) for g in flops.clip_gflops(material.config, alive.sum(axis=2))],
        "agreement": agreement,
        "rows": rows(contestants, {c.name: samples[c.name] for c in contestants}, work, peak, agreement["holds"]),
        "ceilings": of_ceilings,
    }


def rows(
    contestants: Sequence[Contestant],
    samples: Mapping[str, Sequence[float]],
    work: Mapping[str, int],
    peak: float,
    agree: bool,
) -> list[dict[str, Any]]:
    """The table's numbers. peak in GFLOP/s; work in multiply-adds. Ratios are of medians, None where not to be had."""
    medians = {name: quartiles(seconds)[1] for name, seconds in samples.items()}
    table = []
    for c in contestants:
        low, median, high = quartiles(samples[c.name])
        speed = 2e-9 * work[c.name] / median
        beside = {"eager": EAGER, "sdpa": SDPA, "one_by_one": f"{c.name}, one by one"}
        ratios = {
            f"of_{key}": median / medians[other] if agree and other in medians and other != c.name else None
            for key, other in beside.items()
        }
        table.append(
            {
                **asdict(c),
                "samples": list(samples[c.name]),
                "lower_quartile": low,
                "median": median,
                "upper_quartile": high,
                **ratios,
                "multiply_adds": int(work[c.name]),
                "gflop_per_second": speed,
                "share_of_peak": speed / peak,
                "extra_memory_mb": None,
            }
        )
    return table


def multiply_adds(config: HaltingVTConfig, alive: Array, compact: bool, train: bool, torch: bool) -> int:
    """What a batch spends on matrix products, alive [B, L, N']; a training step counts as three forward passes.

    Dense execution computes every token in every joint block, the last one included.
    """
    if compact:
        forward = int(flops.executed_multiply_adds(config, alive, train).sum())
    else:
        joint = config.joint_depth * int(flops.joint_multiply_adds(config, np.asarray(config.joint_tokens)))
        executed = flops.executed_fixed_multiply_adds(config, training=True)
        outside = sum(flops.fixed_multiply_adds(config).values()) + executed["heads"]
        outside += sum(executed.get(f"blocks.{g}.scores", 0) for g in range(config.glimpser_depth))
        if not torch:
            outside += config.glimpser_depth * config.width**2  # PyTorch's temporal_fc leaves CLS out
        forward = len(alive) * (outside + joint)
    return forward * (3 if train else 1)


# ---- growth


def _growth(workload: Workload, backend: str, dtype: str, repeats: int, sizes: Sizes) -> dict[str, Any]:
    """The compact forward pass while a share of the tokens lives through layers 2 to L; all of them enter layer 1."""
    config = workload.config
    material = material_of(Workload(workload.describes, config), 1, dtype)
    model = RefvtModel(
        config,
        material.parameters,
        material.clips,
        material.labels,
        material.motion_labels,
        dtype,
        backend,
        "compact",
        False,
    )
    N, L, rng = config.joint_tokens, config.joint_depth, np.random.default_rng(0)
    points: list[dict[str, Any]] = []
    runs: dict[str, Callable[[], object]] = {}
    for share in np.linspace(0.05, 1, sizes.growth):
        alive = max(1, round(float(share) * N))
        layers = np.ones((1, N), dtype=np.int64)
        layers[0, 0] = L
        layers[0, 1 + rng.permutation(N - 1)[: alive - 1]] = L
        decisions = Decisions(None, layers)
        done = model.run(False, decisions)
        work = int(flops.executed_multiply_adds(config, model.alive(done)).sum())
        points.append({"share": float(share), "tokens": alive, "multiply_adds": work})
        runs[str(len(points))] = partial(model.run, False, decisions)
    samples = interleave(runs, repeats, sizes.pause)
    for point, seconds in zip(points, samples.values(), strict=True):
        low, median, high = quartiles(seconds)
        point |= {"samples": seconds, "lower_quartile": low, "median": median, "upper_quartile": high}
    line = fit([p["multiply_adds"] / 1e9 for p in points], [1e3 * p["median"] for p in points])
    return {"backend": backend, "tokens": N, "config": config.as_dict(), "points": points, "fit": line}


def fit(gflops: Sequence[float], milliseconds: Sequence[float]) -> dict[str, float]:
    """Least squares: milliseconds ≈ intercept + slope · gflops, and R², the share of the variance that explains."""
    x, y = np.asarray(gflops), np.asarray(milliseconds)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())
    intercept = float(y.mean() - slope * x.mean())
    rest, variance = np.square(y - intercept - slope * x).sum(), np.square(y - y.mean()).sum()
    return {"intercept_ms": intercept, "ms_per_gflop": slope, "r2": float(1 - rest / variance)}
