"""Errors of the GPU's driver, as one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from refvt.backends import DeviceError
from refvt.backends.cuda.driver import driver
from refvt.backends.progress import compilation_shown

__all__ = ["session"]

OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
FATAL = frozenset(  # errors after which a process has lost its GPU
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT",
        "CONTEXT_IS_DESTROYED",
        "DEVICE_UNAVAILABLE",
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
    """A context for work on the GPU: its driver's errors become a ``DeviceError`` of one sentence.

    A line on stderr says so if kernels have to be compiled first.
    """
    try:
        with compilation_shown():
            yield
    except DeviceError:
        raise
    except Exception as error:
        found = re.search(r"CUDA_ERROR_\w+", str(error))
        if isinstance(error.__cause__, DeviceError):
            raise  # it is one sentence already, and says more, such as how to go on with a run
        if found is None or found[0] not in FATAL | {OUT_OF_MEMORY}:
            raise  # an outdated driver, or a bug of refvt: the original message says more
        raise DeviceError(_sentence(found[0])) from error


def _sentence(name: str) -> str:
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
