"""HaltingVT as users call it: checks at the door, outputs with names, losses, gradients and traces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.model import flops
from refvt.model.blocks import Scope
from refvt.model.checkpoints import parameters_from, read_checkpoint, save_parameters
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions, check_decisions
from refvt.model.network import (
    Gains,
    Heads,
    NetworkCache,
    NetworkResult,
    draw_gains,
    network_backward,
    network_forward,
    network_result,
)
from refvt.model.parameters import check_parameters, initial_parameters

__all__ = ["HaltingVT", "Loss", "Output", "Trace", "load"]


@dataclass(frozen=True)
class Output:
    """What a forward pass says about a batch of B clips with N' tokens each in L joint blocks.

    logits [B, K]; motion_logits [B, 2]; features [B, D], the normed CLS; ponder [B, N'], NaN for tokens still alive
    when their clip left early; tokens_per_layer int64 [B, L] and alive bool [B, L, N'], who entered each joint block
    (nobody once the clip has left); decisions; gflops [B], 10⁹ multiply-adds in the literature's convention on those
    counts. Token 0 is CLS, token 1 + s·T + t is the patch of rank s in frame t, ``decisions.kept[-1][b, t, s]`` on
    the grid.
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
    """total = recognition + ponder_weight · ponder + motion_weight · motion, its parts before weighing, the output."""

    total: float
    recognition: float
    ponder: float
    motion: float
    output: Output


class Trace(Mapping[str, Array]):
    """Every named tensor of one run: ``trace["blocks.3.attn.q"]`` and, with gradients, ``trace["d(blocks.3.attn.q)"]``.

    States are flat rows, the clips one after another. ``joint.4.weight`` and the like have a place for every token,
    zero where it did not enter the layer. Names iterate in the order in which they were computed.
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

    parameters: a dict with the names of a PyTorch state dict, drawn afresh from ``seed`` if None; arrays are cast to
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
        check_parameters(parameters, config)
        self._graphs = self._ops.arrays.GraphCache()
        from_numpy = self._ops.arrays.from_numpy
        with self._ops.session():
            self.parameters: dict[str, Array] = {n: from_numpy(np.array(v), dtype) for n, v in parameters.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to a ``.safetensors`` or ``.npz`` file, whole or not at all."""
        to_numpy = self._ops.arrays.to_numpy
        save_parameters({name: to_numpy(value) for name, value in self.parameters.items()}, path)

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

        execution: "dense" keeps a row for every token, "compact" computes only what is alive; the answers are the same.
        full_ponder: follow every token to its halt; otherwise a clip leaves when its CLS has halted. decisions: imposed
        instead of taken. arrays: "device" leaves logits, motion_logits, features and ponder where the backend computed
        them. ValueError or TypeError for clips, execution or decisions that do not fit.
        """
        bring = self._bring(arrays)
        compact = _is_compact(execution)
        clips = self._checked(clips)
        scope = Scope(self._ops, self.parameters)
        forced = check_decisions(decisions or Decisions(), self.config, len(clips))
        with self._ops.session():
            leave_early = compact and not full_ponder

            def heads(clips: Array) -> Heads:
                return network_forward(
                    *(scope, self.config, clips, compact),
                    leave_early=leave_early,
                    kept=forced.kept,
                    halting_layer=forced.halting_layer,
                )[0]

            free = forced.kept is None and forced.halting_layer is None
            found = self._graphs((compact, leave_early), self.parameters, heads, clips) if free else heads(clips)
            result, _ = network_result(scope, self.config, found, len(clips), leave_early)
            return self._output(result, full_ponder, bring)

    def loss_and_gradients(
        self,
        clips: Array,
        labels: Array,
        motion_labels: Array | None,
        ponder_weight: float = 5e-4,
        motion_weight: float = 1.0,
        label_smoothing: float = 0.0,
        execution: str = "compact",
        drop_path: float = 0.0,
        rng: np.random.Generator | None = None,
        decisions: Decisions | None = None,
        arrays: str = "numpy",
    ) -> tuple[Loss, dict[str, Array]]:
        """The training loss of clips [B, C, T, height, width] and its gradient with respect to every parameter.

        labels [B] class numbers or [B, K] soft; motion_labels [B], 1 for moving and 0 for a static twin, None to leave
        the motion loss out. drop_path: the rate of the last block, drawn from rng. arrays: "device" leaves gradients
        and outputs where the backend computed them. Returns the loss and a dict with the parameters' names.
        Source: HaltingVT equations 9–11.
        """
        bring = self._bring(arrays)
        compact = _is_compact(execution)
        clips = self._checked(clips)
        labels, motion_labels = self._checked_labels(labels, motion_labels, len(clips))
        for name, number, top in (
            ("ponder_weight", ponder_weight, np.inf),
            ("motion_weight", motion_weight, np.inf),
            ("label_smoothing", label_smoothing, 1),
            ("drop_path", drop_path, 1),
        ):
            if not (0 <= number < top):
                raise ValueError(f"{name}: expected a number from 0 and below {top}, got {number}")
        gains = None
        if drop_path > 0:
            if not isinstance(rng, np.random.Generator):
                raise TypeError(f"rng: drop_path > 0 needs a numpy Generator, got {type(rng).__name__}")
            gains = draw_gains(self.config, len(clips), drop_path, rng)
        forced = check_decisions(decisions or Decisions(), self.config, len(clips))
        scope = Scope(self._ops, self.parameters, keep=True)
        with self._ops.session():
            heads, cache = network_forward(
                scope,
                self.config,
                clips,
                compact,
                gains=gains,
                kept=forced.kept,
                halting_layer=forced.halting_layer,
            )
            result, cache = network_result(scope, self.config, heads, len(clips), False, cache)
            assert cache is not None
            loss = self._loss_and_backward(
                scope, result, cache, labels, motion_labels, (ponder_weight, motion_weight, label_smoothing), bring
            )
            return loss, {name: bring(scope.gradients[name]) for name in self.parameters}

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
        drop_path: float = 0.0,
        rng: np.random.Generator | None = None,
        decisions: Decisions | None = None,
    ) -> Trace:
        """Every named tensor of a run, forward and, with ``gradients``, backward.

        The gradients are those of the training loss if labels are given; else those of a random linear function of
        logits, motion logits and ponder (standard normal cotangents, seed 0), which hides nothing.
        """
        compact = _is_compact(execution)
        clips = self._checked(clips)
        if labels is not None:
            labels, motion_labels = self._checked_labels(labels, motion_labels, len(clips))
        forced = check_decisions(decisions or Decisions(), self.config, len(clips))
        tensors: dict[str, Array] = {}

        def see(name: str, tensor: Array) -> None:
            tensors[name] = np.array(self._ops.arrays.to_numpy(tensor))

        gains: Gains | None = None
        if drop_path > 0:
            gains = draw_gains(self.config, len(clips), drop_path, rng or np.random.default_rng(0))
        scope = Scope(self._ops, self.parameters, see=see, keep=gradients)
        with self._ops.session():
            heads, cache = network_forward(
                scope,
                self.config,
                clips,
                compact,
                every_output=True,
                gains=gains,
                kept=forced.kept,
                halting_layer=forced.halting_layer,
            )
            result, cache = network_result(scope, self.config, heads, len(clips), False, cache)
            if cache is not None and labels is None:
                random = np.random.default_rng(0)
                logits, motion, ponder = (
                    self._ops.arrays.from_numpy(random.standard_normal(a.shape), self.dtype)
                    for a in (result.logits, result.motion_logits, result.fates.ponder)
                )
                network_backward(scope, self.config, logits, motion, ponder, cache)
            elif cache is not None and labels is not None:
                weights = (ponder_weight, motion_weight, label_smoothing)
                self._loss_and_backward(scope, result, cache, labels, motion_labels, weights, self._bring("numpy"))
            for name, gradient in scope.gradients.items():
                see(f"d({name})" if name in self.parameters else name, gradient)
            return Trace(tensors, self._output(result, True, self._bring("numpy")))

    def _bring(self, arrays: str) -> Callable[[Array], Array]:
        """What is done to results before they are handed out: brought to main memory, or left where they are."""
        if arrays not in ("numpy", "device"):
            raise ValueError(f"arrays: expected 'numpy' or 'device', got {arrays!r}")
        to_numpy: Callable[[Array], Array] = self._ops.arrays.to_numpy
        return to_numpy if arrays == "numpy" else lambda array: array

    def _loss_and_backward(
        self,
        scope: Scope,
        result: NetworkResult,
        cache: NetworkCache,
        labels: Array,
        motion_labels: Array | None,
        weights: tuple[float, float, float],
        bring: Callable[[Array], Array],
    ) -> Loss:
        ops, arrays = self._ops, self._ops.arrays
        ponder_weight, motion_weight, label_smoothing = weights
        recognition, recognition_cache = ops.cross_entropy.forward(result.logits, labels, label_smoothing)
        ponder, ponder_cache = ops.ponder_loss.forward(result.fates.ponder)
        scalar = np.dtype(self.dtype).type
        dlogits = ops.cross_entropy.backward(scalar(1), recognition_cache)
        dponder = ops.ponder_loss.backward(scalar(ponder_weight), ponder_cache)
        motion: Array = np.zeros(())
        dmotion = arrays.zeros(result.motion_logits.shape, self.dtype)
        if motion_labels is not None:
            motion, motion_cache = ops.motion_loss.forward(result.motion_logits, motion_labels)
            dmotion = ops.motion_loss.backward(scalar(motion_weight), motion_cache)
        network_backward(scope, self.config, dlogits, dmotion, dponder, cache)
        parts = tuple(float(arrays.to_numpy(part)) for part in (recognition, ponder, motion))
        total = parts[0] + ponder_weight * parts[1] + motion_weight * parts[2]
        return Loss(total, parts[0], parts[1], parts[2], self._output(result, True, bring))

    def _output(self, result: NetworkResult, full_ponder: bool, bring: Callable[[Array], Array]) -> Output:
        """The named outputs; without full_ponder what came after CLS halted is taken back, as if the clip had left."""
        joint, arrays = result.fates, self._ops.arrays
        ponder, layers, alive = joint.ponder, joint.halting_layer.copy(), joint.alive.copy()
        if not full_ponder:
            left = layers[:, :1]  # CLS halts last of all that is known
            unknown = layers > left
            if unknown.any():
                ponder = arrays.add(ponder, arrays.from_numpy(np.where(unknown, np.nan, 0), self.dtype))
            layers[unknown] = 0
            alive &= (np.arange(self.config.joint_depth) < left)[:, :, None]
        counts = alive.sum(axis=2)
        return Output(
            logits=bring(result.logits),
            motion_logits=bring(result.motion_logits),
            features=bring(result.features),
            ponder=bring(ponder),
            tokens_per_layer=counts,
            alive=alive,
            decisions=Decisions(tuple(result.kept), layers),
            gflops=flops.clip_gflops(self.config, counts),
        )

    def _checked(self, clips: Array) -> Array:
        """The clips in the model's dtype and contiguous; an error says what is wrong with them.

        Clips that lie on the backend's device stay there: they must have the model's dtype and be contiguous already.
        """
        c = self.config
        on_device = self._ops.arrays.on_device(clips)
        expected = f"[B, {c.channels}, {c.num_frames}, {c.image_size[0]}, {c.image_size[1]}] (B, C, T, height, width)"
        if on_device is not None:
            clips = on_device
        elif not isinstance(clips, np.ndarray):
            raise TypeError(f"clips: expected a NumPy array {expected}, got {type(clips).__name__}")
        if not np.issubdtype(clips.dtype, np.floating):
            raise TypeError(
                f"clips: expected floating point pixels (x − 127.5)/127.5, got {clips.dtype}; normalise first"
            )
        if len(clips.shape) != 5:
            raise ValueError(f"clips: expected 5 axes {expected}, got shape {list(clips.shape)}")
        if len(clips) == 0:
            raise ValueError(f"clips: expected at least one clip {expected}, got an empty batch {list(clips.shape)}")
        height, width = tuple(clips.shape)[3:]
        if height % c.patch_size or width % c.patch_size:
            raise ValueError(
                f"clips: height and width must be multiples of patch_size {c.patch_size}, got {height}×{width}"
            )
        if tuple(clips.shape)[1:] != (c.channels, c.num_frames, *c.image_size):
            raise ValueError(f"clips: expected {expected}, got shape {list(clips.shape)}")
        if on_device is not None:
            with self._ops.session():
                self._ops.arrays.check_clips(clips, self.dtype)
            return clips
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            clips = np.ascontiguousarray(clips, dtype=self.dtype)
        if not np.isfinite(clips).all():
            raise ValueError(f"clips: expected finite numbers in {self.dtype}, got NaN or infinite values")
        with self._ops.session():
            array: Array = self._ops.arrays.from_numpy(clips, self.dtype)
        return array

    def _checked_labels(self, labels: Array, motion_labels: Array | None, B: int) -> tuple[Array, Array | None]:
        K = self.config.num_classes
        labels = np.asarray(labels)
        if labels.shape == (B,) and np.issubdtype(labels.dtype, np.integer):
            if labels.min() < 0 or labels.max() >= K:
                found = f"{labels.min()} to {labels.max()}"
                raise ValueError(f"labels: expected class numbers 0 to {K - 1}, got {found}")
            labels = labels.astype(np.int64)
        elif labels.shape == (B, K) and np.issubdtype(labels.dtype, np.floating):
            if not np.isfinite(labels).all() or labels.min() < 0:
                raise ValueError("labels: expected finite soft labels of at least 0")
            labels = labels.astype(self.dtype)
        else:
            raise ValueError(
                f"labels: expected integers [{B}] or soft labels [{B}, {K}], got {labels.dtype} {list(labels.shape)}"
            )
        if motion_labels is not None:
            motion_labels = np.asarray(motion_labels)
            if motion_labels.shape != (B,) or not np.isin(motion_labels, (0, 1)).all():
                raise ValueError(
                    f"motion_labels: expected {B} numbers, 1 for moving and 0 for static, "
                    f"got {motion_labels.dtype} {list(motion_labels.shape)}"
                )
            motion_labels = motion_labels.astype(np.int64)
        return labels, motion_labels


def load(
    path: str | os.PathLike[str],
    config: HaltingVTConfig,
    backend: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
    checkpoint_grid: tuple[int, int] | None = None,
) -> HaltingVT:
    """A model with the parameters of a file: ``.npz``, ``.safetensors`` or a PyTorch zip checkpoint.

    Files of the released model (prefixes ``backbone.model.`` and ``cls_head.``) and DeiT-S image checkpoints map onto
    refvt's names; embeddings for another S or T are resized (nearest; the file's grid is taken as square unless
    ``checkpoint_grid`` states its rows and columns). What an image checkpoint lacks is drawn from ``seed``. Nothing in
    the file is ever executed. ValueError lists everything that does not fit at once.
    """
    tensors = parameters_from(read_checkpoint(path), config, seed, checkpoint_grid)
    return HaltingVT(config, tensors, backend=backend, dtype=dtype)


def _is_compact(execution: str) -> bool:
    if execution not in ("compact", "dense"):
        raise ValueError(f"execution: expected 'compact' or 'dense', got {execution!r}")
    return execution == "compact"
