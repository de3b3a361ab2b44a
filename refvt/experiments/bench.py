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
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

import refvt
from refvt import backends, flops
from refvt.backends import pool
from refvt.experiments import bench_torch
from refvt.experiments.bench_gpu import GpuCeilings
from refvt.experiments.bench_report import machine, publish
from refvt.experiments.bench_timing import Ceilings, interleave, quartiles
from refvt.experiments.profiles import profile_parameters
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions
from refvt.model.parameters import initial_parameters
from refvt.ops import Array

__all__ = ["WORKLOADS", "Workload", "add_arguments", "run"]

EAGER, SDPA = "torch eager", "torch sdpa"
HEAD_STARTS = (0.0, 0.5, -0.5, 1.0)  # of the clips: their patches begin nearer to or farther from halting
DECISIONS_APART = 0.01  # the largest share of tokens that may take another way, each within rounding of a threshold


@dataclass(frozen=True)
class Workload:
    """What is timed. gflops: what one clip is to cost by halting, None if no token halts before the last layer. dense:
    is the dense execution timed too."""

    describes: str
    config: HaltingVTConfig
    gflops: float | None = None
    dense: bool = False


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
        if "cuda" in (options.backend or ()):
            raise ValueError("--training-step: its optimiser is the CPU's; take another backend than cuda")
        from refvt.experiments import bench_training

        return bench_training.run(options)
    sizes = _sizes or Sizes()
    names = options.workload or [name for name in _workloads if not options.quick or name in QUICK]
    chosen = list(dict.fromkeys(options.backend or [backends.default()]))
    _check(options, names, chosen, _workloads)
    passes = {"forward": [False], "train": [True], "both": [False, True]}[
        options.passes or ("forward" if options.quick else "both")
    ]
    repeats = options.repeats or (3 if options.quick else 9)
    threads = options.threads or pool.num_threads()
    why_not = "--no-torch was given" if options.no_torch else bench_torch.missing()
    notes = [] if why_not is None else [f"PyTorch left out: {why_not}"]
    if "OPENBLAS_CORETYPE" in os.environ:
        kind = os.environ["OPENBLAS_CORETYPE"]
        notes.append(f"OPENBLAS_CORETYPE={kind} is set: these are not the numbers of this CPU's best kernels")
    for note in notes:
        _say(f"warning: {note}")

    results: list[dict[str, Any]] = []
    growth: dict[str, Any] | None = None
    with _threads(threads, chosen, why_not is None):
        environment = machine(threads, why_not is None)
        for name in names:
            workload = _workloads[name]
            _say(f"{name}: making clips and weights ({workload.describes})")
            material = _material(workload, options.clips, options.dtype)
            contestants = _contestants(workload, chosen, options.clips, why_not is None)
            for train in passes:
                _say(f"{name}: {'training step' if train else 'forward pass'}, {repeats} rounds")
                result = _result(material, contestants, train, repeats, threads, sizes)
                if not options.quick and "cuda" not in chosen:  # a process's memory says nothing of a GPU's
                    _add_memory(result, material, contestants, train, threads)
                results.append({"workload": name, "describes": workload.describes, **result})
        if options.growth:
            _say("growth: forward pass with a constant number of tokens alive")
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


def _check(
    options: argparse.Namespace, names: Sequence[str], chosen: Sequence[str], workloads: Mapping[str, Workload]
) -> None:
    """Everything that can be wrong with a request is found before the first minute is spent."""
    for name in names:
        if name not in workloads:
            raise ValueError(f"--workload: expected some of {', '.join(workloads)}, got {name!r}")
    for name in chosen:
        if name not in backends.COLUMNS:
            raise ValueError(f"--backend: expected some of {', '.join(backends.COLUMNS)}, got {name!r}")
        backends.get(name)
    if "cuda" in chosen and len(chosen) > 1:
        raise ValueError(f"--backend: cuda is timed by itself, beside PyTorch on the same GPU; got {', '.join(chosen)}")
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
    if options.growth is not None:
        if not options.growth.endswith(".png"):
            raise ValueError(f"--growth: expected a name that ends in .png, got {options.growth!r}")
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError('drawing pictures needs matplotlib: pip install "refvt[demo]"')


