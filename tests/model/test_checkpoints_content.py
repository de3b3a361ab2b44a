"""Valid files are read correctly; test_checkpoints_torch.py reads files by PyTorch."""

import os
import pickle

import numpy as np
import pytest

from refvt.model.checkpoints import read_checkpoint
from tests.support.checkpoint_files import (
    ORDERED_DICT,
    VALUES,
    dict_of,
    refused,
    storage,
    stored,
    tensor,
    torch_file,
    tuple_of,
    whole,
    zip_of,
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "file.pth"


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
    assert list(read_checkpoint(torch_file(file, opcodes))) == ["x"]


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
    other = legacy + pickle.dumps(1002, 2) + pickle.dumps({}, 2)
    for data, message in [
        (b"", "expected an .npz, a .safetensors or a checkpoint by torch.save"),
        (b"hello", "expected an .npz"),
        (os.urandom(300).replace(b"\x80", b"?").replace(b".", b"?"), "expected an .npz"),
        (legacy, "pickle exhausted before seeing STOP"),
        (other, "expected version 1001 of the files from before PyTorch 1.6"),
        (
            bytes(257) + b"ustar" + bytes(600),
            r"got a tar file.*torch.save\(torch.load\(path, weights_only=False\), path\)",
        ),
        (pickle.dumps({"x": [1.0, 2.0]}), r"bare pickle: .*torch.save\(pickle.load"),
        (pickle.dumps(np.ones(2)), "asks for numpy._?core"),
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
