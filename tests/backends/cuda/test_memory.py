"""The calls of the driver, without a GPU: bindings that stand in for NVIDIA's, over main memory.

Needs numba-cuda itself, not its simulator.
"""

# ruff: noqa: N802, N815 - the stand-in has the names of what it stands for

import ctypes
import gc
import os
import threading
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs the extra cuda: numba-cuda"),
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="the simulator has a driver of its own"),
]


class Error:
    def __init__(self, name=None):
        self.name = name

    def __bool__(self):
        return self.name is not None


OK = Error()


class Named:
    def __getattr__(self, name):
        return name


class Bindings:
    """cuda.bindings.driver, as far as it is used, over main memory."""

    CUdevice_attribute = CUstream_flags = CUstreamCaptureMode = Named()

    def __init__(self):
        self.alive, self.launched, self.settled, self.capacity = {}, [], [], 1 << 20
        self.CUstream, self.here = lambda number: ("stream", number), set()

    def __getattribute__(self, name):
        """A thread must have made the context current before any other call."""
        free = ("cuInit", "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent")
        if name.startswith("cu") and name not in free and threading.get_ident() not in self.here:
            return lambda *arguments: (Error("CUDA_ERROR_INVALID_CONTEXT"), None)
        return object.__getattribute__(self, name)

    def __getattr__(self, name):  # what only has to be called
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: (OK, name)

    def cuDeviceGetAttribute(self, attribute, device):
        return OK, {"MAJOR": 9, "MINOR": 0}[attribute.rsplit("_", 1)[1]]

    def cuCtxSetCurrent(self, context):
        assert context == "cuDevicePrimaryCtxRetain"
        self.settled.append(threading.get_ident())
        self.here.add(threading.get_ident())
        return (OK,)

    def cuMemAlloc(self, size):
        if size + sum(block.nbytes for block in self.alive.values()) > self.capacity:
            return Error("CUDA_ERROR_OUT_OF_MEMORY"), None
        block = np.empty(size, np.uint8)
        self.alive[block.ctypes.data] = block
        return OK, block.ctypes.data

    def cuMemAllocHost(self, size):
        self.stage = np.empty(size, np.uint8)
        return OK, self.stage.ctypes.data

    def cuMemFree(self, address):
        del self.alive[address]
        return (OK,)

    def cuMemcpyHtoD(self, target, source, size):
        ctypes.memmove(target, source, size)
        return (OK,)

    cuMemcpyDtoH = cuMemcpyHtoD

    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        assert stream == ("stream", 1)
        first = self.stage.ctypes.data
        assert first <= source <= source + size <= first + self.stage.nbytes  # other memory may change meanwhile
        return self.cuMemcpyHtoD(target, source, size)

    def cuMemcpyDtoDAsync(self, target, source, size, stream):
        assert stream == ("stream", 1)
        return self.cuMemcpyHtoD(target, source, size)

    def cuModuleLoadData(self, ptx):
        return OK, ptx

    def cuModuleGetFunction(self, module, name):
        assert b".entry " + name + b"(" in module
        assert module.endswith(b"\0")
        return OK, name.decode()

    def cuLaunchKernel(self, function, *arguments):
        *shape, shared, stream, addresses, extra = arguments
        assert (shared, extra) == (0, 0)
        assert stream in (("stream", 1), "cuStreamCreate")  # of captures
        words = [ctypes.c_int64.from_address(at).value for at in (ctypes.c_void_p * 40).from_address(addresses)]
        self.launched.append((function, tuple(shape), words))
        return (OK,)

    def cuMemGetInfo(self):
        return OK, 1 << 20, 1 << 30


@pytest.fixture
def gpu(monkeypatch):
    """The backend's functions on a GPU whose driver is ``bindings``."""
    from numba.cuda import dispatcher

    from refvt.backends.cuda import upload
    from refvt.backends.cuda.device_array import empty
    from refvt.backends.cuda.driver import driver
    from refvt.backends.cuda.elementwise import fill
    from refvt.backends.cuda.kernel import KERNELS

    bindings = Bindings()
    monkeypatch.setattr("cuda.bindings.driver", bindings)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "_loaded", {})
    monkeypatch.setattr(upload, "_COPIES", {})
    driver.cache_clear()
    yield (
        SimpleNamespace(
            empty=empty,
            fill=fill,
            driver=driver,
            upload=upload.upload,
            read_only=upload.read_only,
            copies=upload._COPIES,
        ),
        bindings,
    )
    gc.collect()
    driver.cache_clear()


