"""Times of a forward pass and of a training pass, next to PyTorch's and to what the machine can do at best.

All contestants run in one process, each once per round, every round in another order, so that a neighbour's load or a
falling clock hits them alike. All get the same clips, weights and threads. First it is checked that they agree: under
the decisions of one run their logits (and, in training, losses and gradients) must be the same to half the digits of
the dtype, and without forced decisions they must take the same ones. If not, no ratio is given.

Ceilings are measured in the same rounds: the fastest matrix products available, and the fastest copy.

The ``cuda`` backend is timed alone: PyTorch, the clips and the ceilings are then on the same GPU, in float32 without
TF32, and the clock stops when the GPU has finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

import refvt
from refvt.array import Array
from refvt.bench.agreement import check_agreement
from refvt.bench.contestants import (
    FORWARD_ONLY,
    RIVALS,
    Contestant,
    Material,
    RefvtModel,
    Workload,
    limit_threads,
    make_contestants,
    make_material,
)
from refvt.bench.memory import add_memory
from refvt.bench.timing import Ceilings, interleave, quartiles
from refvt.environment import describe_machine
from refvt.model import flops
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["QUICK", "WORKLOADS", "Settings", "Sizes", "Workload", "fit", "measure", "multiply_adds", "rows"]


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
    """Sizes of the measurements that are not of the model."""

    gemm: int = 2048  # side of the square matrices
    copy: int = 1 << 28  # bytes copied
    growth: int = 10  # points of the growth curve
    # Thread pools spin before they sleep: OpenBLAS's and the engines' for 100 ms or more, OpenMP's for a few. A pause
    # between two contestants lets the first one's threads go to sleep before the second one's clock starts.
    pause: float = 0.3


@dataclass(frozen=True)
class Settings:
    """What is to be measured.

    backends: names, each once. workloads: by the name that the report gives them. passes: False for a forward pass,
    True for a training step. memory: in a process for each number. growth: the workload whose growth curve is
    measured too. engines: of ``contestants.ENGINES``, in forward passes.
    """

    backends: Sequence[str]
    workloads: Mapping[str, Workload]
    threads: int
    passes: Sequence[bool] = (False, True)
    clips: int = 1
    repeats: int = 9
    dtype: str = "float32"
    with_torch: bool = True
    memory: bool = True
    growth: Workload | None = None
    notes: Sequence[str] = ()
    engines: Sequence[str] = ()
    sizes: Sizes = field(default_factory=Sizes)


def measure(settings: Settings, observe: Callable[[str], None]) -> dict[str, Any]:
    """Measure all workloads and return the report, with every sample. ``observe`` gets a line about each step."""
    s = settings
    results: list[dict[str, Any]] = []
    growth: dict[str, Any] | None = None
    with limit_threads(s.threads, s.backends, s.with_torch):
        environment = describe_machine(s.threads, s.with_torch)
        for name, workload in s.workloads.items():
            observe(f"{name}: making clips and weights ({workload.describes})")
            material = make_material(workload, s.clips, s.dtype)
            everyone = make_contestants(workload, s.backends, s.clips, s.with_torch, s.engines)
            for train in s.passes:
                contestants = [c for c in everyone if not train or c.name not in FORWARD_ONLY]
                observe(f"{name}: {'training step' if train else 'forward pass'}, {s.repeats} rounds")
                result = _measure_pass(material, contestants, train, s)
                if s.memory and "cuda" not in s.backends:  # a process's memory says nothing of a GPU's
                    add_memory(result, material, contestants, train, s.threads, observe)
                results.append({"workload": name, "describes": workload.describes, **result})
        if s.growth is not None:
            observe("growth: forward pass with a constant number of tokens alive")
            growth = _measure_growth(s.growth, s.backends[0], s.dtype, s.repeats, s.sizes)
    return {
        "refvt": refvt.__version__,
        "environment": environment,
        "settings": {"repeats": s.repeats, "dtype": s.dtype, "clips": s.clips, "backends": list(s.backends)},
        "notes": list(s.notes),
        "results": results,
        "growth": growth,
    }


# ---- timing


def _measure_pass(
    material: Material, contestants: Sequence[Contestant], train: bool, settings: Settings
) -> dict[str, Any]:
    """One table: agreement, then the samples of all contestants and of the ceilings."""
    models = {contestant.name: contestant.build(material) for contestant in contestants}
    agreement, alive = check_agreement(models, material, train)
    ceilings = _make_ceilings(material, contestants, settings)
    for warm_up in ceilings.runs.values():
        warm_up()
    runs: dict[str, Callable[[], object]] = {
        name: partial(model.run, train, material.forced) for name, model in models.items()
    }
    samples = interleave({**runs, **ceilings.runs}, settings.repeats, settings.sizes.pause)
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


def _make_ceilings(material: Material, contestants: Sequence[Contestant], settings: Settings) -> Ceilings:
    """The ceilings of the GPU if the cuda backend is timed, else those of the processor."""
    sizes, with_torch = settings.sizes, settings.with_torch
    if any(contestant.backend == "cuda" for contestant in contestants):
        from refvt.bench.ceilings_gpu import GpuCeilings

        return GpuCeilings(material.dtype, with_torch, sizes.gemm, sizes.copy)
    from refvt.bench.ceilings_cpu import CpuCeilings  # compiles: not at the start of every command

    return CpuCeilings(material.dtype, settings.threads, with_torch, sizes.gemm, sizes.copy)


def rows(
    contestants: Sequence[Contestant],
    samples: Mapping[str, Sequence[float]],
    work: Mapping[str, int],
    peak: float,
    agree: bool,
) -> list[dict[str, Any]]:
    """The table's numbers, a row per contestant.

    samples in seconds, work in multiply-adds, peak in GFLOP/s, which count two operations per multiply-add. Ratios are
    of medians; None without agreement, or where the other contestant is missing.
    """
    medians = {name: quartiles(seconds)[1] for name, seconds in samples.items()}
    table = []
    for c in contestants:
        low, median, high = quartiles(samples[c.name])
        speed = 2e-9 * work[c.name] / median
        others = {**RIVALS, "one_by_one": f"{c.name}, one by one"}
        ratios = {
            f"of_{key}": median / medians[other] if agree and other in medians and other != c.name else None
            for key, other in others.items()
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
    """Multiply-adds of a batch's matrix products, alive [B, L, N']; a training step counts as three forward passes.

    Dense execution computes every token in every joint block, the last one included.
    """
    if compact:  # PyTorch's compact model does not merge the two layers that are one without a gradient
        forward = int(flops.executed_multiply_adds(config, alive, train or torch).sum())
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


def _measure_growth(workload: Workload, backend: str, dtype: str, repeats: int, sizes: Sizes) -> dict[str, Any]:
    """Time of the compact forward pass by the share of tokens that live through layers 2 to L; all enter layer 1."""
    config = workload.config
    material = make_material(Workload(workload.describes, config), 1, dtype)
    model = Contestant("", backend, "compact").build(material)
    assert isinstance(model, RefvtModel)
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
    """Least-squares line: milliseconds ≈ intercept + slope · gflops, and R², the share of the variance explained."""
    x, y = np.asarray(gflops), np.asarray(milliseconds)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())
    intercept = float(y.mean() - slope * x.mean())
    rest, variance = np.square(y - intercept - slope * x).sum(), np.square(y - y.mean()).sum()
    return {"intercept_ms": intercept, "ms_per_gflop": slope, "r2": float(1 - rest / variance)}
