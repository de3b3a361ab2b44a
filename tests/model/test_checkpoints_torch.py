"""Checkpoints written by PyTorch are read without PyTorch."""

import subprocess
import sys

import numpy as np
import pytest

import refvt
from refvt.model.checkpoints import CheckpointError, parameters_from, read_checkpoint
from refvt.model.parameters import initial_parameters
from tests.support.models import SMALL

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CONFIG = refvt.HaltingVTConfig(**SMALL)


def same(found, tensor):
    """Check shape, type (bfloat16 as float32) and bits."""
    expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().contiguous().numpy()
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.flags.c_contiguous
    assert found.flags.owndata
    assert found.tobytes() == expected.tobytes()


def saved(tensors, path, **options):
    torch.save(tensors, path, **options)
    found = read_checkpoint(path)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        same(found[name], tensor)
    return found


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ""])
def test_types(tmp_path, dtype, suffix):
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 3
    saved({"x": values.to(getattr(torch, dtype))}, tmp_path / f"file{suffix}")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_views_and_shared_storages(tmp_path, protocol):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "whole": base,
        "transposed": base.transpose(0, 2),
        "sliced": base[1:, ::2, 1:3],
        "row": base[1, 2],
        "one": base[1, 2, 3],
        "bfloat16": base.bfloat16()[:, 1:],
        "expanded": base[0, 0].expand(3, 4)[:2, :2],
        "empty": base[:0],
        "nothing": torch.empty(0),
        "parameter": torch.nn.Parameter(base[0].t()),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    found = saved(tensors, tmp_path / "file.pth", pickle_protocol=protocol)
    found["whole"][:] = -1  # arrays share no memory, even if their tensors share a storage
    same(found["row"], base[1, 2])


def test_views_much_larger_than_the_file_are_refused(tmp_path):
    torch.save({"x": torch.ones(1).expand(2**30)}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"its tensors would take 4294967296 bytes, more than 8 times the file's"):
        read_checkpoint(tmp_path / "file.pth")


class Small(torch.nn.Module):
    """A module with the parameter names and shapes of a HaltingVT."""

    def __init__(self, parameters):
        super().__init__()
        for name, value in parameters.items():
            *path, leaf = name.split(".")
            place = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, torch.nn.Module())
                place = place._modules[part]
            place.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(value)))


def test_state_dicts_of_modules(tmp_path):
    ours = initial_parameters(CONFIG, np.random.default_rng(5))
    state = Small(ours).state_dict()
    assert hasattr(state, "_metadata")
    torch.save(state, tmp_path / "file.pth")
    found = parameters_from(read_checkpoint(tmp_path / "file.pth"), CONFIG)
    assert all(np.array_equal(found[name], value) for name, value in ours.items())


def test_released_checkpoints_with_optimizer_and_meta(tmp_path):
    ours = initial_parameters(CONFIG, np.random.default_rng(6))
    whole, heads = torch.nn.Module(), torch.nn.Module()
    whole.backbone, whole.cls_head = torch.nn.Module(), heads
    whole.backbone.model = Small({name: value for name, value in ours.items() if "head" not in name})
    for place, head in (("fc_cls", "head"), ("fc_motion", "motion_head")):
        heads.add_module(place, Small({leaf: ours[f"{head}.{leaf}"] for leaf in ("weight", "bias")}))
    optimizer = torch.optim.Adam(whole.parameters())
    sum(p.sum() for p in whole.parameters()).backward()
    optimizer.step()
    state = whole.state_dict()
    meta = {"epoch": 20, "lr": [1e-5], "CLASSES": None, "config": "model = dict(…)", "size": torch.Size([8, 224])}
    torch.save({"meta": meta, "state_dict": state, "optimizer": optimizer.state_dict()}, tmp_path / "file.pth")
    found = parameters_from(read_checkpoint(tmp_path / "file.pth"), CONFIG)
    for name, tensor in found.items():
        place, _, leaf = name.partition(".")
        heads = {"head": f"cls_head.fc_cls.{leaf}", "motion_head": f"cls_head.fc_motion.{leaf}"}
        same(tensor, state[heads.get(place, f"backbone.model.{name}")])


def test_deit_checkpoints(tmp_path):
    ours = initial_parameters(CONFIG, np.random.default_rng(8))
    image = {n: v for n, v in ours.items() if ".temporal_" not in n and n != "time_embed" and "motion" not in n}
    image |= {"head.weight": np.ones((1000, 16), "f4"), "head.bias": np.ones(1000, "f4")}
    image["pos_embed"] = np.random.default_rng(0).standard_normal((1, 1 + 16, 16)).astype("f4")
    torch.save({"model": Small(image).state_dict()}, tmp_path / "file.pth")
    found = parameters_from(read_checkpoint(tmp_path / "file.pth"), CONFIG, rng_seed=1)
    assert np.array_equal(found["blocks.1.temporal_attn.proj.weight"], image["blocks.1.attn.proj.weight"])
    assert found["head.weight"].shape == (5, 16)
    # the nearest neighbour of torch uses the same source indices: 4×4 to 2×3
    grid = torch.from_numpy(image["pos_embed"][:, 1:]).reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    nearest = torch.nn.functional.interpolate(grid, size=CONFIG.grid, mode="nearest").permute(0, 2, 3, 1)
    same(found["pos_embed"][:, 1:].copy(), nearest.reshape(1, 6, 16))


def test_no_weights_only_needed_and_none_bypassed(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"state_dict": CONFIG}, path)  # weights_only=False would be needed
    with pytest.raises(CheckpointError, match=r"refused: the file asks for refvt\.model\.config\.HaltingVTConfig;"):
        read_checkpoint(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"refused: the file asks for torch\.nn\.modules\.linear\.Linear;"):
        read_checkpoint(path)
    torch.save({"x": torch.ones(2)}, path)  # weights_only=True reads this, with the same result
    same(read_checkpoint(path)["x"], torch.load(path, weights_only=True)["x"])
    torch.save({"x": torch.ones(2, dtype=torch.complex64)}, path)
    with pytest.raises(CheckpointError, match=r"asks for torch\.ComplexFloatStorage"):
        read_checkpoint(path)
    torch.save({"x": torch.ones(2), "storage": torch.ones(2).untyped_storage()}, path)
    assert list(read_checkpoint(path)) == ["x"]
    torch.save(torch.ones(2), path)
    with pytest.raises(CheckpointError, match="expected a dict of tensors, got a Tensor"):
        read_checkpoint(path)


def test_reading_does_not_import_torch(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"x": torch.ones(2)}, path)
    code = (
        "import sys; from refvt.model.checkpoints import read_checkpoint; "
        "read_checkpoint(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
