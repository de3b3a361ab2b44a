"""Which of the events of a record the layers' parameters identify as a named tensor, whatever its value.

What comes out of a linear layer or LayerNorm that uses ``blocks.3.norm1.bias`` is ``blocks.3.norm1``. The input of a
projection is ``attn.y``; the sum of a projection and the skip input is ``attn.proj`` or ``mlp``; the input of a block's
norms is ``entering``, ``selected`` or ``attn.proj``; what is sorted is ``scores``; y is a sum whose terms are a weight
of halting times a state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refvt.conformance.adapters.recorder import Event
from refvt.model.config import HaltingVTConfig

__all__ = ["SORTS", "Graph", "Role", "roles", "weights"]

Role = tuple[str, int, tuple[int, int]]
"""A name, an event, and which part of how many of its last axis."""

SORTS = ("topk", "sort", "argsort")
_RESHAPE = ("reshape", "view", "flatten", "unflatten", "transpose", "permute", "contiguous", "squeeze", "unsqueeze")
_SELECT = ("movedim", "swapaxes", "expand", "clone", "dropout", "__getitem__")
_MULTIPLY = ("mul", "__mul__", "__rmul__", "mul_", "__imul__")
_MOVE = frozenset((*_RESHAPE, *_SELECT, "float", "double", "to", "select", "narrow", "squeeze"))
_LAYOUT_ONLY = _MOVE | frozenset(_MULTIPLY)
_APPLY = ("linear", "layer_norm", "matmul", "__matmul__", "addmm")
_ADD = frozenset(["add", "add_", "__add__", "__radd__", "__iadd__"])


@dataclass(frozen=True)
class Graph:
    """Which events read which."""

    events: list[Event]
    readers: dict[int, list[int]]

    @classmethod
    def of(cls, events: list[Event]) -> Graph:
        readers: dict[int, list[int]] = {}
        for number, event in enumerate(events):
            for source in event.inputs:
                readers.setdefault(source, []).append(number)
        return cls(events, readers)

    def source(self, number: int, through_where: bool = False) -> int:
        """The event from which this one was made by reshaping or selecting alone, perhaps by ``where``; −1: unknown."""
        for _ in range(8):
            if number < 0:
                return -1
            event = self.events[number]
            if event.function in _MOVE:
                number = event.inputs[0] if event.inputs else -1
            elif through_where and event.function == "where" and len(event.inputs) >= 2:
                number = event.inputs[1]
            else:
                return number
        return -1

    def input_of(self, number: int) -> int:
        """What a layer reads, from the event that uses its weight; −1: unknown.

        A LayerNorm of single steps multiplies by its weight what was centred before: x − mean(x).
        """
        for _ in range(6):
            event = self.events[number]
            if not event.inputs or event.inputs[0] < 0:
                return -1
            if event.function in _APPLY or event.function in ("sub", "__sub__"):
                return event.inputs[0]
            number = event.inputs[0]
        return -1

    def last_sum(self, number: int) -> int:
        """The last of the additions that each add a term to the one before, from this one on."""
        while True:
            readers = [r for r in self.readers.get(number, []) if self.events[r].function in _ADD]
            size = self.events[number].value.size if number >= 0 else 0
            larger = [r for r in readers if self.events[r].value.size == size and r > number]
            if not larger:
                return number
            number = larger[0]

    def next_sum(self, number: int) -> int | None:
        """The first addition that reads this tensor, directly or through reshaping and scaling."""
        front = [number]
        for _ in range(8):
            following = sorted(r for n in front for r in self.readers.get(n, []))
            for reader in following:
                event = self.events[reader]
                if event.function in _ADD and len(event.inputs) == 2:
                    return reader
            front = [r for r in following if self.events[r].function in _LAYOUT_ONLY]
        return None


def weights(graph: Graph, y: int, depth: int) -> list[Role]:
    """The weights of all layers, from the last: y is a sum whose terms are a weight times a state.

    y: the event of the sum, or of one that begins it. An empty list if the sum has another form.
    """
    y, found = graph.last_sum(graph.source(y)), []
    while y >= 0:
        terms = graph.events[y].inputs if graph.events[y].function in _ADD else (y,)
        products = [graph.source(term, through_where=True) for term in terms]
        product = next((p for p in products if p >= 0 and graph.events[p].function in _MULTIPLY), None)
        if product is None or len(graph.events[product].inputs) != 2:
            break
        weight = min(graph.events[product].inputs, key=lambda n: graph.events[n].value.size if n >= 0 else np.inf)
        if weight < 0 or graph.events[weight].value.size == graph.events[product].value.size:
            break
        found.append(weight)
        y = graph.source(next((term for term, p in zip(terms, products, strict=True) if p != product), -1))
    layers = range(depth, 0, -1)
    same = len(found) == depth
    return [(f"joint.{n}.weight", weight, (0, 1)) for n, weight in zip(layers, found, strict=True)] if same else []


def roles(events: list[Event], config: HaltingVTConfig) -> Iterator[Role]:
    """Every named tensor that a parameter, a sort or a sum identifies."""
    graph, whole = Graph.of(events), (0, 1)
    outputs = _last_users(events, ".bias")
    inputs = {layer: graph.input_of(number) for layer, number in _last_users(events, ".weight").items()}
    for layer, number in outputs.items():
        block, _, part = layer.partition(".attn.") if ".attn." in layer else layer.rpartition(".")
        if layer.endswith("qkv"):
            for i, letter in enumerate("qkv"):
                yield f"{layer.removesuffix('qkv')}{letter}", number, (i, 3)
        elif match := re.fullmatch(r"(.*attn)\.qkv\[(\d)\]", layer):
            yield f"{match[1]}.{'qkv'[int(match[2])]}", number, whole
        elif layer in ("head", "motion_head"):
            yield layer.replace("head", "logits"), number, whole
        elif layer.endswith((".temporal_fc", ".attn.proj", "fc2")):
            total = graph.next_sum(number)
            name = f"{block.removesuffix('.mlp')}.mlp" if layer.endswith("fc2") else layer
            if total is not None:
                yield name, total, whole
        else:
            yield layer, number, whole
            if layer == "norm":
                yield "features", number, whole
    for layer, number in inputs.items():
        block, _, part = layer.rpartition(".")
        in_glimpser = layer.startswith("blocks.") and int(layer.split(".")[1]) < config.glimpser_depth
        if part == "proj" and block.endswith("attn"):
            yield f"{block}.y", number, whole
        elif part == "norm1" and not in_glimpser:
            yield f"{block}.entering", number, whole
        elif part == "norm2":
            yield (f"{block}.selected" if in_glimpser else f"{block}.attn.proj"), number, whole
        elif layer == "norm":
            yield "y", number, whole
            yield from weights(graph, number, config.joint_depth)
    yield from _sorted_scores(events, config)


def _last_users(events: list[Event], suffix: str) -> dict[str, int]:
    """For every layer the event that uses its weight or bias; layers that are used more than once are left out."""
    users: dict[str, list[int]] = {}
    for number, event in enumerate(events):
        for parameter in event.parameters:
            if parameter.partition("[")[0].endswith(suffix):
                users.setdefault(parameter.replace(suffix, ""), []).append(number)
    return {layer: numbers[0] for layer, numbers in users.items() if len(numbers) == 1}


def _sorted_scores(events: list[Event], config: HaltingVTConfig) -> Iterator[Role]:
    """What is given to top-k or a sort, if there are as many of these as blocks that select."""
    selecting = [g for g, rate in enumerate(config.keep_rates) if rate < 1]
    sources = []
    for event in events:
        if event.function in SORTS and event.inputs and event.inputs[0] not in sources:
            sources.append(event.inputs[0])
    if len(sources) == len(selecting):
        for g, source in zip(selecting, sources, strict=True):
            yield f"blocks.{g}.scores", source, (0, 1)
