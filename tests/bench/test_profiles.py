"""Under weights made for measuring a clip has the requested cost, and tokens die over several layers."""

import numpy as np
import pytest

import refvt
from refvt.bench.profiles import profile_parameters
from refvt.model import flops


@pytest.mark.parametrize("halted_keys", ["zero", "masked"])
def test_a_profile_costs_what_was_asked(halted_keys):
    config = refvt.HaltingVTConfig(
        image_size=(96, 96), num_frames=4, width=48, num_heads=2, keep_rates=(1.0, 0.5), halted_keys=halted_keys
    )
    clips = np.random.default_rng(0).standard_normal((1, 3, 4, 96, 96)).astype(np.float32)
    full = float(flops.clip_gflops(config, np.full(config.joint_depth, config.joint_tokens)))
    fixed = sum(flops.fixed_multiply_adds(config).values()) / 1e9
    wanted = fixed + 0.4 * (full - fixed)
    out = refvt.HaltingVT(config, profile_parameters(config, wanted, clips))(clips)
    assert out.gflops[0] == pytest.approx(wanted, rel=0.01)
    counts = out.tokens_per_layer[0]
    assert counts[0] == config.joint_tokens
    assert len(np.unique(counts)) >= 4
    assert out.decisions.halting_layer[0, 0] == config.joint_depth  # CLS lives to the end
    assert (out.alive.sum(axis=2) > 0).all()


def test_a_profile_out_of_reach_is_refused():
    with pytest.raises(ValueError, match=r"gflops: expected 8\.55 to 17\.63"):
        profile_parameters(refvt.HaltingVTConfig(), 5.0, np.zeros((1, 3, 8, 224, 224), np.float32))
    with pytest.raises(ValueError, match="a profile needs a Glimpser block that selects"):
        profile_parameters(refvt.HaltingVTConfig(cls_skip=True), 9.9, np.zeros((1, 3, 8, 224, 224), np.float32))
