"""Untrusted files: nothing in them is executed, no file can take much memory, and valid files are read correctly.

The PyTorch files here are built by hand, opcode by opcode; test_checkpoints_torch.py reads files by PyTorch.
"""

import contextlib
import copyreg
import io
import os
import pickle
import re
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy

import refvt
from refvt.model.checkpoints import CheckpointError, parameters_from, read_checkpoint, save_parameters
from refvt.model.checkpoints.torch_pickle import MAX_OPCODES
from refvt.model.checkpoints.torch_zip import MAX_DIRECTORY
from refvt.model.parameters import initial_parameters, parameter_shapes
from tests.support.models import SMALL

# ---- files built by hand


def text(value):
    """A string (opcode BINUNICODE)."""
    data = str(value).encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value):
    """An integer of up to 255 bytes (opcode LONG1)."""
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def dict_of(**items):
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def storage(key="0", kind="Float", count=6):
    return tuple_of(text("storage"), f"ctorch\n{kind}Storage\n".encode(), text(key), text("cpu"), whole(count)) + b"Q"


def tensor(shape=(2, 3), stride=(3, 1), offset=0, of=None, more=b""):
    sizes, steps = tuple_of(*map(whole, shape)), tuple_of(*map(whole, stride))
    arguments = tuple_of(of or storage(), whole(offset), sizes, steps, b"\x89", ORDERED_DICT, more)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def zip_of(members):
    """A zip file from tuples (name, packed bytes, size, method, crc, position or None, name in the directory)."""
    body, directory = b"", b""
    for name, data, size, method, crc, place, listed in members:
        at = len(body) if place is None else place
        fields = (method, 0, 0x21, crc, len(data), size)
        body += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, *fields, len(name), 0) + name.encode() + data
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, *fields, len(listed), 0, 0, 0, 0, 0, at)
        directory += listed.encode()
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + end


def stored(name, data):
    return (name, data, len(data), 0, zlib.crc32(data), None, name)


VALUES = np.arange(6, dtype="<f4").tobytes()


def torch_file(path, opcodes, *members, storages=(VALUES,), byteorder=b"little", end=b"."):
    data = [stored("archive/data.pkl", b"\x80\x02" + opcodes + end), stored("archive/byteorder", byteorder)]
    data += [stored(f"archive/data/{i}", value) for i, value in enumerate(storages)]
    path.write_bytes(zip_of([*data, *members]))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file.pth"


