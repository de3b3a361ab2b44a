"""ONNX Runtime and OpenVINO as contestants of ``refvt bench``: the PyTorch model, exported and run by an engine.

What is exported is the model of ``golden/`` with its halting loop: dense, halted tokens are zero and computed like the
others. Forward only, in float32. Decisions cannot be imposed on it, but for those of the workload, which are exported
with the model.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.bench.torch_model import TorchModel
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["Engine", "missing_engines"]

NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")
Run = Callable[[Array], Sequence[Array]]


def missing_engines() -> str | None:
    """The reason why the engines cannot take part, in one line; None if they can."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    return f'{", ".join(missing)} not installed (pip install "refvt[bench]")' if missing else None


class Engine:
    """The exported model with given parameters and clips [B, C, T, height, width]; ``name`` is that of the engine."""

    can_be_forced = False

    def __init__(
        self,
        name: str,
        config: HaltingVTConfig,
        parameters: Mapping[str, Array],
        clips: Array,
        forced: Decisions,
        threads: int,
    ) -> None:
        labels = np.zeros(len(clips), np.int64)
        model = TorchModel(config, parameters, clips, labels, labels, "float32", sdpa=False)
        self._clips = np.ascontiguousarray(clips, np.float32)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            _export(model.module, self._clips, forced, file)
            self._run: Run = {"onnxruntime": _with_onnxruntime, "openvino": _with_openvino}[name](file, threads)

    def run(self, train: bool, decisions: Decisions) -> Sequence[Array]:
        """Logits [B, K], halting layers [B, N'], and the kept patches of every Glimpser block [B, T, k]."""
        if train:
            raise ValueError("train: expected False, an exported model has no backward")
        return self._run(self._clips)

    def logits(self, result: Sequence[Array]) -> Array:
        """Logits [B, K]."""
        return result[0]

    def decisions(self, result: Sequence[Array]) -> Decisions:
        """Decisions of the run."""
        return Decisions(tuple(result[2:]), result[1])


def _export(model: Any, clips: Array, forced: Decisions, file: Path) -> None:
    """Write the model as ONNX; its outputs are those of ``Engine.run``."""
    import torch

    from golden import torch_model, torch_ops

    class Exported(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model = model.eval()
            self.layers = None if forced.halting_layer is None else torch.tensor(forced.halting_layer)

        def forward(self, clips: Any) -> tuple[Any, ...]:
            found = self.model(clips, halting_layer=self.layers)
            return found.logits, found.halting_layer, *found.kept

    # what no graph can hold: margins of decisions, read as Python numbers; a sort that keeps the order of equal scores
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (torch_model, "_note", lambda *_: None),
        (torch_model, "_selection_margins", lambda *_: None),
        (torch_ops, "top_k", lambda scores, k: scores.topk(k, dim=-1).indices),
    ]
    with ExitStack() as stack:
        for module, name, function in replaced:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, function)
        stack.enter_context(warnings.catch_warnings(action="ignore", category=FutureWarning))
        given = (torch.tensor(clips),)
        torch.onnx.export(Exported().eval(), given, str(file), dynamo=True, opset_version=20, verbose=False)


def _with_onnxruntime(file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda clips: session.run(None, {given.name: clips})


def _with_openvino(file: Path, threads: int) -> Run:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(file), "CPU", hints)
    return lambda clips: [np.array(value) for value in compiled(clips).values()]
