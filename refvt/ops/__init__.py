"""The operations: one folder per operation family, with the same files in each.

``__init__.py`` holds the maths, the shapes and the adjoint (read it first), ``reference.py`` the readable truth in
NumPy, ``jit.py`` and ``cuda.py`` the same operations for fast backends, ``laws.py`` what any implementation must
satisfy. An operation is a pair of functions::

    y, cache = linear_forward(x, weight, bias, keep=True)     # keep=False: cache is None
    dx, dweight, dbias, dresidual = linear_backward(dy, cache)

The backward stands right under its forward and retraces its numbered passes in reverse. It returns one result per
argument that has a gradient, in the order of the arguments; an optional argument that was not given gets ``None``.
States are flat rows ``[tokens, D]``, the clips one after another, never padded; index arrays say which row goes where.
Operation families do not import one another.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "Operation", "operations"]

FAMILIES = (
    "embedding",
    "layernorm",
    "linear",
    "attention",
    "mlp",
    "tokens",
    "glimpser",
    "halting",
    "compaction",
    "losses",
    "optimiser",
)
"""The folders of operations, in the order in which a clip meets them."""


@dataclass(frozen=True)
class Operation:
    """The names of an operation's arguments and results: what golden files, traces and laws call them.

    ``arguments`` maps every array argument to its shape, in order; ``gradients`` are those with a gradient;
    ``optional`` may be left out; ``settings`` are the plain Python arguments that follow the required arrays.
    ``results`` maps every result to its shape; ``differentiable`` are those that have a cotangent (all, if not given).
    ``in_place`` are the arguments that are written to: an optimiser's vectors and the record of a decision, nothing
    else. ValueError if ``gradients``, ``optional`` or ``in_place`` name something that is not an argument.
    """

    name: str
    arguments: dict[str, str]
    results: dict[str, str]
    gradients: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    differentiable: tuple[str, ...] = None  # type: ignore[assignment]  # __post_init__ fills it in
    in_place: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.differentiable is None:
            object.__setattr__(self, "differentiable", tuple(self.results))
        unknown = [n for n in (*self.gradients, *self.optional, *self.in_place) if n not in self.arguments]
        if unknown:
            raise ValueError(f"operation {self.name}: expected names among {list(self.arguments)}, got {unknown}")

    @property
    def has_backward(self) -> bool:
        """Whether the operation has a backward; a decision (``top_k``) has none."""
        return bool(self.gradients)


def operations() -> dict[str, Operation]:
    """All operations by name, in the order in which a clip meets them."""
    from importlib import import_module

    table: dict[str, Operation] = {}
    for family in FAMILIES:
        table.update({op.name: op for op in import_module(f"refvt.ops.{family}").OPERATIONS})
    return table
