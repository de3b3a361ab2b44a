"""The calls of the GPU's driver: memory, copies, loading a kernel and launching it.

Every kernel and every copy runs on one stream, the legacy default one. Memory comes from a ``CachingAllocator``, which
calls the driver only where no block of the size is free: such a call takes longer than many a kernel.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import numpy as np

from refvt.backends.cuda.memory import CachingAllocator, DriverError, FreeList, Graph, NoFreeList, cannot_capture
from refvt.backends.cuda.ptx_cache import ENTRY, kept_ptx
from refvt.backends.cuda.simulator import Simulator
from refvt.backends.cuda.sizes import SIMULATED

__all__ = ["LEGACY_STREAM", "Driver", "driver"]

MOST_WORDS = 256  # of a kernel's arguments
STAGE = 1 << 22  # bytes of pinned main memory for uploads
LEGACY_STREAM = 1  # the driver's number for the default stream that waits for all others of its kind


class _LaunchState(threading.local):
    """Launch state of one host thread: a buffer for the arguments, in words of eight bytes, and each word's address."""

    def __init__(self) -> None:
        self.words = ctypes.create_string_buffer(8 * MOST_WORDS)
        first = ctypes.addressof(self.words)
        self._addresses = (ctypes.c_void_p * MOST_WORDS)(*(first + 8 * i for i in range(MOST_WORDS)))
        self.addresses = ctypes.addressof(self._addresses)
        self.has_context = False  # whether the GPU's context is current in this thread
        self.stream: Any = None  # the stream of this thread's launches, while they are captured
        self.allocator: CachingAllocator | None = None  # and its allocator


