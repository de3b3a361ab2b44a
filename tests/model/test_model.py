"""Configuration, initial parameters, traces, hand-set weights, multiply-adds."""

import math

import numpy as np
import pytest

import refvt
from refvt.model import flops
from refvt.model.config import PRESETS
from refvt.model.parameters import initial_parameters, parameter_shapes
from refvt.weights.handmade import handmade_parameters
from tests.support.models import small_batch, small_clips, small_model


def test_presets_are_those_of_the_paper():
    config = refvt.HaltingVTConfig.preset("minik-g03-b10")
    assert config == refvt.HaltingVTConfig()
    assert config.joint_tokens == 1 + 59 * 8
    assert refvt.HaltingVTConfig.preset("minik-g07-b20").joint_tokens == 1 + 138 * 8
    assert refvt.HaltingVTConfig.preset("anet-g05-b20").joint_tokens == 1 + 98 * 10
    assert len(PRESETS) == 8
    assert refvt.HaltingVTConfig.preset("minik-g03-b5", halted_keys="masked").halting_center == 5.0


def test_kept_patches_is_the_ceiling_of_the_double_product():
    config = refvt.HaltingVTConfig(keep_rates=(1.0, 0.7))
    assert config.num_kept_patches(1, 10) == math.ceil(0.7 * 10) == 7
    assert refvt.HaltingVTConfig(keep_rates=(1.0, 0.1)).num_kept_patches(1, 30) == math.ceil(0.1 * 30)
    assert refvt.HaltingVTConfig(keep_rates=(0.5, 0.5), fuse_dropped=True).patches_entering() == (196, 99, 51)


def test_initial_parameters_follow_the_specification():
    config = refvt.HaltingVTConfig(depth=4)
    parameters = initial_parameters(config, np.random.default_rng(0))
    assert list(parameters) == list(parameter_shapes(config))
    weight = parameters["blocks.2.attn.qkv.weight"]
    assert weight.std() == pytest.approx(0.02, rel=0.01)
    assert abs(weight.mean()) < 5 * 0.02 / math.sqrt(weight.size)
    patch = parameters["patch_embed.proj.weight"]
    bound = 1 / math.sqrt(3 * 16 * 16)
    assert np.abs(patch).max() <= bound
    assert patch.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for name in ("time_embed", "blocks.0.temporal_fc.weight", "blocks.1.temporal_fc.weight", "head.bias"):
        assert not parameters[name].any()
    assert (parameters["blocks.1.temporal_norm1.weight"] == 1).all()
    assert parameters["pos_embed"].std() == pytest.approx(0.02, rel=0.02)


def test_a_seed_gives_the_same_parameters_in_both_precisions():
    config = small_model().config
    single = refvt.HaltingVT(config, seed=3, dtype="float32")
    double = refvt.HaltingVT(config, seed=3, dtype="float64")
    other = refvt.HaltingVT(config, seed=4, dtype="float32")
    for name, value in double.parameters.items():
        assert np.array_equal(single.parameters[name], value.astype(np.float32))
    assert not np.array_equal(single.parameters["cls_token"], other.parameters["cls_token"])


def test_model_copies_the_parameters_that_it_is_given():
    model = small_model()
    again = refvt.HaltingVT(model.config, model.parameters, dtype="float64")
    again.parameters["norm.weight"][:] = 7
    assert not (model.parameters["norm.weight"] == 7).any()


def test_trace_names_every_step_and_both_directions():
    model = small_model(push=0.3, fuse_dropped=True)
    clips, labels, moving = small_batch(model.config)
    forward = model.trace(clips)
    assert not any(name.startswith("d(") for name in forward)
    trace = model.trace(clips, gradients=True, labels=labels, motion_labels=moving, ponder_weight=0.3)
    assert list(trace)[: len(forward)] == list(forward)
    for name in (
        "embed",
        "blocks.0.temporal_attn.q",
        "blocks.1.scores",
        "blocks.3.attn.v",
        "joint.4.weight",
        "y",
        "norm",
    ):
        assert trace[f"d({name})"].shape == trace[name].shape
    _, gradients = model.loss_and_gradients(clips, labels, moving, ponder_weight=0.3, execution="dense")
    for name, gradient in gradients.items():
        assert np.array_equal(trace[f"d({name})"], gradient)
    np.testing.assert_array_equal(trace["logits"], trace.output.logits)


