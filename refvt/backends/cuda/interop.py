"""Arrays of other libraries on the device: DLPack and ``__cuda_array_interface__``."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.backends.cuda.device_array import DeviceArray, layout_of
from refvt.backends.cuda.driver import LEGACY_STREAM, driver
from refvt.backends.cuda.errors import explained

__all__ = ["on_device"]

DLPACK_DEVICES = (2, 13)  # DLPack's kDLCUDA and kDLCUDAManaged


def on_device(array: Any) -> DeviceArray | None:
    """An array on the device as kernels take it, without a copy; None for anything else.

    Accepted are arrays of any library that supports DLPack (PyTorch, CuPy, JAX) or ``__cuda_array_interface__``. With
    DLPack our stream waits for the work that fills the array; with the other the host waits, if a stream is named.
    """
    if isinstance(array, DeviceArray):
        return array
    with explained():
        return _of_another_library(array)


def _of_another_library(array: Any) -> DeviceArray | None:
    if hasattr(array, "__dlpack_device__"):
        kind, number = array.__dlpack_device__()
        if kind in DLPACK_DEVICES:
            if number != 0:
                raise ValueError(
                    f"clips: expected an array on the first GPU that this process sees, got one on GPU {number}"
                )
            return _by_dlpack(array)
    found = getattr(array, "__cuda_array_interface__", None)
    if found is None:
        return None
    if found.get("stream"):
        driver().wait(found["stream"])
    strides = found.get("strides")
    layout = layout_of(tuple(found["shape"]), np.dtype(found["typestr"]), None if strides is None else tuple(strides))
    return DeviceArray(int(found["data"][0]), layout, array)


def _by_dlpack(array: Any) -> DeviceArray:
    from cuda.core.utils import StridedMemoryView

    exported = StridedMemoryView.from_dlpack(array, stream_ptr=LEGACY_STREAM)  # keeps the memory alive
    dtype, strides = np.dtype(exported.dtype), exported.strides
    in_bytes = None if strides is None else tuple(dtype.itemsize * stride for stride in strides)
    return DeviceArray(int(exported.ptr), layout_of(tuple(exported.shape), dtype, in_bytes), exported)
