"""``refvt bench --training-step``: one step of training, beside PyTorch's on the same device.

A step is what the loop repeats: loss and gradients of a batch and its static twins, then AdamW on all parameters.
PyTorch's is the model of ``golden/`` with autograd and ``torch.optim.AdamW``. Clips, start and number of steps are the
same for all; the rate is so small that nobody's work changes on the way. Losses of the first and the last step must
agree, or no ratio is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

import refvt
from refvt import backends
from refvt.array import Array
from refvt.backends.jit import workspace as pool
from refvt.bench import torch_model as bench_torch
from refvt.bench.contestants import chosen_backends, limited_threads
from refvt.bench.profiles import profile_parameters
from refvt.bench.report import check_options, machine
from refvt.bench.timing import interleave, quartiles
from refvt.files import write_whole
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions
from refvt.model.parameters import initial_parameters
from refvt.training.optimiser import Adam, without_decay
from refvt.training.recipe import RECIPES
from refvt.training.scratch import initialise
from refvt.training.vectors import Vector

__all__ = ["WORKLOADS", "Workload", "run"]

RATE, DECAY = 1e-9, 0.05


@dataclass(frozen=True)
class Workload:
    """What is timed. batch: clips of a step, twins not counted; gflops: what halting makes a clip cost, None for the
    start of a training run."""

    describes: str
    config: HaltingVTConfig
    batch: int
    recipe: str | None = None
    gflops: float | None = None


DIGITS, SMALL = RECIPES["digits"], HaltingVTConfig.preset("minik-g03-b10")
WORKLOADS = {
    "digits": Workload("the digits recipe, at its start", DIGITS.config, DIGITS.batch, recipe="digits"),
    "s-start": Workload("HaltingVT-S, R = 0.3, nothing halts", SMALL, 1),
    "s-halting": Workload("HaltingVT-S, R = 0.3, at 9.9 GFLOPs a clip", SMALL, 1, gflops=9.9),
}


def run(options: argparse.Namespace, *, _workloads: dict[str, Workload] = WORKLOADS) -> int:
    """Measure and print; 0, or 1 if the contestants disagree. ValueError for a request that cannot be met."""
    for option, untouched in (("clips", 1), ("passes", None), ("growth", None), ("quick", False)):
        if getattr(options, option) != untouched:
            raise ValueError(f"--training-step: takes no --{option.replace('passes', 'pass')}")
    names = options.workload or list(_workloads)
    for name in names:
        if name not in _workloads:
            raise ValueError(f"--workload: expected some of {', '.join(_workloads)}, got {name!r}")
    check_options(options)
    chosen = chosen_backends(options.backend)
    why_not = "--no-torch was given" if options.no_torch else bench_torch.missing()
    if why_not is not None:
        print(f"refvt bench: warning: PyTorch left out: {why_not}", file=sys.stderr)
    threads, repeats = options.threads or pool.num_threads(), options.repeats or 9
    results = []
    with limited_threads(threads, chosen, why_not is None):
        for name in names:
            print(f"refvt bench: {name}: training step, {repeats} rounds", file=sys.stderr, flush=True)
            results.append(
                {"workload": name, **_result(_workloads[name], chosen, options.dtype, repeats, why_not is None)}
            )
        report = {
            "refvt": refvt.__version__,
            "environment": machine(threads, why_not is None),
            "settings": {"repeats": repeats, "dtype": options.dtype, "backends": chosen},
            "results": results,
        }
    data, page = json.dumps(report, indent=1) + "\n", f"# A training step\n\n```\n{_page(results)}```\n"
    for file, text in ((options.json, data), (options.markdown, page)):
        if file == "-":
            print(text, end="")
        elif file is not None:
            write_whole(file, text.encode())
    if "-" not in (options.json, options.markdown):
        print(_page(results), end="")
    return 0 if all(result["agreement"]["holds"] for result in results) else 1


class RefvtStep:
    """refvt's step, as the training loop makes it."""

    def __init__(
        self, config: HaltingVTConfig, start: dict[str, Array], batch: tuple[Array, ...], backend: str
    ) -> None:
        clips, self._labels, self._moving = batch
        dtype = str(clips.dtype)
        self._model = refvt.HaltingVT(config, start, backend=backend, dtype=dtype)
        self._moves = backends.get(backend).arrays
        self._clips = self._moves.from_numpy(clips, dtype)
        shapes = {name: value.shape for name, value in start.items()}
        parameters, self._gradients = (Vector(shapes, dtype, backend) for _ in range(2))
        self._model.parameters = parameters.set(self._model.parameters).arrays
        self._optimiser = Adam(parameters, without_decay(shapes, norms_and_biases=False), weight_decay=DECAY)
        self.losses: list[float] = []

    def __call__(self) -> None:
        targets = self._labels, self._moving
        loss, gradients = self._model.loss_and_gradients(self._clips, *targets, arrays="device")
        self._optimiser.step(self._gradients.set(gradients), RATE)
        self._moves.wait()
        self.losses.append(loss.total)


