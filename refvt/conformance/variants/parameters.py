"""Variants that read a parameter in another place: embeddings of other positions, a layer used for another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.conformance.variants.recipe import Recipe

__all__ = ["Places", "embed_at", "identity_layer", "last_joint_block", "read_from", "swap"]

NONE = -1


class Places(NamedTuple):
    """Which rows of the embeddings the tokens get; −1: none.

    cls: row of pos_embed for CLS. cls_frame: row of time_embed for CLS. positions and frames [S, T]: rows of pos_embed
    and of time_embed for patch s of frame t.
    """

    cls: int
    cls_frame: int
    positions: Array
    frames: Array


def usual(rows: int, columns: int, T: int) -> Places:
    """SPEC's places."""
    s, t = np.mgrid[: rows * columns, :T]
    return Places(0, NONE, 1 + s, t)


def embed_at(rule: Callable[[Places, int, int, int], Places]) -> Callable[[Recipe], bool]:
    """Other places: rule(places, rows, columns, T) changes the usual ones."""

    def change(recipe: Recipe) -> bool:
        embed = recipe.ops.embed

        def forward(clips: Array, weight: Array, bias: Array, cls_token: Array, pos_embed: Array, time_embed: Array,
                    keep: bool = True) -> Any:  # fmt: skip
            nothing = np.zeros_like(pos_embed), np.zeros_like(time_embed)
            y, cache = embed.forward(clips, weight, bias, cls_token, *nothing, keep=True)
            B, _, T, height, width = clips.shape
            rows, columns = height // weight.shape[2], width // weight.shape[3]
            places = rule(usual(rows, columns, T), rows, columns, T)
            tokens = y.reshape(B, 1 + rows * columns * T, -1)
            for table, own, of_cls in ((pos_embed, places.positions, places.cls),
                                       (time_embed, places.frames, places.cls_frame)):  # fmt: skip
                padded = np.concatenate([table[0], np.zeros_like(table[0, :1])])  # row −1 is zero
                tokens += padded[np.concatenate([[of_cls], own.ravel()])]
            return tokens.reshape(y.shape), (cache, places, B, pos_embed.shape, time_embed.shape)

        def backward(dy: Array, cache: Any) -> Any:
            inner, places, B, pos_shape, time_shape = cache
            found = embed.backward(dy, inner)
            per_token = dy.reshape(B, -1, dy.shape[-1]).sum(axis=0)  # [1 + S·T, D]
            gradients = []
            for shape, own, of_cls in ((pos_shape, places.positions, places.cls),
                                       (time_shape, places.frames, places.cls_frame)):  # fmt: skip
                padded = np.zeros((shape[1] + 1, shape[2]), dy.dtype)
                np.add.at(padded, np.concatenate([[of_cls], own.ravel()]), per_token)
                gradients.append(padded[None, :-1])
            return (*found[:3], *gradients)

        recipe.ops.embed = replace(embed, forward=forward, backward=backward)
        return True

    return change


# ---- a layer used in the place of another one


def read_from(source: str, target: str) -> Callable[[Recipe], bool]:
    """In every block that has both, layer ``source`` is used where ``target`` belongs."""
    return _read({target: source})


def swap(first: str, second: str) -> Callable[[Recipe], bool]:
    """In every block that has both, each of two layers is used where the other one belongs."""
    return _read({first: second, second: first})


def _read(layers: dict[str, str]) -> Callable[[Recipe], bool]:
    def change(recipe: Recipe) -> bool:
        sources = {}
        for name in recipe.parameters:
            head, _, rest = name.partition(".")
            block, _, inside = rest.partition(".")
            for target, source in layers.items():
                other = f"blocks.{block}.{source}{inside.removeprefix(target)}"
                if head == "blocks" and inside.startswith(f"{target}.") and other in recipe.parameters:
                    sources[name] = other
        return _use(recipe, sources)

    return change


def last_joint_block(recipe: Recipe) -> bool:
    """All joint layers use the parameters of the last one."""
    G, last = recipe.config.glimpser_depth, recipe.config.depth - 1
    sources = {}
    for name in recipe.parameters:
        head, _, rest = name.partition(".")
        block, _, inside = rest.partition(".")
        if head == "blocks" and G <= int(block) < last:
            sources[name] = f"blocks.{last}.{inside}"
    return _use(recipe, sources)


def _use(recipe: Recipe, sources: dict[str, str]) -> bool:
    values = dict(recipe.parameters)
    for name, source in sources.items():
        recipe.parameters[name] = values[source].copy()
    recipe.sources |= sources
    return bool(sources)


def identity_layer(layer: str) -> Callable[[Recipe], bool]:
    """A square linear layer is left out: its output is its input, and no gradient reaches its parameters."""

    def change(recipe: Recipe) -> bool:
        found = [name for name in recipe.parameters if f".{layer}." in name]
        for name in found:
            value = recipe.parameters[name]
            recipe.parameters[name] = np.eye(*value.shape, dtype=value.dtype) if value.ndim == 2 else 0 * value
            recipe.back.setdefault(name, []).append(np.zeros_like)
        return bool(found)

    return change