def _say(line: str) -> None:
    print(f"refvt bench: {line}", file=sys.stderr, flush=True)


@contextmanager
def _threads(number: int, chosen: Sequence[str], with_torch: bool) -> Iterator[None]:
    """The same number of threads for every pool of the process; what was set before comes back at the end."""
    for name in chosen:
        backends.get(name)  # loads the BLAS it uses, which can be limited only then
    with ExitStack() as stack:
        if with_torch:
            stack.enter_context(bench_torch.threads(number))
        stack.enter_context(threadpool_limits(number, user_api="blas"))
        stack.callback(pool.set_num_threads, pool.num_threads())
        pool.set_num_threads(number)
        yield


# ---- what is timed


class Model(Protocol):
    """What a contestant can do. ``run`` is timed, the rest looks at what it returned."""

    def run(self, train: bool, decisions: Decisions) -> Any: ...
    def logits(self, result: Any) -> Array: ...
    def decisions(self, result: Any) -> Decisions: ...
    def loss(self, result: Any) -> float: ...
    def gradients(self) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Material:
    """What all contestants are given alike."""

    config: HaltingVTConfig
    dtype: str
    parameters: dict[str, Array]
    clips: Array
    labels: Array
    motion_labels: Array
    forced: Decisions  # what the workload imposes on them


@dataclass(frozen=True)
class Contestant:
    """backend None: PyTorch, which is always dense. singly: the clips one after another instead of in one batch.

    device: "cpu", or "cuda" for PyTorch beside the cuda backend.
    """

    name: str
    backend: str | None
    execution: str = "dense"
    sdpa: bool = False
    singly: bool = False
    device: str = "cpu"

    def build(self, m: Material) -> Model:
        given = (m.config, m.parameters, m.clips, m.labels, m.motion_labels, m.dtype)
        if self.backend is None:
            return bench_torch.TorchModel(*given, sdpa=self.sdpa, device=self.device)
        return RefvtModel(*given, backend=self.backend, execution=self.execution, singly=self.singly)


class RefvtModel:
    """A refvt model with given parameters and clips [B, C, T, height, width]."""

    def __init__(
        self,
        config: HaltingVTConfig,
        parameters: Mapping[str, Array],
        clips: Array,
        labels: Array,
        motion_labels: Array,
        dtype: str,
        backend: str,
        execution: str,
        singly: bool,
    ) -> None:
        self._model = refvt.HaltingVT(config, parameters, backend=backend, dtype=dtype)
        self._moves = backends.get(backend).arrays
        self._labels, self._motion_labels = labels, motion_labels
        self._execution = execution
        B = len(clips)
        self._batches = [slice(b, b + 1) for b in range(B)] if singly else [slice(0, B)]
        self._clips = [self._moves.from_numpy(clips[batch], dtype) for batch in self._batches]
        self._gradients: list[dict[str, Array]] = []

    def run(self, train: bool, decisions: Decisions) -> Any:
        """A list with the output, or with loss and output, of every batch."""
        results: list[Any] = []
        self._gradients = []
        for batch, clips in zip(self._batches, self._clips, strict=True):
            cut = Decisions(
                None if decisions.kept is None else tuple(kept[batch] for kept in decisions.kept),
                None if decisions.halting_layer is None else decisions.halting_layer[batch],
            )
            how: dict[str, Any] = {"execution": self._execution, "decisions": cut, "arrays": "device"}
            if not train:
                results.append((self._model(clips, **how), None))
                continue
            targets = self._labels[batch], self._motion_labels[batch]
            loss, gradients = self._model.loss_and_gradients(clips, *targets, **how)
            results.append((loss.output, loss.total))
            self._gradients.append(gradients)
        self._moves.wait()
        return results

    def logits(self, result: Any) -> Array:
        """[B, K]"""
        return np.concatenate([self._moves.to_numpy(output.logits) for output, _ in result])

    def decisions(self, result: Any) -> Decisions:
        """What the run decided; a token still alive when its clip left early has layer 0."""
        outputs = [output for output, _ in result]
        kept = tuple(np.concatenate(parts) for parts in zip(*(o.decisions.kept for o in outputs), strict=True))
        return Decisions(kept, np.concatenate([o.decisions.halting_layer for o in outputs]))

    def alive(self, result: Any) -> Array:
        """bool [B, L, N'] who entered each layer."""
        return np.concatenate([output.alive for output, _ in result])

    def loss(self, result: Any) -> float:
        """The total loss; all its parts are means over clips."""
        return float(np.mean([loss for _, loss in result]))

    def gradients(self) -> dict[str, Array]:
        """The gradients of the last training step."""
        parts = self._gradients
        return {name: np.mean([self._moves.to_numpy(part[name]) for part in parts], axis=0) for name in parts[0]}


