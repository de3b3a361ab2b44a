"""Which of the dicts in a checkpoint holds the weights."""

from __future__ import annotations

import warnings
from typing import Any

from refvt.array import Array
from refvt.model.checkpoints.torch_pickle import Inert, Tensor, shown

__all__ = ["CheckpointWarning", "Tensors", "choose_tensors"]

USUAL = ("state_dict", "model", "model_state_dict")  # where weights usually are: the first of them counts
_LISTED = 12  # largest number of names in a message


class CheckpointWarning(UserWarning):
    """A checkpoint holds other weights beside those that are read."""


class Tensors(dict[str, Array]):
    """The tensors of a file by name. ``passed_over``: names under which something else was found, and why not read."""

    def __init__(self, arrays: dict[str, Array], passed_over: dict[str, str] | None = None) -> None:
        super().__init__(arrays)
        self.passed_over = passed_over or {}


def choose_tensors(content: Any, weights_key: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file's content by name, and what else in the same dict cannot be read, with the reason.

    The dict is the one under ``weights_key``; else the first under state_dict, model or model_state_dict; else the only
    dict that holds tensors, such as an EMA's. If others like it are left, a CheckpointWarning lists them.
    ValueError, which lists what is there, if there is none, more than one, or none of that name.
    """
    if type(content) is Inert:
        raise ValueError(content.reason)
    if type(content) is not dict:
        raise ValueError(f"expected a dict of tensors, got a {type(content).__name__}")
    places = _places(content)
    place = _choose(content, places, weights_key)
    found = places[place]
    others = [name for name in places if name != place and _tails(places[name]) & _tails(found)]
    if others and weights_key is None:
        message = f"weights are read from {_named(place)}; others are under {_list(others)}: choose with weights_key="
        warnings.warn(f"{message} (--weights-key)", CheckpointWarning, stacklevel=2)
    tensors = {name: value for name, value in found.items() if type(name) is str and type(value) is Tensor}
    refused = {name: value.reason for name, value in found.items() if type(name) is str and type(value) is Inert}
    return tensors, refused


def _places(content: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Return the dicts that hold tensors, down to the second level, by their dotted keys; "" is the content itself."""
    places: dict[str, dict[Any, Any]] = {}
    seen: set[int] = set()  # a dict that is in a file many times is looked at once
    level = [("", content)]
    for _ in range(3):
        following = []
        for place, found in level:
            if id(found) in seen:
                continue
            seen.add(id(found))
            if any(type(name) is str and type(value) is Tensor for name, value in found.items()):
                places[place] = found
            prefix = f"{place}." if place else ""
            following += [(f"{prefix}{key}", value) for key, value in found.items() if type(value) is dict]
        level = following
    return places


def _choose(content: dict[Any, Any], places: dict[str, dict[Any, Any]], weights_key: str | None) -> str:
    if weights_key is not None:
        if weights_key not in places:
            raise ValueError(f"expected tensors under {shown(weights_key)}, got them under {_list(places)}")
        return weights_key
    usual = [place for place in USUAL if place in places]
    if usual:
        return usual[0]
    refused = {key: value.reason for key, value in content.items() if type(key) is str and type(value) is Inert}
    for place in USUAL:
        if place in refused:
            raise ValueError(f"{place}: {refused[place]}" + _hint(places))
    inner = [place for place in places if place]
    outer = places.get("", {})
    # tensors of the whole file, such as the state of a random generator, are no weights if a dict beside them is full
    if outer and (not inner or any(type(name) is str and "." in name for name in outer)):
        inner = ["", *inner] if any(_tails(outer) & _tails(places[place]) for place in inner) else [""]
    if len(inner) == 1:
        return inner[0]
    if inner:
        raise ValueError(f"tensors under {_list(inner)}: choose one with weights_key= (--weights-key)")
    for key, reason in refused.items():
        raise ValueError(f"{shown(key)}: {reason}")
    held = [f"{key} ({type(value).__name__})" for key, value in content.items()]
    raise ValueError(
        f"expected tensors under {', '.join(USUAL)}, another key or at the top level, got none in {_list(held)}"
    )


def _tails(found: dict[Any, Any]) -> set[str]:
    """Return the ends of the tensors' names, which are the same under any prefix."""
    return {".".join(k.split(".")[-2:]) for k, value in found.items() if type(k) is str and type(value) is Tensor}


def _hint(places: dict[str, dict[Any, Any]]) -> str:
    return f"; tensors are also under {_list(places)}: choose with weights_key= (--weights-key)" if places else ""


def _named(place: str) -> str:
    return shown(place) if place else "the top level"


def _list(names: Any) -> str:
    listed = [_named(str(name)) for name in names]
    return (", ".join(listed[:_LISTED]) + (", …" if len(listed) > _LISTED else "")) or "nothing"
