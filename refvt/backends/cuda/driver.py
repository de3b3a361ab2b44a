"""What the ``cuda`` column asks of the GPU's driver, in one place: memory, copies, loading a kernel and launching it.

Every kernel and every copy takes its place on one stream, the legacy default one. Memory comes from a ``Pool``, which
asks the driver only where it has none of the size: that takes longer than many a kernel.

Under numba-cuda's simulator main memory stands in for the device's and the simulator runs the kernels; they are given
their arguments packed and unpacked again, as a GPU would be.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import numpy as np
from numba.cuda.core import config

from refvt.backends.cuda.memory import DriverError, NoShelf, Pool, Recorder, Recording, Shelf, unrecordable
from refvt.backends.cuda.ptx_cache import ENTRY, kept_ptx

__all__ = ["AXES", "INTEGERS", "SIMULATED", "STRIDED", "DriverError", "driver"]

SIMULATED = bool(config.ENABLE_CUDASIM)
MOST_WORDS = 256  # of a kernel's arguments
STAGE = 1 << 22  # bytes of main memory that the GPU reads by itself
LEGACY_STREAM = 1  # the driver's number for the default stream that waits for all others of its kind
# what the letters of a kernel's arguments stand for: axes of an array, which of them may have gaps, and the dtype where
# it is not that of the kernel's floats
AXES = {"F": 2, "I": 2, "f": 1, "v": 1, "i": 1, "b": 1, "3": 3, "5": 5}
STRIDED = "Fv"
INTEGERS = {"I": "int64", "i": "int64", "b": "bool"}


class _Seat(threading.local):
    """A host thread's own place for the arguments of a launch: words of eight bytes, and the address of each."""

    def __init__(self) -> None:
        self.words = ctypes.create_string_buffer(8 * MOST_WORDS)
        first = ctypes.addressof(self.words)
        self._addresses = (ctypes.c_void_p * MOST_WORDS)(*(first + 8 * i for i in range(MOST_WORDS)))
        self.addresses = ctypes.addressof(self._addresses)
        self.settled = False  # does this thread work in the GPU's context?
        self.stream: Any = None  # where this thread's launches go, if not to the stream of all
        self.pool: Pool | None = None  # where it takes memory from, if not from that of all