def _material(workload: Workload, B: int, dtype: str) -> Material:
    config, rng = workload.config, np.random.default_rng(0)
    clips = rng.standard_normal((B, config.channels, config.num_frames, *config.image_size)).astype(np.float32)
    forced = Decisions()
    if workload.gflops is None:
        parameters = initial_parameters(config, np.random.default_rng(0), dtype)
        forced = Decisions(None, np.full((B, config.joint_tokens), config.joint_depth))
    else:
        parameters = profile_parameters(config, workload.gflops, clips[:1], dtype=dtype)
        unit = config.halting_center / config.halting_scale  # channel 0 at which a score is one half
        direction = parameters["patch_embed.proj.weight"][0].astype(np.float64)  # what writes channel 0: [C, P, P]
        picture = np.tile(direction / np.square(direction).sum(), (1, *config.grid)).astype(np.float32)
        for clip, head_start in zip(clips, HEAD_STARTS, strict=False):
            clip += np.float32(head_start * unit) * picture[:, None]
    labels = np.arange(B) % config.num_classes
    return Material(config, dtype, parameters, clips, labels, np.arange(B) % 2, forced)


def _contestants(workload: Workload, chosen: Sequence[str], B: int, with_torch: bool) -> list[Contestant]:
    contestants = []
    for name in chosen:
        contestants.append(Contestant(f"refvt {name} compact", name, "compact"))
        if B > 1:
            contestants.append(Contestant(f"refvt {name} compact, one by one", name, "compact", singly=True))
        if workload.dense:
            contestants.append(Contestant(f"refvt {name} dense", name, "dense"))
    if with_torch:
        device = "cuda" if "cuda" in chosen else "cpu"
        contestants += [Contestant(EAGER, None, device=device), Contestant(SDPA, None, sdpa=True, device=device)]
    return contestants


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
    ceilings = (
        GpuCeilings(material.dtype, EAGER in models, sizes.gemm, sizes.copy)
        if on_gpu
        else Ceilings(material.dtype, threads, EAGER in models, sizes.gemm, sizes.copy)
    )
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
        forward = int(flops.executed_multiply_adds(config, alive).sum())
    else:
        everyone = np.ones((1, config.joint_depth, config.joint_tokens), dtype=bool)
        joint = config.joint_depth * int(flops.joint_multiply_adds(config, np.asarray(config.joint_tokens)))
        outside = flops.executed_multiply_adds(config, everyone)[0]
        outside -= flops.executed_joint_multiply_adds(config, everyone)[0].sum()
        if torch:
            outside -= config.glimpser_depth * config.width**2  # PyTorch's temporal_fc leaves CLS out
        forward = len(alive) * (int(outside) + joint)
    return forward * (3 if train else 1)


# ---- agreement


