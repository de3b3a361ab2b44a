"""One run of the model, or of one operation, in which single things are done in another way.

A ``Recipe`` holds all that a run depends on: configuration, table of operations, parameters, labels, weights of the
losses. A variant changes some of it (``table.VARIANTS``). The run itself is the model's own text, dense, in float64 on
the ``reference`` backend, so that forward and backward of a variant come from where the truth's come from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array
from refvt.backends import Backend, Implementation
from refvt.conformance.cases import ModelCase
from refvt.conformance.variants.halting import HaltingRule
from refvt.model.blocks import Context
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions, check_decisions, kept_places
from refvt.model.drop_path import DropPath
from refvt.model.network import NetworkResult, network_backward, network_forward, network_result
from refvt.model.plan import Execution

__all__ = ["Recipe", "Tensors", "call_operation", "recipe_of", "run_model"]

Tensors = dict[str, tuple[Array, "Array | None"]]
"""Named tensors in the order of computation, each with the rows that count (None: all)."""


@dataclass
class Recipe:
    """All that one run depends on. A variant changes the fields; ``table`` gives the operations that follow from them.

    back: for each parameter that was rearranged, what takes its gradient back. sources: for a parameter that is read
    from another one, the name of that one, which gets the gradient. arrange: what is done to a named tensor
    before it is shown (another order of tokens). undefined: tensors that the variant does not have. finish: what is
    done to the table after all else.
    """

    config: HaltingVTConfig
    parameters: dict[str, Array] = field(default_factory=dict)
    clips: Array = field(default_factory=lambda: np.zeros(0))
    labels: Array = field(default_factory=lambda: np.zeros(0))
    motion_labels: Array = field(default_factory=lambda: np.zeros(0))
    settings: dict[str, Any] = field(default_factory=dict)
    drop_path: DropPath | None = None
    ops: Backend = field(default_factory=lambda: copy.copy(backends.get("reference")))
    rule: HaltingRule = field(default_factory=HaltingRule)
    back: dict[str, list[Callable[[Array], Array]]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    arrange: list[Callable[[str, Array], Array]] = field(default_factory=list)
    undefined: set[str] = field(default_factory=set)
    finish: list[Callable[[Backend], None]] = field(default_factory=list)
    unmask_logits: bool = False

    @property
    def batch(self) -> int:
        """B; 0 in a recipe of one operation."""
        return len(self.clips)

    def table(self) -> Backend:
        """The operations, those of halting under ``rule``."""
        table = copy.copy(self.ops)
        if self.rule != HaltingRule():
            for name, implementation in self.rule.implementations(table).items():
                setattr(table, name, implementation)
        for finish in self.finish:
            finish(table)
        return table


def recipe_of(case: ModelCase, dtype: str = "float64") -> Recipe:
    """The case as it is, in float64 or float32."""

    def exact(value: Array) -> Array:
        return np.array(value, dtype=dtype) if value.dtype.kind == "f" else np.array(value)

    return Recipe(
        config=case.config,
        parameters={name: exact(value) for name, value in case.parameters.items()},
        clips=exact(case.clips),
        labels=exact(case.labels),
        motion_labels=exact(case.motion_labels),
        settings=dict(case.settings),
        drop_path=case.drop_path,
    )


# ---- a run of the model


def run_model(
    recipe: Recipe, decisions: Decisions | None = None, go_on: Callable[[Tensors], bool] = lambda forward: True
) -> Tensors:
    """Every named tensor, decision, output, loss and gradient, in the order of computation.

    decisions: imposed where they fit the recipe's configuration. go_on is called after the forward pass and the losses
    with what they gave; if it returns False there is no backward pass.
    """
    config, B = recipe.config, recipe.batch
    table = recipe.table()
    living = [np.ones(B * config.joint_tokens, bool)]  # the tokens that enter each layer
    table.halt = _noting(table.halt, living)
    tensors: Tensors = {}

    def show(name: str, value: Array) -> None:
        if name in recipe.undefined:
            return
        rows = _rows_that_count(name, config, living)
        for arrange in recipe.arrange:
            value = arrange(name, value)
            rows = rows if rows is None else arrange(name, rows)
        tensors[name] = np.array(value), rows

    def record(name: str, value: Array) -> None:
        if name != "ponder":  # shown with the outputs
            show(name, value)
        block = f"blocks.{name.split('.')[1]}.mlp" if name.startswith("blocks.") else ""
        if recipe.unmask_logits and name == block:
            unmasked[0] = np.array(value[:, 0])
        if recipe.unmask_logits and name.endswith(".logit") and name in tensors:
            last = name == f"joint.{config.joint_depth}.logit"
            tensors[name] = tensors[name][0] if last else unmasked[0], None

    unmasked = [np.zeros(0)]  # channel 0 of every token, halted or not
    context = Context(table, recipe.parameters, record=record, keep=True)
    found, cache = network_forward(context, config, recipe.clips, _execution(recipe, decisions))
    result, cache = network_result(context, config, found, B, False, cache)
    ponder = _show_outputs(recipe, result, show)
    dlogits, dmotion_logits, dponder = _losses(recipe, table, result, ponder, show)
    if not go_on(tensors):
        return tensors
    assert cache is not None
    rule, reaching = recipe.rule, dponder if recipe.rule.ponder_has_gradient else np.zeros_like(dponder)
    apart = rule.rest != "weight"  # ρ is not read from the weights of y: the rule takes its gradient
    if apart:
        rule.dponder, reaching = reaching.reshape(-1), np.zeros_like(dponder)
    network_backward(context, config, dlogits, dmotion_logits, reaching, cache)
    if apart:
        show("d(ponder)", dponder)
    for name, gradient in _gradients(recipe, context.gradients).items():
        show(f"d({name})", gradient)
    return tensors


def _gradients(recipe: Recipe, found: Mapping[str, Array]) -> dict[str, Array]:
    """The gradients at the parameters as the candidate has them."""
    gradients = {}
    for name, gradient in found.items():
        for step in recipe.back.get(name, ()):
            gradient = step(gradient)
        gradients[name] = gradient
    total = {name: np.zeros_like(value) if name in recipe.sources else value for name, value in gradients.items()}
    for name, source in recipe.sources.items():
        total[source] = total[source] + gradients[name]
    return total


def _execution(recipe: Recipe, decisions: Decisions | None) -> Execution:
    """Dense, every output formed; the decisions that fit are imposed."""
    places = layers = None
    if decisions is not None:
        try:
            imposed = check_decisions(decisions, recipe.config, recipe.batch)
        except ValueError:  # the variant keeps another number of patches
            imposed = Decisions()
        layers = imposed.halting_layer
        places = None if imposed.kept is None else kept_places(imposed.kept, recipe.config)
    return Execution(
        compact=False, every_output=True, kept_places=places, halting_layer=layers, drop_path=recipe.drop_path
    )


def _noting(halt: Implementation, living: list[Array]) -> Implementation:
    """``halt`` that appends to ``living`` the tokens that go on."""

    def forward(*arguments: Any, **more: Any) -> Any:
        (weight, used, halted), cache = halt.forward(*arguments, **more)
        living.append(living[-1] & ~halted)
        return (weight, used, halted), cache

    return Implementation(halt.operation, forward, halt.backward)


def _base(name: str) -> str:
    return name.removeprefix("d(").removesuffix(")")


def _rows_that_count(name: str, config: HaltingVTConfig, living: list[Array]) -> Array | None:
    """The rows of the tokens that enter the layer of a joint block's tensor; None for all other tensors."""
    parts = _base(name).split(".")
    if parts[0] == "joint":
        return living[int(parts[1]) - 1]
    is_parameter = parts[-1] in ("weight", "bias")
    if parts[0] == "blocks" and int(parts[1]) >= config.glimpser_depth and not is_parameter:
        return living[int(parts[1]) - config.glimpser_depth]
    return None


