"""Errors of the GPU's driver, as one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from refvt.backends import DeviceError
from refvt.backends.cuda.driver import driver
from refvt.backends.cuda.memory import DriverError
from refvt.backends.progress import compilation_shown

__all__ = ["explained", "session"]

OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
OTHERS = {
    "CUDA_ERROR_DEVICE_UNAVAILABLE": (
        "another process has the GPU for itself: wait until it ends, or choose another GPU by CUDA_VISIBLE_DEVICES"
    ),
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": (
        "the GPU's driver is older than the CUDA toolkit that compiles the kernels: install a newer driver, or the "
        "toolkit of the driver's version (nvidia-smi shows it)"
    ),
}
FATAL = frozenset(  # errors after which a process has lost its GPU
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT",
        "CONTEXT_IS_DESTROYED",
        "ECC_UNCORRECTABLE",
        "HARDWARE_STACK_ERROR",
        "ILLEGAL_ADDRESS",
        "ILLEGAL_INSTRUCTION",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "LAUNCH_TIMEOUT",
        "MISALIGNED_ADDRESS",
        "NVLINK_UNCORRECTABLE",
        "SYSTEM_NOT_READY",
        "UNKNOWN",
    )
)


@contextmanager
def session() -> Iterator[None]:
    """A context for work on the GPU: ``explained``, and a line on stderr if kernels have to be compiled first."""
    with explained(), compilation_shown():
        yield


@contextmanager
def explained() -> Iterator[None]:
    """A context in which the driver's errors become a ``DeviceError`` of one sentence."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        found = re.search(r"CUDA_ERROR_\w+", str(error))
        if isinstance(error.__cause__, DeviceError | DriverError) and not isinstance(error, DriverError):
            raise  # it is one sentence already, and says more, such as how to go on with a run
        if found is None or found[0] not in FATAL | {OUT_OF_MEMORY} | set(OTHERS):
            raise  # a bug of refvt: the original message says more
        raise DeviceError(_sentence(found[0])) from error


def _sentence(name: str) -> str:
    if name in OTHERS:
        return f"cuda: {OTHERS[name]} ({name})"
    if name in FATAL:
        return (
            f"cuda: the GPU stopped answering ({name}): the contents of its memory are lost, and this process cannot "
            "use it any more; start it again"
        )
    try:
        free, total = (size / 2**20 for size in driver().memory())
    except Exception:  # the sentence is useful without these numbers
        return "cuda: the GPU's memory is full: give fewer clips at once, or a smaller model"
    sizes = f"{free:.0f} of {total:.0f} MiB are free"
    return f"cuda: the GPU's memory is full ({sizes}): give fewer clips at once, or a smaller model"