def check_agreement(models: Mapping[str, Model], material: Material, train: bool) -> tuple[dict[str, Any], Array]:
    """Do all say the same? Two runs of each, which warm it up as well: free, and under the first model's decisions.

    Returns a report and who was alive, bool [B, L, N'], in the first model's free run. Differences are relative: of
    logits the largest against the largest logit, of gradients the norm against the norm.
    """
    names = list(models)
    first, judge = models[names[0]], EAGER if EAGER in models else names[0]
    assert isinstance(first, RefvtModel)
    free, alive = {}, None
    for name, model in models.items():
        result = model.run(train, material.forced)
        free[name] = model.decisions(result)
        alive = first.alive(result) if alive is None else alive
    assert alive is not None
    forced = free[names[0]]
    assert forced.halting_layer is not None
    living = np.where(forced.halting_layer == 0, material.config.joint_depth, forced.halting_layer)
    forced = Decisions(forced.kept, living)
    said: dict[str, _Said] = {}
    for name in [judge, *(name for name in names if name != judge)]:
        result = models[name].run(train, forced)
        said[name] = _Said(
            models[name].logits(result),
            models[name].loss(result) if train else None,
            models[name].gradients() if train else None,
        )
        if name != judge:  # only the judge's gradients are kept beside those of one other
            said[name] = said[name]._replace(gradients=None, apart=_gradients_apart(said[name], said[judge]))
    allowed = float(np.sqrt(np.finfo(material.dtype).eps))
    truth, others = said[judge], [name for name in names if name != judge]
    scale = float(np.abs(truth.logits).max())
    report: dict[str, Any] = {
        "with": judge,
        "allowed": allowed,
        "largest_logit": scale,
        "logits": {name: float(np.abs(said[name].logits - truth.logits).max()) / scale for name in others},
        "decisions": int(material.config.patches_per_frame * material.config.num_frames * len(material.clips)),
        "decisions_apart": {name: _decisions_apart(material.config, free[name], free[judge]) for name in others},
    }
    measured = [*report["logits"].values()]
    if train:
        assert truth.loss is not None
        report["loss"] = {name: abs((said[name].loss or 0.0) - truth.loss) / abs(truth.loss) for name in others}
        report["gradients"] = {name: said[name].apart for name in others}
        measured += [*report["loss"].values(), *report["gradients"].values()]
    shares = [count / report["decisions"] for count in report["decisions_apart"].values()]
    # a comparison with NaN is False: what is not a number does not agree
    report["holds"] = all(x <= allowed for x in measured) and all(x <= DECISIONS_APART for x in shares)
    return report, alive


class _Said(NamedTuple):
    logits: Array
    loss: float | None
    gradients: dict[str, Array] | None
    apart: float | None = None


def _gradients_apart(one: _Said, other: _Said) -> float | None:
    """‖g − g'‖ / ‖g'‖ over all parameters together."""
    if one.gradients is None or other.gradients is None:
        return None
    difference = total = 0.0
    for name, gradient in other.gradients.items():
        difference += float(np.square(one.gradients[name] - gradient, dtype=np.float64).sum())
        total += float(np.square(gradient, dtype=np.float64).sum())
    return float(np.sqrt(difference / total))


def _decisions_apart(config: HaltingVTConfig, one: Decisions, other: Decisions) -> int:
    """How many patches took another way: dropped by one and not by the other, or halted in another layer."""
    fates, known = [], []
    for decisions in (one, other):
        assert decisions.kept is not None
        assert decisions.halting_layer is not None
        layers = decisions.halting_layer[:, 1:]
        B, T = len(layers), config.num_frames
        places = decisions.kept[-1] if decisions.kept else np.tile(np.arange(config.patches_per_frame), (B, T, 1))
        fate = np.full((B, T, config.patches_per_frame), -1)
        np.put_along_axis(fate, places, layers.reshape(B, -1, T).swapaxes(1, 2), axis=2)
        fates.append(fate)
        known.append(fate != 0)  # 0: still alive when its clip left
    return int(((fates[0] != fates[1]) & known[0] & known[1]).sum())