class TorchStep:
    """PyTorch's step: autograd and torch.optim.AdamW."""

    def __init__(
        self, config: HaltingVTConfig, start: dict[str, Array], batch: tuple[Array, ...], sdpa: bool, device: str
    ) -> None:
        import torch

        clips, labels, moving = batch
        given = (config, start, clips, labels, moving, str(clips.dtype))
        self._model = bench_torch.TorchModel(*given, sdpa=sdpa, device=device)
        named = list(self._model.named_parameters())
        spared = without_decay([name for name, _ in named], norms_and_biases=False)
        groups = [
            {"params": [w for name, w in named if name not in spared], "weight_decay": DECAY},
            {"params": [w for name, w in named if name in spared], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=RATE)
        self.losses: list[float] = []

    def __call__(self) -> None:
        result = self._model.run(True, Decisions(), wait=False)  # the loss is waited for
        self._optimiser.step()
        self.losses.append(self._model.loss(result))


def _result(workload: Workload, chosen: list[str], dtype: str, repeats: int, with_torch: bool) -> dict[str, Any]:
    config, rng = workload.config, np.random.default_rng(0)
    shape = (workload.batch, config.channels, config.num_frames, *config.image_size)
    clips = rng.standard_normal(shape).astype(dtype)
    if workload.gflops is not None:
        start = profile_parameters(config, workload.gflops, clips[:1], dtype=dtype)
    elif workload.recipe is not None:
        start = initialise(RECIPES[workload.recipe], dtype)
    else:
        start = initial_parameters(config, rng, dtype)
    both, moving = refvt.static_twins(clips, rng)
    batch = (both, np.tile(np.arange(workload.batch) % config.num_classes, 2), moving)
    steps: dict[str, RefvtStep | TorchStep] = {
        f"refvt {name}": RefvtStep(config, start, batch, name) for name in chosen
    }
    if with_torch:
        device = "cuda" if "cuda" in chosen else "cpu"
        steps["torch eager"] = TorchStep(config, start, batch, sdpa=False, device=device)
        steps["torch sdpa"] = TorchStep(config, start, batch, sdpa=True, device=device)
    for step in steps.values():
        step()  # compiles, takes memory
    samples = interleave(dict(steps), repeats, pause=0.05)
    agreement = _agreement({name: step.losses for name, step in steps.items()}, dtype)
    medians = {name: quartiles(seconds)[1] for name, seconds in samples.items()}
    rows = []
    for name, seconds in samples.items():
        low, median, high = quartiles(seconds)
        ratios = {
            f"of_{other}": median / medians[f"torch {other}"]
            if with_torch and agreement["holds"] and name != f"torch {other}"
            else None
            for other in ("eager", "sdpa")
        }
        row = {"name": name, "samples": seconds, "lower_quartile": low, "median": median, "upper_quartile": high}
        rows.append({**row, **ratios})
    return {
        "describes": workload.describes,
        "config": config.as_dict(),
        "clips": len(both),
        "agreement": agreement,
        "rows": rows,
    }


def _agreement(losses: dict[str, list[float]], dtype: str) -> dict[str, Any]:
    """How far the losses of the first and the last step are apart, relative to the first contestant's."""
    allowed = float(np.sqrt(np.finfo(dtype).eps))
    first = next(iter(losses.values()))
    apart = {name: max(abs(own[i] - first[i]) / abs(first[i]) for i in (0, -1)) for name, own in losses.items()}
    # a comparison with NaN is False: what is not a number does not agree
    return {"allowed": allowed, "losses": apart, "holds": all(x <= allowed for x in apart.values())}


def _page(results: list[dict[str, Any]]) -> str:
    """The tables as text."""
    lines = []
    for result in results:
        agreement = result["agreement"]
        worst, holds = max(agreement["losses"].values()), "" if agreement["holds"] else ": NO"
        lines += [
            f"{result['workload']}: {result['describes']}, {result['clips']} clips with their twins",
            f"  losses agree to {worst:.1e} (allowed {agreement['allowed']:.1e}){holds}",
            f"  {'':24s}{'median':>10s}{'quartiles':>20s}{'of eager':>10s}{'of sdpa':>10s}",
        ]
        for row in result["rows"]:
            between = f"{1e3 * row['lower_quartile']:.1f}–{1e3 * row['upper_quartile']:.1f}"
            ratios = "".join(
                f"{'–' if row[k] is None else format(row[k], '.2f'):>10s}" for k in ("of_eager", "of_sdpa")
            )
            lines.append(f"  {row['name']:24s}{1e3 * row['median']:7.1f} ms{between:>17s} ms{ratios}")
    return "\n".join(lines) + "\n"