def test_memory_that_an_array_leaves_is_used_again(gpu):
    cuda, bindings = gpu
    array = cuda.empty((3, np.int64(5)), "float32")
    assert (array.shape, array.dtype, array.strides) == ((3, 5), np.float32, (20, 4))
    assert bindings.alive[array.address].nbytes == 512
    view, address = array[1:].reshape(-1), array.address
    del array
    gc.collect()
    assert cuda.empty(100, "float32").address != address  # the view is still there
    del view
    gc.collect()
    assert cuda.empty(100, "float32").address == address
    assert cuda.empty(1000, "float64").address != address  # too small for that
    there = cuda.upload(np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2])
    assert there.copy_to_host().tolist() == [[0, 2], [3, 5]]
    assert cuda.empty((0, 3), "float32").size == 0


def test_many_uploads_go_by_the_stage_and_large_ones_past_it(gpu, monkeypatch):
    cuda, _ = gpu
    monkeypatch.setattr("refvt.backends.cuda.driver.STAGE", 4096)
    waited = []
    monkeypatch.setattr(cuda.driver(), "wait", lambda: waited.append(cuda.driver().staged))
    arrays = [np.full(n, n, np.int64) for n in (1, 100, 120, 90, 128, 3, 1000, 60)]
    there = [cuda.upload(array) for array in arrays]
    assert all(np.array_equal(mine.copy_to_host(), array) for mine, array in zip(there, arrays, strict=True))
    assert waited
    assert all(staged <= 4096 for staged in waited)


def test_a_tool_that_watches_memory_sees_every_array(monkeypatch, gpu):
    from refvt.backends.cuda.driver import driver

    cuda, bindings = gpu
    monkeypatch.setenv("REFVT_CUDA_KEEP_MEMORY", "0")
    driver.cache_clear()
    array = cuda.empty(5, "float32")
    assert bindings.alive[array.address].nbytes == 20
    del array
    gc.collect()
    assert not bindings.alive


def test_what_fails_is_named(gpu, monkeypatch):
    cuda, bindings = gpu
    x = cuda.upload(np.ones(4, np.float32))
    monkeypatch.setattr(bindings, "cuLaunchKernel", lambda *a: (Error("CUDA_ERROR_INVALID_VALUE"),))
    said = r"kernel cuda\.fill, a grid of \(1,\) blocks of \(128,\) threads: CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(RuntimeError, match=said):
        cuda.fill(x, 2.0)
    monkeypatch.setattr(bindings, "cuModuleLoadData", lambda *a: (Error("CUDA_ERROR_UNSUPPORTED_PTX_VERSION"), None))
    said = r"kernel cuda\.fill for float64: cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
    with pytest.raises(RuntimeError, match=said):
        cuda.fill(cuda.upload(np.ones(4)), 2.0)


