"""A record of every tensor that a PyTorch module computes, with the function that computed it.

The record is made with a ``TorchFunctionMode``, which sees every call of a PyTorch function, and with forward hooks,
which see the outputs of the modules in a *names* map. It holds copies of the values, so that a later write in place
changes nothing, and the tensors themselves, so that autograd can give the gradient at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refvt.array import Array

__all__ = ["Event", "Record", "recording", "to_numpy"]

LIMIT = 20_000  # tensors of one run; a module that computes more is not recorded to the end


@dataclass(frozen=True)
class Event:
    """One computed tensor: the function, its value, the tensor for autograd, and what it was computed from."""

    function: str
    value: Array
    tensor: Any
    version: int  # of the tensor when it was recorded; a later write in place changes it
    inputs: tuple[int, ...]  # the events of the tensor arguments that are no parameters, −1 if unknown
    parameters: tuple[str, ...]  # the parameters among the arguments, by name


@dataclass
class Record:
    """All events of one run, in the order of execution. ``names_of`` gives the names of parameters by id."""

    names_of: dict[int, tuple[str, ...]]
    events: list[Event] = field(default_factory=list)
    last_event: dict[int, int] = field(default_factory=dict)  # by id of the tensor; the record keeps it alive
    derived: dict[int, tuple[str, ...]] = field(default_factory=dict)  # views of parameters, such as W.t()
    _alive: list[Any] = field(default_factory=list)

    def note(self, function: str, arguments: list[Any], result: Any) -> None:
        """Add the tensors of a result to the record."""
        parameters = tuple(dict.fromkeys(n for a in arguments for n in self._parameters(a)))
        inputs = tuple(self.last_event.get(id(a), -1) for a in arguments if not self._parameters(a))
        if parameters and not inputs:  # a view or copy of parameters: not an intermediate result
            for tensor in tensors_of(result):
                self.derived[id(tensor)] = parameters
                self._alive.append(tensor)
            return
        for tensor in tensors_of(result):
            if len(self.events) >= LIMIT or tensor.numel() == 0:
                return
            event = Event(function, to_numpy(tensor), tensor, tensor._version, inputs, parameters)
            self.last_event[id(tensor)] = len(self.events)
            self.events.append(event)

    def _parameters(self, tensor: Any) -> tuple[str, ...]:
        return self.names_of.get(id(tensor)) or self.derived.get(id(tensor), ())


def tensors_of(value: Any) -> Iterator[Any]:
    """The tensors inside nested tuples, lists and dicts."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_of(part)
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))


def to_numpy(tensor: Any) -> Array:
    """A copy in main memory; floats of any width become float64."""
    tensor = tensor.detach()
    copy = tensor.double() if tensor.is_floating_point() else tensor
    return np.array(copy.cpu().numpy())


def recording(record: Record) -> AbstractContextManager[Any]:
    """A context in which every PyTorch function call is added to the record."""
    from torch.overrides import TorchFunctionMode

    class Recorder(TorchFunctionMode):  # type: ignore[misc,unused-ignore]
        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            name = getattr(func, "__name__", str(func))
            if name == "__setitem__":  # writes to its first argument and returns None
                record.note(name, list(tensors_of(args)), args[0])
            else:
                record.note(name, list(tensors_of(args)) + list(tensors_of(kwargs or {})), result)
            return result

    return Recorder()
