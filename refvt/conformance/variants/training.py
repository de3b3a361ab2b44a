"""What the variants change in training: losses, labels, weights of the losses, stochastic depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.conformance.variants import operations as forms
from refvt.conformance.variants.changes import Change
from refvt.conformance.variants.recipe import Recipe
from refvt.model.drop_path import DropPath, GlimpserDropPath

__all__ = ["drop_path", "loss_rows", "mean_per_layer", "moving_only", "ponder_loss", "swap_motion_labels", "weigh"]

# ---- losses


def loss_rows(name: str, change_rows: Callable[[Recipe, Array, float], Array]) -> Change:
    """Other targets of ``cross_entropy`` or ``motion_loss``: change_rows(recipe, rows [B, K], s) → [B, K]."""

    def change(recipe: Recipe) -> bool:
        loss: Any = recipe.ops[name]
        op = forms.with_targets(loss, lambda rows, s: change_rows(recipe, rows, s))
        setattr(recipe.ops, name, op)
        return True

    return change


def smooth(rows: Array, s: float) -> Array:
    """(1 − s) · p + s/K."""
    return np.asarray((1 - s) * rows + s / rows.shape[1])


def smooth_others(recipe: Recipe, rows: Array, s: float) -> Array:
    """(1 − s) · p + s · (1 − p)/(K − 1): the true class gets none of the s."""
    return np.asarray((1 - s) * rows + s * (1 - rows) / max(rows.shape[1] - 1, 1))


def with_smoothing(change: Change) -> Change:
    """A change that needs label smoothing."""
    return lambda recipe: bool(recipe.settings.get("label_smoothing", 0) > 0) and change(recipe)


def moving_only(mean: bool) -> Change:
    """Recognition of the moving clips alone, divided by their number (``mean``) or by B."""

    def rows(recipe: Recipe, targets: Array, s: float) -> Array:
        moving = recipe.motion_labels.astype(targets.dtype)[:, None]
        return np.asarray(smooth(targets, s) * moving * (len(moving) / max(moving.sum(), 1) if mean else 1))

    def change(recipe: Recipe) -> bool:
        mixed = 0 < recipe.motion_labels.sum() < recipe.batch
        return bool(mixed) and loss_rows("cross_entropy", rows)(recipe)

    return change


def weigh(name: str, value: float) -> Change:
    """Another weight of a loss, or another label smoothing."""

    def change(recipe: Recipe) -> bool:
        if name not in recipe.settings or recipe.settings[name] == value:
            return False
        recipe.settings[name] = value
        return True

    return change


def swap_motion_labels(recipe: Recipe) -> bool:
    """0 for moving, 1 for static."""
    if recipe.batch:
        recipe.motion_labels = 1 - recipe.motion_labels
        return True
    return loss_rows("motion_loss", lambda _, rows, s: rows[:, ::-1])(recipe)


def ponder_loss(weights: Callable[[Recipe, int, int], Array]) -> Change:
    """The ponder loss as Σ weight · ρ; weights(recipe, B, N) → [B, N]."""

    def change(recipe: Recipe) -> bool:
        recipe.ops.ponder_loss = forms.ponder_loss_like(
            recipe.ops.ponder_loss, lambda B, N: np.asarray(weights(recipe, B, N))
        )
        return True

    return change


def mean_per_layer(recipe: Recipe) -> bool:
    """The mean of ρ divided by L."""
    return bool(recipe.batch) and ponder_loss(lambda r, B, N: np.full((B, N), 1 / (B * N * r.config.joint_depth)))(
        recipe
    )


def patches_only(recipe: Recipe, B: int, N: int) -> Array:
    """The mean over the patches."""
    weights = np.full((B, N), 1 / (B * max(N - 1, 1)))
    weights[:, 0] = 0
    return weights


# ---- stochastic depth


def drop_path(keep: Callable[[Array], Array] | None) -> Change:
    """Other DropPath scales, or none at all."""

    def change(recipe: Recipe) -> bool:
        if recipe.drop_path is None:
            return False
        before = recipe.drop_path
        recipe.drop_path = None
        if keep is not None:
            glimpser = [GlimpserDropPath(*(keep(scales) for scales in block)) for block in before.glimpser]
            recipe.drop_path = DropPath(glimpser, keep(before.joint))
        return True

    return change
