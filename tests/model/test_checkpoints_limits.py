"""Untrusted files: every size is checked before memory is taken, and damage is found."""

import contextlib
import io
import pickle
import struct
import time
import zlib

import numpy as np
import pytest

from refvt.model.checkpoints import CheckpointError, read_checkpoint, save_parameters, torch_zip
from refvt.model.checkpoints.torch_pickle import MAX_OPCODES
from refvt.model.checkpoints.torch_zip import MAX_DIRECTORY
from tests.support.checkpoint_files import VALUES, dict_of, refused, storage, stored, tensor, text, torch_file, zip_of


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file.pth"


def zeros_deflated(megabytes):
    """That many megabytes of zeros, deflated; built by repeating one piece."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * megabytes + packer.flush()


def test_zip_bombs(file):
    bomb = zeros_deflated(1024)
    assert len(bomb) < 2**21
    assert len(zlib.decompressobj(-15).decompress(zeros_deflated(3))) == 3 << 20
    entry = ("archive/data/1", bomb, 1 << 30, 8, 0, None, "archive/data/1")
    opcodes = dict_of(x=tensor((2**28,), (1,), of=storage("1", count=2**28)))
    refused(torch_file(file, opcodes, entry), "archive/data/1 is compressed")

    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    small = packed.compress(b"\x80\x02}.") + packed.flush()
    file.write_bytes(zip_of([("a/data.pkl", small, 1 << 30, 8, 0, None, "a/data.pkl")]))
    refused(file, "a/data.pkl is compressed")

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**28,)})
    file.write_bytes(zip_of([("x.npy", bomb, 1 << 30, 8, 0, None, "x.npy")]))
    refused(file, "unpack to 1073741824 bytes")
    file.write_bytes(zip_of([("x.npy", bomb, 1 << 10, 8, 0, None, "x.npy")]))  # declares 1 KiB, unpacks to 1 GiB
    refused(file, "x.npy is damaged", megabytes=4)
    file.write_bytes(zip_of([stored("x.npy", header.getvalue())]))  # an array without its numbers
    refused(file, r"x.npy: shape \[268435456\] of float32 does not match its 128 bytes")


def test_members_must_lie_apart_inside_the_file_under_their_own_names(file):
    good = stored("archive/data/1", VALUES)
    inner = zip_of([stored("b", VALUES)])[: 30 + 1 + len(VALUES)]  # a member within another's bytes
    outer = stored("archive/data/1", inner)
    at = len(zip_of([stored("archive/data/1", b"")])) - 22 - 46 - 14  # where its bytes begin
    file.write_bytes(zip_of([outer, ("b", VALUES, 24, 0, zlib.crc32(VALUES), at, "b")]))
    refused(file, "overlap at b")
    file.write_bytes(zip_of([stored("b", VALUES), ("b", VALUES, 24, 0, 0, 0, "c")]))
    refused(file, "member c is not at|overlap")
    refused(torch_file(file, dict_of(x=tensor()), good, good), "occurs twice")
    refused(torch_file(file, dict_of(x=tensor()), (*good[:6], "archive/data/2")), "data/2 is not at the position")
    refused(torch_file(file, dict_of(x=tensor()), ("a", b"abc", 99, 0, 0, None, "a")), "two sizes, 3 and 99")
    refused(torch_file(file, dict_of(x=tensor()), ("a", b"abc", 3, 14, 0, None, "a")), "compression method 14")
    data = bytearray(zip_of([good]))
    at = data.index(b"PK\1\2")
    data[at + 20 : at + 28] = struct.pack("<2I", 2**30, 2**30)
    file.write_bytes(data)
    refused(file, "reaches beyond")
    data = bytearray(zip_of([good]))
    data[data.index(b"PK\1\2") + 8] |= 1
    file.write_bytes(data)
    refused(file, "encrypted")


def test_a_huge_directory_is_not_read(file):
    size = MAX_DIRECTORY + 46
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65534, 65534, size, 0, 0)
    file.write_bytes(b"PK\3\4" + bytes(size - 4) + end)
    refused(file, "zip directory: expected at most", megabytes=1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            tensor((2**30,), (1,), of=storage(count=2**30)),
            "x: expected a storage of 1073741824 × 4 bytes, got 24 bytes",
        ),
        (tensor((7,), (1,), of=storage(count=7)), "x: expected a storage of 7 × 4 bytes"),
        (tensor((1,), (1,), of=storage(count=1)), "x: expected a storage of 1 × 4 bytes"),
        (tensor(of=storage(kind="Double")), "x: expected a storage of 6 × 8 bytes"),
        (tensor(of=storage("../../etc/passwd")), "its storage ../../etc/passwd is not in the file"),
        (tensor((2, 4), (3, 1)), r"shape \[2, 4\] reaches beyond its storage of 6 numbers"),
        (tensor((2, 3), (4, 1)), "reaches beyond"),
        (tensor((2, 3), (3, 1), 1), "reaches beyond"),
        (tensor((1,), (1,), 6), "reaches beyond"),
        (tensor((7,), (0,), 6), "reaches beyond"),
        (tensor((2**38,), (0,)), "its tensors would take 1099511627776 bytes, more than 8 times"),
        (tensor((2**50,), (0,)), "too large"),
        (tensor((2, 3), (2**61, 1)), "reaches beyond"),
        (tensor((2, 3), (2**80, 1)), "too large"),
    ],
)
def test_tensors_must_lie_inside_their_storage(file, value, message):
    refused(torch_file(file, dict_of(x=value)), message)


def test_shared_storages_cannot_multiply_memory(file):
    size = 1 << 20
    first = dict_of(x=tensor((size,), (1,), of=storage(count=size)) + b"q\x00")
    views = b"(" + b"".join(text(i) + b"h\x00" for i in range(2000)) + b"u"
    torch_file(file, first + views, storages=(bytes(4 * size),))
    refused(file, "its tensors would take 8392802304 bytes, more than 8 times the file's")


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"}r\xff\xff\xff\x7f", "."),  # LONG_BINPUT: memo index 2³¹ − 1
        (b"C\xff", "."),
        (b"\x8e" + struct.pack("<Q", 2**60), "."),  # BINBYTES8
        (b"\x8d" + struct.pack("<Q", 2**40), "."),
        (b"\x8b" + struct.pack("<i", 2**31 - 1), "."),  # LONG4
        (b"T" + struct.pack("<i", -5), "."),
        (b"\x95" + struct.pack("<Q", 2**60), "."),
        (b"I" + b"9" * 10**5 + b"\n", "."),
        (b")" + b"q\x00h\x00h\x00\x86" * 5000, "got a tuple"),  # a tree of 2⁵⁰⁰⁰ leaves
        (b"]q\x00(h\x00e", "got a list"),
        (b"}q\x00" + text("model") + b"h\x00s", r"got none in model \(dict\)"),  # a dict inside itself
        (b"})" + b"q\x00h\x00\x86" * 5000 + b"Ns", "got none in nothing"),
        (b"(" * 100_000, "."),
    ],
)
def test_small_pickles_stay_small(file, opcodes, message):
    refused(torch_file(file, opcodes), message, megabytes=20)


def test_pickles_without_end(file, monkeypatch):
    torch_file(file, b"N" * (MAX_OPCODES + 1))
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="more than 1000000 opcodes"):
        read_checkpoint(file)
    assert time.perf_counter() - start < 20
    monkeypatch.setattr(torch_zip, "MAX_PICKLE", 1000)
    refused(torch_file(file, b"N" * 2000), "its pickle has more than 1000 bytes")


def test_cut_and_flipped_files(file):
    torch_file(file, dict_of(x=tensor()))
    whole_file = file.read_bytes()
    kept = read_checkpoint(file)["x"]
    for length in range(len(whole_file)):
        file.write_bytes(whole_file[:length])
        with pytest.raises(CheckpointError, match=r"file\.pth: ."):
            read_checkpoint(file)
    survived = 0
    for at in range(len(whole_file)):
        for bit in (1, 128):
            flipped = bytearray(whole_file)
            flipped[at] ^= bit
            file.write_bytes(flipped)
            try:
                assert np.array_equal(read_checkpoint(file)["x"], kept)  # dates, versions and the like
                survived += 1
            except CheckpointError:
                pass
    assert survived < len(whole_file)
    at = whole_file.index(VALUES) + 5
    file.write_bytes(whole_file[:at] + b"\x01" + whole_file[at + 1 :])
    refused(file, "archive/data/0 is damaged: its checksum differs")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_cut_and_flipped_parameter_files(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"
    save_parameters({"x": np.arange(6.0), "y": np.ones((2, 1), "f4")}, path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="file"):
            read_checkpoint(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :])
        with contextlib.suppress(CheckpointError):  # safetensors has no checksum
            read_checkpoint(path)


def test_safetensors_that_lie(tmp_path):
    path = tmp_path / "x.safetensors"
    entry = b'{"x":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}'
    path.write_bytes(len(entry).to_bytes(8, "little") + entry + bytes(16))
    refused(path, "incomplete metadata|not fully covered|MetadataIncompleteBuffer")
    path.write_bytes((2**62).to_bytes(8, "little") + entry)
    refused(path, "expected an .npz, a .safetensors or a checkpoint")
    entry = b'{"x":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(len(entry).to_bytes(8, "little") + entry + bytes(4))
    refused(path, "x: expected one of F64, F32, .*, got F8_E4M3")


def test_a_dict_that_is_in_a_file_many_times_is_looked_at_once(file):
    inner = dict_of(**{f"k{i}": b"N" for i in range(20_000)}, x=tensor()) + b"q\x00"
    opcodes = b"}(" + text("a") + inner + b"".join(text(f"b{i}") + b"h\x00" for i in range(20_000)) + b"u"
    start = time.perf_counter()
    assert list(read_checkpoint(torch_file(file, opcodes))) == ["x"]
    assert time.perf_counter() - start < 30  # 20 000² steps would take minutes


@pytest.mark.parametrize("size", [1 << 31, 1 << 40, 1 << 62])
def test_a_string_longer_than_an_old_file_is_refused_without_room_for_it(tmp_path, size):
    """The pickles of such a file are read from the disk."""
    path = tmp_path / "old.pth"
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(head + b"\x80\x04\x8e" + struct.pack("<Q", size) + b"short")
    refused(path, "expected .* bytes")