@pytest.mark.parametrize("size", [1, 512, 513, 8191, 8193, 10**6])
def test_pieces_are_hardly_longer_than_what_was_asked_for(gpu, size):
    cuda, bindings = gpu
    array = cuda.empty(size, np.int8)
    (block,) = bindings.alive.values()
    assert size <= block.nbytes <= max(512, size + max(512, size // 8 + 1))
    del array


def test_kept_memory_is_released_before_an_allocation_fails(gpu):
    from refvt.backends import DeviceError
    from refvt.backends.cuda.arrays import session

    cuda, bindings = gpu
    held = cuda.empty(1 << 18, np.int8)
    for size in (1 << 17, 1 << 18, 3 << 17):
        cuda.empty(size, np.int8)
    assert len(bindings.alive) > 2
    large = cuda.empty(3 << 18, np.int8)
    assert set(bindings.alive) == {held.address, large.address}
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"memory is full \(1 of 1024 MiB are free\)"), session():
            cuda.empty(1, "float32")
    del large
    assert cuda.empty(1 << 19, np.int8).size == 1 << 19


def test_a_kernel_gets_its_words_in_the_order_of_its_parameters(gpu):
    from refvt.backends.cuda.arrays import _add_to_column

    cuda, bindings = gpu
    wide = cuda.upload(np.ones((4, 6), np.float32))
    part, values = wide.columns(1, 3), cuda.upload(np.ones(4, np.float32))
    _add_to_column.each(300, part, 1, values)
    _add_to_column.each(0, part, 1, values)  # an empty grid
    ((function, shape, words),) = bindings.launched
    assert "_add_to_column" in function
    assert shape == (3, 1, 1, 128, 1, 1)
    assert words[:9] == [0, 0, 8, 4, wide.address + 4, 4, 2, 24, 4]
    assert words[9:17] == [1, 0, 0, 4, 4, values.address, 4, 4]
    # what has no gaps goes to the same kernel; another dtype to one of its own
    _add_to_column.each(4, wide, 1, values)
    _add_to_column.each(4, cuda.upload(np.ones((4, 6))), 1, cuda.upload(np.ones(4)))
    functions = [function for function, *_ in bindings.launched]
    assert functions[0] == functions[1] != functions[2]


def test_a_captured_graph_has_its_own_stream_and_memory(gpu, monkeypatch):
    cuda, bindings = gpu
    x, calls = cuda.upload(np.ones(4, np.float32)), []
    streams = []
    monkeypatch.setattr(bindings, "cuLaunchKernel", lambda *a: streams.append(a[8]) or (OK,))
    monkeypatch.setattr(bindings, "cuGraphLaunch", lambda *a: calls.append(a) or (OK,))
    monkeypatch.setattr(bindings, "cuGraphExecDestroy", lambda *a: calls.append("destroyed") or (OK,))
    cuda.fill(x, 1.0)
    del x  # leaves memory of the size that is asked for next
    gc.collect()
    before = dict(bindings.alive)

    def work():
        for _ in range(3):
            y = cuda.fill(cuda.empty(4, "float32"), 2.0)
        return y

    graph = cuda.driver().capture(work)
    assert streams == [("stream", 1), *["cuStreamCreate"] * 3]
    assert len(bindings.alive) == len(before) + 2  # what is no longer needed serves again, but only there
    assert graph.result.address not in before
    graph.replay()
    assert calls == [("cuGraphInstantiate", ("stream", 1))]
    cuda.fill(cuda.empty(4, "float32"), 2.0)
    assert streams[-1] == ("stream", 1)
    del graph
    gc.collect()
    assert calls[-1] == "destroyed"
    assert len(bindings.alive) == len(before)


def test_graphs_are_dropped_when_memory_is_short(gpu):
    from refvt.backends.cuda.graphs import GraphCache

    cuda, bindings = gpu
    graphs = GraphCache()
    x = cuda.upload(np.ones(4, np.float32))

    def work(x):
        cuda.empty(1 << 16, np.int8)
        return [cuda.fill(cuda.empty(1 << 15, "float32"), 1.0)]

    for _ in range(3):
        y = graphs("way", {}, work, x)
    del y
    gc.collect()
    assert len(graphs._passes) == 1
    held = sum(block.nbytes for block in bindings.alive.values())
    large = cuda.empty(7 << 17, np.int8)
    assert len(graphs._passes) == 0
    assert large.size > (1 << 20) - held
    assert set(bindings.alive) == {x.address, large.address}


def test_what_needs_the_host_cannot_be_captured(gpu, monkeypatch):
    cuda, bindings = gpu
    x, ended = cuda.upload(np.ones(4, np.float32)), []
    monkeypatch.setattr(bindings, "cuStreamEndCapture", lambda stream: ended.append(stream) or (OK, "graph"))
    for work in (lambda: cuda.upload(np.ones(4)), lambda: x.copy_to_host()):
        with pytest.raises(RuntimeError, match=r"(an upload|a download) cannot be part of a captured graph"):
            cuda.driver().capture(work)
    assert len(ended) == 2
    assert x.copy_to_host().tolist() == [1, 1, 1, 1]


def test_a_pass_that_cannot_be_captured_runs_kernel_by_kernel(gpu):
    from refvt.backends.cuda.graphs import MAX_FAILURES, GraphCache

    cuda, bindings = gpu
    graphs = GraphCache()

    def double(x):
        temporary = cuda.empty(1 << 14, "float32")  # alive when the pass fails
        return [cuda.upload(2 * x.copy_to_host()), temporary]

    x = cuda.upload(np.arange(3.0))
    assert graphs("way", {}, double, x)[0].copy_to_host().tolist() == [0, 2, 4]
    before = len(bindings.alive)
    for _ in range(MAX_FAILURES - 1):
        assert graphs("way", {}, double, x)[0].copy_to_host().tolist() == [0, 2, 4]
    with pytest.warns(UserWarning, match="cannot be captured"):
        assert graphs("way", {}, double, x)[0].copy_to_host().tolist() == [0, 2, 4]
    assert graphs("way", {}, double, x)[0].copy_to_host().tolist() == [0, 2, 4]
    assert len(graphs._passes) == 1
    gc.collect()
    assert len(bindings.alive) <= before + 1  # the memory of failed captures is released, except the static input
    for n in range(20):
        graphs(n, {}, double, x)
    assert len(graphs._passes) == 8


def test_a_first_pass_that_fails_is_first_once_more(gpu):
    from refvt.backends.cuda.graphs import GraphCache

    cuda, _ = gpu
    graphs, x, calls = GraphCache(), cuda.upload(np.arange(3.0)), []

    def work(x):
        calls.append(x)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return [cuda.fill(cuda.empty(3, "float64"), 2.0)]

    with pytest.raises(KeyboardInterrupt):
        graphs("way", {}, work, x)
    assert not graphs._passes
    for _ in range(3):
        graphs("way", {}, work, x)
    assert [x is given for given in calls] == [True, True, False]  # fails, runs, is captured; then replayed


def test_arrays_that_a_graph_reads_stay_alive(gpu):
    from refvt.backends.cuda.graphs import GraphCache

    cuda, _ = gpu
    graphs, x = GraphCache(), cuda.upload(np.arange(3.0))
    addresses = []

    def work(x):
        addresses.append(cuda.read_only(np.array([0, 7])).address)
        return [cuda.fill(cuda.empty(3, "float64"), 2.0)]

    for _ in range(2):
        graphs("way", {}, work, x)
    cuda.copies.clear()
    gc.collect()
    fresh = [cuda.empty(2, np.int64) for _ in range(5)]
    assert addresses[1] not in [array.address for array in fresh]
    graphs.clear()
    gc.collect()
    assert addresses[1] in [cuda.empty(2, np.int64).address, *(cuda.empty(2, np.int64).address for _ in fresh)]


def test_a_new_pass_can_get_the_memory_of_graphs(gpu):
    """Also of the same model, and in the midst of its first pass."""
    from refvt.backends.cuda.graphs import GraphCache

    cuda, _ = gpu
    graphs, x = GraphCache(), cuda.upload(np.arange(3.0))

    def work(size):
        return lambda x: [cuda.fill(cuda.empty(size, "float32"), 1.0)]

    for _ in range(2):
        graphs("small", {}, work(1 << 16), x)
    assert [captured.graph is not None for captured in graphs._passes.values()] == [True]
    assert graphs("large", {}, work(7 << 15), x)[0].nbytes == 7 << 17
    assert all(captured.graph is None for captured in graphs._passes.values())


def test_every_thread_has_words_of_its_own(gpu):
    cuda, bindings = gpu
    x = cuda.upload(np.ones(4, np.float32))
    places = []

    def work():
        cuda.fill(x, 2.0)
        places.append(cuda.driver().state.addresses)

    def elsewhere():
        there = cuda.upload(np.arange(5.0))
        assert there.copy_to_host().tolist() == [0, 1, 2, 3, 4]
        del there
        work()

    work()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(set(places)) == len(set(bindings.settled)) == 2
