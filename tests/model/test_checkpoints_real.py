"""Files as frameworks and people write them: which tensors are the weights, and what beside them is passed over.

Each kind is written by PyTorch itself, and read back bit for bit or refused with a way out that works.
"""

import argparse
import collections
import io
import pathlib
import pickle
import struct
import tarfile
import types
import warnings

import numpy as np
import pytest

import refvt
from refvt.model.checkpoints import CheckpointError, CheckpointWarning, parameters_from, read_checkpoint
from tests.support.checkpoint_files import CONFIG, image_parameters, own_parameters

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

OURS = own_parameters()


def state(prefix="", parameters=None):
    named = OURS if parameters is None else parameters
    return collections.OrderedDict((prefix + name, torch.from_numpy(value.copy())) for name, value in named.items())


def released():
    """The parameters under the released model's names."""
    heads = {"head": "cls_head.fc_cls", "motion_head": "cls_head.fc_motion"}
    return {
        f"{heads[name.partition('.')[0]]}.{name.partition('.')[2]}"
        if "head" in name
        else f"backbone.model.{name}": value
        for name, value in OURS.items()
    }


def reads(path, expected=None, **options):
    found = parameters_from(read_checkpoint(path, **options), CONFIG)
    for name, value in (OURS if expected is None else expected).items():
        assert np.array_equal(found[name], value), name


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c.pth"


# ---- things beside the weights


class HistoryBuffer:
    """As MMEngine keeps the numbers of its log."""

    def __init__(self):
        self._log_history, self._count_history = np.arange(5.0), np.ones(5, np.int64)
        self._statistics_methods = {"mean": np.mean}


def schedules():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
    return {"optimizer": optimizer.state_dict(), "scheduler": steps.state_dict(), "scaler": {"scale": 65536.0}}


BESIDE = {
    "argparse": {"args": argparse.Namespace(lr=1.0, out=pathlib.PurePosixPath("runs"))},
    "NumPy numbers": {"best": np.float64(0.7), "epoch": np.int64(3), "curve": np.arange(3.0), "flag": np.bool_(True)},
    "random states": {"torch": torch.get_rng_state(), "numpy": np.random.RandomState(0).get_state()},
    "optimiser": schedules(),
    "Counter": {"milestones": collections.Counter([10, 20]), "per": collections.defaultdict(list, a=[1])},
    "device and dtype": {"device": torch.device("cpu"), "dtype": torch.float32, "size": torch.Size([2])},
    "paths": {"path": pathlib.PurePosixPath("/data"), "slice": slice(1, 2), "range": range(3)},
    "sets and odd keys": {"frozen": {"a"}, "fixed": frozenset({1}), "table": {0.5: 1, (1, 2): 2, None: 3, True: 4}},
    "odd tensors": {"f8": torch.zeros(3).to(torch.float8_e4m3fn), "turns": torch.zeros(3, dtype=torch.complex64)},
    "sparse and quantised": {
        "sparse": torch.eye(3).to_sparse(),
        "int8": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    },
    "history": {"message_hub": {"log_scalars": {"loss": HistoryBuffer()}}},
    "a whole module": {"criterion": torch.nn.Linear(2, 2)},
    "self-made": {"config": types.SimpleNamespace(a=1), "error": ValueError("x"), "bytes": b"abc", "big": 2**70},
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("protocol", [2, 4])
def test_things_beside_the_weights_are_passed_over(path, kind, protocol):
    torch.save({"meta": {"inner": BESIDE[kind]}, "state_dict": state(), **BESIDE[kind]}, path, pickle_protocol=protocol)
    reads(path)
    torch.save({"net": state(), **BESIDE[kind]}, path, pickle_protocol=protocol)
    reads(path)


def test_things_inside_the_state_dict_are_passed_over(path):
    inside = {"_extra_state": np.float64(1), "settings": {"a": [1]}, "steps": torch.tensor(7), "note": "x"}
    torch.save({"state_dict": {**state(), **inside}}, path)
    reads(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda v: v.to(torch.complex64), r"asks for torch\.ComplexFloatStorage"),
        (lambda v: v.to(torch.float8_e4m3fn), r"asks for torch\._utils\._rebuild_tensor_v3"),
        (lambda v: v.numpy(), r"asks for numpy\._?core\.multiarray\._reconstruct"),
        (lambda v: v.to_sparse(), r"asks for torch\._utils\._rebuild_sparse_tensor"),
        (lambda v: torch.nn.Linear(2, 2), r"asks for torch\.nn\.modules\.linear\.Linear"),
    ],
)
def test_a_needed_tensor_that_cannot_be_read_is_named_with_its_reason(path, value, message):
    whole = state()
    whole["norm.bias"] = value(whole["norm.bias"])
    torch.save({"state_dict": dict(whole)}, path)
    with pytest.raises(CheckpointError, match=rf"norm\.bias: refused: the file {message}(.|\n)*missing: norm\.bias"):
        parameters_from(read_checkpoint(path), CONFIG)


