"""What the variants change: functions that edit a ``Recipe`` and say whether there was anything to edit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from refvt.array import Array
from refvt.backends import Backend
from refvt.conformance.cases import layout_of
from refvt.conformance.variants import operations as forms
from refvt.conformance.variants.recipe import Recipe
from refvt.model.config import HaltingVTConfig

__all__ = ["Change", "activation", "both", "configure", "halt_by", "layernorm", "operation"]

Change = Callable[[Recipe], bool]
"""Edits a recipe; False if the variant is the same as the recipe, or has no meaning there."""


def both(*changes: Change) -> Change:
    """Several changes at once."""
    return lambda recipe: any([change(recipe) for change in changes])


# ---- configuration and halting


def configure(**wanted: Any) -> Change:
    """Other values of the configuration's fields; of an operation's settings too, under their names there."""

    def change(recipe: Recipe) -> bool:
        settings = {"halting_scale": "scale", "halting_center": "center", "epsilon": "epsilon"}
        changed = any(getattr(recipe.config, name) != value for name, value in wanted.items())
        if not recipe.batch:  # one operation: only its own settings matter
            named = {settings[name]: value for name, value in wanted.items() if name in settings}
            changed = any(recipe.settings.get(name, value) != value for name, value in named.items())
            recipe.settings |= {name: value for name, value in named.items() if name in recipe.settings}
        else:
            recipe.config = replace(recipe.config, **wanted)
        return changed

    return change


def center_of(rule: Callable[[float, float], float]) -> Change:
    """Another centre, from γ and β."""

    def change(recipe: Recipe) -> bool:
        s = recipe.settings
        if recipe.batch:
            return configure(halting_center=rule(recipe.config.halting_scale, recipe.config.halting_center))(recipe)
        return "center" in s and configure(halting_center=rule(s["scale"], s["center"]))(recipe)

    return change


def halt_by(**fields_of_rule: Any) -> Change:
    """Other fields of ``HaltingRule``."""

    def change(recipe: Recipe) -> bool:
        clip = recipe.config.joint_tokens if recipe.batch else 0
        recipe.rule = replace(recipe.rule, **fields_of_rule, tokens_per_clip=clip)
        if not recipe.rule.ponder_has_gradient:  # whether a constant ρ has a gradient is a matter of taste
            recipe.undefined.add("d(ponder)")
        return True

    return change


@dataclass(frozen=True)
class _OtherCount(HaltingVTConfig):
    """A configuration in which k, the number of kept patches, is found in another way."""

    rule: str = "floor"

    def num_kept_patches(self, block: int, patches: int) -> int:
        product = self.keep_rates[block] * patches
        counts = {
            "floor": math.floor(product),
            "round": round(product),
            "exact": math.ceil(round(product, 9)),
            "with-cls": math.ceil(self.keep_rates[block] * (1 + patches)),
        }
        return min(max(counts[self.rule], 1), patches)


def count_by(rule: str) -> Change:
    """k by "floor", "round", "exact" (no rounding error in the product) or "with-cls" (CLS counted as a patch)."""

    def change(recipe: Recipe) -> bool:
        before = recipe.config
        recipe.config = _OtherCount(**{f.name: getattr(before, f.name) for f in fields(HaltingVTConfig)}, rule=rule)
        return recipe.config.patches_entering() != before.patches_entering()

    return change


# ---- operations


def operation(*names: str, by: Callable[..., Any], **options: Any) -> Change:
    """Each named operation of the table replaced by ``by(operation, **options)``."""

    def change(recipe: Recipe) -> bool:
        for name in names:
            setattr(recipe.ops, name, by(recipe.ops[name], **options))
        return True

    return change


def activation(name: str) -> Change:
    """Another activation in ``gelu`` and ``mlp``."""

    def change(recipe: Recipe) -> bool:
        chosen = forms.activations()[name]
        recipe.ops.gelu = forms.with_activation(recipe.ops.gelu, chosen)
        recipe.ops.mlp = forms.mlp_like(recipe.ops.mlp, chosen)
        return True

    return change


def layernorm(**options: Any) -> Change:
    """Another LayerNorm, everywhere."""
    return operation("layernorm", by=forms.layernorm_like, **options)


def scale_logits(factor: Callable[[int, int], float]) -> Change:
    """Logits of another scale, in attention and in the Glimpser's scores; factor(D, A) multiplies q kᵀ/√d."""
    return operation("attention", "cls_scores", by=forms.scale_logits, factor=factor)


