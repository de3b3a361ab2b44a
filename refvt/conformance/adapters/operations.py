"""``torch_operation`` and ``jax_operation``: a differentiable function becomes an operation with its backward.

The function has the name's arguments in the order of the table of operations (``refvt.ops``), or takes them by their
names, and returns the result, or a tuple of the results. Its backward comes from the framework::

    class Mine:
        layernorm = adapters.torch_operation(lambda x, weight, bias: F.layer_norm(x, x.shape[-1:], weight, bias, 1e-6))

The contract is that of every operation: ``y, cache = forward(…)`` and ``dx, dweight, dbias = backward(dy, cache)``,
with NumPy arrays. Only arguments with a gradient in the contract are differentiated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refvt.array import Array
from refvt.ops import Operation, operations

__all__ = ["FrameworkOperation", "jax_operation", "torch_operation"]


class _Cache(NamedTuple):
    """What a backward needs: how to differentiate, and which arguments were given."""

    differentiate: Callable[[list[Array]], dict[str, Array]]
    operation: Operation


@dataclass
class FrameworkOperation:
    """An operation under the contract, computed by a function of another framework.

    The operation is the one whose name the object has where it is an attribute (``layernorm = torch_operation(…)``),
    or ``name``, or the function's own name.
    """

    function: Callable[..., Any]
    run: Callable[..., tuple[tuple[Array, ...], Callable[[list[Array]], dict[str, Array]]]]
    name: str | None = None

    def __post_init__(self) -> None:
        table = operations()
        if self.name is None and getattr(self.function, "__name__", "") in table:
            self.name = self.function.__name__
        if self.name is not None and self.name not in table:
            raise ValueError(f"name: expected an operation of the table ({', '.join(table)}), got {self.name!r}")

    def __set_name__(self, owner: type, attribute: str) -> None:
        if self.name is None and attribute in operations():
            self.name = attribute

    @property
    def operation(self) -> Operation | None:
        """The operation's names of arguments and results; None if it is not known which operation this is."""
        return operations().get(self.name or "")

    def forward(self, *arguments: Any, keep: bool = True, **named: Any) -> Any:
        """``y, cache``, or a tuple of results and the cache."""
        operation = self._known()
        given = _by_name(operation, arguments, named)
        results, differentiate = self.run(self.function, operation, given)
        if len(results) != len(operation.results):
            expected = f"{len(operation.results)} results ({', '.join(operation.results)})"
            raise TypeError(f"{operation.name}: expected {expected}, got {len(results)}")
        answer = results[0] if len(results) == 1 else results
        return answer, _Cache(differentiate, operation) if keep else None

    def backward(self, *cotangents_and_cache: Any) -> Any:
        """One gradient per argument that has one, None for an optional argument that was not given."""
        *cotangents, cache = cotangents_and_cache
        found = cache.differentiate([np.asarray(c) for c in cotangents])
        gradients = tuple(found.get(name) for name in cache.operation.gradients)
        return gradients[0] if len(gradients) == 1 else gradients

    def _known(self) -> Operation:
        if self.operation is None:
            raise TypeError(
                "operation: expected a name of the table of operations, as attribute, name= or function name"
            )
        return self.operation


def torch_operation(function: Callable[..., Any], name: str | None = None) -> FrameworkOperation:
    """An operation computed by a PyTorch function, its backward by autograd.

    function: gets tensors (floats require a gradient where the operation has one) and plain numbers. Results may be
    tensors of any device. name: the operation, if the attribute's or function's name does not say it.
    """
    import torch  # noqa: F401 - without PyTorch the error comes here

    return FrameworkOperation(function, _run_torch, name)


def jax_operation(function: Callable[..., Any], name: str | None = None) -> FrameworkOperation:
    """An operation computed by a JAX function, its backward by ``jax.vjp``.

    function: gets JAX arrays and plain numbers; it may be jitted, with plain numbers as static arguments. float64 needs
    ``jax.config.update("jax_enable_x64", True)`` before the first array. name: as in ``torch_operation``.
    """
    import jax  # noqa: F401 - without JAX the error comes here

    return FrameworkOperation(function, _run_jax, name)


