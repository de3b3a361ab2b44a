"""What the ``cuda`` column asks of the GPU's driver, in one place: memory, copies, loading a kernel and launching it.

Everything takes its place on one stream, the legacy default one: a kernel, a copy, memory that is given back. Memory
comes from the driver's pool, where asking for it and giving it back wait for nothing; what one array leaves behind is
used again by the kernels that follow.

Under numba-cuda's simulator main memory stands in for the device's and the simulator runs the kernels; they are given
their arguments packed and unpacked again, as a GPU would be.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import time
import warnings
from functools import cache
from typing import Any

import numpy as np
from numba.cuda.core import config

__all__ = ["SIMULATED", "DriverError", "driver"]

SIMULATED = bool(config.ENABLE_CUDASIM)
MOST_WORDS = 256  # of a kernel's arguments
LEGACY_STREAM = 1  # the driver's number for the default stream that waits for all others of its kind


class DriverError(RuntimeError):
    """What the driver complains of, by its own name (CUDA_ERROR_OUT_OF_MEMORY, …)."""


class _Seat(threading.local):
    """A host thread's own place for the arguments of a launch: words of eight bytes, and the address of each."""

    def __init__(self) -> None:
        self.words = ctypes.create_string_buffer(8 * MOST_WORDS)
        first = ctypes.addressof(self.words)
        self._addresses = (ctypes.c_void_p * MOST_WORDS)(*(first + 8 * i for i in range(MOST_WORDS)))
        self.addresses = ctypes.addressof(self._addresses)
        self.settled = False  # does this thread work in the GPU's context?


