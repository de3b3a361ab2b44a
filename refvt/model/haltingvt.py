"""HaltingVT as users call it: named outputs, losses, gradients and traces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.model import flops
from refvt.model.blocks import Context
from refvt.model.checkpoints import CheckpointError, parameters_from, read_checkpoint, save_parameters
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions, values_of_tokens
from refvt.model.drop_path import DropPath
from refvt.model.inputs import (
    LossWeights,
    check_clips,
    check_drop_path,
    check_execution,
    check_labels,
    check_loss_weights,
)
from refvt.model.network import NetworkCache, NetworkResult, network_backward, network_forward, network_result
from refvt.model.parameters import check_parameters, initial_parameters
from refvt.model.plan import Execution

__all__ = ["HaltingVT", "Loss", "Output", "Trace", "load"]


@dataclass(frozen=True)
class Output:
    """The results of a forward pass for a batch of B clips with N' tokens each in L joint blocks.

    logits [B, K]; motion_logits [B, 2]; features [B, D], the normed CLS; ponder [B, N'], NaN for tokens still alive
    when their clip left early; tokens_per_layer int64 [B, L] and alive bool [B, L, N'], the tokens that entered each
    joint block (none once the clip has left); decisions; gflops [B], 10⁹ multiply-adds in the literature's convention
    on those counts. Token 0 is CLS, token 1 + s·T + t is the patch of rank s in frame t, patch
    ``decisions.kept[-1][b, t, s]`` of the grid.
    """

    logits: Array
    motion_logits: Array
    features: Array
    ponder: Array
    tokens_per_layer: Array
    alive: Array
    decisions: Decisions
    gflops: Array


@dataclass(frozen=True)
class Loss:
    """total = recognition + ponder_weight · ponder + motion_weight · motion; the parts are not weighted."""

    total: float
    recognition: float
    ponder: float
    motion: float
    output: Output


class Trace(Mapping[str, Array]):
    """Every named tensor of one run: ``trace["blocks.3.attn.q"]`` and, with gradients, ``trace["d(blocks.3.attn.q)"]``.

    States are flat rows, the clips one after another. ``blocks.3.attn.proj``, ``blocks.3.mlp`` and ``temporal_fc`` are
    the states after the skip connection (``temporal_attn.proj`` has none). ``joint.4.weight`` and the like have a place
    for every token, zero where the token had halted before. Names iterate in the order in which they were computed.
    """

    def __init__(self, tensors: dict[str, Array], output: Output) -> None:
        self._tensors = tensors
        self.output = output

    def __getitem__(self, name: str) -> Array:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class HaltingVT:
    """A HaltingVT: ``model(clips)`` classifies, ``loss_and_gradients`` differentiates, ``trace`` shows everything.

    parameters: a dict with the names of a PyTorch state dict, drawn from ``seed`` if None; arrays are cast to
    ``dtype`` ("float32" or "float64"). backend: a name of ``refvt.backends.available()``, None for the fastest on the
    CPU.
    """

    def __init__(
        self,
        config: HaltingVTConfig,
        parameters: Mapping[str, Array] | None = None,
        seed: int = 0,
        backend: str | None = None,
        dtype: str = "float32",
    ) -> None:
        if not isinstance(config, HaltingVTConfig):
            raise TypeError(f"config: expected a HaltingVTConfig, got {type(config).__name__}")
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: expected 'float32' or 'float64', got {dtype!r}")
        self.config = config
        self.dtype = dtype
        self.backend = backends.default() if backend is None else backend
        self._ops = backends.get(self.backend)
        if parameters is None:
            parameters = initial_parameters(config, np.random.default_rng(seed), dtype)
        check_parameters(parameters, config, dtype)
        self._graphs = self._ops.arrays.GraphCache()
        from_numpy = self._ops.arrays.from_numpy
        with self._ops.session():
            self.parameters: dict[str, Array] = {n: from_numpy(np.array(v), dtype) for n, v in parameters.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to a ``.safetensors`` or ``.npz`` file, whole or not at all."""
        to_numpy = self._ops.arrays.to_numpy
        save_parameters({name: to_numpy(value) for name, value in self.parameters.items()}, path)

    def __reduce__(self) -> tuple[Any, ...]:
        """What pickle and copy.deepcopy keep: the arguments that make the model again, parameters in main memory."""
        to_numpy = self._ops.arrays.to_numpy
        parameters = {name: np.array(to_numpy(value)) for name, value in self.parameters.items()}
        return type(self), (self.config, parameters, 0, self.backend, self.dtype)

    def __repr__(self) -> str:
        return f"HaltingVT({self.config}, backend={self.backend!r}, dtype={self.dtype!r})"

    def __call__(
        self,
        clips: Array,
        execution: str = "compact",
        full_ponder: bool = False,
        decisions: Decisions | None = None,
        arrays: str = "numpy",
    ) -> Output:
        """Classify clips [B, C, T, height, width], normalised to (x − 127.5)/127.5.

        execution: "dense" keeps a row for every token, "compact" computes only living tokens; the answers are the same.
        full_ponder: follow every token to its halt; otherwise a clip leaves when its CLS has halted. decisions: imposed
        instead of taken. arrays: "device" leaves logits, motion_logits, features and ponder where the backend computed
        them. ValueError or TypeError for clips, execution or decisions that do not fit.
        """
        deliver = self._deliver(arrays)
        clips = check_clips(clips, self.config, self._ops, self.dtype)
        how = check_execution(execution, decisions, self.config, len(clips), leave_early=not full_ponder)
        with self._ops.session():
            result, _ = self._run(Context(self._ops, self.parameters), clips, how)
            return self._output(result, full_ponder, deliver)

    def loss_and_gradients(
        self,
        clips: Array,
        labels: Array,
        motion_labels: Array | None,
        ponder_weight: float = 5e-4,
        motion_weight: float = 1.0,
        label_smoothing: float = 0.0,
        execution: str = "compact",
        drop_path: float | DropPath = 0.0,
        rng: np.random.Generator | None = None,
        decisions: Decisions | None = None,
        arrays: str = "numpy",
        patch_ponder_weights: Array | None = None,
    ) -> tuple[Loss, dict[str, Array]]:
        """The training loss of clips [B, C, T, height, width] and its gradient with respect to every parameter.

        labels [B] class numbers or [B, K] soft; motion_labels [B], 1 for moving and 0 for a static twin, None to leave
        the motion loss out. drop_path: the rate of the last block, drawn from rng, or the draws themselves. arrays:
        "device" leaves gradients and outputs where the backend computed them. patch_ponder_weights [B, T, patches]: how
        much each patch of a frame counts in the ponder loss, None for 1 each, as in the paper; CLS and fused patches
        count 1. Returns the loss and a dict with the parameters' names. ValueError or TypeError for arguments that do
        not fit. Source: HaltingVT equations 9–11.
        """
        deliver = self._deliver(arrays)
        clips = check_clips(clips, self.config, self._ops, self.dtype)
        B = len(clips)
        weights = self._check_weights(ponder_weight, motion_weight, label_smoothing, patch_ponder_weights, B)
        labels, motion_labels = check_labels(labels, motion_labels, self.config, B, self.dtype)
        scales = check_drop_path(drop_path, rng, self.config, B)
        how = check_execution(execution, decisions, self.config, B, drop_path=scales)
        context = Context(self._ops, self.parameters, keep=True)
        with self._ops.session():
            result, cache = self._run(context, clips, how)
            loss = self._loss_and_backward(context, result, cache, labels, motion_labels, weights, deliver)
            return loss, {name: deliver(context.gradients[name]) for name in self.parameters}

    def trace(
        self,
        clips: Array,
        gradients: bool = False,
        *,
        labels: Array | None = None,
        motion_labels: Array | None = None,
        ponder_weight: float = 5e-4,
        motion_weight: float = 1.0,
        label_smoothing: float = 0.0,
        execution: str = "dense",
        drop_path: float | DropPath = 0.0,
        rng: np.random.Generator | None = None,
        decisions: Decisions | None = None,
        patch_ponder_weights: Array | None = None,
    ) -> Trace:
        """Every named tensor of a run, forward and, with ``gradients``, backward.

        The gradients are those of the training loss if labels are given; else those of a random linear function of
        logits, motion logits and ponder (standard normal cotangents, seed 0), which hides nothing. ValueError or
        TypeError as in ``loss_and_gradients``.
        """
        deliver = self._deliver("numpy")
        clips = check_clips(clips, self.config, self._ops, self.dtype)
        B = len(clips)
        weights = self._check_weights(ponder_weight, motion_weight, label_smoothing, patch_ponder_weights, B)
        if labels is not None:
            labels, motion_labels = check_labels(labels, motion_labels, self.config, B, self.dtype)
        scales = check_drop_path(drop_path, rng, self.config, B)
        how = check_execution(execution, decisions, self.config, B, every_output=True, drop_path=scales)
        tensors: dict[str, Array] = {}

        def record(name: str, tensor: Array) -> None:
            tensors[name] = np.array(deliver(tensor))

        context = Context(self._ops, self.parameters, record=record, keep=gradients)
        with self._ops.session():
            result, cache = self._run(context, clips, how)
            if gradients and labels is None:
                self._random_backward(context, result, cache)
            elif gradients and labels is not None:
                self._loss_and_backward(context, result, cache, labels, motion_labels, weights, deliver)
            for name, gradient in context.gradients.items():
                record(f"d({name})", gradient)
            return Trace(tensors, self._output(result, True, deliver))

    def _check_weights(
        self, ponder: float, motion: float, label_smoothing: float, patch_ponder: Array | None, B: int
    ) -> LossWeights:
        return check_loss_weights(ponder, motion, label_smoothing, patch_ponder, self.config, B, self.dtype)

    def _run(self, context: Context, clips: Array, execution: Execution) -> tuple[NetworkResult, NetworkCache | None]:
        """One forward pass, and its cache if a backward pass will follow."""
        cache = None
        if context.keep or context.tracing or execution.kept_places or execution.halting_layer is not None:
            found, cache = network_forward(context, self.config, clips, execution)
        else:  # an inference pass asks the host for nothing, so a GPU can record and repeat it
            kind = execution.compact, execution.leave_early
            found = self._graphs(
                kind, self.parameters, lambda clips: network_forward(context, self.config, clips, execution)[0], clips
            )
        return network_result(context, self.config, found, len(clips), execution.leave_early, cache)

    def _loss_and_backward(
        self,
        context: Context,
        result: NetworkResult,
        cache: NetworkCache | None,
        labels: Array,
        motion_labels: Array | None,
        weights: LossWeights,
        deliver: Callable[[Array], Array],
    ) -> Loss:
        """The training loss; the gradients of the parameters go to the context."""
        ops, arrays, number = self._ops, self._ops.arrays, np.dtype(self.dtype).type
        assert cache is not None
        recognition, recognition_cache = ops.cross_entropy.forward(result.logits, labels, weights.label_smoothing)
        of_tokens = None
        if weights.patch_ponder is not None:
            of_tokens = values_of_tokens(weights.patch_ponder, result.kept[-1] if result.kept else None, 1.0)
        ponder, ponder_cache = ops.ponder_loss.forward(result.halting.ponder, of_tokens)
        dlogits = ops.cross_entropy.backward(number(1), recognition_cache)
        dponder = ops.ponder_loss.backward(number(weights.ponder), ponder_cache)
        motion: Array = np.zeros(())
        dmotion_logits = arrays.zeros(result.motion_logits.shape, self.dtype)
        if motion_labels is not None:
            motion, motion_cache = ops.motion_loss.forward(result.motion_logits, motion_labels)
            dmotion_logits = ops.motion_loss.backward(number(weights.motion), motion_cache)
        network_backward(context, self.config, dlogits, dmotion_logits, dponder, cache)
        parts = [float(arrays.to_numpy(part)) for part in (recognition, ponder, motion)]
        total = parts[0] + weights.ponder * parts[1] + weights.motion * parts[2]
        return Loss(total, parts[0], parts[1], parts[2], self._output(result, True, deliver))

    def _random_backward(self, context: Context, result: NetworkResult, cache: NetworkCache | None) -> None:
        """The gradients of a random linear function of the results, seed 0."""
        assert cache is not None
        rng = np.random.default_rng(0)
        dlogits, dmotion_logits, dponder = (
            self._ops.arrays.from_numpy(rng.standard_normal(a.shape), self.dtype)
            for a in (result.logits, result.motion_logits, result.halting.ponder)
        )
        network_backward(context, self.config, dlogits, dmotion_logits, dponder, cache)

    def _deliver(self, arrays: str) -> Callable[[Array], Array]:
        """What is done to results before they are returned: brought to main memory, or left where they are."""
        if arrays not in ("numpy", "device"):
            raise ValueError(f"arrays: expected 'numpy' or 'device', got {arrays!r}")
        return self._ops.arrays.to_numpy if arrays == "numpy" else lambda array: array

    def _output(self, result: NetworkResult, full_ponder: bool, deliver: Callable[[Array], Array]) -> Output:
        """The named outputs. Without full_ponder, what came after CLS halted is hidden, as if the clip had left."""
        halting, arrays = result.halting, self._ops.arrays
        ponder, layers, alive = halting.ponder, halting.halting_layer.copy(), halting.alive.copy()
        if not full_ponder:
            cls_layer = layers[:, :1]  # [B, 1] the halting layer of CLS, the last that is known
            unknown = layers > cls_layer
            if unknown.any():
                ponder = arrays.add(ponder, arrays.from_numpy(np.where(unknown, np.nan, 0), self.dtype))
            layers[unknown] = 0
            alive &= (np.arange(self.config.joint_depth) < cls_layer)[:, :, None]
        counts = alive.sum(axis=2)  # [B, L]
        return Output(
            logits=deliver(result.logits),
            motion_logits=deliver(result.motion_logits),
            features=deliver(result.features),
            ponder=deliver(ponder),
            tokens_per_layer=counts,
            alive=alive,
            decisions=Decisions(tuple(result.kept), layers),
            gflops=flops.clip_gflops(self.config, counts),
        )


def load(
    path: str | os.PathLike[str],
    config: HaltingVTConfig,
    backend: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    checkpoint_grid: tuple[int, int] | None = None,
    weights_key: str | None = None,
) -> HaltingVT:
    """A model with the parameters of a file: ``.npz``, ``.safetensors`` or a PyTorch checkpoint.

    Files of the released model (prefixes ``backbone.model.`` and ``cls_head.``) and DeiT-S image checkpoints map onto
    refvt's names; embeddings for another S or T are resized (nearest; the file's grid is taken as square unless
    ``checkpoint_grid`` states its rows and columns). What an image checkpoint lacks is drawn from ``seed``. Of several
    sets of weights in a PyTorch checkpoint ``weights_key`` names the one to read, such as "state_dict_ema" (see
    ``refvt.model.checkpoints.read_checkpoint``). Nothing in the file is ever executed.
    CheckpointError, with the path, lists what does not fit.
    """
    tensors = read_checkpoint(path, weights_key)
    try:
        parameters = parameters_from(tensors, config, seed, checkpoint_grid)
        check_parameters(parameters, config, dtype)
    except ValueError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error
    return HaltingVT(config, parameters, backend=backend, dtype=dtype)