# ---- memory: each measurement in a process of its own


def _add_memory(
    result: dict[str, Any], material: Material, contestants: Sequence[Contestant], train: bool, threads: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "material.npz"
        arrays = {f"parameters/{name}": value for name, value in material.parameters.items()}
        arrays |= {"clips": material.clips, "labels": material.labels, "motion_labels": material.motion_labels}
        if material.forced.halting_layer is not None:
            arrays["halting_layer"] = material.forced.halting_layer
        np.savez(file, **arrays)  # type: ignore[arg-type]
        for row, contestant in zip(result["rows"], contestants, strict=True):
            request = {
                "file": str(file),
                "config": material.config.as_dict(),
                "dtype": material.dtype,
                "contestant": asdict(contestant),
                "train": train,
                "threads": threads,
            }
            row["extra_memory_mb"] = _ask_for_memory(request)


def _ask_for_memory(request: dict[str, Any]) -> float | None:
    """The megabytes, None if the process died (of too little memory, for one)."""
    package = str(Path(refvt.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    code = "import sys; from refvt.experiments import bench; bench.probe_memory(sys.argv[1])"
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        _say(f"memory of {request['contestant']['name']} not measured: exit {process.returncode}, {reason}")
        return None
    return float(process.stdout.split()[-1])


def probe_memory(request: str) -> None:
    """Print the megabytes one run needs above what the model, its clips and a tiny warm-up already hold."""
    asked = json.loads(request)
    config = HaltingVTConfig(**asked["config"])
    contestant = Contestant(**asked["contestant"])
    with np.load(asked["file"]) as file:
        arrays = dict(file)
    forced = Decisions(None, arrays.get("halting_layer"))
    parameters = {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith("parameters/")}
    given = (arrays["clips"], arrays["labels"], arrays["motion_labels"])
    material = Material(config, asked["dtype"], parameters, *given, forced)
    tiny = HaltingVTConfig(image_size=(32, 32), num_frames=2, width=48, num_heads=2, depth=4, keep_rates=(1.0, 0.5))
    chosen = [] if contestant.backend is None else [contestant.backend]
    with _threads(asked["threads"], chosen, contestant.backend is None):
        small = contestant.build(_material(Workload("warm-up", tiny), 1, asked["dtype"]))
        for train in {False, asked["train"]}:
            small.run(train, Decisions())
        ceilings = Ceilings(asked["dtype"], asked["threads"], contestant.backend is None, 512, 1)
        for warm_up in ceilings.runs.values():
            warm_up()  # BLAS takes its buffers
        model = contestant.build(material)
        del arrays, parameters, given
        gc.collect()
        before = _memory(reset=True)[0]
        result = model.run(asked["train"], material.forced)
        after = _memory()[1]
        del result
    print((after - before) / 1e6)


def _memory(reset: bool = False) -> tuple[int, int]:
    """Bytes held now, and the most that were; with ``reset`` the maximum begins anew, where the system can do that.

    Linux's ru_maxrss starts at what the parent process held, so its own account of the process is read instead.
    """
    if Path("/proc/self/status").is_file():
        if reset:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed, and would hand it out unseen
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        status = {name: value for name, _, value in (line.partition(":") for line in lines)}
        if "VmHWM" in status and "VmRSS" in status:
            now, most = (1024 * int(status[name].split()[0]) for name in ("VmRSS", "VmHWM"))
            return now, most
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most


# ---- growth


def _growth(workload: Workload, backend: str, dtype: str, repeats: int, sizes: Sizes) -> dict[str, Any]:
    """The compact forward pass while a share of the tokens lives through layers 2 to L; all of them enter layer 1."""
    config = workload.config
    material = _material(Workload(workload.describes, config), 1, dtype)
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
