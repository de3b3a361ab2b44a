"""What is asked of the driver, without a GPU: bindings that stand in for NVIDIA's, over main memory.

Needs numba-cuda itself, not its simulator.
"""

# ruff: noqa: N802, N815 - the stand-in has the names of what it stands for

import ctypes
import gc
import os
import re
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

    CUdevice_attribute = CUmemPool_attribute = Named()

    def __init__(self):
        self.alive, self.launched, self.settled, self.pools, self.full = {}, [], [], True, False
        self.CUstream, self.cuuint64_t = lambda number: ("stream", number), int

    def __getattr__(self, name):  # what only has to be called
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: (FINE, name)

    def cuDeviceGetAttribute(self, attribute, device):
        values = {"MAJOR": 9, "MINOR": 0, "SUPPORTED": int(self.pools)}
        return FINE, values[attribute.rsplit("_", 1)[1]]

    def cuCtxSetCurrent(self, context):
        assert context == "cuDevicePrimaryCtxRetain"
        self.settled.append(threading.get_ident())
        return (FINE,)

    def cuMemAllocAsync(self, size, stream):
        assert self.pools
        assert stream == ("stream", 1)
        return self.cuMemAlloc(size)

    def cuMemAlloc(self, size):
        if self.full:
            return Complaint("CUDA_ERROR_OUT_OF_MEMORY"), None
        block = np.empty(size, np.uint8)
        self.alive[block.ctypes.data] = block
        return FINE, block.ctypes.data

    def cuMemFreeAsync(self, address, stream):
        assert self.pools
        assert stream == ("stream", 1)
        return self.cuMemFree(address)

    def cuMemFree(self, address):
        del self.alive[address]
        return (FINE,)

    def cuMemcpyHtoD(self, target, source, size):
        ctypes.memmove(target, source, size)
        return (FINE,)

    cuMemcpyDtoH = cuMemcpyHtoD

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
        assert (shared, stream, extra) == (0, ("stream", 1), 0)
        words = [ctypes.c_int64.from_address(at).value for at in (ctypes.c_void_p * 40).from_address(addresses)]
        self.launched.append((function, tuple(shape), words))
        return (FINE,)

    def cuMemGetInfo(self):
        return FINE, 1 << 20, 1 << 30


@pytest.fixture
def column(monkeypatch):
    """The column on a GPU whose driver is ``bindings``."""
    from numba.cuda import dispatcher

    from refvt.backends import cuda as column
    from refvt.backends.cuda_driver import driver

    bindings = Bindings()
    monkeypatch.setattr("cuda.bindings.driver", bindings)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
    for kernel in column.KERNELS:
        monkeypatch.setattr(kernel, "_loaded", {})
    driver.cache_clear()
    yield column, bindings
    gc.collect()
    driver.cache_clear()


def test_arrays_are_pieces_of_the_pool_and_go_back_to_it(column):
    column, bindings = column
    array = column.empty((3, np.int64(5)), "float32")
    assert (array.shape, array.dtype, array.strides) == ((3, 5), np.float32, (20, 4))
    assert bindings.alive[array.address].nbytes == 60
    view = array[1:].reshape(-1)
    address = array.address
    del array
    gc.collect()
    assert address in bindings.alive  # the view is still there
    del view
    gc.collect()
    assert address not in bindings.alive
    there = column.upload(np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2])
    assert there.copy_to_host().tolist() == [[0, 2], [3, 5]]
    assert column.empty((0, 3), "float32").size == 0


def test_without_a_pool_the_driver_is_asked_and_it_is_said(column):
    column, bindings = column
    bindings.pools = False
    with pytest.warns(UserWarning, match="no memory pool"):
        array = column.upload(np.arange(3.0))
    assert array.copy_to_host().tolist() == [0, 1, 2]
    del array
    assert not bindings.alive


def test_what_the_driver_complains_of_is_its_own_word(column):
    from refvt.backends import DeviceError
    from refvt.backends.device import session

    column, bindings = column
    column.empty(1, "float32")
    bindings.full = True
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"memory is full \(1 of 1024 MiB are free\)"), session():
            column.empty((2, 2), "float32")


def test_a_kernel_gets_its_words_in_the_order_of_its_parameters(column):
    from refvt.backends.device import _add_to_column

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


def test_every_thread_has_words_of_its_own(column):
    column, bindings = column
    x = column.upload(np.ones(4, np.float32))
    places = []

    def work():
        column.fill(x, 2.0)
        places.append(column.driver().seat.addresses)

    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(set(places)) == len(set(bindings.settled)) == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_words_are_those_of_the_compiled_kernels(dtype):
    """The parameters that PTX declares, against the layout: their number, and how wide each is."""
    from refvt.backends.ptx import compiled, every_kernel

    wide = {"q": (".u64", ".b64", ".s64"), "f": (".f32", ".b32"), "d": (".f64", ".b64")}
    for kernel in every_kernel(np.dtype(dtype).itemsize):
        declared = re.findall(r"\.param (?:\.align \d+ )?(\.\w+) ", compiled(kernel, dtype, (9, 0)).split(")", 1)[0])
        words = re.findall(r"(\d*)([qfd])", kernel.layout(dtype).format.replace("4x", ""))
        letters = "".join(letter * int(count or 1) for count, letter in words)
        assert len(declared) == len(letters), kernel.name
        assert all(given in wide[letter] for given, letter in zip(declared, letters, strict=True)), kernel.name
        assert kernel.layout(dtype).size == 8 * len(letters)
