"""The zip files that ``torch.save`` and ``np.savez`` write, read with all sizes checked before memory is taken.

``torch.save`` writes a zip file: ``<root>/data.pkl`` describes the tensors, and ``<root>/data/0``, ``data/1`` … contain
their bytes, uncompressed. Reading takes three steps, and each is checked before the next one allocates memory:
``Archive`` reads the zip directory, ``interpret`` the pickle, ``assemble`` the tensors. Every ValueError is about the
content of one file; the caller adds its path.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from refvt.model.checkpoints.choice import Tensors, choose_tensors
from refvt.model.checkpoints.torch_pickle import MAX_PICKLE, interpret, shown
from refvt.model.checkpoints.torch_tensors import Order, assemble

__all__ = ["Archive", "read_torch_zip"]

MAX_DIRECTORY = 4 << 20  # bytes of the zip directory, enough for about 50 000 tensors
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

    ``members`` maps names to members; ``read`` unpacks one and checks its CRC-32, unless all of them are zero: PyTorch
    can be told not to compute them. zipfile reads only the directory; this class decides which bytes are read.
    ValueError for a file that does not pass these checks.
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
            self.has_checksums = any(member.crc for member in self.members.values())
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
        if len(data) != member.size or (self.has_checksums and zlib.crc32(data) != member.crc):
            raise ValueError(f"zip member {shown(name)} is damaged: its checksum differs")
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


# ---- the tensors


def read_torch_zip(archive: Archive, weights_key: str | None = None) -> Tensors:
    """The tensors of a checkpoint by name, as new C-contiguous arrays.

    bfloat16 becomes float32; other types are kept. Which dict they come from: see ``choose_tensors``.
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
    tensors, passed_over = choose_tensors(interpret(archive.read(f"{root}/data.pkl")), weights_key)
    prefix = f"{root}/data/"
    sizes = {name.removeprefix(prefix): m.size for name, m in archive.members.items() if name.startswith(prefix)}
    arrays = assemble(tensors, sizes, lambda key: archive.read(prefix + key), order, archive.size)
    return Tensors(arrays, passed_over)


def _byte_order(archive: Archive, name: str) -> Order:
    if name not in archive.members:  # PyTorch before 2.1
        return "little"
    if archive.members[name].size <= 6:
        match bytes(archive.read(name)):
            case b"little":
                return "little"
            case b"big":
                return "big"
    raise ValueError("byteorder: expected little or big, got something else")
