"""Parameters are written bit for bit, completely or not at all."""

import os
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import refvt
from refvt.model.checkpoints import CheckpointError, parameters_from, read_checkpoint, save_parameters
from tests.support.checkpoint_files import CONFIG, dict_of, own_parameters, tensor, torch_file


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
