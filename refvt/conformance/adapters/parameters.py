"""Which parameter of a PyTorch module is which of the state dict: by name, else by value.

A module may call its parameters as it likes, keep q, k and v apart, or store a weight transposed or flattened. As long
as it holds the case's values, its parameters are recognised by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.conformance.adapters.recorder import to_numpy
from refvt.conformance.cases import ModelCase
from refvt.model.checkpoints.names import own_names

__all__ = ["Parameters", "load_parameters", "match_parameters", "stored_gradients"]


@dataclass(frozen=True)
class Place:
    """A parameter of the module that holds a parameter of the case, or the i-th third of its rows."""

    tensor: Any
    transposed: bool = False
    third: int | None = None


@dataclass(frozen=True)
class Parameters:
    """For each parameter of the case that was found: where the module keeps it. shapes: those of the case."""

    places: dict[str, list[Place]]
    shapes: dict[str, tuple[int, ...]]

    def tensors(self) -> list[Any]:
        """The module's parameters, in the order of ``places``."""
        return [place.tensor for places in self.places.values() for place in places]

    def names_by_id(self) -> dict[int, tuple[str, ...]]:
        """The names of the case by the id of the module's parameter; ``…qkv[1].weight`` is the second third."""
        found: dict[int, tuple[str, ...]] = {}
        for name, places in self.places.items():
            stem, _, last = name.rpartition(".")
            for place in places:
                label = name if place.third is None else f"{stem}[{place.third}].{last}"
                found[id(place.tensor)] = (*found.get(id(place.tensor), ()), label)
        return found


def load_parameters(module: Any, case: ModelCase, dtype: Any) -> Any:
    """The module in the given dtype and in evaluation mode, with the parameters of the case.

    They are loaded by name if none of the module's parameters with such a name holds its value yet; a module whose
    ``build`` has loaded some is left as it is. ValueError for a parameter of another shape.
    """
    import torch

    module = module.to(dtype).eval()
    own = _by_own_name(dict(module.state_dict(keep_vars=True)), case.parameters)
    shared = [name for name in case.parameters if name in own]
    given = {name: torch.from_numpy(case.parameters[name]).to(dtype) for name in shared}
    for name in shared:
        if own[name].shape != given[name].shape:
            raise ValueError(f"{name}: expected shape {list(given[name].shape)}, got {list(own[name].shape)}")
    distinct = [name for name in shared if len(torch.unique(given[name])) > 1]
    if not any(torch.equal(own[name], given[name]) for name in distinct):
        with torch.no_grad():
            for name in shared:
                own[name].copy_(given[name])
    return module


def _by_own_name(tensors: Mapping[str, Any], known: Mapping[str, Array]) -> dict[str, Any]:
    """The module's tensors by refvt's names: without what a wrapper or the published files put before them.

    What cannot be a parameter of the model, such as a buffer of the module around it, keeps its name.
    """
    candidates = [name for name in tensors if name.endswith(tuple(known)) or "cls_head." in name]
    names = {name: name for name in tensors} | own_names(candidates, known)
    return {name: tensors[given] for given, name in names.items()}


def match_parameters(module: Any, parameters: Mapping[str, Array]) -> Parameters:
    """Find every parameter of the case among those of the module."""
    own = _by_own_name(dict(module.named_parameters()), parameters)
    values = {name: to_numpy(tensor) for name, tensor in own.items()}
    places: dict[str, list[Place]] = {}
    for name, wanted in parameters.items():
        if name in own and values[name].shape == wanted.shape:
            places[name] = [Place(own[name])]
            continue
        found = _by_value(wanted, own, values)
        if found is not None:
            places[name] = [found]
        elif ".qkv." in name:
            thirds = [_by_value(part, own, values, third=i) for i, part in enumerate(np.split(wanted, 3))]
            if all(thirds):
                places[name] = [third for third in thirds if third is not None]
    return Parameters(places, {name: value.shape for name, value in parameters.items()})


def _by_value(
    wanted: Array, own: Mapping[str, Any], values: Mapping[str, Array], third: int | None = None
) -> Place | None:
    """The only parameter of the module that holds these values, in order or transposed."""
    found = []
    for name, value in values.items():
        if value.size != wanted.size or value.size == 1:
            continue
        if np.array_equal(value.ravel(), wanted.ravel()):
            found.append(Place(own[name], third=third))
        elif wanted.ndim == 2 and value.shape == wanted.T.shape and np.array_equal(value, wanted.T):
            found.append(Place(own[name], transposed=True, third=third))
    return found[0] if len(found) == 1 else None


def stored_gradients(parameters: Parameters, gradients: list[Array]) -> dict[str, Array]:
    """``d(name)`` in the shape of the case, from the gradients of ``Parameters.tensors()`` (or none at all)."""
    if not gradients:
        return {}
    rest, stored = iter(gradients), {}
    for name, places in parameters.places.items():
        parts = []
        for place in places:
            value = next(rest)
            parts.append(value.T if place.transposed else value)
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        stored[f"d({name})"] = whole.reshape(parameters.shapes[name])
    return stored