# ---- outputs and losses


def _show_outputs(recipe: Recipe, result: NetworkResult, show: Callable[[str, Array], None]) -> Array:
    """Show the decisions and outputs; returns ρ [B, N'] under the rule."""
    halting, rule = result.halting, recipe.rule
    remainder = halting.ponder - halting.halting_layer
    if rule.rest != "weight":
        remainder = rule.given_rest.reshape(remainder.shape)
    plain = rule.ponder == "N+r" and rule.rest == "weight"
    ponder = halting.ponder if plain else rule.ponder_of(halting.halting_layer, remainder)
    for g, kept in enumerate(result.kept):
        show(f"decisions.kept.{g}", kept)
    show("decisions.halting_layer", halting.halting_layer - 1 + rule.first_layer)
    show("alive", halting.alive)
    show("tokens_per_layer", halting.alive.sum(axis=2))
    show("ponder", ponder)
    show("features", result.features)
    return ponder


def _losses(
    recipe: Recipe, table: Backend, result: NetworkResult, ponder: Array, show: Callable[[str, Array], None]
) -> tuple[Array, Array, Array]:
    """Show the losses; returns the gradients of the total at logits, motion logits and ρ."""
    settings = recipe.settings
    recognition, recognition_cache = table.cross_entropy.forward(
        result.logits, recipe.labels, settings["label_smoothing"]
    )
    ponder_loss, ponder_cache = table.ponder_loss.forward(ponder)
    motion, motion_cache = table.motion_loss.forward(result.motion_logits, recipe.motion_labels)
    number = result.logits.dtype.type
    dlogits = table.cross_entropy.backward(number(1), recognition_cache)
    dponder = table.ponder_loss.backward(number(settings["ponder_weight"]), ponder_cache)
    dmotion = table.motion_loss.backward(number(settings["motion_weight"]), motion_cache)
    total = recognition + settings["ponder_weight"] * ponder_loss + settings["motion_weight"] * motion
    for name, value in (("recognition", recognition), ("ponder", ponder_loss), ("motion", motion), ("total", total)):
        show(f"loss.{name}", np.asarray(value))
    return dlogits, dmotion, dponder


def call_operation(
    recipe: Recipe,
    operation: str,
    arguments: Mapping[str, Array],
    cotangents: Mapping[str, Array],
    dtype: str = "float64",
) -> dict[str, Array]:
    """The results of one operation of the recipe's table by name, then its gradients ``d(argument)``."""
    op = recipe.table()[operation]

    def exact(value: Array) -> Array:
        return np.array(value, dtype=dtype) if np.asarray(value).dtype.kind == "f" else np.array(value)

    given = {name: exact(value) for name, value in arguments.items()}
    if not isinstance(op, Implementation):
        (name,) = op.operation.results
        return {name: np.asarray(op(**given, **recipe.settings))}
    results, cache = op.forward(**given, **recipe.settings)
    tensors = dict(zip(op.operation.results, _as_tuple(results), strict=True))
    if all(name in cotangents for name in op.operation.differentiable):
        gradients = op.backward(*(exact(cotangents[name]) for name in op.operation.differentiable), cache)
        for name, value in zip(op.operation.gradients, _as_tuple(gradients), strict=True):
            if value is not None:
                tensors[f"d({name})"] = value
    return {name: np.asarray(value) for name, value in tensors.items()}


def _as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)
