"""The table of operations, filled by one of three backends: ``reference``, ``jit`` or ``cuda``.

``ops = get("reference")`` is what the model is written against: ``ops.linear.forward(...)``,
``ops.linear.backward(dy, cache)``, one attribute for each operation of ``refvt.ops``. Beside the operations,
``ops.arrays`` holds the array functions that are no operation of the model, such as taking columns or joining rows
(``interface.ArrayFunctions``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from refvt.backends.interface import ArrayFunctions
from refvt.ops import FAMILIES, Operation

__all__ = [
    "BACKENDS",
    "Backend",
    "DeviceError",
    "ForwardOnly",
    "Implementation",
    "Unavailable",
    "available",
    "default",
    "get",
]

BACKENDS = ("reference", "jit", "cuda")
"""The names of all backends, whether this machine can run them or not."""


class Unavailable(ImportError):  # noqa: N818 - it reads as what happened
    """A backend of refvt that this machine cannot run; the message says what is missing."""


class DeviceError(RuntimeError):
    """A GPU that ran out of memory, stopped answering, is used by another process alone, or has too old a driver.

    The message says which, and what can be done.
    """


@dataclass(frozen=True)
class Implementation:
    """One operation as one backend computes it: ``y, cache = forward(…)`` and ``dx, … = backward(dy, cache)``."""

    operation: Operation
    forward: Callable[..., Any]
    backward: Callable[..., Any]


@dataclass(frozen=True)
class ForwardOnly:
    """An operation without a backward (a decision or an optimiser's step), called directly: ``top_k(scores, k)``."""

    operation: Operation
    forward: Callable[..., Any]
    backward: None = None

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self.forward(*arguments, **settings)


class Backend:
    """The operations of one backend as attributes, and its array functions as ``arrays``.

    Each attribute stands for the functions of its name in ``refvt/ops/<folder>/<backend>.py``; the first page of the
    folder, ``__init__.py``, says what they compute.
    """

    # ops/embedding
    embed: Implementation  # clips → tokens
    # ops/layernorm
    layernorm: Implementation  # (x − mean) / √(variance + eps) · weight + bias
    # ops/linear
    linear: Implementation  # residual + gain · (x Wᵀ + b)
    # ops/attention
    attention: Implementation  # softmax(q kᵀ / √d + key_bias) v inside each segment
    # ops/mlp
    gelu: Implementation  # x · Φ(x)
    mlp: Implementation  # residual + gain · fc2(gelu(fc1(x)))
    # ops/tokens
    gather: Implementation  # x[index], a zero row for −1
    segment_mean: Implementation  # mean of each segment's rows
    # ops/glimpser
    cls_scores: Implementation  # attention weights of the CLS row, mean over heads
    top_k: ForwardOnly  # the k largest scores of each row
    fuse_dropped: Implementation  # Σ score · state over the patches that are not kept
    # ops/halting
    halt: Implementation  # one layer's weight, and which tokens halt
    accumulate: Implementation  # y + weight · x
    halt_tokens: Implementation  # the textbook loop over all layers
    # ops/compaction
    compact: ForwardOnly  # which tokens enter the next joint block, and where their rows stand
    mask_halted: ForwardOnly  # the same for dense execution
    # ops/losses
    cross_entropy: Implementation
    ponder_loss: Implementation
    motion_loss: Implementation
    # ops/optimiser
    squared_norm: ForwardOnly  # Σ x²
    adam_step: ForwardOnly  # Adam with L2, AdamW

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrays = cast(ArrayFunctions, import_module(f"refvt.backends.{name}.arrays"))
        for family in FAMILIES:
            module = import_module(f"refvt.ops.{family}.{name}")
            for operation in import_module(f"refvt.ops.{family}").OPERATIONS:
                op_name = operation.name
                if operation.has_backward:
                    pair = getattr(module, f"{op_name}_forward"), getattr(module, f"{op_name}_backward")
                    setattr(self, op_name, Implementation(operation, *pair))
                else:
                    setattr(self, op_name, ForwardOnly(operation, getattr(module, op_name)))

    def __getitem__(self, operation: str) -> Implementation | ForwardOnly:
        """An operation by name. KeyError for a name that is not in the table."""
        found = self.__dict__.get(operation)
        if not isinstance(found, Implementation | ForwardOnly):
            raise KeyError(f"{operation!r} is no operation of the table")
        return found

    def session(self) -> AbstractContextManager[None]:
        """Held around a run of the model: it wakes the threads of ``jit`` and explains the errors of a GPU."""
        return self.arrays.session()

    def __repr__(self) -> str:
        return f"Backend({self.name!r})"


@cache
def _missing(name: str) -> str | None:
    """What this machine lacks for a backend, in one sentence; None if nothing."""
    if name == "jit":
        return _missing_for_jit()
    if name != "cuda":
        return None
    if find_spec("numba_cuda") is None:
        return 'the cuda backend needs numba-cuda: pip install "refvt[cuda]" (CUDA 13) or "refvt[cuda12]" (CUDA 12)'
    from numba import cuda

    if cuda.is_available():
        return None
    if cuda.cuda_error() is None:  # the driver works: it is the compiler that is missing
        return (
            "the cuda backend needs NVIDIA's compiler libNVVM, which numba-cuda does not find: "
            "install nvidia-nvvm, or set CUDA_HOME to a CUDA toolkit"
        )
    reason = " ".join(str(cuda.cuda_error()).split())
    return f"the cuda backend needs an NVIDIA GPU and its driver, and numba-cuda finds no device it can use ({reason})"


def _missing_for_jit() -> str | None:
    try:
        from numba import config
    except ImportError as error:  # not installed, or not made for this NumPy
        return f"the jit backend needs Numba, which cannot be imported: {error}"
    except ValueError as error:
        raise ValueError(f"Numba refuses one of the settings NUMBA_… in the environment: {error}") from None
    if config.DISABLE_JIT:
        return "the jit backend needs Numba's compiler, which NUMBA_DISABLE_JIT switches off"
    return None


def available() -> tuple[str, ...]:
    """The names of the backends that can run on this machine."""
    return tuple(name for name in BACKENDS if _missing(name) is None)


def default() -> str:
    """The fastest backend that is there on the CPU: jit, or reference where Numba cannot compile."""
    return "jit" if _missing("jit") is None else "reference"


@cache
def get(name: str) -> Backend:
    """The table of one backend. ValueError for a name that is not there, Unavailable if this machine cannot run it."""
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {list(BACKENDS)}, got {name!r}")
    missing = _missing(name)
    if missing is not None:
        raise Unavailable(f"backend {name!r}: {missing}")
    return Backend(name)