@pytest.mark.parametrize("place", ["model", "net", ""])
def test_a_whole_model_is_refused_with_a_way_out(path, place):
    module = torch.nn.Linear(2, 2)
    torch.save({place: module} if place else module, path)
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*save its state_dict\(\) with"):
        read_checkpoint(path)
    torch.save({"model": module, "ema": state()}, path)
    with pytest.raises(
        CheckpointError, match=r"model: refused: .*tensors are also under ema: choose with weights_key="
    ):
        read_checkpoint(path)
    reads(path, weights_key="ema")


# ---- names


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.network.", "model.module.", "_fsdp_wrapped_module."],
)
@pytest.mark.parametrize("names", ["own", "released"])
def test_prefixes_of_wrappers_come_off(path, prefix, names):
    torch.save({"state_dict": state(prefix, released() if names == "released" else OURS)}, path)
    reads(path)


def test_wrappers_inside_and_prefixes_of_the_body_alone(path):
    inner = {name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v for name, v in OURS.items()}
    torch.save(state(parameters=inner), path)
    reads(path)
    body = {name if "head" in name else f"backbone.{name}": value for name, value in OURS.items()}
    torch.save(state(parameters=body), path)
    reads(path)
    torch.save({"n_averaged": torch.tensor(5), **state("module.")}, path)  # torch.optim.swa_utils.AveragedModel
    reads(path)


def test_a_prefix_of_some_names_is_no_prefix(path):
    names = {f"a.{name}" if name.startswith("blocks") else f"b.{name}": value for name, value in OURS.items()}
    torch.save(state(parameters=names), path)
    with pytest.raises(CheckpointError, match=r"missing: (.|\n)*unexpected: (.|\n)*a\.blocks\.0"):
        parameters_from(read_checkpoint(path), CONFIG)


def test_an_image_model_behind_a_prefix(path):
    image = image_parameters()
    torch.save({"model": state("module.", image)}, path)
    found = parameters_from(read_checkpoint(path), CONFIG)
    assert np.array_equal(found["blocks.1.temporal_attn.qkv.weight"], image["blocks.1.attn.qkv.weight"])


# ---- which weights


@pytest.mark.parametrize(
    "key", ["state_dict_ema", "model_ema", "model_state", "ema_state_dict", "params", "net", "weights", "student"]
)
def test_the_only_weights_are_found_under_any_name(path, key):
    torch.save({key: state(), "epoch": 1, "rng": torch.get_rng_state(), **schedules()}, path)
    reads(path)
    torch.save({"outer": {key: state()}, "epoch": 1}, path)
    reads(path)
    reads(path, weights_key=f"outer.{key}")


