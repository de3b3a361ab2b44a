"""Reader of PyTorch zip checkpoints that needs no PyTorch and never runs code from a file.

``torch.save`` writes a zip file: ``<root>/data.pkl`` describes the tensors, and ``<root>/data/0``, ``data/1`` … contain
their bytes, uncompressed. Reading takes three steps, and each is checked before the next one allocates memory:
``Archive`` reads the zip directory, ``interpret`` the pickle, ``read_torch_zip`` the tensors. Every ValueError is about
the content of one file; the caller adds its path.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from refvt.array import Array
from refvt.model.checkpoints.torch_pickle import MAX_PICKLE, Storage, Tensor, interpret, shown

__all__ = ["Archive", "read_torch_zip"]

MAX_DIRECTORY = 4 << 20  # bytes of the zip directory, enough for about 50 000 tensors
MAX_VIEWS = 8  # most bytes of all tensors, in multiples of the file size: tensors can share a storage

_Order = Literal["little", "big"]
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


class Member(NamedTuple):
    """A member of a zip file: position and size of its bytes in the file, its unpacked size and its CRC-32."""

    start: int
    packed: int
    size: int
    crc: int
    deflated: bool


class _DirectoryReader(io.BufferedReader):
    """A file that refuses reads of more than ``MAX_DIRECTORY`` bytes, to limit the memory that zipfile takes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise ValueError(f"zip directory: expected at most {MAX_DIRECTORY} bytes, got {size}")
        return super().read(size)


class Archive:
    """A zip file whose members have distinct names, lie inside the file and do not overlap.

    ``members`` maps names to members; ``read`` unpacks one and checks its CRC-32. zipfile reads only the directory;
    this class decides which bytes are read. ValueError for a file that does not pass these checks.
    """

    def __init__(self, path: Path) -> None:
        self.file = _DirectoryReader(io.FileIO(path))
        self.members: dict[str, Member] = {}
        try:
            self.size = os.fstat(self.file.fileno()).st_size
            with zipfile.ZipFile(self.file) as directory:
                entries, limit = directory.infolist(), directory.start_dir
            end = 0  # overlapping members could make many large tensors out of a few bytes
            for entry in sorted(entries, key=lambda entry: entry.header_offset):
                if entry.header_offset < end:
                    raise ValueError(f"zip members overlap at {shown(entry.filename)}")
                end = self._add(entry)
                if end > limit:
                    raise ValueError(f"zip member {shown(entry.filename)} reaches beyond the file's data")
        except BaseException:
            self.file.close()
            raise

    def _add(self, entry: zipfile.ZipInfo) -> int:
        """Check a member and add it. Returns the position of the end of its bytes."""
        name = shown(entry.filename)
        if entry.filename in self.members:
            raise ValueError(f"zip member {name} occurs twice")
        if entry.flag_bits & 1:
            raise ValueError(f"zip member {name} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"zip member {name}: expected it stored or deflated, got compression method {entry.compress_type}"
            )
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        if not deflated and entry.compress_size != entry.file_size:
            raise ValueError(f"zip member {name} has two sizes, {entry.compress_size} and {entry.file_size} bytes")
        self.file.seek(entry.header_offset)
        signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack(self.file.read(_LOCAL_HEADER.size))
        encoded = entry.filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
        if signature != b"PK\x03\x04" or self.file.read(name_length) != encoded:
            raise ValueError(f"zip member {name} is not at the position that the directory gives")
        start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        self.members[entry.filename] = Member(start, entry.compress_size, entry.file_size, entry.CRC, deflated)
        return int(start + entry.compress_size)

    def read(self, name: str) -> bytes | bytearray:
        """Read and unpack the bytes of a member. ValueError if they are damaged."""
        member = self.members[name]
        data: bytes | bytearray = bytearray(member.packed)
        self.file.seek(member.start)
        if self.file.readinto(data) != member.packed:
            raise ValueError(f"zip member {shown(name)} is truncated")
        if member.deflated:  # never unpack more than the size in the directory
            data = zlib.decompressobj(-15).decompress(data, member.size + 1)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise ValueError(f"zip member {shown(name)} is damaged: its checksum differs")
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


