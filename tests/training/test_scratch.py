"""What a run starts from: the paper's initialisation, or one in which everything is heard from the first step."""

import numpy as np
import pytest

import refvt
from refvt.model.parameters import initial_parameters
from refvt.training.recipe import RECIPES
from refvt.training.scratch import initialise, scratch_parameters
from tests.support.sliding_bars import small_recipe


def test_the_papers_start_is_the_models_own():
    recipe = small_recipe(init="paper", halting_start=0.25)
    start = initialise(recipe)
    own = initial_parameters(recipe.config, np.random.default_rng(recipe.seed), "float32")
    own["pos_embed"][..., 0] += np.float32(0.25)
    assert all(np.array_equal(start[name], own[name]) for name in own)


def test_from_scratch_nobody_writes_to_the_halting_channel():
    recipe = small_recipe(init="scratch", halting_start=0.0)
    model = refvt.HaltingVT(recipe.config, initialise(recipe), backend="reference", dtype="float64")
    c = recipe.config
    clips = np.random.default_rng(0).uniform(-1, 1, (2, c.channels, c.num_frames, *c.image_size))
    trace = model.trace(clips)
    logits = [trace[name] for name in trace if name.startswith("joint.") and name.endswith(".logit")]
    assert len(logits) == c.joint_depth
    assert all((logit == 0).all() for logit in logits)


def test_from_scratch_place_and_time_are_as_loud_as_a_patch_and_black_is_silent():
    recipe = RECIPES["digits"]
    start = scratch_parameters(recipe.config, np.random.default_rng(0), "float64")
    projection = start["patch_embed.proj.weight"].reshape(recipe.config.width, -1)
    black = start["patch_embed.proj.bias"] - projection.sum(axis=1)
    assert np.abs(black).max() <= 1e-12
    for name in ("pos_embed", "time_embed"):
        assert start[name][..., 1:].std() == pytest.approx(0.7, rel=0.1)
    for name, value in start.items():
        if name.startswith("blocks.") and value.ndim == 2:
            assert value.any(), f"{name} is silent"


def test_a_start_is_drawn_by_its_seed_alone():
    one, again, other = (initialise(small_recipe(init="scratch", seed=seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    with pytest.raises(ValueError, match="init: expected one of paper, scratch, got 'nowhere'"):
        small_recipe(init="nowhere")