class Driver:
    """The first GPU this process sees, through NVIDIA's own bindings of the driver (package cuda-bindings)."""

    def __init__(self) -> None:
        from cuda.bindings import driver as api

        self.api, self.state, self.context = api, _LaunchState(), None
        self._call("cuInit", 0)
        self.device = self._call("cuDeviceGet", 0)
        self.context = self._call("cuDevicePrimaryCtxRetain", self.device)  # PyTorch's and CuPy's too
        self.capability = self._attribute("COMPUTE_CAPABILITY_MAJOR"), self._attribute("COMPUTE_CAPABILITY_MINOR")
        self.stream = api.CUstream(LEGACY_STREAM)
        self.lock = threading.RLock()
        # a tool that checks memory accesses must see every array as an allocation of its own
        self.can_capture = os.environ.get("REFVT_CUDA_KEEP_MEMORY") != "0"
        self.allocator = CachingAllocator(self.can_capture, partial(self._call, "cuMemFree"))
        self.cache_owners: Any = weakref.WeakSet()  # objects whose ``clear`` frees memory
        self.stage = self._call("cuMemAllocHost", STAGE)  # pinned: copied from while the host goes on
        self.staged = 0

    def _call(self, name: str, *arguments: Any) -> Any:
        """The results of a driver function; DriverError if it fails."""
        if not self.state.has_context and self.context is not None:
            self._make_context_current()
        error, *results = getattr(self.api, name)(*arguments)
        if error:
            raise DriverError(f"{name}: {getattr(error, 'name', error)}")
        return results[0] if len(results) == 1 else results

    def _make_context_current(self) -> None:
        """Make the GPU's context current in this thread."""
        self.state.has_context = True
        self._call("cuCtxSetCurrent", self.context)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, self.device))

    def describe(self) -> dict[str, Any]:
        """Name, compute capability, multiprocessors and memory of the GPU, and the CUDA version of its driver."""
        name = bytes(self._call("cuDeviceGetName", 256, self.device)).split(b"\0")[0].decode()
        version = int(self._call("cuDriverGetVersion"))
        return {
            "gpu": name,
            "compute_capability": "{}.{}".format(*self.capability),
            "multiprocessors": self._attribute("MULTIPROCESSOR_COUNT"),
            "memory_bytes": self.memory()[1],
            "driver": f"{version // 1000}.{version % 1000 // 10}",
        }

    def free_list(self, size: int) -> FreeList | NoFreeList:
        """The free list for ``size`` bytes: take a block by ``pop``, or ``allocate`` one; ``append`` gives it back.

        Kernels that used a block before are done when new ones start, because all run on one stream. Any thread may
        pop and append: both are single steps of a list.
        """
        return (self.state.allocator or self.allocator).free_list(size)

    def allocate(self, free_list: FreeList | NoFreeList) -> int:
        """The address of a new block of memory for a free list; its contents are arbitrary."""
        with self.lock:
            try:
                return int(self._call("cuMemAlloc", free_list.size))
            except DriverError:
                for owner in list(self.cache_owners):
                    owner.clear()
                if not self.allocator.kept_bytes():
                    raise
                self.allocator.release()
                return int(self._call("cuMemAlloc", free_list.size))

    def capture(self, work: Callable[[], Any]) -> Graph:
        """Capture the launches of ``work`` as a CUDA graph, which one call replays; nothing is computed meanwhile.

        The launches must not depend on computed numbers, and all data must be on the device. The graph keeps its
        memory for as long as it lives.
        """
        state, allocator, graph = self.state, CachingAllocator(True, self.allocator.free), None
        # the default stream cannot be captured; a stream that does not wait for it can, while other threads go on
        stream = self._call("cuStreamCreate", self.api.CUstream_flags.CU_STREAM_NON_BLOCKING)
        try:
            self._call("cuStreamBeginCapture", stream, self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
            state.stream, state.allocator = stream, allocator
            try:
                result = work()
            except BaseException:
                with suppress(DriverError):  # the error of ``work`` says more
                    graph = self._call("cuStreamEndCapture", stream)
                raise
            finally:
                state.stream = state.allocator = None
            graph = self._call("cuStreamEndCapture", stream)
            launchable = self._call("cuGraphInstantiate", graph, 0)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # arrays of the interrupted pass give back their memory
            result = None
            allocator.release()
            raise
        finally:
            if graph is not None:
                self._call("cuGraphDestroy", graph)
            self._call("cuStreamDestroy", stream)

        def destroy() -> None:
            self._call("cuGraphExecDestroy", launchable)
            allocator.release()

        return Graph(result, partial(self._call, "cuGraphLaunch", launchable, self.stream), destroy)

    def _check_not_capturing(self, what: str) -> None:
        """DriverError while this thread's launches are being captured."""
        if self.state.stream is not None:
            raise cannot_capture(what)

    def upload(self, address: int, host: Any) -> None:
        """Copy a contiguous host array to the device; the array may be changed when this returns.

        From ordinary memory the driver copies only after the GPU has finished all earlier work. Small arrays, mostly
        indices, therefore go through pinned memory, so that the host need not wait.
        """
        self._check_not_capturing("an upload")
        size = host.nbytes
        if size > STAGE // 4:
            self._call("cuMemcpyHtoD", address, host.ctypes.data, size)
            return
        with self.lock:
            if self.staged + size > STAGE:
                self.wait()  # until the GPU has read what was staged before
                self.staged = 0
            source = int(self.stage) + self.staged
            self.staged += -(-size // 64) * 64
            ctypes.memmove(source, host.tobytes(), size)  # one more copy, but faster than .ctypes.data
            self._call("cuMemcpyHtoDAsync", address, source, size, self.stream)

    def download(self, host: Any, address: int) -> None:
        """Copy from the device into a contiguous host array; waits for all kernels launched so far."""
        self._check_not_capturing("a download")
        self._call("cuMemcpyDtoH", host.ctypes.data, address, host.nbytes)

    def copy(self, target: int, source: int, size: int) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, size, self.state.stream or self.stream)

    def wait(self, stream: int = LEGACY_STREAM) -> None:
        """Wait until everything on a stream is done."""
        self._call("cuStreamSynchronize", self.api.CUstream(stream))

    def memory(self) -> tuple[int, int]:
        """Number of bytes that are free, kept ones included, and of all bytes."""
        free, total = self._call("cuMemGetInfo")
        return int(free) + self.allocator.kept_bytes(), int(total)

    def record_event(self) -> Any:
        """Record an event on the stream: the time at which the GPU reaches it."""
        event = self._call("cuEventCreate", 0)
        self._call("cuEventRecord", event, self.stream)
        return event

    def elapsed(self, first: Any, last: Any) -> float:
        """Seconds between two events, which are then destroyed; waits for the second."""
        self._call("cuEventSynchronize", last)
        milliseconds = float(self._call("cuEventElapsedTime", first, last))
        for event in (first, last):
            self._call("cuEventDestroy", event)
        return milliseconds / 1e3

    def load(self, kernel: Any, dtype: Any) -> Any:
        """A kernel for floats of a dtype, compiled for this GPU and loaded."""
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
        """Launch a kernel on the stream, without waiting for it."""
        state = self.state
        if not state.has_context:
            self._make_context_current()
        layout.pack_into(state.words, 0, *words)
        shape = *grid, *(1,) * (3 - len(grid)), *block, *(1,) * (3 - len(block))
        error = self.api.cuLaunchKernel(function, *shape, 0, state.stream or self.stream, state.addresses, 0)
        if error[0]:
            raise DriverError(f"a grid of {grid} blocks of {block} threads: {getattr(error[0], 'name', error)}")


@cache
def driver() -> Any:
    """The driver of this process's GPU, or what stands in for it; DriverError if it cannot be started."""
    return Simulator() if SIMULATED else Driver()