# ---- the tensors


def read_torch_zip(archive: Archive) -> dict[str, Array]:
    """The tensors of a checkpoint by name, as new C-contiguous arrays.

    bfloat16 becomes float32; other types are kept. The tensors are those of the first dict under state_dict, model or
    model_state_dict, or of the whole file if there is none. Numbers, strings and None in that dict are skipped; one
    ValueError lists everything else.
    """
    roots = [name.removesuffix("/data.pkl") for name in archive.members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"expected one data.pkl, as in a PyTorch checkpoint, got {len(roots)}")
    root = roots[0]
    if f"{root}/constants.pkl" in archive.members:
        raise ValueError(
            "expected a checkpoint, got a TorchScript program: save the model's state_dict() with torch.save"
        )
    for name, member in archive.members.items():
        if member.deflated:
            raise ValueError(f"zip member {shown(name)} is compressed; torch.save never compresses")
    if archive.members[f"{root}/data.pkl"].size > MAX_PICKLE:
        raise ValueError(f"its pickle has more than {MAX_PICKLE} bytes")
    order = _byte_order(archive, f"{root}/byteorder")
    tensors = _choose_tensors(interpret(archive.read(f"{root}/data.pkl")))

    total = 0
    for name, tensor in tensors.items():
        try:
            total += _check_extent(tensor, archive.members.get(f"{root}/data/{tensor.storage.key}"))
        except ValueError as error:
            raise ValueError(f"{shown(name)}: {error}") from error
    if total > MAX_VIEWS * archive.size:
        raise ValueError(f"its tensors would take {total} bytes, more than {MAX_VIEWS} times the file's {archive.size}")

    arrays: dict[str, Array] = {}
    loaded: Storage | None = None
    base: Array = np.empty(0)
    # sorted by storage, so that each storage is read once
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].storage.key, item[1].storage.kind)):
        if tensor.storage != loaded:
            loaded = tensor.storage
            base = _numbers(archive.read(f"{root}/data/{loaded.key}"), loaded.kind, order)
        arrays[name] = _view(base, tensor)
    return {name: arrays[name] for name in tensors}


def _byte_order(archive: Archive, name: str) -> _Order:
    if name not in archive.members:  # PyTorch before 2.1
        return "little"
    if archive.members[name].size <= 6:
        match bytes(archive.read(name)):
            case b"little":
                return "little"
            case b"big":
                return "big"
    raise ValueError("byteorder: expected little or big, got something else")


def _choose_tensors(content: Any) -> dict[str, Tensor]:
    if type(content) is not dict:
        raise ValueError(f"expected a dict of tensors, got a {type(content).__name__}")
    for place in ("state_dict", "model", "model_state_dict"):
        if type(content.get(place)) is dict:
            content = content[place]
            break
    others = [
        f"{shown(str(name))} ({type(value).__name__})"
        for name, value in content.items()
        if not (type(name) is str and isinstance(value, Tensor | bool | int | float | str | None))
    ]
    if others:
        listed = ", ".join(others[:20]) + (" …" if len(others) > 20 else "")
        raise ValueError(f"expected only tensors under state_dict, model or at the top level, got also {listed}")
    tensors = {name: value for name, value in content.items() if type(value) is Tensor}
    if not tensors:
        raise ValueError("expected tensors under state_dict, model, model_state_dict or at the top level, got none")
    return tensors


def _check_extent(tensor: Tensor, member: Member | None) -> int:
    """Number of bytes of a tensor's array. ValueError if the tensor does not fit its storage or the file."""
    storage = tensor.storage
    if member is None:
        raise ValueError(f"its storage {shown(storage.key)} is not in the file")
    if storage.count * storage.itemsize != member.size:
        raise ValueError(f"expected a storage of {storage.count} × {storage.itemsize} bytes, got {member.size} bytes")
    elements = math.prod(tensor.shape)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    if elements and (last >= storage.count or elements > storage.count):
        raise ValueError(f"shape {list(tensor.shape)} reaches beyond its storage of {storage.count} numbers")
    return elements * (4 if storage.kind == "bf16" else storage.itemsize)


def _numbers(data: bytes | bytearray, kind: str, order: _Order) -> Array:
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
