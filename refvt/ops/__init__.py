"""One room per concept; in each room the same furniture.

Every room holds ``__init__.py`` (the maths, the shapes and the adjoint: read it first), ``reference.py`` (NumPy, the
readable truth) and ``laws.py`` (what any implementation must satisfy). An operation is a pair of functions::

    y, cache = linear_forward(x, weight, bias, keep=True)     # keep=False: cache is None
    dx, dweight, dbias, dresidual = linear_backward(dy, cache)

The backward stands right under its forward and retraces its numbered passes in reverse. It returns one result per
argument that has a gradient, in the order of the arguments; an optional argument that was not given gets ``None``.
States are flat rows ``[tokens, D]``, the clips one after another, never padded; index arrays say which row goes where.
Rooms do not import one another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Operation:
    """The names of an operation's arguments and results: what golden files, traces and laws call them.

    ``arguments`` maps every array argument to its shape, in order; ``gradients`` are those with a gradient;
    ``optional`` may be left out; ``settings`` are the plain Python arguments that follow the required arrays.
    ``results`` maps every result to its shape; ``differentiable`` are those a cotangent exists for. ``in_place`` are
    the arguments that are written to: an optimiser's vectors and the record of a decision, nothing else.
    """

    name: str
    arguments: dict[str, str]
    results: dict[str, str]
    gradients: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    differentiable: tuple[str, ...] = field(default=("*",))
    in_place: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.differentiable == ("*",):
            object.__setattr__(self, "differentiable", tuple(self.results))
        unknown = [n for n in (*self.gradients, *self.optional, *self.in_place) if n not in self.arguments]
        if unknown:
            raise ValueError(f"operation {self.name}: {unknown} are not among its arguments {list(self.arguments)}")

    @property
    def has_backward(self) -> bool:
        return bool(self.gradients)


def operations() -> dict[str, Operation]:
    """Every operation of every room, by name, in the order a clip meets them."""
    from importlib import import_module

    table: dict[str, Operation] = {}
    for room in FAMILIES:
        table.update({op.name: op for op in import_module(f"refvt.ops.{room}").OPERATIONS})
    return table
