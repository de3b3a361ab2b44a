"""The checks of what users pass to a model: each returns what the network computes with, or says what is wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.array import Array
from refvt.backends import Backend
from refvt.backends.reference import arrays as numpy_arrays
from refvt.checks import brief
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions, check_decisions, kept_places
from refvt.model.drop_path import DropPath, check_scales, draw_drop_path
from refvt.model.plan import Execution

__all__ = ["LossWeights", "check_clips", "check_drop_path", "check_execution", "check_labels", "check_loss_weights"]


class LossWeights(NamedTuple):
    """total = recognition + ponder · (ponder loss) + motion · (motion loss).

    patch_ponder: weights of the patches in the ponder loss, [B, T, rows · columns]; None: 1 for all, as in the paper.
    """

    ponder: float
    motion: float
    label_smoothing: float
    patch_ponder: Array | None = None


def check_clips(clips: Array, config: HaltingVTConfig, ops: Backend, dtype: str) -> Array:
    """Clips [B, C, T, height, width] as the backend takes them, in the model's dtype and contiguous.

    Clips on the backend's device stay there: they must have the model's dtype and be contiguous already. TypeError for
    no array or no floats; ValueError for a wrong shape and for NaN or infinite values.
    """
    c = config
    on_device = ops.arrays.on_device(clips)
    expected = f"[B, {c.channels}, {c.num_frames}, {c.image_size[0]}, {c.image_size[1]}] (B, C, T, height, width)"
    if on_device is not None:
        clips = on_device
    elif not isinstance(clips, np.ndarray):
        raise TypeError(f"clips: expected a NumPy array {expected}, got {type(clips).__name__}")
    if not np.issubdtype(clips.dtype, np.floating):
        raise TypeError(f"clips: expected floating point pixels (x − 127.5)/127.5, got {clips.dtype}; normalise first")
    if len(clips.shape) != 5:
        raise ValueError(f"clips: expected 5 axes {expected}, got shape {list(clips.shape)}")
    if len(clips) == 0:
        raise ValueError(f"clips: expected at least one clip {expected}, got an empty batch {list(clips.shape)}")
    height, width = tuple(clips.shape)[3:]
    if height % c.patch_size or width % c.patch_size:
        raise ValueError(
            f"clips: expected height and width that are multiples of patch_size {c.patch_size}, got {height}×{width}"
        )
    if tuple(clips.shape)[1:] != (c.channels, c.num_frames, *c.image_size):
        raise ValueError(f"clips: expected {expected}, got shape {list(clips.shape)}")
    with ops.session():
        if on_device is not None:
            ops.arrays.check_clips(clips, dtype)
            return clips
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            clips = np.ascontiguousarray(clips, dtype=dtype)
        numpy_arrays.check_clips(clips, dtype)
        return ops.arrays.from_numpy(clips, dtype)


def check_labels(
    labels: Array, motion_labels: Array | None, config: HaltingVTConfig, B: int, dtype: str
) -> tuple[Array, Array | None]:
    """labels int64 [B] or soft [B, K], and motion_labels int64 [B] or None. ValueError for anything else."""
    K = config.num_classes
    labels = np.asarray(labels)
    if labels.shape == (B,) and np.issubdtype(labels.dtype, np.integer):
        if labels.min() < 0 or labels.max() >= K:
            found = f"{labels.min()} to {labels.max()}"
            raise ValueError(f"labels: expected class numbers 0 to {K - 1}, got {found}")
        labels = labels.astype(np.int64)
    elif labels.shape == (B, K) and np.issubdtype(labels.dtype, np.floating):
        if not np.isfinite(labels).all() or labels.min() < 0:
            wrong = labels[~np.isfinite(labels) | (labels < 0)][0]
            raise ValueError(f"labels: expected finite soft labels of at least 0, got {wrong}")
        with np.errstate(over="ignore"):
            labels = labels.astype(dtype)
        if not np.isfinite(labels).all():
            raise ValueError(f"labels: expected soft labels that {dtype} can hold, got larger ones")
    else:
        raise ValueError(
            f"labels: expected integers [{B}] or soft labels [{B}, {K}], got {labels.dtype} {list(labels.shape)}"
        )
    if motion_labels is None:
        return labels, None
    motion_labels = np.asarray(motion_labels)
    fits = motion_labels.shape == (B,)
    if not fits or not np.isin(motion_labels, (0, 1)).all():
        got = brief(motion_labels.tolist()) if fits else f"{motion_labels.dtype} {list(motion_labels.shape)}"
        raise ValueError(f"motion_labels: expected {B} numbers, 1 for moving and 0 for static, got {got}")
    return labels, motion_labels.astype(np.int64)


def check_loss_weights(
    ponder_weight: float,
    motion_weight: float,
    label_smoothing: float,
    patch_ponder: Array | None,
    config: HaltingVTConfig,
    B: int,
    dtype: str,
) -> LossWeights:
    """The weights of the loss. ValueError unless they are finite and at least 0, and label_smoothing below 1.

    patch_ponder [B, T, rows · columns] may be below 0; ValueError for another shape or what is not finite.
    """
    for name, number, top in (
        ("ponder_weight", ponder_weight, float(np.finfo(dtype).max)),
        ("motion_weight", motion_weight, float(np.finfo(dtype).max)),
        ("label_smoothing", label_smoothing, 1),
    ):
        _check_range(name, number, top)
    if patch_ponder is not None:
        patch_ponder = np.asarray(patch_ponder)
        shape = (B, config.num_frames, config.patches_per_frame)
        if patch_ponder.shape != shape or patch_ponder.dtype.kind not in "fiu":
            raise ValueError(
                f"patch_ponder_weights: expected finite numbers {list(shape)}, got {patch_ponder.dtype} "
                f"{list(patch_ponder.shape)}"
            )
        if not np.isfinite(patch_ponder).all():
            wrong = patch_ponder[~np.isfinite(patch_ponder)][0]
            raise ValueError(f"patch_ponder_weights: expected finite numbers {list(shape)}, got {wrong}")
        with np.errstate(over="ignore"):
            patch_ponder = patch_ponder.astype(dtype)
        if not np.isfinite(patch_ponder).all():
            raise ValueError(f"patch_ponder_weights: expected numbers that {dtype} can hold, got larger ones")
    return LossWeights(ponder_weight, motion_weight, label_smoothing, patch_ponder)


def check_drop_path(
    drop_path: float | DropPath, rng: np.random.Generator | None, config: HaltingVTConfig, B: int
) -> DropPath | None:
    """The DropPath scales of a pass, None for rate 0.

    ValueError for a rate outside [0, 1) and for scales that do not fit; TypeError for no rng.
    """
    if isinstance(drop_path, DropPath):
        check_scales(drop_path, config, B)
        return drop_path
    _check_range("drop_path", drop_path, 1)
    if drop_path == 0:
        return None
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: drop_path > 0 needs a numpy Generator, got {type(rng).__name__}")
    return draw_drop_path(config, B, drop_path, rng)


def check_execution(
    execution: str,
    decisions: Decisions | None,
    config: HaltingVTConfig,
    B: int,
    *,
    leave_early: bool = False,
    every_output: bool = False,
    drop_path: DropPath | None = None,
) -> Execution:
    """The execution with imposed decisions, checked. ValueError for an unknown name and for decisions that do not fit.

    leave_early, every_output: as in ``Execution``; dense execution never lets a clip leave.
    """
    if execution not in ("compact", "dense"):
        raise ValueError(f"execution: expected 'compact' or 'dense', got {execution!r}")
    if decisions is not None and not isinstance(decisions, Decisions):
        raise TypeError(f"decisions: expected refvt.Decisions, got {type(decisions).__name__}")
    compact = execution == "compact"
    imposed = check_decisions(decisions or Decisions(), config, B)
    return Execution(
        compact=compact,
        leave_early=compact and leave_early,
        every_output=every_output,
        kept_places=None if imposed.kept is None else kept_places(imposed.kept, config),
        halting_layer=imposed.halting_layer,
        drop_path=drop_path,
    )


def _check_range(name: str, number: float, top: float) -> None:
    if isinstance(number, np.ndarray) and number.ndim == 0:
        number = number.item()
    if not isinstance(number, int | float | np.number) or isinstance(number, bool):
        raise TypeError(f"{name}: expected a number from 0 and below {top}, got {brief(number)}")
    if not (0 <= number < top):
        raise ValueError(f"{name}: expected a number from 0 and below {top}, got {number}")
