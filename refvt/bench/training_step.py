"""One step of training, next to PyTorch's on the same device.

A step is what the training loop repeats: loss and gradients of a batch and its static twins, then AdamW on all
parameters. PyTorch's is the model of ``golden/`` with autograd and ``torch.optim.AdamW``. Clips, initial weights and
number of steps are the same for all; the learning rate is so small that the work stays the same from step to step.
Losses of the first and the last step must agree, or no ratio is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import refvt
from refvt import backends
from refvt.array import Array
from refvt.bench.contestants import limit_threads
from refvt.bench.profiles import profile_parameters
from refvt.bench.timing import interleave, quartiles
from refvt.bench.torch_model import TorchStep
from refvt.environment import describe_machine
from refvt.model.config import HaltingVTConfig
from refvt.model.parameters import initial_parameters
from refvt.training.optimiser import Adam, select_no_decay
from refvt.training.recipe import RECIPES
from refvt.training.scratch import initialise
from refvt.training.vectors import Vector

__all__ = ["WORKLOADS", "RefvtStep", "TrainingWorkload", "measure_steps", "render_steps"]

RATE, DECAY = 1e-9, 0.05


@dataclass(frozen=True)
class TrainingWorkload:
    """A model and a batch.

    batch: clips of a step, twins not counted. recipe: name of the recipe whose initial weights are taken; None: fresh
    ones. gflops: cost of a clip, reached by halting; None: the start of a training run.
    """

    describes: str
    config: HaltingVTConfig
    batch: int
    recipe: str | None = None
    gflops: float | None = None


DIGITS, SMALL = RECIPES["digits"], HaltingVTConfig.preset("minik-g03-b10")
WORKLOADS = {
    "digits": TrainingWorkload("the digits recipe, at its start", DIGITS.config, DIGITS.batch, recipe="digits"),
    "s-start": TrainingWorkload("HaltingVT-S, R = 0.3, nothing halts", SMALL, 1),
    "s-halting": TrainingWorkload("HaltingVT-S, R = 0.3, at 9.9 GFLOPs a clip", SMALL, 1, gflops=9.9),
}


def measure_steps(
    chosen: Sequence[str],
    workloads: Mapping[str, TrainingWorkload],
    threads: int,
    observe: Callable[[str], None],
    repeats: int = 9,
    dtype: str = "float32",
    with_torch: bool = True,
) -> dict[str, Any]:
    """Measure training steps of the chosen backends, and of PyTorch, and return the report, with every sample.

    ``observe`` gets a line about each workload.
    """
    results = []
    with limit_threads(threads, chosen, with_torch):
        for name, workload in workloads.items():
            observe(f"{name}: training step, {repeats} rounds")
            results.append({"workload": name, **_measure_workload(workload, chosen, dtype, repeats, with_torch)})
        return {
            "refvt": refvt.__version__,
            "environment": describe_machine(threads, with_torch),
            "settings": {"repeats": repeats, "dtype": dtype, "backends": list(chosen)},
            "results": results,
        }


class RefvtStep:
    """The step of refvt, as the training loop makes it."""

    def __init__(
        self, config: HaltingVTConfig, start: dict[str, Array], batch: tuple[Array, ...], backend: str
    ) -> None:
        clips, self._labels, self._moving = batch
        dtype = str(clips.dtype)
        self._model = refvt.HaltingVT(config, start, backend=backend, dtype=dtype)
        self._arrays = backends.get(backend).arrays
        self._clips = self._arrays.from_numpy(clips, dtype)
        shapes = {name: value.shape for name, value in start.items()}
        parameters, self._gradients = (Vector(shapes, dtype, backend) for _ in range(2))
        self._model.parameters = parameters.set(self._model.parameters).arrays
        self._optimiser = Adam(parameters, select_no_decay(shapes, norms_and_biases=False), weight_decay=DECAY)
        self.losses: list[float] = []

    def __call__(self) -> None:
        targets = self._labels, self._moving
        loss, gradients = self._model.loss_and_gradients(self._clips, *targets, arrays="device")
        self._optimiser.step(self._gradients.set(gradients), RATE)
        self._arrays.wait()
        self.losses.append(loss.total)


def _measure_workload(
    workload: TrainingWorkload, chosen: Sequence[str], dtype: str, repeats: int, with_torch: bool
) -> dict[str, Any]:
    """One table: whether the losses agree, and the samples of all contestants."""
    steps, clips = _make_steps(workload, chosen, dtype, with_torch)
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
        "config": workload.config.as_dict(),
        "clips": clips,
        "agreement": agreement,
        "rows": rows,
    }


def _make_steps(
    workload: TrainingWorkload, chosen: Sequence[str], dtype: str, with_torch: bool
) -> tuple[dict[str, RefvtStep | TorchStep], int]:
    """The contestants by name, and the number of clips of a step, twins included."""
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
        steps["torch eager"] = TorchStep(config, start, batch, RATE, DECAY, sdpa=False, device=device)
        steps["torch sdpa"] = TorchStep(config, start, batch, RATE, DECAY, sdpa=True, device=device)
    return steps, len(both)


def _agreement(losses: dict[str, list[float]], dtype: str) -> dict[str, Any]:
    """Differences of the losses of the first and the last step, relative to the first contestant's."""
    allowed = float(np.sqrt(np.finfo(dtype).eps))
    first = next(iter(losses.values()))
    # NumPy's maximum of anything and NaN is NaN, and a comparison with it is False: then the losses do not agree
    apart = {
        name: float(np.max([abs(own[i] - first[i]) / abs(first[i]) for i in (0, -1)])) for name, own in losses.items()
    }
    return {"allowed": allowed, "losses": apart, "holds": all(x <= allowed for x in apart.values())}


def render_steps(results: Sequence[dict[str, Any]]) -> str:
    """The tables of a report's results as text."""
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