def test_a_choice_is_named_and_can_be_made(path):
    second = {name: value + 1 for name, value in OURS.items()}
    torch.save({"state_dict": state(), "state_dict_ema": state("module.", second)}, path)
    with pytest.warns(CheckpointWarning, match=r"read from state_dict; others are under state_dict_ema: choose with"):
        reads(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reads(path, second, weights_key="state_dict_ema")
        reads(path, weights_key="state_dict")
        model = refvt.load(path, CONFIG, backend="reference", weights_key="state_dict_ema")
    assert np.array_equal(model.parameters["norm.bias"], second["norm.bias"])
    torch.save({"teacher": state(), "student": state(parameters=second)}, path)
    with pytest.raises(
        CheckpointError, match=r"tensors under teacher, student: choose one with weights_key= \(--weights"
    ):
        read_checkpoint(path)
    reads(path, second, weights_key="student")
    with pytest.raises(CheckpointError, match="expected tensors under ema, got them under teacher, student"):
        read_checkpoint(path, weights_key="ema")
    torch.save({"epoch": 3, "names": ["a"], "optimizer": {}}, path)
    with pytest.raises(CheckpointError, match=r"got none in epoch \(int\), names \(list\), optimizer \(dict\)"):
        read_checkpoint(path)


# ---- forms of the file


def test_checksums_that_were_not_computed(path):
    saving = pytest.importorskip("torch.utils.serialization").config.save
    before = saving.compute_crc32
    saving.compute_crc32 = False
    try:
        torch.save(state(), path)
    finally:
        saving.compute_crc32 = before
    reads(path)


def test_broadcast_views(path):
    views = {
        "row": torch.arange(3.0).expand(4, 3),
        "number": torch.tensor(2.5).expand(2, 3),
        "column": torch.arange(3.0)[:, None].expand(3, 5),
        "large": torch.zeros(1).expand(1000, 1000),
    }
    torch.save(views, path)
    found = read_checkpoint(path)
    for name, view in views.items():
        assert np.array_equal(found[name], view.numpy())
        assert found[name].flags.c_contiguous


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_files_from_before_pytorch_1_6(path, kind):
    base = torch.arange(24).to(kind).reshape(4, 6)
    tensors = {"whole": base, "turned": base.t(), "part": base[1:, ::2], "parameter": base.clone()}
    torch.save({"state_dict": tensors, "note": argparse.Namespace(a=1)}, path, _use_new_zipfile_serialization=False)
    found = read_checkpoint(path)
    for name, tensor in tensors.items():
        assert np.array_equal(found[name], (tensor.float() if kind == torch.bfloat16 else tensor).numpy())
    data = path.read_bytes()
    for length in (len(data) - 1, len(data) - 100, len(data) // 2, 60, 20):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"c\.pth: ."):
            read_checkpoint(path)


def test_an_old_file_with_an_optimiser_and_odd_tensors(path):
    beside = {"turns": torch.zeros(3, dtype=torch.complex64), **schedules()}
    torch.save({"before": beside, "state_dict": state()}, path, _use_new_zipfile_serialization=False)
    reads(path)


def test_a_tar_file_is_refused_with_advice_that_works(path):
    """PyTorch 0.1 wrote a tar of four members; today's torch.load reads it with weights_only=False, as we say."""
    values = np.arange(6, dtype="<f4")
    storages = pickle.dumps(1, 2) + pickle.dumps((7, "cpu", torch.FloatStorage), 2) + struct.pack("<q", 6)
    tensors = pickle.dumps(1, 2) + pickle.dumps((9, 7, torch.FloatTensor), 2)
    tensors += struct.pack("<i4x", 2) + struct.pack("<2q", 2, 3) + struct.pack("<2q", 3, 1) + struct.pack("<q", 0)
    content = b"\x80\x02}X\x01\x00\x00\x00xX\x01\x00\x00\x009Qs."  # {"x": the tensor of persistent id 9}
    machine = pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2)
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (
            ("sys_info", machine),
            ("pickle", content),
            ("storages", storages + values.tobytes() + pickle.dumps([], 2)),  # and no views of them
            ("tensors", tensors),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(CheckpointError, match=r"got a tar file.*torch\.save\(torch\.load\(path, weights_only=False\)"):
        read_checkpoint(path)
    torch.save(torch.load(path, weights_only=False), path)
    assert np.array_equal(read_checkpoint(path)["x"], values.reshape(2, 3))


def test_a_bare_pickle_is_refused_with_advice_that_works(path):
    path.write_bytes(pickle.dumps({"x": [1.0]}))
    with pytest.raises(
        CheckpointError, match=r"bare pickle: .*torch\.save\(pickle\.load\(open\(path, 'rb'\)\), path\)"
    ):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(state()))
    with pytest.raises(CheckpointError, match="bare pickle"):
        read_checkpoint(path)
    with path.open("rb") as file:
        content = pickle.load(file)
    torch.save(content, path)
    reads(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "got a Git LFS pointer: .*git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "got a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "got an HDF5 file"),
        (b"\x1f\x8b\x08" + bytes(50), "got a gzip file: unpack it first"),
    ],
)
def test_what_is_mistaken_for_a_checkpoint(path, data, message):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_numbers_beside_names_in_an_npz_and_a_safetensors(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **OURS, names=np.array(["a"]), settings=np.array({"a": 1}, object))
    reads(path)
    with pytest.raises(CheckpointError, match="weights_key: expected none for a file without dicts, got ema"):
        read_checkpoint(path, weights_key="ema")
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    safetensors.save_file({**state(), "scale": torch.zeros(2).to(torch.float8_e4m3fn)}, path)
    reads(path)
