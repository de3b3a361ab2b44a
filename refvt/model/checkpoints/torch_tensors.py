"""Arrays from the storages of a PyTorch checkpoint: every tensor is a strided view of one, which is checked first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from refvt.array import Array
from refvt.model.checkpoints.torch_pickle import Storage, Tensor, shown

__all__ = ["MAX_VIEWS", "Order", "assemble"]

# Most bytes of all tensors: so many times the file's size and so many more. Tensors can share a storage, and one number
# can be broadcast to a whole tensor.
MAX_VIEWS, MORE_BYTES = 8, 64 << 20

Order = Literal["little", "big"]


def assemble(
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    read: Callable[[str], bytes | bytearray],
    order: Order,
    file_size: int,
) -> dict[str, Array]:
    """Return the arrays of tensors, new and C-contiguous; bfloat16 as float32.

    sizes: bytes of each storage. read: the bytes of one. ValueError for a tensor that does not lie in its storage, and
    for tensors that are together much larger than the file.
    """
    total = 0
    for name, tensor in tensors.items():
        try:
            total += _check_extent(tensor, sizes.get(tensor.storage.key))
        except ValueError as error:
            raise ValueError(f"{shown(name)}: {error}") from error
    if total > MAX_VIEWS * file_size + MORE_BYTES:
        raise ValueError(f"its tensors would take {total} bytes, more than {MAX_VIEWS} times the file's {file_size}")

    arrays: dict[str, Array] = {}
    loaded: Storage | None = None
    base: Array = np.empty(0)
    # sorted by storage, so that each storage is read once
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].storage.key, item[1].storage.kind)):
        if tensor.storage != loaded:
            loaded = tensor.storage
            base = _numbers(read(loaded.key), loaded.kind, order)
        arrays[name] = _view(base, tensor)
    return {name: arrays[name] for name in tensors}


def _check_extent(tensor: Tensor, size: int | None) -> int:
    """Number of bytes of a tensor's array. ValueError if the tensor does not fit its storage or the file."""
    storage = tensor.storage
    if size is None:
        raise ValueError(f"its storage {shown(storage.key)} is not in the file")
    if storage.count * storage.itemsize != size:
        raise ValueError(f"expected a storage of {storage.count} × {storage.itemsize} bytes, got {size} bytes")
    elements = math.prod(tensor.shape)
    last = tensor.offset + sum((count - 1) * step for count, step in zip(tensor.shape, tensor.stride, strict=True))
    if elements and last >= storage.count:
        raise ValueError(f"shape {list(tensor.shape)} reaches beyond its storage of {storage.count} numbers")
    return elements * (4 if storage.kind == "bf16" else storage.itemsize)


def _numbers(data: bytes | bytearray, kind: str, order: Order) -> Array:
    """The numbers of a storage in the byte order of this machine."""
    stored: Array = np.frombuffer(data, np.dtype({"bf16": "u2", "?": "u1"}.get(kind, kind)).newbyteorder(order))
    if kind == "bf16":  # a bfloat16 is the upper half of the float32 of the same value
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored != 0 if kind == "?" else stored.astype(kind, copy=False)


def _view(base: Array, tensor: Tensor) -> Array:
    if 0 in tensor.shape:
        return np.empty(tensor.shape, base.dtype)
    strides = [step * base.itemsize for step in tensor.stride]
    return np.array(np.lib.stride_tricks.as_strided(base[tensor.offset :], tensor.shape, strides), order="C")
