"""Checkpoints from before PyTorch 1.6: pickles one after another, then the bytes of each storage.

``torch.save`` wrote a magic number, a version, what the machine was like, the content and the keys of its storages,
each as a pickle. The storages follow in the order of their keys: the count of numbers in 64 bits, then the numbers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refvt.model.checkpoints.choice import Tensors, choose_tensors
from refvt.model.checkpoints.torch_pickle import interpret, shown
from refvt.model.checkpoints.torch_tensors import Order, assemble

__all__ = ["MAGIC", "read_torch_legacy"]

MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # the first bytes of the first pickle, after its protocol


def read_torch_legacy(path: Path, weights_key: str | None = None) -> Tensors:
    """The tensors of a checkpoint by name, as ``read_torch_zip`` gives them. ValueError for a damaged file."""
    with path.open("rb") as file:
        itemsizes: dict[str, int] = {}
        interpret(file)
        version, machine = interpret(file), interpret(file)
        if version != 1001 or type(machine) is not dict:
            raise ValueError(
                "expected version 1001 of the files from before PyTorch 1.6, got another or a damaged file"
            )
        order: Order = "little" if machine.get("little_endian", True) else "big"
        tensors, passed_over = choose_tensors(interpret(file, itemsizes), weights_key)
        places = _find_storages(file, interpret(file), itemsizes, order)

        def read(key: str) -> bytes:
            file.seek(places[key][0])
            return file.read(places[key][1])

        sizes = {key: size for key, (_, size) in places.items()}
        arrays = assemble(tensors, sizes, read, order, os.fstat(file.fileno()).st_size)
    return Tensors(arrays, passed_over)


def _find_storages(file: Any, keys: Any, itemsizes: dict[str, int], order: Order) -> dict[str, tuple[int, int]]:
    """Return where the bytes of each storage begin and how many they are."""
    size, at = os.fstat(file.fileno()).st_size, file.tell()
    places: dict[str, tuple[int, int]] = {}
    for key in keys if type(keys) is list else ():
        if type(key) is not str or key not in itemsizes:
            raise ValueError(f"its storage {shown(str(key)) if type(key) is str else '?'} has an unknown type")
        file.seek(at)
        length = int.from_bytes(file.read(8), order, signed=True) * itemsizes[key]
        if length < 0 or at + 8 + length > size:
            raise ValueError(f"its storage {shown(key)} is truncated")
        places[key] = (at + 8, length)
        at += 8 + length
    return places