def only_with_selection(change: Change) -> Change:
    """A change that needs a Glimpser block that selects (or a single operation)."""

    def guarded(recipe: Recipe) -> bool:
        selects = not recipe.batch or any(rate < 1 for rate in recipe.config.keep_rates)
        return selects and change(recipe)

    return guarded


def only_with_fuse(change: Change) -> Change:
    """A change that needs fused tokens (or a single operation)."""
    return only_with_selection(lambda recipe: (not recipe.batch or recipe.config.fuse_dropped) and change(recipe))


def choose(rule: Callable[[Array, int], Array]) -> Change:
    """Another ``top_k``."""
    return only_with_selection(operation("top_k", by=forms.top_k_like, choose=rule))


def by_index(scores: Array, k: int) -> Array:
    """The k highest scores, in the order of their indices."""
    return np.asarray(np.sort(best(scores, k), axis=1))


def best(scores: Array, k: int) -> Array:
    """The k highest scores in descending order; equal scores: the lower index first."""
    return np.asarray(np.argsort(-scores, axis=1, kind="stable")[:, :k])


def higher_index_first(scores: Array, k: int) -> Array:
    """The k highest scores in descending order; equal scores: the higher index first."""
    return np.asarray(scores.shape[1] - 1 - best(scores[:, ::-1], k))


def lowest(scores: Array, k: int) -> Array:
    """The k lowest scores."""
    return best(-scores, k)


def same_in_all_frames(recipe: Recipe) -> bool:
    """Every frame of a clip keeps the patches with the highest mean score over its frames."""
    T = recipe.config.num_frames

    def rule(scores: Array, k: int) -> Array:
        return best(np.repeat(scores.reshape(-1, T, scores.shape[1]).mean(axis=1), T, axis=0), k)

    return bool(recipe.batch) and choose(rule)(recipe)


def dense_masks(kind: str) -> Change:
    """What a halted token is for the others: "ghost-without-log-m" or "goes-on" (neither set to zero nor masked)."""

    def change(recipe: Recipe) -> bool:
        if not recipe.batch or (kind == "ghost-without-log-m" and recipe.config.halted_keys != "zero"):
            return False
        B, original = recipe.batch, recipe.ops.mask_halted.forward

        def mask_halted(halted: Array, halting_layer: Array, layer: int, masked: bool, dtype: Any = np.float64) -> Any:
            rows, bias = original(halted, halting_layer, layer, masked, dtype)
            if kind == "goes-on":
                return np.arange(len(rows)), None
            m = halted.reshape(B, -1).sum(axis=1, keepdims=True)  # [B, 1]; each of m equal keys counts 1/m
            bias = np.where(halted.reshape(B, -1), -np.log(np.maximum(m, 1)), 0.0)
            return rows, bias.ravel().astype(dtype)

        recipe.ops.mask_halted = replace(recipe.ops.mask_halted, forward=mask_halted)
        return True

    return change


def score_before_block(recipe: Recipe) -> bool:
    """The halting score of a layer is read from the state that enters its block, not from the one that leaves it."""
    recipe.finish.append(_read_score_before_block)
    return bool(recipe.batch)


def _read_score_before_block(table: Backend) -> None:
    norm, arrays = table.layernorm, table.arrays
    inputs: list[Array] = []  # of the norms: the last but one is the state that entered the last joint block
    pending: list[Array] = []  # dlogit of the layer whose block goes backward now, until its second norm

    def forward(x: Array, *parameters: Array, keep: bool = True) -> Any:
        inputs[:] = [*inputs[-1:], x]
        return norm.forward(x, *parameters, keep=keep)

    def backward(dy: Array, cache: Any) -> Any:
        dx, dweight, dbias = norm.backward(dy, cache)
        if len(pending) == 2:  # norm2 came first
            dx = arrays.add_to_column(dx, 0, pending[0])
            pending.clear()
        elif pending:
            pending.append(pending[0])
        return dx, dweight, dbias

    def add_to_column(x: Array, column: int, values: Array) -> Array:
        pending[:] = [values]
        return x

    table.layernorm = replace(norm, forward=forward, backward=backward)
    functions = {name: getattr(arrays, name) for name in dir(arrays) if not name.startswith("_")}
    others = {"column": lambda x, i: inputs[-2][:, i], "add_to_column": add_to_column}
    table.arrays = cast(Any, SimpleNamespace(**(functions | others)))


