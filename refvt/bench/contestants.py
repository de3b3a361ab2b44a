"""What ``refvt bench`` times: workloads, the clips and weights that all contestants get, and the contestants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from threadpoolctl import threadpool_limits

import refvt
from refvt import backends
from refvt.array import Array
from refvt.backends.jit import workspace
from refvt.bench import torch_model as bench_torch
from refvt.bench.engines import Engine
from refvt.bench.profiles import profile_parameters
from refvt.bench.torch_compact import TorchCompact
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions
from refvt.model.parameters import initial_parameters

__all__ = [
    "COMPACT",
    "EAGER",
    "ENGINES",
    "FORWARD_ONLY",
    "RIVALS",
    "SDPA",
    "Contestant",
    "Material",
    "Model",
    "RefvtModel",
    "TrainedModel",
    "Workload",
    "limit_threads",
    "make_contestants",
    "make_material",
]

EAGER, SDPA, COMPACT, ONNX, OPENVINO = "torch eager", "torch sdpa", "torch compact", "onnxruntime", "openvino"
ENGINES = (ONNX, OPENVINO)
FORWARD_ONLY = (COMPACT, *ENGINES)
# the ratios of the tables: "of eager" is a time over that of torch eager
RIVALS = {"eager": EAGER, "sdpa": SDPA, "compact": COMPACT, "onnx": ONNX, "openvino": OPENVINO}
HEAD_STARTS = (0.0, 0.5, -0.5, 1.0)  # one for each clip: its patches start nearer to or farther from halting


@dataclass(frozen=True)
class Workload:
    """A model and what halting makes it cost.

    gflops: cost of one clip, reached by halting; None: no token halts before the last layer. dense: time the dense
    execution too.
    """

    describes: str
    config: HaltingVTConfig
    gflops: float | None = None
    dense: bool = False


class Model(Protocol):
    """A contestant with its clips loaded. ``run`` is timed, the other methods read what it returned.

    can_be_forced: whether ``run`` imposes the decisions that it is given.
    """

    can_be_forced: bool

    def run(self, train: bool, decisions: Decisions) -> Any: ...
    def logits(self, result: Any) -> Array: ...
    def decisions(self, result: Any) -> Decisions: ...


@runtime_checkable
class TrainedModel(Model, Protocol):
    """A contestant that can take a training step."""

    def loss(self, result: Any) -> float: ...
    def gradients(self) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Material:
    """The input of all contestants: weights, clips, labels, and decisions imposed on them."""

    config: HaltingVTConfig
    dtype: str
    parameters: dict[str, Array]
    clips: Array
    labels: Array
    motion_labels: Array
    forced: Decisions


@dataclass(frozen=True)
class Contestant:
    """A line of the table: a backend of refvt and how it executes, or another program (backend None), by its name.

    singly: the clips one after another instead of in one batch. device: "cpu", or "cuda" for PyTorch when the cuda
    backend is timed.
    """

    name: str
    backend: str | None
    execution: str = "dense"
    singly: bool = False
    device: str = "cpu"

    def build(self, m: Material) -> Model:
        """The contestant with the material loaded, ready to run."""
        given = (m.config, m.parameters, m.clips, m.labels, m.motion_labels, m.dtype)
        if self.name in ENGINES:
            return Engine(self.name, m.config, m.parameters, m.clips, m.forced, workspace.num_threads())
        if self.name == COMPACT:
            return TorchCompact(m.config, m.parameters, m.clips, m.dtype)
        if self.backend is None:
            return bench_torch.TorchModel(*given, sdpa=self.name == SDPA, device=self.device)
        return RefvtModel(*given, backend=self.backend, execution=self.execution, singly=self.singly)


class RefvtModel:
    """A refvt model as a contestant, with given parameters and clips [B, C, T, height, width]."""

    can_be_forced = True

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
        self._arrays = backends.get(backend).arrays
        self._labels, self._motion_labels = labels, motion_labels
        self._execution = execution
        B = len(clips)
        self._batches = [slice(b, b + 1) for b in range(B)] if singly else [slice(0, B)]
        self._clips = [self._arrays.from_numpy(clips[batch], dtype) for batch in self._batches]
        self._gradients: list[dict[str, Array]] = []

    def run(self, train: bool, decisions: Decisions) -> Any:
        """Outputs of all batches, each with its loss in a training step, else with None."""
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
        self._arrays.wait()
        return results

    def logits(self, result: Any) -> Array:
        """Logits [B, K] as a NumPy array."""
        return np.concatenate([self._arrays.to_numpy(output.logits) for output, _ in result])

    def decisions(self, result: Any) -> Decisions:
        """Decisions of the run; a token still alive when its clip left early has layer 0."""
        outputs = [output for output, _ in result]
        kept = tuple(np.concatenate(parts) for parts in zip(*(o.decisions.kept for o in outputs), strict=True))
        return Decisions(kept, np.concatenate([o.decisions.halting_layer for o in outputs]))

    def alive(self, result: Any) -> Array:
        """Tokens that entered each layer, bool [B, L, N']."""
        return np.concatenate([output.alive for output, _ in result])

    def loss(self, result: Any) -> float:
        """The total loss; all its parts are means over clips."""
        return float(np.mean([loss for _, loss in result]))

    def gradients(self) -> dict[str, Array]:
        """The gradients of the last training step."""
        parts = self._gradients
        return {name: np.mean([self._arrays.to_numpy(part[name]) for part in parts], axis=0) for name in parts[0]}


def make_material(workload: Workload, B: int, dtype: str) -> Material:
    """Clips, labels and weights for B clips. From one clip to the next more or less halts, see ``HEAD_STARTS``."""
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


def make_contestants(
    workload: Workload, chosen: Sequence[str], B: int, with_torch: bool, engines: Sequence[str] = ()
) -> list[Contestant]:
    """The lines of a workload's table: every chosen backend, PyTorch in three ways, and the engines."""
    contestants = []
    for name in chosen:
        contestants.append(Contestant(f"refvt {name} compact", name, "compact"))
        if B > 1:
            contestants.append(Contestant(f"refvt {name} compact, one by one", name, "compact", singly=True))
        if workload.dense:
            contestants.append(Contestant(f"refvt {name} dense", name, "dense"))
    if with_torch:
        device = "cuda" if "cuda" in chosen else "cpu"
        contestants += [Contestant(EAGER, None, device=device), Contestant(SDPA, None, device=device)]
        if device == "cpu":
            contestants.append(Contestant(COMPACT, None, "compact"))
    return contestants + [Contestant(name, None) for name in engines]


@contextmanager
def limit_threads(number: int, chosen: Sequence[str], with_torch: bool) -> Iterator[None]:
    """The same number of threads for every thread pool of the process; at the end they get back what they had."""
    for name in chosen:
        backends.get(name)  # loads the BLAS it uses, which can be limited only then
    with ExitStack() as stack:
        if with_torch:
            stack.enter_context(bench_torch.threads(number))
        stack.enter_context(threadpool_limits(number, user_api="blas"))
        stack.callback(workspace.set_num_threads, workspace.num_threads())
        workspace.set_num_threads(number)
        yield
