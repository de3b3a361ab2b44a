"""PyTorch files built by hand, opcode by opcode, and checks of how they are read or refused."""

import pickle
import re
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest

import refvt
from refvt.model.checkpoints import CheckpointError, read_checkpoint
from refvt.model.parameters import initial_parameters
from tests.support.models import SMALL


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


CONFIG = refvt.HaltingVTConfig(**SMALL)


def own_parameters(**changes):
    config = refvt.HaltingVTConfig(**{**SMALL, **changes})
    return initial_parameters(config, np.random.default_rng(7))


def image_parameters(**changes):
    """Parameters as in a DeiT checkpoint, with 1000 classes."""
    kept = {n: v for n, v in own_parameters(**changes).items() if ".temporal_" not in n and n != "time_embed"}
    kept = {name: value for name, value in kept.items() if not name.startswith("motion_head.")}
    return kept | {"head.weight": np.ones((1000, 16), "f4"), "head.bias": np.ones(1000, "f4")}