# ---- calls


def _by_name(operation: Operation, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name: required arrays, settings, optional arrays, in this order."""
    optional = operation.optional
    order = [name for name in operation.arguments if name not in optional]
    order += [*operation.settings, *optional]
    if len(arguments) > len(order):
        raise TypeError(f"{operation.name}: expected at most {len(order)} arguments, got {len(arguments)}")
    given = {**dict(zip(order, arguments, strict=False)), **named}
    return {name: value for name, value in given.items() if value is not None}


def _call(function: Callable[..., Any], operation: Operation, given: dict[str, Any]) -> tuple[Any, ...]:
    """Call by name if the function knows all the names, else in the order of the contract."""
    try:
        parameters = inspect.signature(function).parameters
        by_name = set(given) <= set(parameters) or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    except (TypeError, ValueError):
        by_name = False
    if by_name:
        answer = function(**given)
    else:
        order = [n for n in (*operation.arguments, *operation.settings) if n not in operation.optional]
        count = max((i + 1 for i, n in enumerate(operation.optional) if n in given), default=0)
        answer = function(*(given.get(n) for n in (*order, *operation.optional[:count])))
    return tuple(answer) if isinstance(answer, tuple | list) else (answer,)


def _smooth(operation: Operation, given: dict[str, Any]) -> list[str]:
    """The arguments that are differentiated."""
    return [name for name in operation.gradients if name in given]


def _run_torch(
    function: Callable[..., Any], operation: Operation, given: dict[str, Any]
) -> tuple[tuple[Array, ...], Callable[[list[Array]], dict[str, Array]]]:
    import torch

    tensors = {n: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for n, v in given.items()}
    smooth = [tensors[name].requires_grad_() for name in _smooth(operation, given)]
    with torch.enable_grad():
        results = _call(function, operation, tensors)
    named = dict(zip(operation.results, results, strict=False))

    def differentiate(cotangents: list[Array]) -> dict[str, Array]:
        pairs = [(named[n], c) for n, c in zip(operation.differentiable, cotangents, strict=True)]
        reached = [(y, torch.from_numpy(np.array(c)).to(y)) for y, c in pairs if getattr(y, "requires_grad", False)]
        found: Any = [None] * len(smooth)
        if reached:
            outputs, given_cotangents = [y for y, _ in reached], [c for _, c in reached]
            found = torch.autograd.grad(outputs, smooth, given_cotangents, allow_unused=True, retain_graph=True)
        gradients = (torch.zeros_like(x) if g is None else g for x, g in zip(smooth, found, strict=True))
        return {n: g.detach().cpu().numpy() for n, g in zip(_smooth(operation, given), gradients, strict=True)}

    return tuple(_numpy_of_torch(result) for result in results), differentiate


def _numpy_of_torch(value: Any) -> Array:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    array: Array = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.array(array)


def _run_jax(
    function: Callable[..., Any], operation: Operation, given: dict[str, Any]
) -> tuple[tuple[Array, ...], Callable[[list[Array]], dict[str, Array]]]:
    import jax
    import jax.numpy as jnp

    names = _smooth(operation, given)
    arrays = {n: jnp.asarray(v) if isinstance(v, np.ndarray) else v for n, v in given.items()}
    rest = {n: v for n, v in arrays.items() if n not in names}

    def smooth_results(*values: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        answer = _call(function, operation, {**rest, **dict(zip(names, values, strict=True))})
        named = dict(zip(operation.results, answer, strict=False))
        return tuple(named[n] for n in operation.differentiable if n in named), answer

    results, pull_back, answer = jax.vjp(smooth_results, *(arrays[n] for n in names), has_aux=True)

    def differentiate(cotangents: list[Array]) -> dict[str, Array]:
        given = tuple(jnp.asarray(c, y.dtype).reshape(y.shape) for c, y in zip(cotangents, results, strict=True))
        return {n: np.array(g) for n, g in zip(names, pull_back(given), strict=True)}

    return tuple(np.array(result) for result in answer), differentiate
