"""The checksum that refvt's own .safetensors files carry: a flipped bit in a number looks like any other number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from refvt.array import Array

__all__ = ["CHECKSUM", "checksum"]

CHECKSUM = "refvt.sha256"  # its name in the metadata


def checksum(tensors: Mapping[str, Array], text: str = "") -> str:
    """SHA-256 of arrays, with their names, dtypes and shapes, and of a text beside them, as hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"\0{name}\0{array.dtype.str}{list(tensors[name].shape)}".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