def test_trace_of_halting_is_the_textbook_loop():
    """The y and ponder of a whole run are those of halt_tokens on the states in its trace."""
    from refvt import backends

    model = small_model(push=0.25, seed=5)
    config, B = model.config, 2
    trace = model.trace(small_clips(config, B))
    states = np.stack([trace[f"blocks.{i}.mlp"] for i in range(config.glimpser_depth, config.depth)])
    halt_tokens = backends.get("reference").halt_tokens
    (y, ponder, layer), _ = halt_tokens.forward(states, config.halting_scale, config.halting_center, config.epsilon)
    np.testing.assert_allclose(trace["y"], y, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(trace["ponder"].ravel(), ponder, rtol=1e-13)
    assert np.array_equal(trace.output.decisions.halting_layer.ravel(), layer)
    assert len(np.unique(layer)) > 2


def test_trace_in_compact_execution_computes_every_output():
    model = small_model(push=0.4)
    clips = small_clips(model.config, 2)
    dense, compact = model.trace(clips, gradients=True), model.trace(clips, gradients=True, execution="compact")
    for name in ("y", "ponder", "joint.2.weight", "logits", "d(embed)", "d(joint.1.weight)"):
        np.testing.assert_allclose(compact[name], dense[name], rtol=1e-9, atol=1e-13)
    assert len(compact["blocks.4.mlp"]) < len(dense["blocks.4.mlp"])


def test_drop_path_drops_the_stated_share_and_keeps_the_mean():
    from refvt.model.drop_path import draw_drop_path

    config = small_model(depth=11, keep_rates=(1.0, 1.0)).config
    scales = draw_drop_path(config, 4000, 0.5, np.random.default_rng(0))
    last = scales.joint[-1]
    assert set(np.unique(last)) == {0.0, 2.0}
    assert (last == 0).mean() == pytest.approx(0.5, abs=0.02)
    middle = scales.joint[3]  # block 5 of 0 … 10: rate 0.25
    assert (middle == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert middle.max() == pytest.approx(1 / 0.75)
    assert (scales.glimpser[0].temporal == 1).all()  # block 0 never drops


def test_multiply_adds_by_hand():
    """The numbers of the standard blocks of HaltingVT-S agree with a calculation by hand."""
    config = refvt.HaltingVTConfig(keep_rates=(1.0, 1.0))
    parts = flops.fixed_multiply_adds(config)
    assert parts["patch_embed"] == 1568 * 768 * 384
    assert parts["blocks.0.temporal_attn"] == 1568 * 4 * 384**2 + 2 * 196 * 8 * 8 * 384
    assert parts["blocks.0.attn"] == 8 * 197 * 4 * 384**2 + 2 * 8 * 197 * 197 * 384
    assert parts["blocks.1.mlp"] == 1569 * 2 * 384 * 1536
    assert flops.joint_multiply_adds(config, 473) == 473 * 12 * 384**2 + 2 * 473**2 * 384
    assert flops.joint_multiply_adds(config, 0) == 0
    total = flops.clip_gflops(config, np.full((1, 10), 1569))[0]
    assert total == pytest.approx((sum(parts.values()) + 10 * flops.joint_multiply_adds(config, 1569)) / 1e9)
    # selection saves the second block's MLP on what was dropped
    pruned = flops.fixed_multiply_adds(refvt.HaltingVTConfig())
    assert pruned["blocks.1.mlp"] == 473 * 2 * 384 * 1536
    assert pruned["blocks.1.attn"] == parts["blocks.1.attn"]


def test_handmade_weights_keep_moving_patches_alive():
    """The patches of a moving bar are kept and halt later than those of a flickering but still background."""
    config = refvt.HaltingVTConfig(
        image_size=(64, 64), patch_size=8, num_frames=4, width=96, num_heads=4, depth=8, keep_rates=(1.0, 0.25)
    )
    rng = np.random.default_rng(0)
    still = rng.uniform(-0.3, 0.3, (3, 1, 64, 64))
    clip = np.repeat(still, 4, axis=1) + 0.01 * rng.standard_normal((3, 4, 64, 64))
    for t in range(4):
        clip[:, t, 16:32, 16 + 8 * t : 24 + 8 * t] = 1.0  # a white bar that moves to the right
    model = refvt.HaltingVT(config, handmade_parameters(config), dtype="float32")
    out = model(clip[None], full_ponder=True)
    kept, layers = out.decisions.kept[-1][0], out.decisions.halting_layer[0, 1:].reshape(-1, 4).T
    row, column = np.divmod(kept, 8)
    moving = (row >= 2) & (row < 4) & (column >= 2) & (column < 6)
    assert moving.sum(axis=1).tolist() == [8] * 4  # all patches of the bar are kept in every frame
    assert layers[moving].min() > layers[~moving].max()
    assert out.decisions.halting_layer[0, 0] == config.joint_depth  # CLS lives to the end
    assert not out.logits.any()  # the heads are zero


def test_handmade_weights_refuse_configurations_that_are_too_small():
    with pytest.raises(ValueError, match="glimpser_depth: expected at least 2 for the handmade weights"):
        handmade_parameters(refvt.HaltingVTConfig(glimpser_depth=1, keep_rates=(0.5,)))
    with pytest.raises(ValueError, match="width: expected at least 54 for the handmade weights, got 48"):
        handmade_parameters(refvt.HaltingVTConfig(width=48))
    with pytest.raises(ValueError, match=r"mlp_ratio: expected a hidden width of at least 96 .*, got 64 \(1.0 · 64\)"):
        handmade_parameters(refvt.HaltingVTConfig(width=64, num_heads=4, mlp_ratio=1.0))
