"""What the ``cuda`` column asks of the GPU's driver, in one place: memory, copies, loading a kernel and launching it.

Every kernel and every copy takes its place on one stream, the legacy default one. So memory that an array leaves behind
can be handed out again at once, to the kernels that follow; only where there is none of the size is the driver asked,
which takes longer than many a kernel.

Under numba-cuda's simulator main memory stands in for the device's and the simulator runs the kernels; they are given
their arguments packed and unpacked again, as a GPU would be.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import time
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
        self.sizes: dict[int, int] = {}  # of all pieces of memory, by their address
        self.spare: dict[int, list[int]] = {}  # pieces that nobody needs at present, by their size

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
        """The address of so many bytes, whatever lay there: a piece that was given back, if there is one of the size.

        The kernels that used it last are done when those to come begin, for all run on one stream.
        """
        step = 1 << max(9, size.bit_length() - 4)  # sizes are few, so that pieces fit again: at most an eighth too long
        size = -(-size // step) * step
        spare = self.spare.get(size)
        if spare:
            return spare.pop()
        if not self.seat.settled:
            self._settle()
        answer = self.api.cuMemAlloc(size)
        if answer[0] and any(self.spare.values()):
            self.release()
            answer = self.api.cuMemAlloc(size)
        address = int(self._ask(answer))
        self.sizes[address] = size
        return address

    def free(self, address: int) -> None:
        """Keep memory for the next who asks for as much."""
        self.spare.setdefault(self.sizes[address], []).append(address)

    def release(self) -> None:
        """Give the driver back what nobody needs at present; waits for all kernels."""
        for pieces in self.spare.values():
            while pieces:
                address = pieces.pop()
                del self.sizes[address]
                self._ask(self.api.cuMemFree(address))

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
        """Bytes that are free, those that are kept for later among them, and all."""
        complaint, free, total = self.api.cuMemGetInfo()
        self._ask((complaint,))
        return int(free) + sum(size * len(pieces) for size, pieces in self.spare.items()), int(total)

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
