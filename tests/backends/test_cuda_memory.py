"""Where device arrays get their memory, without a GPU: a pool that stands in for the driver's.

Needs numba-cuda itself, not its simulator.
"""

import gc
import os
import weakref
from importlib.util import find_spec
from types import SimpleNamespace

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
        self._numba_type_ = (described["typestr"], len(described["shape"]))

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
        properties = SimpleNamespace(memory_pools_supported=True)

        def __init__(self, number):
            self.id = number

        def set_current(self):
            pass

    monkeypatch.setattr(cuda.core, "Device", Device)
    manager = type("NumbaCUDAMemoryManager", (), {})()
    monkeypatch.setattr(numba_cuda, "get_current_device", lambda: Device(0))
    monkeypatch.setattr(numba_cuda, "current_context", lambda: SimpleNamespace(memory_manager=manager))
    monkeypatch.setattr(numba_cuda, "from_cuda_array_interface", View)
    column._pool.cache_clear()
    monkeypatch.setattr(column, "_TYPES", {})
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
    # one type for all of a kind, and none for another's
    kinds = [column.empty(shape, dtype) for shape, dtype in ((3, "f4"), ((2, 3), "f4"), ((2, 3), "f8"), ((5, 1), "f4"))]
    assert [array._numba_type_ for array in kinds] == [("<f4", 1), ("<f4", 2), ("<f8", 2), ("<f4", 2)]
    there = column.upload(np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::2])
    assert there.host.tolist() == [[0, 2], [3, 5]]


@pytest.fixture
def driver(monkeypatch):
    """numba-cuda's own way to an array."""
    monkeypatch.setattr("numba.cuda.device_array", lambda shape, dtype: np.zeros(shape, dtype))


@pytest.mark.parametrize("supported", [True, False])
def test_without_a_pool_the_driver_is_asked_and_it_is_said(column, driver, monkeypatch, supported):
    column, pool = column
    asked = []

    def none(size, *, stream):
        asked.append(size)
        raise RuntimeError("CUDA_ERROR_NOT_SUPPORTED")

    monkeypatch.setattr(pool, "allocate", none)
    monkeypatch.setattr("cuda.core.Device.properties", SimpleNamespace(memory_pools_supported=supported))
    reason = "CUDA_ERROR_NOT_SUPPORTED" if supported else "the driver has none"
    with pytest.warns(UserWarning, match=f"no memory pool.*{reason}"):
        assert column.empty((2, 2), "float32").shape == (2, 2)
    assert column.empty(4, "float32").shape == (4,)
    assert len(asked) == supported  # once and for all


def test_a_pool_that_is_full_is_no_missing_pool(column, driver, monkeypatch):
    column, pool = column

    def full(size, *, stream):
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(pool, "allocate", full)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="OUT_OF_MEMORY"):
            column.empty((2, 2), "float32")


def test_a_memory_manager_of_the_users_choice_is_asked(column, driver, monkeypatch):
    column, pool = column
    chosen = SimpleNamespace(memory_manager=type("RMMNumbaManager", (), {})())
    monkeypatch.setattr("numba.cuda.current_context", lambda: chosen)
    assert column.empty((2, 2), "float32").shape == (2, 2)
    assert not pool.asked
