"""The PyTorch model as a contestant of ``refvt bench``: dense, with the semantics of the released model.

Halted tokens are set to zero and computed like the others. No tensors are recorded and gradient checkpointing is off:
the model of ``golden/`` as it would normally be run, under ``torch.no_grad()`` for a forward pass and with
``loss.backward()`` for a training step. PyTorch is imported inside functions alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions
from refvt.training.optimiser import select_no_decay

__all__ = ["TorchModel", "TorchStep", "finds_gpu", "make_product", "missing", "threads"]

CHECKOUT = Path(refvt.__file__).resolve().parent.parent


def missing() -> str | None:
    """The reason why PyTorch cannot take part, in one line; None if it can."""
    if find_spec("torch") is None:
        return 'PyTorch is not installed (pip install "refvt[torch]")'
    if not (CHECKOUT / "golden" / "torch_model.py").is_file():
        return "the PyTorch model is part of a checkout of the repository, not of an installed package"
    return None


def finds_gpu() -> bool:
    """Whether PyTorch can take part on a GPU; it may be a build for the CPU alone."""
    if missing() is not None:
        return False
    import torch

    return bool(torch.cuda.is_available())


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set the number of PyTorch's threads, once around everything (a change costs a new pool), and restore it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchModel:
    """PyTorch's model with given parameters and clips [B, C, T, height, width]; ``module`` is the model itself.

    sdpa: use PyTorch's fused attention. On a GPU (device "cuda") TF32 is off, because it would drop 13 of float32's 23
    bits, and a run ends when the GPU has finished.
    """

    can_be_forced = True

    def __init__(
        self,
        config: HaltingVTConfig,
        parameters: Mapping[str, Array],
        clips: Array,
        labels: Array,
        motion_labels: Array,
        dtype: str,
        sdpa: bool,
        device: str = "cpu",
    ) -> None:
        if str(CHECKOUT) not in sys.path:
            sys.path.insert(0, str(CHECKOUT))
        import torch

        from golden import torch_model

        self._torch, self._total_loss, self._device = torch, torch_model.total_loss, device
        if device != "cpu":
            if not finds_gpu():
                raise ValueError("PyTorch finds no GPU here: give --no-torch, or install its CUDA build")
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        shared = {field.name: getattr(config, field.name) for field in fields(torch_model.Config)}
        self.module: Any = torch_model.HaltingVT(torch_model.Config(**shared), sdpa=sdpa)
        self.module.measures_margins = False  # a GPU would have to wait for every one of them
        self.module.to(getattr(torch, dtype))
        self.module.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in parameters.items()})
        self.module.to(device)
        self._clips = torch.tensor(clips).to(device, getattr(torch, dtype))
        self._labels, self._motion_labels = torch.tensor(labels).to(device), torch.tensor(motion_labels).to(device)

    def run(self, train: bool, decisions: Decisions, wait: bool = True) -> Any:
        """One forward pass, or one training step up to the gradients; returns PyTorch's own tensors.

        wait: on a GPU, return only when it has finished.
        """
        torch = self._torch
        layers = decisions.halting_layer
        forced = {
            "kept": None if decisions.kept is None else [self._upload(kept) for kept in decisions.kept],
            "halting_layer": None if layers is None else self._upload(layers),
        }
        self.module.train(train)
        loss = None
        if train:
            self.module.zero_grad(set_to_none=True)
            output = self.module(self._clips, **forced)
            loss = self._total_loss(output, self._labels, self._motion_labels)["total"]
            loss.backward()
        else:
            with torch.no_grad():
                output = self.module(self._clips, **forced)
        if wait and self._device != "cpu":
            torch.cuda.synchronize()
        return output, loss

    def _upload(self, array: Array) -> Any:
        return self._torch.tensor(array).to(self._device)

    def logits(self, result: Any) -> Array:
        """Logits [B, K] as a NumPy array."""
        return np.asarray(result[0].logits.detach().cpu().numpy())

    def decisions(self, result: Any) -> Decisions:
        """Decisions of the run."""
        output = result[0]
        return Decisions(tuple(kept.cpu().numpy() for kept in output.kept), output.halting_layer.cpu().numpy())

    def loss(self, result: Any) -> float:
        """The total loss of a training step."""
        return float(result[1].detach())

    def gradients(self) -> dict[str, Array]:
        """Gradients of the last training step; zero for parameters without one."""
        return {
            name: np.zeros(tuple(p.shape), np.float32) if p.grad is None else p.grad.cpu().numpy()
            for name, p in self.module.named_parameters()
        }

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """PyTorch's own parameters, for an optimiser."""
        return iter(self.module.named_parameters())


class TorchStep:
    """PyTorch's training step: autograd and torch.optim.AdamW. ``losses`` holds the loss of every step made."""

    def __init__(
        self,
        config: HaltingVTConfig,
        start: dict[str, Array],
        batch: tuple[Array, ...],
        rate: float,
        decay: float,
        sdpa: bool,
        device: str,
    ) -> None:
        import torch

        clips, labels, moving = batch
        self._model = TorchModel(config, start, clips, labels, moving, str(clips.dtype), sdpa=sdpa, device=device)
        named = list(self._model.named_parameters())
        no_decay = select_no_decay([name for name, _ in named], norms_and_biases=False)
        groups = [
            {"params": [w for name, w in named if name not in no_decay], "weight_decay": decay},
            {"params": [w for name, w in named if name in no_decay], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=rate)
        self.losses: list[float] = []

    def __call__(self) -> None:
        result = self._model.run(True, Decisions(), wait=False)  # the loss is waited for
        self._optimiser.step()
        self.losses.append(self._model.loss(result))


def make_product(a: Array, b: Array, dtype: str, device: str) -> Callable[[], None]:
    """PyTorch's matrix product of two square matrices, as a run to be timed; on a GPU it is waited for."""
    import torch

    ta, tb = (torch.tensor(x).to(device, getattr(torch, dtype)) for x in (a, b))
    tc = torch.empty_like(ta)

    def run() -> None:
        torch.mm(ta, tb, out=tc)
        if device != "cpu":
            torch.cuda.synchronize()

    return run