class Driver:
    """The first GPU this process sees, through NVIDIA's own bindings of the driver (package cuda-bindings)."""

    def __init__(self) -> None:
        from cuda.bindings import driver as api

        self.api, self.seat = api, _Seat()
        self._ask(api.cuInit(0))
        self.device = self._ask(api.cuDeviceGet(0))
        self.context = self._ask(api.cuDevicePrimaryCtxRetain(self.device))  # PyTorch's and CuPy's too
        self._settle()
        attributes = api.CUdevice_attribute
        self.capability: tuple[int, int] = tuple(
            self._ask(api.cuDeviceGetAttribute(getattr(attributes, name), self.device))
            for name in ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR")
        )
        self.stream = api.CUstream(LEGACY_STREAM)
        self.pooled = bool(
            self._ask(api.cuDeviceGetAttribute(attributes.CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, self.device))
        )
        if self.pooled:
            pool = self._ask(api.cuDeviceGetDefaultMemPool(self.device))
            everything = api.cuuint64_t(2**64 - 1)  # what was given back is kept for the next, not returned when idle
            kept = api.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
            self._ask(api.cuMemPoolSetAttribute(pool, kept, everything))
        else:
            warnings.warn("cuda: the driver has no memory pool, so every array waits for it", stacklevel=2)

    def _ask(self, answer: tuple[Any, ...]) -> Any:
        """The result of a call; DriverError if the driver complains."""
        complaint, *results = answer
        if complaint:
            raise DriverError(getattr(complaint, "name", str(complaint)))
        return results[0] if results else None

    def _settle(self) -> None:
        self._ask(self.api.cuCtxSetCurrent(self.context))
        self.seat.settled = True

    def allocate(self, size: int) -> int:
        """The address of so many bytes, whatever lay there."""
        if not self.seat.settled:
            self._settle()
        api = self.api
        return int(self._ask(api.cuMemAllocAsync(size, self.stream) if self.pooled else api.cuMemAlloc(size)))

    def free(self, address: int) -> None:
        """Give memory back once the kernels launched so far are done with it."""
        if not self.seat.settled:
            self._settle()
        if self.pooled:
            self.api.cuMemFreeAsync(address, self.stream)
        else:
            self.api.cuMemFree(address)

    def upload(self, address: int, host: Any) -> None:
        """A contiguous host array to the device; the array may be written again when this returns."""
        self._ask(self.api.cuMemcpyHtoD(address, host.ctypes.data, host.nbytes))

    def download(self, host: Any, address: int) -> None:
        """From the device into a contiguous host array, when all kernels launched so far are done."""
        self._ask(self.api.cuMemcpyDtoH(host.ctypes.data, address, host.nbytes))

    def copy(self, target: int, source: int, size: int) -> None:
        self._ask(self.api.cuMemcpyDtoDAsync(target, source, size, self.stream))

    def wait(self, stream: int = LEGACY_STREAM) -> None:
        """Until everything on a stream is done."""
        if not self.seat.settled:
            self._settle()
        self._ask(self.api.cuStreamSynchronize(self.api.CUstream(stream)))

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and all of them."""
        complaint, free, total = self.api.cuMemGetInfo()
        self._ask((complaint,))
        return int(free), int(total)

    def stamp(self) -> Any:
        """A mark on the stream, which is given the time at which the GPU comes to it."""
        mark = self._ask(self.api.cuEventCreate(0))
        self._ask(self.api.cuEventRecord(mark, self.stream))
        return mark

    def seconds(self, first: Any, last: Any) -> float:
        """Between two marks; waits for the second."""
        self._ask(self.api.cuEventSynchronize(last))
        return float(self._ask(self.api.cuEventElapsedTime(first, last))) / 1e3

    def load(self, kernel: Any, dtype: Any) -> Any:
        """A kernel for numbers of a dtype: compiled for this GPU, and ready to be launched."""
        if not self.seat.settled:
            self._settle()
        ptx = kernel.ptx(dtype, self.capability)
        module = self._ask(self.api.cuModuleLoadData(ptx.encode() + b"\0"))
        name = ptx.split(".visible .entry ", 1)[1].split("(", 1)[0].strip()
        return self._ask(self.api.cuModuleGetFunction(module, name.encode()))

    def launch(
        self, function: Any, grid: tuple[int, ...], block: tuple[int, ...], layout: struct.Struct, words: list[Any]
    ) -> None:
        """Put a kernel on the stream; nothing is waited for."""
        seat = self.seat
        if not seat.settled:
            self._settle()
        layout.pack_into(seat.words, 0, *words)
        shape = *grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block))
        complaint = self.api.cuLaunchKernel(function, *shape, 0, self.stream, seat.addresses, 0)
        if complaint[0]:
            self._ask(complaint)


class Simulator:
    """Main memory and numba-cuda's simulator in the driver's place."""

    capability = (9, 0)

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

    def allocate(self, size: int) -> int:
        block = np.full(size, 0xA5, np.uint8)  # nobody should take what lay there for a zero
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def free(self, address: int) -> None:
        self.blocks.pop(address, None)

    def upload(self, address: int, host: Any) -> None:
        ctypes.memmove(address, host.ctypes.data, host.nbytes)

    def download(self, host: Any, address: int) -> None:
        ctypes.memmove(host.ctypes.data, address, host.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)

    def wait(self, stream: int = LEGACY_STREAM) -> None:
        pass

    def memory(self) -> tuple[int, int]:
        return 0, sum(block.nbytes for block in self.blocks.values())

    def stamp(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return last - first

    def load(self, kernel: Any, dtype: Any) -> Any:
        from numba import cuda

        return cuda.jit(kernel.function), kernel.arguments, dtype

    def launch(
        self, function: Any, grid: tuple[int, ...], block: tuple[int, ...], layout: struct.Struct, words: list[Any]
    ) -> None:
        dispatcher, letters, dtype = function
        buffer = bytearray(layout.size)
        layout.pack_into(buffer, 0, *words)
        dispatcher[grid, block](*_unpacked(letters, dtype, list(layout.unpack_from(buffer))))


def _unpacked(letters: str, dtype: Any, words: list[Any]) -> list[Any]:
    """A kernel's arguments from their words, arrays as NumPy's over the same memory."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    from refvt.backends.cuda import AXES, INTEGERS

    arguments: list[Any] = []
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in AXES:
            arguments.append(dtype.type(words.pop(0)) if letter == "x" else words.pop(0))
            continue
        axes = AXES[letter]
        (_, _, size, _, address), words = words[:5], words[5:]
        shape, strides, words = tuple(words[:axes]), tuple(words[axes : 2 * axes]), words[2 * axes :]
        kind = np.dtype(INTEGERS.get(letter, dtype))
        reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + kind.itemsize if size else 0
        memory: Any = (ctypes.c_char * reach).from_address(address) if size else b""
        arguments.append(FakeCUDAArray(np.ndarray(shape, kind, memory, 0, strides)))
    return arguments


@cache
def driver() -> Any:
    """The driver of this process's GPU, or what stands in for it. DriverError if it cannot be started."""
    return Simulator() if SIMULATED else Driver()
