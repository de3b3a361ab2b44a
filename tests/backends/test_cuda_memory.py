"""Where device arrays get their memory, without a GPU: a pool that stands in for the driver's.

Needs numba-cuda itself, not its simulator.
"""

import gc
import os
import weakref
from importlib.util import find_spec

import numpy as np
import pytest

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs the extra cuda: numba-cuda"),
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="the simulator has no pool"),
]


class Memory:
    def __init__(self, size):
        self.block = np.zeros(size, np.uint8)
        self.handle = self.block.ctypes.data


class Pool:
    def __init__(self):
        self.asked = []

    def allocate(self, size, *, stream):
        memory = Memory(size)
        self.asked.append((size, stream, weakref.ref(memory)))
        return memory


class View:
    """What numba-cuda would make of a description; it keeps its owner, as numba-cuda's does."""

    def __init__(self, described, owner, sync):
        self.__array_interface__, self.owner = described, owner

    @property
    def host(self):
        return np.asarray(self)

    def copy_to_device(self, values):
        self.host[...] = values

    def copy_to_host(self):
        return self.host.copy()


@pytest.fixture
def column(monkeypatch):
    """The column, with a GPU whose driver offers ``pool``."""
    import cuda.core
    from numba import cuda as numba_cuda

    from refvt.backends import cuda as column

    pool = Pool()

    class Device:
        memory_resource, default_stream = pool, "the default stream"

        def __init__(self, number):
            self.id = number

        def set_current(self):
            pass

    monkeypatch.setattr(cuda.core, "Device", Device)
    monkeypatch.setattr(numba_cuda, "get_current_device", lambda: Device(0))
    monkeypatch.setattr(numba_cuda, "from_cuda_array_interface", View)
    column._pool.cache_clear()
    yield column, pool
    column._pool.cache_clear()


def test_arrays_are_pieces_of_the_pool_and_go_back_to_it(column):
    column, pool = column
    array = column.empty((3, np.int64(5)), "float32")
    size, stream, memory = pool.asked[-1]
    assert (size, stream) == (60, "the default stream")
    assert array.host.shape == (3, 5)
    assert array.host.dtype == np.float32
    assert array.host.ctypes.data == memory().handle
    assert column.empty(np.int64(7), "float64").host.shape == (7,)
    del array
    gc.collect()
    assert memory() is None
    there = column.upload(np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2])
    assert there.host.tolist() == [[0, 2], [3, 5]]


def test_without_a_pool_the_driver_is_asked_and_it_is_said(column, monkeypatch):
    column, pool = column

    def none(size, *, stream):
        raise RuntimeError("CUDA_ERROR_NOT_SUPPORTED")

    monkeypatch.setattr(pool, "allocate", none)
    monkeypatch.setattr("numba.cuda.device_array", lambda shape, dtype: np.zeros(shape, dtype))
    with pytest.warns(UserWarning, match="no memory pool.*CUDA_ERROR_NOT_SUPPORTED"):
        assert column.empty((2, 2), "float32").shape == (2, 2)
    assert column.empty(4, "float32").shape == (4,)  # and asked once


def test_a_memory_manager_of_the_users_choice_is_asked(column, monkeypatch):
    column, pool = column
    monkeypatch.setattr(column.config, "CUDA_MEMORY_MANAGER", "rmm")
    monkeypatch.setattr("numba.cuda.device_array", lambda shape, dtype: np.zeros(shape, dtype))
    assert column.empty((2, 2), "float32").shape == (2, 2)
    assert not pool.asked