class Driver:
    """The first GPU this process sees, through NVIDIA's own bindings of the driver (package cuda-bindings)."""

    def __init__(self) -> None:
        from cuda.bindings import driver as api

        self.api, self.seat, self.context = api, _Seat(), None
        self._call("cuInit", 0)
        self.device = self._call("cuDeviceGet", 0)
        self.context = self._call("cuDevicePrimaryCtxRetain", self.device)  # PyTorch's and CuPy's too
        self.capability = self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")
        self.stream = api.CUstream(LEGACY_STREAM)
        self.lock = threading.RLock()
        # a tool that watches memory must see every array by itself
        self.records = os.environ.get("REFVT_CUDA_KEEP_MEMORY") != "0"
        self.pool = Pool(self.records, partial(self._call, "cuMemFree"))
        self.hoards: Any = weakref.WeakSet()  # who has memory that they could do without: asked to ``clear`` it
        self.stage = self._call("cuMemAllocHost", STAGE)  # memory that the GPU can copy from while the host goes on
        self.staged = 0

    def _call(self, name: str, *arguments: Any) -> Any:
        """What a function of the driver answers. DriverError if it complains."""
        if not self.seat.settled and self.context is not None:
            self._settle()
        complaint, *results = getattr(self.api, name)(*arguments)
        if complaint:
            raise DriverError(f"{name}: {getattr(complaint, 'name', complaint)}")
        return results[0] if len(results) == 1 else results

    def _settle(self) -> None:
        """Let this thread work in the GPU's context."""
        self.seat.settled = True
        self._call("cuCtxSetCurrent", self.context)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self.device))

    def describe(self) -> dict[str, Any]:
        """Name, compute capability, multiprocessors and memory of the GPU, and the newest CUDA its driver knows."""
        name = bytes(self._call("cuDeviceGetName", 256, self.device)).split(b"\0")[0].decode()
        version = int(self._call("cuDriverGetVersion"))
        return {
            "gpu": name,
            "compute_capability": "{}.{}".format(*self.capability),
            "multiprocessors": self._attribute("MULTIPROCESSOR_COUNT"),
            "memory_bytes": self.memory()[1],
            "driver": f"{version // 1000}.{version % 1000 // 10}",
        }

    def shelf(self, size: int) -> Shelf | NoShelf:
        """Where memory for so many bytes is taken from (``pop``, or ``allocate`` if there is none) and put back.

        The kernels that used a piece last are done when those to come begin, for all run on one stream. Any thread may
        take and put back: a list does either in one step.
        """
        return (self.seat.pool or self.pool).shelf(size)

    def allocate(self, shelf: Shelf | NoShelf) -> int:
        """The address of a new piece of memory for a shelf, whatever lies there."""
        with self.lock:
            try:
                return int(self._call("cuMemAlloc", shelf.size))
            except DriverError:
                for hoard in list(self.hoards):
                    hoard.clear()
                if not self.pool.bytes():
                    raise
                self.pool.release()
                return int(self._call("cuMemAlloc", shelf.size))

    def record(self, work: Callable[[], Any]) -> Recording:
        """Do ``work`` without doing it: its launches become a graph of the driver's, which one call launches.

        Work must launch the same whatever the numbers are, and ask for none. What it needs must be on the device. Its
        memory is its own for as long as the recording lives.
        """
        seat, pool, graph = self.seat, Pool(True, self.pool.free), None
        # the stream of all cannot be recorded; one that does not wait for it can, while other threads go on
        stream = self._call("cuStreamCreate", self.api.CUstream_flags.CU_STREAM_NON_BLOCKING)
        try:
            self._call("cuStreamBeginCapture", stream, self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
            seat.stream, seat.pool = stream, pool
            try:
                result = work()
            except BaseException:
                with suppress(DriverError):  # what went wrong in ``work`` is of more use
                    graph = self._call("cuStreamEndCapture", stream)
                raise
            finally:
                seat.stream = seat.pool = None
            graph = self._call("cuStreamEndCapture", stream)
            launchable = self._call("cuGraphInstantiate", graph, 0)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # arrays of the passes under way go back to their shelves
            result = None
            pool.release()
            raise
        finally:
            if graph is not None:
                self._call("cuGraphDestroy", graph)
            self._call("cuStreamDestroy", stream)

        def forget() -> None:
            self._call("cuGraphExecDestroy", launchable)
            pool.release()

        return Recording(result, partial(self._call, "cuGraphLaunch", launchable, self.stream), forget)

    def _now(self, what: str) -> None:
        """DriverError if this thread's launches are being recorded: then nothing can be done at once."""
        if self.seat.stream is not None:
            raise unrecordable(what)

    def upload(self, address: int, host: Any) -> None:
        """A contiguous host array to the device; the array may be written again when this returns.

        From ordinary memory the driver copies only when the GPU has done all it was asked, so that the host could never
        go ahead of it. Small arrays, of indices mostly, therefore go by way of memory that the GPU reads itself.
        """
        self._now("an upload")
        size = host.nbytes
        if size > STAGE // 4:
            self._call("cuMemcpyHtoD", address, host.ctypes.data, size)
            return
        with self.lock:
            if self.staged + size > STAGE:
                self.wait()  # until what was staged before has been fetched
                self.staged = 0
            place = int(self.stage) + self.staged
            self.staged += -(-size // 64) * 64
            ctypes.memmove(place, host.tobytes(), size)  # a copy more, but asking for the address takes longer
            self._call("cuMemcpyHtoDAsync", address, place, size, self.stream)

    def download(self, host: Any, address: int) -> None:
        """From the device into a contiguous host array, when all kernels launched so far are done."""
        self._now("a download")
        self._call("cuMemcpyDtoH", host.ctypes.data, address, host.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, size, self.seat.stream or self.stream)

    def wait(self, stream: int = LEGACY_STREAM) -> None:
        """Until everything on a stream is done."""
        self._call("cuStreamSynchronize", self.api.CUstream(stream))

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, those that are kept for later among them, and all."""
        free, total = self._call("cuMemGetInfo")
        return int(free) + self.pool.bytes(), int(total)

    def stamp(self) -> Any:
        """A mark on the stream, which is given the time at which the GPU comes to it."""
        mark = self._call("cuEventCreate", 0)
        self._call("cuEventRecord", mark, self.stream)
        return mark

    def seconds(self, first: Any, last: Any) -> float:
        """Between two marks, which are then done with; waits for the second."""
        self._call("cuEventSynchronize", last)
        milliseconds = float(self._call("cuEventElapsedTime", first, last))
        for mark in (first, last):
            self._call("cuEventDestroy", mark)
        return milliseconds / 1e3

    def load(self, kernel: Any, dtype: Any) -> Any:
        """A kernel for numbers of a dtype: compiled for this GPU, and ready to be launched."""
        ptx = kept_ptx(kernel, dtype, self.capability)
        name = ptx.split(ENTRY, 1)[1].split("(", 1)[0].strip()
        try:
            module = self._call("cuModuleLoadData", ptx.encode() + b"\0")
            return self._call("cuModuleGetFunction", module, name.encode())
        except DriverError as error:
            raise DriverError(f"kernel {kernel.name} for {np.dtype(dtype)}: {error}") from error

    def launch(
        self, function: Any, grid: tuple[int, ...], block: tuple[int, ...], layout: struct.Struct, words: list[Any]
    ) -> None:
        """Put a kernel on the stream; nothing is waited for."""
        seat = self.seat
        if not seat.settled:
            self._settle()
        layout.pack_into(seat.words, 0, *words)
        shape = *grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block))
        complaint = self.api.cuLaunchKernel(function, *shape, 0, seat.stream or self.stream, seat.addresses, 0)
        if complaint[0]:
            raise DriverError(f"a grid of {grid} blocks of {block} threads: {getattr(complaint[0], 'name', complaint)}")


class Simulator(Recorder):
    """Main memory and numba-cuda's simulator in the driver's place."""

    capability = (9, 0)

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[int, Any] = {}

    def shelf(self, size: int) -> NoShelf:
        return NoShelf(size, self.free)

    def allocate(self, shelf: NoShelf) -> int:
        block = np.full(shelf.size, 0xA5, np.uint8)  # nobody should take what lay there for a zero
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)

    def freed(self, address: int) -> None:
        self.blocks.pop(address, None)

    def upload(self, address: int, host: Any) -> None:
        self.now("an upload")
        ctypes.memmove(address, host.ctypes.data, host.nbytes)

    def download(self, host: Any, address: int) -> None:
        self.now("a download")
        ctypes.memmove(host.ctypes.data, address, host.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        self.now_or_later(partial(ctypes.memmove, target, source, size))

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
        self.now_or_later(lambda: dispatcher[grid, block](*_unpacked(letters, dtype, list(layout.unpack_from(buffer)))))


def _unpacked(letters: str, dtype: Any, words: list[Any]) -> list[Any]:
    """A kernel's arguments from their words, arrays as NumPy's over the same memory."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

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