def unmask_logits(recipe: Recipe) -> bool:
    """The logits of halted tokens are shown as they are, not as zero."""
    recipe.unmask_logits = True
    return bool(recipe.batch)


# ---- parameters


def rearrange(select: Callable[[str], bool], index: Callable[[Recipe, Array], Array]) -> Change:
    """Parameters read in another order: p[i], i = index(recipe, p) along the first axis; gradients are taken back."""

    def change(recipe: Recipe) -> bool:
        for name, value in recipe.parameters.items():
            if select(name):
                order = index(recipe, value)
                recipe.parameters[name] = np.ascontiguousarray(value[order])
                recipe.back.setdefault(name, []).insert(0, _undo(order))
        return bool(recipe.batch)

    return change


def _undo(order: Array) -> Callable[[Array], Array]:
    inverse = np.argsort(order)
    return lambda gradient: np.ascontiguousarray(gradient[inverse])


def qkv_rows(order: str) -> Change:
    """The rows of every qkv in another order: "kqv" and the like, or "heads" (q, k and v of head 0, then of head 1)."""

    def index(recipe: Recipe, value: Array) -> Array:
        D, A = recipe.config.width, recipe.config.num_heads
        rows = np.arange(3 * D)
        if order == "heads":
            return rows.reshape(A, 3, D // A).transpose(1, 0, 2).ravel()
        return np.concatenate([rows.reshape(3, D)[order.index(part)] for part in "qkv"])

    def change(recipe: Recipe) -> bool:
        return rearrange(lambda name: ".qkv." in name, index)(recipe) and (
            order != "heads" or recipe.config.num_heads > 1
        )

    return change


def pixels_channels_last(recipe: Recipe) -> bool:
    """A patch flattened as (row, column, channel), with the projection's weight read flat."""
    name = "patch_embed.proj.weight"
    if name not in recipe.parameters:
        return False
    D, C, P, _ = recipe.parameters[name].shape
    recipe.parameters[name] = recipe.parameters[name].reshape(D, P, P, C).transpose(0, 3, 1, 2).copy()
    recipe.back.setdefault(name, []).insert(0, lambda g: g.transpose(0, 2, 3, 1).reshape(D, C, P, P))
    return bool(C > 1 and P > 1)


# ---- the order of tokens


def frame_major(mixed: bool) -> Change:
    """Token 1 + t·S + s is patch s of frame t. mixed: the blocks read the tokens as if they were patch-major."""

    def rows_of(B: int, S: int, T: int) -> Array:
        """For each row in frame-major order, the row in patch-major order [B·N]."""
        N = 1 + S * T
        patches = 1 + np.arange(S * T).reshape(S, T).T.ravel()
        return np.asarray(np.arange(B)[:, None] * N + np.concatenate([[0], patches])).ravel()

    def change(recipe: Recipe) -> bool:
        config, B, T = recipe.config, recipe.batch, recipe.config.num_frames
        if not B or T == 1:
            return False
        if mixed:
            order = rows_of(B, config.patches_per_frame, T)
            embed, back = recipe.ops.embed, np.argsort(order)

            def forward(*arguments: Any, **more: Any) -> Any:
                y, cache = embed.forward(*arguments, **more)
                return y[order], cache

            recipe.ops.embed = replace(
                embed, forward=forward, backward=lambda dy, cache: embed.backward(dy[back], cache)
            )
            return config.patches_per_frame > 1

        def arrange(name: str, value: Array) -> Array:
            base = name.removeprefix("d(").removesuffix(")")
            if base in recipe.parameters:
                return value
            layout, S = layout_of(base, config)
            if layout in ("tokens", "halting"):
                return np.asarray(value[rows_of(B, S, T)])
            if base in ("ponder", "decisions.halting_layer", "alive"):
                return np.asarray(value[..., rows_of(1, config.patches_entering()[-1], T)])
            return value

        recipe.arrange.append(arrange)
        return True

    return change
