"""numba-cuda's simulator in the driver's place: main memory stands in for the device's.

Kernels get their arguments packed into words and unpacked again, as on a GPU.
"""

from __future__ import annotations

import ctypes
import struct
import time
from functools import partial
from typing import Any

import numpy as np

from refvt.backends.cuda.arguments import Kind
from refvt.backends.cuda.memory import CallRecorder, NoFreeList

__all__ = ["Simulator"]


class Simulator(CallRecorder):
    """Main memory and numba-cuda's simulator, with the methods of ``driver.Driver``."""

    capability = (9, 0)

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[int, Any] = {}

    def free_list(self, size: int) -> NoFreeList:
        return NoFreeList(size, self.free)

    def allocate(self, free_list: NoFreeList) -> int:
        block = np.full(free_list.size, 0xA5, np.uint8)  # not zeros: memory must not seem to be cleared
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def free_now(self, address: int) -> None:
        self.blocks.pop(address, None)

    def upload(self, address: int, host: Any) -> None:
        self.check_not_capturing("an upload")
        ctypes.memmove(address, host.ctypes.data, host.nbytes)

    def download(self, host: Any, address: int) -> None:
        self.check_not_capturing("a download")
        ctypes.memmove(host.ctypes.data, address, host.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        self.call_or_record(partial(ctypes.memmove, target, source, size))

    def wait(self, stream: int = 0) -> None:
        pass

    def memory(self) -> tuple[int, int]:
        return 0, sum(block.nbytes for block in self.blocks.values())

    def record_event(self) -> float:
        return time.perf_counter()

    def elapsed(self, first: float, last: float) -> float:
        return last - first

    def load(self, kernel: Any, dtype: Any) -> Any:
        from numba import cuda

        return cuda.jit(kernel.function), kernel.arguments, dtype

    def launch(
        self, function: Any, grid: tuple[int, ...], block: tuple[int, ...], layout: struct.Struct, words: list[Any]
    ) -> None:
        dispatcher, kinds, dtype = function
        buffer = bytearray(layout.size)
        layout.pack_into(buffer, 0, *words)
        self.call_or_record(lambda: dispatcher[grid, block](*_unpack(kinds, dtype, list(layout.unpack_from(buffer)))))


def _unpack(kinds: tuple[Kind, ...], dtype: Any, words: list[Any]) -> list[Any]:
    """A kernel's arguments from their words; arrays are NumPy arrays over the same memory."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    arguments: list[Any] = []
    for kind in kinds:
        if not kind.axes:
            arguments.append(dtype.type(words.pop(0)) if kind.dtype is None else words.pop(0))
            continue
        (_, _, size, _, address), words = words[:5], words[5:]
        shape, strides = tuple(words[: kind.axes]), tuple(words[kind.axes : 2 * kind.axes])
        words, element = words[2 * kind.axes :], np.dtype(kind.dtype or dtype)
        reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + element.itemsize if size else 0
        memory: Any = (ctypes.c_char * reach).from_address(address) if size else b""
        arguments.append(FakeCUDAArray(np.ndarray(shape, element, memory, 0, strides)))
    return arguments
