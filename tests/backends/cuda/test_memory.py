"""What is asked of the driver, without a GPU: bindings that stand in for NVIDIA's, over main memory.

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


class Complaint:
    def __init__(self, name=None):
        self.name = name

    def __bool__(self):
        return self.name is not None


FINE = Complaint()


class Named:
    def __getattr__(self, name):
        return name


class Bindings:
    """cuda.bindings.driver, as far as it is used, over main memory."""

    CUdevice_attribute = CUstream_flags = CUstreamCaptureMode = Named()

    def __init__(self):
        self.alive, self.launched, self.settled, self.room = {}, [], [], 1 << 20
        self.CUstream, self.here = lambda number: ("stream", number), set()

    def __getattribute__(self, name):
        """A thread must be in the context before it asks for anything but that."""
        free = ("cuInit", "cuDeviceGet", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent")
        if name.startswith("cu") and name not in free and threading.get_ident() not in self.here:
            return lambda *arguments: (Complaint("CUDA_ERROR_INVALID_CONTEXT"), None)
        return object.__getattribute__(self, name)

    def __getattr__(self, name):  # what only has to be called
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: (FINE, name)

    def cuDeviceGetAttribute(self, attribute, device):
        return FINE, {"MAJOR": 9, "MINOR": 0}[attribute.rsplit("_", 1)[1]]

    def cuCtxSetCurrent(self, context):
        assert context == "cuDevicePrimaryCtxRetain"
        self.settled.append(threading.get_ident())
        self.here.add(threading.get_ident())
        return (FINE,)

    def cuMemAlloc(self, size):
        if size + sum(block.nbytes for block in self.alive.values()) > self.room:
            return Complaint("CUDA_ERROR_OUT_OF_MEMORY"), None
        block = np.empty(size, np.uint8)
        self.alive[block.ctypes.data] = block
        return FINE, block.ctypes.data

    def cuMemAllocHost(self, size):
        self.stage = np.empty(size, np.uint8)
        return FINE, self.stage.ctypes.data

    def cuMemFree(self, address):
        del self.alive[address]
        return (FINE,)

    def cuMemcpyHtoD(self, target, source, size):
        ctypes.memmove(target, source, size)
        return (FINE,)

    cuMemcpyDtoH = cuMemcpyHtoD

    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        assert stream == ("stream", 1)
        first = self.stage.ctypes.data
        assert first <= source <= source + size <= first + self.stage.nbytes  # what lies elsewhere may change meanwhile
        return self.cuMemcpyHtoD(target, source, size)

    def cuMemcpyDtoDAsync(self, target, source, size, stream):
        assert stream == ("stream", 1)
        return self.cuMemcpyHtoD(target, source, size)

    def cuModuleLoadData(self, ptx):
        return FINE, ptx

    def cuModuleGetFunction(self, module, name):
        assert b".entry " + name + b"(" in module
        assert module.endswith(b"\0")
        return FINE, name.decode()

    def cuLaunchKernel(self, function, *arguments):
        *shape, shared, stream, addresses, extra = arguments
        assert (shared, extra) == (0, 0)
        assert stream in (("stream", 1), "cuStreamCreate")  # where recordings are made
        words = [ctypes.c_int64.from_address(at).value for at in (ctypes.c_void_p * 40).from_address(addresses)]
        self.launched.append((function, tuple(shape), words))
        return (FINE,)

    def cuMemGetInfo(self):
        return FINE, 1 << 20, 1 << 30


@pytest.fixture
def column(monkeypatch):
    """The column on a GPU whose driver is ``bindings``."""
    from numba.cuda import dispatcher

    from refvt.backends.cuda.driver import driver
    from refvt.backends.cuda.kernel import kernel as column

    bindings = Bindings()
    monkeypatch.setattr("cuda.bindings.driver", bindings)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
    for kernel in column.KERNELS:
        monkeypatch.setattr(kernel, "_loaded", {})
    monkeypatch.setattr(column, "_COPIES", {})
    driver.cache_clear()
    yield column, bindings
    gc.collect()
    driver.cache_clear()


def test_memory_that_an_array_leaves_is_used_again(column):
    column, bindings = column
    array = column.empty((3, np.int64(5)), "float32")
    assert (array.shape, array.dtype, array.strides) == ((3, 5), np.float32, (20, 4))
    assert bindings.alive[array.address].nbytes == 512
    view, address = array[1:].reshape(-1), array.address
    del array
    gc.collect()
    assert column.empty(100, "float32").address != address  # the view is still there
    del view
    gc.collect()
    assert column.empty(100, "float32").address == address
    assert column.empty(1000, "float64").address != address  # too small for that
    there = column.upload(np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2])
    assert there.copy_to_host().tolist() == [[0, 2], [3, 5]]
    assert column.empty((0, 3), "float32").size == 0


def test_many_uploads_go_by_the_stage_and_large_ones_past_it(column, monkeypatch):
    column, _ = column
    monkeypatch.setattr("refvt.backends.cuda.driver.STAGE", 4096)
    waited = []
    monkeypatch.setattr(column.driver(), "wait", lambda: waited.append(column.driver().staged))
    arrays = [np.full(n, n, np.int64) for n in (1, 100, 120, 90, 128, 3, 1000, 60)]
    there = [column.upload(array) for array in arrays]
    assert all(np.array_equal(mine.copy_to_host(), array) for mine, array in zip(there, arrays, strict=True))
    assert waited
    assert all(staged <= 4096 for staged in waited)


def test_a_tool_that_watches_memory_sees_every_array(monkeypatch, column):
    from refvt.backends.cuda.driver import driver

    column, bindings = column
    monkeypatch.setenv("REFVT_CUDA_KEEP_MEMORY", "0")
    driver.cache_clear()
    array = column.empty(5, "float32")
    assert bindings.alive[array.address].nbytes == 20
    del array
    gc.collect()
    assert not bindings.alive


def test_what_fails_is_named(column, monkeypatch):
    column, bindings = column
    x = column.upload(np.ones(4, np.float32))
    monkeypatch.setattr(bindings, "cuLaunchKernel", lambda *a: (Complaint("CUDA_ERROR_INVALID_VALUE"),))
    said = r"kernel backends\.fill, a grid of \(1,\) blocks of \(128,\) threads: CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(RuntimeError, match=said):
        column.fill(x, 2.0)
    monkeypatch.setattr(
        bindings, "cuModuleLoadData", lambda *a: (Complaint("CUDA_ERROR_UNSUPPORTED_PTX_VERSION"), None)
    )
    said = r"kernel backends\.fill for float64: cuModuleLoadData: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
    with pytest.raises(RuntimeError, match=said):
        column.fill(column.upload(np.ones(4)), 2.0)


@pytest.mark.parametrize("size", [1, 512, 513, 8191, 8193, 10**6])
def test_pieces_are_hardly_longer_than_what_was_asked_for(column, size):
    column, bindings = column
    array = column.empty(size, np.int8)
    (block,) = bindings.alive.values()
    assert size <= block.nbytes <= max(512, size + max(512, size // 8 + 1))
    del array


def test_where_there_is_no_room_what_is_kept_is_given_back_first(column):
    from refvt.backends import DeviceError
    from refvt.backends.cuda.arrays import session

    column, bindings = column
    held = column.empty(1 << 18, np.int8)
    for size in (1 << 17, 1 << 18, 3 << 17):
        column.empty(size, np.int8)
    assert len(bindings.alive) > 2
    large = column.empty(3 << 18, np.int8)
    assert set(bindings.alive) == {held.address, large.address}
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"memory is full \(1 of 1024 MiB are free\)"), session():
            column.empty(1, "float32")
    del large
    assert column.empty(1 << 19, np.int8).size == 1 << 19


def test_a_kernel_gets_its_words_in_the_order_of_its_parameters(column):
    from refvt.backends.cuda.arrays import _add_to_column

    column, bindings = column
    wide = column.upload(np.ones((4, 6), np.float32))
    part, values = wide.columns(1, 3), column.upload(np.ones(4, np.float32))
    _add_to_column.each(300, part, 1, values)
    _add_to_column.each(0, part, 1, values)  # nobody has anything to do
    ((function, shape, words),) = bindings.launched
    assert "_add_to_column" in function
    assert shape == (3, 1, 1, 128, 1, 1)
    assert words[:9] == [0, 0, 8, 4, wide.address + 4, 4, 2, 24, 4]
    assert words[9:17] == [1, 0, 0, 4, 4, values.address, 4, 4]
    # what has no gaps goes to the same kernel; another dtype to one of its own
    _add_to_column.each(4, wide, 1, values)
    _add_to_column.each(4, column.upload(np.ones((4, 6))), 1, column.upload(np.ones(4)))
    functions = [function for function, *_ in bindings.launched]
    assert functions[0] == functions[1] != functions[2]


def test_a_recording_has_its_own_stream_and_memory(column, monkeypatch):
    column, bindings = column
    x, calls = column.upload(np.ones(4, np.float32)), []
    streams = []
    monkeypatch.setattr(bindings, "cuLaunchKernel", lambda *a: streams.append(a[8]) or (FINE,))
    monkeypatch.setattr(bindings, "cuGraphLaunch", lambda *a: calls.append(a) or (FINE,))
    monkeypatch.setattr(bindings, "cuGraphExecDestroy", lambda *a: calls.append("destroyed") or (FINE,))
    column.fill(x, 1.0)
    del x  # leaves memory of the size that is asked for next
    gc.collect()
    before = dict(bindings.alive)

    def work():
        for _ in range(3):
            y = column.fill(column.empty(4, "float32"), 2.0)
        return y

    recording = column.driver().record(work)
    assert streams == [("stream", 1), *["cuStreamCreate"] * 3]
    assert len(bindings.alive) == len(before) + 2  # what is no longer needed serves again, but only there
    assert recording.result.address not in before
    recording.play()
    assert calls == [("cuGraphInstantiate", ("stream", 1))]
    column.fill(column.empty(4, "float32"), 2.0)
    assert streams[-1] == ("stream", 1)
    del recording
    gc.collect()
    assert calls[-1] == "destroyed"
    assert len(bindings.alive) == len(before)


def test_recordings_are_given_up_for_memory(column):
    from refvt.backends.cuda.graphs import GraphCache

    column, bindings = column
    replays = GraphCache()
    x = column.upload(np.ones(4, np.float32))

    def work(x):
        column.empty(1 << 16, np.int8)
        return [column.fill(column.empty(1 << 15, "float32"), 1.0)]

    for _ in range(3):
        y = replays("way", {}, work, x)
    del y
    gc.collect()
    assert len(replays._known) == 1
    held = sum(block.nbytes for block in bindings.alive.values())
    large = column.empty(7 << 17, np.int8)
    assert len(replays._known) == 0
    assert large.size > (1 << 20) - held
    assert set(bindings.alive) == {x.address, large.address}


def test_what_needs_the_host_cannot_be_recorded(column, monkeypatch):
    column, bindings = column
    x, ended = column.upload(np.ones(4, np.float32)), []
    monkeypatch.setattr(bindings, "cuStreamEndCapture", lambda stream: ended.append(stream) or (FINE, "graph"))
    for work in (lambda: column.upload(np.ones(4)), lambda: x.copy_to_host()):
        with pytest.raises(RuntimeError, match=r"(an upload|a download) cannot be part of a recording"):
            column.driver().record(work)
    assert len(ended) == 2
    assert x.copy_to_host().tolist() == [1, 1, 1, 1]


def test_a_pass_that_cannot_be_recorded_runs_as_before(column):
    from refvt.backends.cuda.graphs import TRIES, GraphCache

    column, bindings = column
    replays = GraphCache()

    def double(x):
        room = column.empty(1 << 14, "float32")  # which it has when it fails
        return [column.upload(2 * x.copy_to_host()), room]

    x = column.upload(np.arange(3.0))
    assert replays("way", {}, double, x)[0].copy_to_host().tolist() == [0, 2, 4]
    before = len(bindings.alive)
    for _ in range(TRIES - 1):
        assert replays("way", {}, double, x)[0].copy_to_host().tolist() == [0, 2, 4]
    with pytest.warns(UserWarning, match="cannot be recorded"):
        assert replays("way", {}, double, x)[0].copy_to_host().tolist() == [0, 2, 4]
    assert replays("way", {}, double, x)[0].copy_to_host().tolist() == [0, 2, 4]
    assert len(replays._known) == 1
    gc.collect()
    assert (
        len(bindings.alive) <= before + 1
    )  # what the attempts had taken is given back, but for where clips were to lie
    for n in range(20):
        replays(n, {}, double, x)
    assert len(replays._known) == 8


def test_a_first_pass_that_fails_is_first_once_more(column):
    from refvt.backends.cuda.graphs import GraphCache

    column, _ = column
    replays, x, calls = GraphCache(), column.upload(np.arange(3.0)), []

    def work(x):
        calls.append(x)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return [column.fill(column.empty(3, "float64"), 2.0)]

    with pytest.raises(KeyboardInterrupt):
        replays("way", {}, work, x)
    assert not replays._known
    for _ in range(3):
        replays("way", {}, work, x)
    assert [x is given for given in calls] == [True, True, False]  # fails, runs, is recorded; then it is played


def test_what_a_recording_reads_stays(column):
    from refvt.backends.cuda.graphs import GraphCache

    column, _ = column
    replays, x = GraphCache(), column.upload(np.arange(3.0))
    places = []

    def work(x):
        places.append(column.read_only(np.array([0, 7])).address)
        return [column.fill(column.empty(3, "float64"), 2.0)]

    for _ in range(2):
        replays("way", {}, work, x)
    column._COPIES.clear()
    gc.collect()
    fresh = [column.empty(2, np.int64) for _ in range(5)]
    assert places[1] not in [array.address for array in fresh]
    replays.clear()
    gc.collect()
    assert places[1] in [column.empty(2, np.int64).address, *(column.empty(2, np.int64).address for _ in fresh)]


def test_a_new_pass_may_have_the_memory_of_recordings(column):
    """Also of the same model, and in the midst of its first pass."""
    from refvt.backends.cuda.graphs import GraphCache

    column, _ = column
    replays, x = GraphCache(), column.upload(np.arange(3.0))

    def work(size):
        return lambda x: [column.fill(column.empty(size, "float32"), 1.0)]

    for _ in range(2):
        replays("small", {}, work(1 << 16), x)
    assert [way.recording is not None for way in replays._known.values()] == [True]
    assert replays("large", {}, work(7 << 15), x)[0].nbytes == 7 << 17
    assert all(way.recording is None for way in replays._known.values())


def test_every_thread_has_words_of_its_own(column):
    column, bindings = column
    x = column.upload(np.ones(4, np.float32))
    places = []

    def work():
        column.fill(x, 2.0)
        places.append(column.driver().seat.addresses)

    def elsewhere():
        there = column.upload(np.arange(5.0))
        assert there.copy_to_host().tolist() == [0, 1, 2, 3, 4]
        del there
        work()

    work()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(set(places)) == len(set(bindings.settled)) == 2
