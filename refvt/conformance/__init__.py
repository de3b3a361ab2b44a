"""Tools to check an implementation of HaltingVT, or of one of its operations, against refvt.

``check(candidate)`` compares a whole model, some operations or an exchange folder with the golden files, and says where
it first differs and why; from the shell, ``refvt check`` (docs/checking.md). ``load_case``, ``load_truth`` and
``compare_tensor`` do the same for one tensor by hand. Below it are three tools that can be used alone:

- **Laws** (``laws_of``) are properties that every correct implementation has: the backward is the adjoint of the
  forward, halting weights sum to one, nothing is mutated. ``law(op, inputs)`` raises ``refvt.ops.laws.LawBroken`` with
  the numbers if the law does not hold. ``op`` is any object with ``.operation`` (names of arguments and results),
  ``.forward`` and ``.backward`` (the protocol ``refvt.ops.laws.Computes``).
- **Golden files** (``load_manifest``, ``load_arrays``) hold arguments, results and gradients of every operation and of
  whole models, computed in float64 by PyTorch autograd. ``compare`` derives the allowed error from the error of
  PyTorch's own float32 run. ``golden/__init__.py`` describes the keys.
- **Strategies** (``strategies.inputs_for``) generate inputs for the laws with Hypothesis.

Check a LayerNorm of your own with the laws::

    import numpy as np
    from refvt.backends import Implementation
    from refvt.conformance.laws import laws_of
    from refvt.ops import operations

    def forward(x, weight, bias, keep=True):
        std = np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
        normed = (x - x.mean(axis=1, keepdims=True)) / std
        return normed * weight + bias, (normed, std, weight) if keep else None

    def backward(dy, cache):
        normed, std, weight = cache
        d = dy * weight
        dx = (d - d.mean(axis=1, keepdims=True) - normed * (d * normed).mean(axis=1, keepdims=True)) / std
        return dx, (dy * normed).sum(axis=0), dy.sum(axis=0)

    mine = Implementation(operations()["layernorm"], forward, backward)
    x, weight, bias = np.random.default_rng(0).standard_normal((3, 5, 8))
    for law in laws_of("layernorm"):
        law(mine, {"x": x, "weight": weight[0], "bias": bias[0]})

``adapters`` make candidates of PyTorch modules and of functions in PyTorch or JAX; ``variants`` are the known ways in
which implementations differ; ``verify`` checks refvt's own backends, from the shell as ``refvt golden verify``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refvt.conformance.checking import check
    from refvt.conformance.reproduce import compare_tensor, load_case, load_truth

__all__ = ["check", "compare_tensor", "load_case", "load_truth"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the pytest plugin of this folder costs nothing where it is unused."""
    if name not in __all__:
        raise AttributeError(f"module 'refvt.conformance' has no attribute {name!r}")
    module = "checking" if name == "check" else "reproduce"
    found = globals()[name] = getattr(import_module(f"refvt.conformance.{module}"), name)
    return found
