"""Tensors of checkpoints as the parameters of a configuration: names, image models, resizing."""

import numpy as np
import pytest

import refvt
from refvt.model.checkpoints import CheckpointError, parameters_from
from refvt.model.parameters import initial_parameters, parameter_shapes
from tests.support.checkpoint_files import CONFIG, image_parameters, own_parameters
from tests.support.models import SMALL

TEMPORAL = ("temporal_attn", "temporal_norm1")


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