def peak_of(action):
    """The most bytes that Python and NumPy held while ``action`` ran."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(path, message, megabytes=2):
    """Check that reading fails with the message and the path, and takes hardly any memory or time."""

    def read():
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        start, _, rest = str(caught.value).partition(": ")
        assert start == str(path)
        assert re.search(message, rest), rest

    start = time.perf_counter()
    assert peak_of(read) < megabytes * 2**20
    assert time.perf_counter() - start < 10


# ---- nothing runs


def payloads(canary):
    """Opcodes that make pickle create the canary, and the name that the refusal must contain, by test name."""
    touch, python = text(f"touch {canary}"), text(f"open({str(canary)!r}, 'w').close()")
    system = b"cos\nsystem\n" + touch + b"\x85R"
    inner = b"\x80\x02" + system + b"."
    return {
        "reduce": (system, "os.system"),
        "eval": (b"cbuiltins\neval\n" + python + b"\x85R", "builtins.eval"),
        "getattr": (
            b"cbuiltins\ngetattr\n"
            + b"cimportlib\nimport_module\n"
            + text("os")
            + b"\x85R"
            + text("system")
            + b"\x86R",
            "builtins.getattr",
        ),
        "loads": (b"cpickle\nloads\nC" + bytes([len(inner)]) + inner + b"\x85R", "pickle.loads"),
        "inst": (b"(" + touch + b"ios\nsystem\n", "os.system"),
        "inst-text": (b"(V" + f"touch {canary}".encode() + b"\nios\nsystem\n", "os.system"),
        "obj": (b"(cos\nsystem\n" + touch + b"o", "os.system"),
        "stack-global": (text("os") + text("system") + b"\x93" + touch + b"\x85R", "os.system"),
        "dotted": (b"\x80\x04" + text("shutil") + text("os.system") + b"\x93" + touch + b"\x85R", "shutil.os.system"),
        "memo": (b"cos\nsystem\nq\x00" + touch + b"\x85q\x010h\x00h\x01R", "os.system"),
        "extension": (b"\x82\xf0" + touch + b"\x85R", "opcode EXT1 240"),
        "setstate": (
            b"ctypes\nSimpleNamespace\n)R}" + text("__setstate__") + b"cos\nsystem\nsb" + touch + b"b",
            "types.SimpleNamespace",
        ),
        "inside": (b"}" + text("state_dict") + dict_of(x=tensor()) + b"s" + text("meta") + system + b"s", "os.system"),
    }


@pytest.fixture
def extension():
    """Extension code 240 means os.system and is cached, as if a library had registered and used it."""
    copyreg.add_extension("os", "system", 240)
    copyreg._extension_cache[240] = os.system
    yield
    copyreg.remove_extension("os", "system", 240)
    copyreg._extension_cache.pop(240, None)


PAYLOADS = sorted(payloads(""))


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("kind", ["zip", "plain"])
@pytest.mark.usefixtures("extension")
def test_nothing_runs(file, name, kind):
    canary = file.with_name("canary")
    opcodes, culprit = payloads(canary)[name]
    if kind == "zip":
        torch_file(file, opcodes)
    else:
        file.write_bytes(b"\x80\x02" + opcodes + b".")
    refused(file, f"refused: the file asks for {culprit}; refvt reads tensors and plain containers and never runs code")
    assert not canary.exists()


@pytest.mark.parametrize("name", sorted(set(PAYLOADS) - {"getattr", "inside"}))
@pytest.mark.usefixtures("extension")
def test_the_payloads_do_run_in_pickle(tmp_path, name):
    canary = tmp_path / "canary"
    pickle.loads(b"\x80\x02" + payloads(canary)[name][0] + b".")
    assert canary.exists()


def test_protocol_0_and_nested_pickles_are_refused(file):
    canary = file.with_name("canary")
    file.write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    refused(file, "refused: the file asks for os.system;")
    inner = b"\x80\x02cos\nsystem\n" + text(f"touch {canary}") + b"\x85R."
    torch_file(file, dict_of(x=tensor(), inner=b"C" + bytes([len(inner)]) + inner))  # plain bytes, not unpickled
    refused(file, r"got also inner \(bytes\)")
    assert not canary.exists()


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (REBUILD + b")R", "torch._utils._rebuild_tensor_v2 with arguments that torch.save does not write"),
        (REBUILD + tuple_of(*[text("x")] * 6) + b"R", "torch._utils._rebuild_tensor_v2 with arguments"),
        (REBUILD + tuple_of(storage(), *[whole(0)] * 5) + b"R", "_rebuild_tensor_v2 with arguments .*: .*got int"),
        (tensor(more=dict_of(neg=b"\x88")), "_rebuild_tensor_v2 with arguments"),
        (tensor(more=b"}N"), "_rebuild_tensor_v2 with arguments"),
        (tensor(stride=(3,)), "_rebuild_tensor_v2 with arguments .*2 sizes and 1 strides"),
        (tensor(stride=(-3, 1)), "negative"),
        (tensor(shape=(-2, -3)), "negative"),
        (tensor(offset=-1), "negative"),
        (tensor((1,) * 65, (0,) * 65), "65 sizes"),
        (tensor((0, 2**61), (1, 1)), "too large"),
        (b"ctorch._utils\n_rebuild_parameter\n" + tuple_of(text("x"), b"\x88", b"N") + b"R", "_rebuild_parameter with"),
        (b"ctorch\nFloatStorage\n)R", "torch.FloatStorage with arguments"),
        (b"ctorch\nFloatStorage\n)\x81", "opcode NEWOBJ"),
        (b"ctorch\nFloatStorage\n)}\x92", "opcode NEWOBJ_EX"),
        (b"ctorch\nSize\n" + text("ab") + b"\x85R", "torch.Size with arguments"),
        (b"ccollections\nOrderedDict\n" + tuple_of(b"](" + text("a") + b"e") + b"R", "collections.OrderedDict with"),
        (text("collections") + text("OrderedDict.fromkeys") + b"\x93", "asks for collections.OrderedDict.fromkeys;"),
        (text("torch") + text("FloatStorage.__init__.__globals__") + b"\x93", "asks for torch.FloatStorage.__init__"),
        (text("torch._utils._rebuild_tensor_v2") + text("__globals__") + b"\x93", "_rebuild_tensor_v2.__globals__;"),
        (whole(1) + text("system") + b"\x93", "expected str, got int"),
        (text("os.system") + text("x") + b"\x85R", "expected Global, got str"),
        (REBUILD + b"}b", "expected dict, got Global"),
        (REBUILD + tuple_of(b"N", dict_of(__defaults__=b")")) + b"b", "expected dict, got Global"),
        (tensor() + dict_of(__class__=text("x")) + b"b", "expected dict, got Tensor"),
        (text("0") + b"Q", "expected tuple, got str"),
        (b")Q", "persistent id"),
        (tuple_of(text("module"), *[b"N"] * 4) + b"Q", "persistent id"),
        (
            tuple_of(text("storage"), ORDERED_DICT, text("0"), text("cpu"), whole(6)) + b"Q",
            "expected Global, got dict",
        ),
        (
            tuple_of(text("storage"), b"ctorch\nSize\n", text("0"), text("cpu"), whole(6)) + b"Q",
            "torch.Size as a storage",
        ),
        (b"P0\n", "opcode PERSID"),
        (b"}" + b"))s", "dict key .*expected str or int, got tuple"),
        (b"}" + whole(2**61 - 1) + b"Ns", "dict key .*expected str or int, got int"),
        (b"R", "damaged"),
        (b"h\x07", "damaged"),
        (b"t", "damaged"),
        (b"}(" + text("a") + b"u", "zip"),
        (b"c\xff\n\n", "codec"),
        (b"cos\x1b[31m\nsystem\n", r"asks for os\\x1b\[31m.system"),
        (b"N", "expected a dict of tensors, got a NoneType"),
        (dict_of(a=whole(1)), "expected tensors under .* got none"),
        (dict_of(x=tensor(), y=b"]", z=b"}"), r"got also y \(list\), z \(dict\)"),
    ],
)
def test_odd_pickles(file, opcodes, message):
    before = read_checkpoint.__defaults__
    refused(torch_file(file, opcodes), message)
    assert read_checkpoint.__defaults__ is before


def test_build_only_drops_its_state(file):
    state = dict_of(_metadata=ORDERED_DICT, __setstate__=text("x"), __dict__=b"}", keys=b"N")
    found = read_checkpoint(torch_file(file, ORDERED_DICT + text("x") + tensor() + b"s" + state + b"b"))
    assert list(found) == ["x"]


# ---- declared sizes are checked before memory is taken


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
        (tensor((7,), (0,)), "reaches beyond"),
        (tensor((2**38,), (0,)), "reaches beyond"),
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
        (b"}q\x00" + text("model") + b"h\x00s", r"got also model \(dict\)"),  # a dict inside itself
        (b"})" + b"q\x00h\x00\x86" * 5000 + b"Ns", "dict key .*expected str or int, got tuple"),
        (b"(" * 100_000, "."),
    ],
)
def test_small_pickles_stay_small(file, opcodes, message):
    refused(torch_file(file, opcodes), message, megabytes=20)


def test_pickles_without_end(file):
    torch_file(file, b"N" * (MAX_OPCODES + 1))
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="more than 1000000 opcodes"):
        read_checkpoint(file)
    assert time.perf_counter() - start < 20
    torch_file(file, b"N" * (9 << 20))
    refused(file, "more than 8388608 bytes")


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
    refused(path, "incomplete metadata|not fully covered")
    path.write_bytes((2**62).to_bytes(8, "little") + entry)
    refused(path, "expected an .npz, a .safetensors or a checkpoint")
    entry = b'{"x":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    path.write_bytes(len(entry).to_bytes(8, "little") + entry + bytes(4))
    refused(path, "x: expected one of F64, F32, .*, got F8_E4M3")


# ---- valid files are read correctly


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tensor(), [[0, 1, 2], [3, 4, 5]]),
        (tensor((3, 2), (1, 3)), [[0, 3], [1, 4], [2, 5]]),
        (tensor((2, 2), (3, 2)), [[0, 2], [3, 5]]),
        (tensor((2,), (3,), 1), [1, 4]),
        (tensor((2, 3), (0, 1), 3), [[3, 4, 5], [3, 4, 5]]),
        (tensor((), (), 5), 5),
        (tensor(more=b"}"), [[0, 1, 2], [3, 4, 5]]),
        (tensor((0, 3), (3, 1)), np.zeros((0, 3))),
        (tensor((0, 3), (2**61, 1)), np.zeros((0, 3))),
        (tensor((3, 0), (1, 1), of=storage("1", count=0)), np.zeros((3, 0))),
        (
            b"ctorch._utils\n_rebuild_parameter\n" + tuple_of(tensor(), b"\x88", ORDERED_DICT) + b"R",
            [[0, 1, 2], [3, 4, 5]],
        ),
    ],
)
def test_views(file, value, expected):
    found = read_checkpoint(torch_file(file, dict_of(x=value, again=tensor()), storages=(VALUES, b"")))["x"]
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.flags.owndata
    assert found.flags.writeable
    assert np.array_equal(found, np.array(expected))


def test_storages_and_names_in_any_order(file):
    opcodes = dict_of(
        z=tensor((1,), (1,), 2), y=tensor((1,), (1,), of=storage("1", "Long", 3)), x=tensor((1,), (1,), 4)
    )
    found = read_checkpoint(torch_file(file, opcodes, storages=(VALUES, np.arange(7, 10).tobytes())))
    assert {name: value.tolist() for name, value in found.items()} == {"z": [2], "y": [7], "x": [4]}
    assert list(found) == ["z", "y", "x"]


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Float", "f4"),
        ("Double", "f8"),
        ("Half", "f2"),
        ("Long", "i8"),
        ("Int", "i4"),
        ("Short", "i2"),
        ("Char", "i1"),
        ("Byte", "u1"),
        ("Bool", "?"),
    ],
)
def test_types_in_either_byte_order(file, kind, dtype, order):
    values = np.array([0, 1, 100, 0, 7, 3]).astype(dtype)
    data = values.astype(np.dtype(dtype).newbyteorder(order)).tobytes()
    opcodes = dict_of(x=tensor((6,), (1,), of=storage(kind=kind)))
    found = read_checkpoint(torch_file(file, opcodes, storages=(data,), byteorder=order.encode()))["x"]
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, values)


def test_bfloat16_and_byte_order(file):
    data = np.array([0x3F80, 0xC049, 0x7F80, 0x0001, 0x8000, 0x4000], "<u2")
    opcodes = dict_of(x=tensor((6,), (1,), of=storage(kind="BFloat16")))
    expected = np.array([1, -3.140625, np.inf, 2.0**-133, -0.0, 2], np.float32)
    for order in ("little", "big"):
        stored_data = data.astype(np.dtype("u2").newbyteorder(order)).tobytes()
        found = read_checkpoint(torch_file(file, opcodes, storages=(stored_data,), byteorder=order.encode()))["x"]
        assert found.dtype == np.float32
        assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
    refused(
        torch_file(file, opcodes, storages=(data.tobytes(),), byteorder=b"middle"), "byteorder: expected little or big"
    )
    entry = b'{"x":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    file.write_bytes(len(entry).to_bytes(8, "little") + entry + data.tobytes())
    assert np.array_equal(read_checkpoint(file)["x"].view(np.uint32), expected.reshape(2, 3).view(np.uint32))


@pytest.mark.parametrize("place", ["state_dict", "model", "model_state_dict"])
def test_where_the_tensors_are(file, place):
    other = dict_of(state=b"}" + whole(0) + dict_of(step=tensor()) + b"s")
    opcodes = dict_of(epoch=whole(3), optimizer=other, **{place: dict_of(x=tensor(), steps=whole(7), note=b"N")})
    assert list(read_checkpoint(torch_file(file, opcodes))) == ["x"]
    opcodes = dict_of(optimizer=other, weights=dict_of(x=tensor()))
    refused(torch_file(file, opcodes), r"got also optimizer \(dict\), weights \(dict\)")


def test_the_first_place_counts(file):
    model, state, ema = dict_of(m=tensor()), dict_of(s=tensor()), dict_of(e=tensor())
    assert list(read_checkpoint(torch_file(file, dict_of(model_state_dict=ema, model=model, state_dict=state)))) == [
        "s"
    ]
    assert list(read_checkpoint(torch_file(file, dict_of(model_state_dict=ema, model=model)))) == ["m"]


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(IsADirectoryError, match="folder"):
        read_checkpoint(tmp_path)
    path = tmp_path / "file"
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    for data, message in [
        (b"", "expected an .npz, a .safetensors or a checkpoint by torch.save"),
        (b"hello", "expected an .npz"),
        (os.urandom(300).replace(b"\x80", b"?").replace(b".", b"?"), "expected an .npz"),
        (legacy, r"before PyTorch 1.6: .*torch.save\(torch.load\(path, weights_only=True\), path\)"),
        (bytes(257) + b"ustar" + bytes(600), "before PyTorch 1.6"),
        (pickle.dumps({"x": [1.0, 2.0]}), r"bare pickle: .*torch.save\(torch.load"),
        (pickle.dumps({"x": np.ones(2)}), "asks for numpy._?core"),
        (zip_of([stored("hello.txt", b"hello")]), "expected an .npz or .* got another zip file"),
        (zip_of([]), "expected an .npz or .* got another zip file"),
        (zip_of([stored("a/data.pkl", b""), stored("b/data.pkl", b"")]), "expected one data.pkl, .* got 2"),
        (zip_of([stored("a/data.pkl", b""), stored("a/constants.pkl", b"")]), "TorchScript"),
    ]:
        path.write_bytes(data)
        refused(path, message)


def test_npz_holds_numbers_only(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(
        path, x=np.asfortranarray(np.arange(6.0).reshape(2, 3)), y=np.array(3, ">i4"), z=np.zeros((0, 2))
    )
    found = read_checkpoint(path)
    assert np.array_equal(found["x"], np.arange(6).reshape(2, 3))
    assert found["x"].flags.c_contiguous
    assert found["y"].dtype == np.dtype("i4")
    assert found["y"] == 3
    assert found["z"].shape == (0, 2)
    for value in (np.array([{}], object), np.array(["a"]), np.ones(2, complex)):
        np.savez(path, x=value)
        refused(path, "x.npy: expected an array of numbers")


# ---- fitting

CONFIG = refvt.HaltingVTConfig(**SMALL)
TEMPORAL = ("temporal_attn", "temporal_norm1")


def own_parameters(**changes):
    config = refvt.HaltingVTConfig(**{**SMALL, **changes})
    return initial_parameters(config, np.random.default_rng(7))


def image_parameters(**changes):
    """Parameters as in a DeiT checkpoint, with 1000 classes."""
    kept = {n: v for n, v in own_parameters(**changes).items() if ".temporal_" not in n and n != "time_embed"}
    kept = {name: value for name, value in kept.items() if not name.startswith("motion_head.")}
    return kept | {"head.weight": np.ones((1000, 16), "f4"), "head.bias": np.ones(1000, "f4")}


def test_own_names_pass_and_arrays_are_fresh():
    ours = own_parameters()
    found = parameters_from(dict(reversed(ours.items())), CONFIG)
    assert list(found) == list(parameter_shapes(CONFIG))
    for name, value in found.items():
        assert np.array_equal(value, ours[name])
        assert not np.shares_memory(value, ours[name])


def test_released_names():
    ours = own_parameters()
    heads = {"head": "cls_head.fc_cls", "motion_head": "cls_head.fc_motion"}
    released = {
        f"{heads[name.split('.')[0]]}.{name.split('.')[1]}" if "head" in name else f"backbone.model.{name}": value
        for name, value in ours.items()
    }
    assert "cls_head.fc_motion.bias" in released
    found = parameters_from(released, CONFIG)
    assert all(np.array_equal(found[name], value) for name, value in ours.items())
    assert len(found) == len(ours)


def test_image_checkpoints():
    image = image_parameters()
    found = parameters_from(image, CONFIG, rng_seed=3)
    fresh = initial_parameters(CONFIG, np.random.default_rng(3))
    drawn = 0
    for name, value in found.items():
        if name == "time_embed" or "head" in name or "temporal_fc" in name:
            assert np.array_equal(value, fresh[name]), name
            drawn += 1
        else:
            assert np.array_equal(value, image[name.replace("temporal_", "")]), name
    assert drawn == 2 + 2 + 1 + 2 * 2
    assert found["head.weight"].shape == (5, 16)
    assert sum(any(word in name for word in TEMPORAL) for name in found) == 2 * 6
    assert not np.shares_memory(found["blocks.0.attn.qkv.weight"], found["blocks.0.temporal_attn.qkv.weight"])
    assert not np.array_equal(parameters_from(image, CONFIG, rng_seed=4)["head.weight"], found["head.weight"])

    distilled = image | {"dist_token": np.zeros((1, 1, 16)), "head_dist.weight": np.zeros((1000, 16))}
    with pytest.raises(CheckpointError, match=r"distilled DeiT(.|\n)*unexpected: dist_token"):
        parameters_from(distilled, CONFIG)
    del image["blocks.1.attn.proj.bias"]
    with pytest.raises(
        CheckpointError, match=r"missing: blocks.1.temporal_attn.proj.bias.*\n.*missing: blocks.1.attn.proj"
    ):
        parameters_from(image, CONFIG)


def test_a_truncated_video_checkpoint_is_no_image_checkpoint():
    ours = own_parameters()
    del ours["time_embed"]
    with pytest.raises(CheckpointError, match="missing: time_embed"):
        parameters_from(ours, CONFIG)
    joint = {"glimpser_depth": 0, "keep_rates": ()}  # without temporal layers only time_embed tells the difference
    ours = own_parameters(**joint)
    del ours["time_embed"]
    with pytest.raises(CheckpointError, match="missing: time_embed"):
        parameters_from(ours, refvt.HaltingVTConfig(**{**SMALL, **joint}))


def test_resizing_worked_by_hand():
    # a 2×2 grid of patches 10 11 / 12 13, to SMALL's 2 rows of 3: columns ⌊{0, 1, 2}·2/3⌋ = 0, 0, 1
    ours = own_parameters()
    ours["pos_embed"] = np.repeat(np.array([9, 10, 11, 12, 13], "f4"), 16).reshape(1, 5, 16)
    ours["time_embed"] = np.repeat(np.array([20, 21], "f4"), 16).reshape(1, 2, 16)
    found = parameters_from(ours, CONFIG)
    assert found["pos_embed"][0, :, 5].tolist() == [9, 10, 10, 11, 12, 12, 13]
    assert found["time_embed"][0, :, 5].tolist() == [20, 20, 21]

    # 3 rows of 4, as given: rows ⌊{0, 1}·3/2⌋ = 0, 1, columns ⌊{0, 1, 2}·4/3⌋ = 0, 1, 2; five frames: ⌊{0, 1, 2}·5/3⌋
    ours["pos_embed"] = np.repeat(np.arange(-1, 12, dtype="f4"), 16).reshape(1, 13, 16)
    ours["time_embed"] = np.repeat(np.arange(5, dtype="f4"), 16).reshape(1, 5, 16)
    found = parameters_from(ours, CONFIG, checkpoint_grid=(3, 4))
    assert found["pos_embed"][0, :, 5].tolist() == [-1, 0, 1, 2, 4, 5, 6]
    assert found["time_embed"][0, :, 5].tolist() == [0, 1, 3]

    # the same number of patches: unchanged, unless another grid is given
    ours["pos_embed"] = np.repeat(np.arange(-1, 6, dtype="f4"), 16).reshape(1, 7, 16)
    assert parameters_from(ours, CONFIG)["pos_embed"][0, :, 5].tolist() == [-1, 0, 1, 2, 3, 4, 5]
    found = parameters_from(ours, CONFIG, checkpoint_grid=(3, 2))
    assert found["pos_embed"][0, :, 5].tolist() == [-1, 0, 0, 1, 2, 2, 3]


def test_everything_wrong_is_listed_at_once():
    ours = own_parameters()
    del ours["norm.bias"]
    ours["extra"] = np.ones(1)
    ours["cls_token"] = np.ones((1, 1, 15))
    ours["head.bias"] = np.full(5, np.nan)
    ours["pos_embed"] = np.ones((1, 9, 16))[:, :6]
    ours["time_embed"] = np.ones((2, 16))
    ours["backbone.model.norm.weight"] = np.ones(16)
    with pytest.raises(CheckpointError) as caught:
        parameters_from(ours, CONFIG)
    message = str(caught.value)
    for part in (
        "missing: norm.bias [16]",
        "unexpected: extra",
        "cls_token: expected shape [1, 1, 16], got [1, 1, 15]",
        "head.bias: expected finite values, got NaN",
        "pos_embed: expected a square of patches, got 5 patches: give checkpoint_grid=(rows, columns)",
        "time_embed: expected shape [1, 3, 16], got [2, 16]",
        "norm.weight: expected one tensor of this name, got two, one of them as backbone.model.norm.weight",
    ):
        assert part in message
    with pytest.raises(CheckpointError, match="expected a grid 4×2 of patches, got 6"):
        parameters_from(own_parameters(), CONFIG, checkpoint_grid=(4, 2))
    with pytest.raises(CheckpointError, match="expected a grid -2×-3 of patches, got 6"):
        parameters_from(own_parameters(), CONFIG, checkpoint_grid=(-2, -3))


# ---- writing


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_exact(tmp_path, suffix, dtype):
    path = tmp_path / f"model{suffix}"
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, 24 * np.dtype(dtype).itemsize, np.uint8)
    parameters = {
        "any.bits": bits.view(dtype).reshape(2, 3, 4),  # NaN payloads, subnormals and all
        "transposed": rng.standard_normal((3, 4)).astype(dtype).T,
        "big endian": rng.standard_normal(3).astype(np.dtype(dtype).newbyteorder(">")),
        "file": np.array(-0.0, dtype),
        "allow_pickle": np.zeros((0, 2), dtype),
    }
    save_parameters(parameters, path)
    found = read_checkpoint(path)
    assert set(found) == set(parameters)
    for name, value in parameters.items():
        assert found[name].dtype == np.dtype(dtype)
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.astype(dtype).tobytes()
    load = np.load if suffix == ".npz" else safetensors.numpy.load_file
    assert np.array_equal(load(path)["transposed"], parameters["transposed"])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"model{suffix}"
    save_parameters({"x": np.ones(3)}, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("the disk is full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk is full"):
                save_parameters({"x": np.zeros(3)}, path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(CheckpointError, match=r"x: expected an array of numbers .* got object"):
        save_parameters({"x": np.array([{}], object)}, path)
    assert path.read_bytes() == before
    save_parameters({"x": np.zeros(3)}, path)
    assert read_checkpoint(path)["x"].tolist() == [0, 0, 0]
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"model{suffix}"
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(("fsync", os.fstat(file).st_size)), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", a.parent)), replace(a, b)))
    save_parameters({"x": np.zeros(3)}, path)
    assert calls[:2] == [("fsync", path.stat().st_size), ("replace", tmp_path)]  # then the folder itself


def test_where_parameters_cannot_be_written(tmp_path):
    for name in ("model.pth", "model", "model.NPZ"):
        with pytest.raises(CheckpointError, match=r"ends in .safetensors or .npz"):
            save_parameters({"x": np.ones(1)}, tmp_path / name)
    with pytest.raises(FileNotFoundError):
        save_parameters({"x": np.ones(1)}, tmp_path / "no" / "model.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        save_parameters({"x": np.ones(1)}, tmp_path / "folder.npz")
    assert os.listdir(tmp_path) == ["folder.npz"]


def test_a_model_comes_back(tmp_path):
    ours = own_parameters()
    save_parameters(ours, tmp_path / "model.safetensors")
    model = refvt.HaltingVT(CONFIG, parameters_from(read_checkpoint(tmp_path / "model.safetensors"), CONFIG))
    assert all(np.array_equal(model.parameters[name], value) for name, value in ours.items())


def test_zips_by_hand_are_zips(tmp_path):
    path = torch_file(tmp_path / "x.pth", dict_of(x=tensor()))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
