"""Dense and compact execution give the same results, and the result of a clip does not depend on its batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refvt
from tests.support.models import relative, small_batch, small_clips, small_model

OUTPUTS = ("logits", "motion_logits", "features", "ponder")

VARIANT = st.fixed_dictionaries(
    {
        "halted_keys": st.sampled_from(["zero", "masked"]),
        "cls_skip": st.booleans(),
        "fuse_dropped": st.booleans(),
        "keep_rates": st.sampled_from([(1.0, 1.0), (1.0, 0.5), (0.5, 0.5), (0.4, 1.0)]),
        "halting_center": st.sampled_from([5.0, 10.0, 20.0]),
        "push": st.sampled_from([-5.0, 0.0, 0.4, 5.0]),  # no token halts early, some do, all halt at once
        "depth": st.sampled_from([3, 4, 6]),
        "seed": st.integers(0, 1000),
    }
)


def same(one, other, tolerance):
    for name in OUTPUTS:
        a, b = getattr(one, name), getattr(other, name)
        assert np.array_equal(np.isnan(a), np.isnan(b))
        assert relative(np.nan_to_num(a), np.nan_to_num(b)) <= tolerance, name
    assert np.array_equal(one.alive, other.alive)
    assert np.array_equal(one.tokens_per_layer, other.tokens_per_layer)
    assert np.array_equal(one.gflops, other.gflops)
    assert np.array_equal(one.decisions.halting_layer, other.decisions.halting_layer)


@given(variant=VARIANT, B=st.integers(1, 3), full_ponder=st.booleans())
def test_compact_is_dense_forward(variant, B, full_ponder):
    model = small_model(**variant)
    clips = small_clips(model.config, B, seed=variant["seed"])
    dense = model(clips, execution="dense", full_ponder=full_ponder)
    compact = model(clips, execution="compact", full_ponder=full_ponder)
    same(compact, dense, 1e-10)


@given(variant=VARIANT, B=st.integers(1, 3), drop_path=st.sampled_from([0.0, 0.5]))
def test_compact_is_dense_backward(variant, B, drop_path):
    model = small_model(**variant)
    batch = small_batch(model.config, B, seed=variant["seed"])
    both = []
    for execution in ("dense", "compact"):
        rng = np.random.default_rng(3)
        both.append(
            model.loss_and_gradients(*batch, ponder_weight=0.3, execution=execution, drop_path=drop_path, rng=rng)
        )
    (dense, dense_gradients), (compact, compact_gradients) = both
    same(compact.output, dense.output, 1e-10)
    assert compact.total == pytest.approx(dense.total, rel=1e-12)
    largest = max(np.linalg.norm(g) for g in dense_gradients.values())
    for name, gradient in dense_gradients.items():
        error = np.linalg.norm(compact_gradients[name] - gradient)
        assert error <= 1e-9 * np.linalg.norm(gradient) + 1e-15 * largest, name


@given(variant=VARIANT, execution=st.sampled_from(["dense", "compact"]))
@settings(max_examples=20)
def test_a_clip_does_not_depend_on_its_batch(variant, execution):
    model = small_model(**variant)
    clips = small_clips(model.config, 3, seed=variant["seed"])
    together = model(clips, execution=execution)
    for b in range(3):
        alone = model(clips[b : b + 1], execution=execution)
        for name in OUTPUTS:
            a, t = getattr(alone, name)[0], getattr(together, name)[b]
            assert np.array_equal(np.isnan(a), np.isnan(t))
            assert relative(np.nan_to_num(a), np.nan_to_num(t)) <= 1e-12
        assert np.array_equal(alone.alive[0], together.alive[b])


@given(variant=VARIANT)
@settings(max_examples=20)
def test_free_decisions_fed_back_change_nothing(variant):
    model = small_model(**variant)
    clips = small_clips(model.config, 2, seed=variant["seed"])
    for execution in ("dense", "compact"):
        free = model(clips, execution=execution)
        again = model(clips, execution=execution, decisions=free.decisions)
        same(again, free, 1e-12)
        for a, b in zip(again.decisions.kept, free.decisions.kept, strict=True):
            assert np.array_equal(a, b)


def test_imposed_decisions_are_followed():
    model = small_model()
    config = model.config
    clips = small_clips(config, 2)
    rng = np.random.default_rng(0)
    S, kept = config.patches_per_frame, config.patches_entering()[-1]
    chosen = np.stack([np.stack([rng.permutation(S)[:kept] for _ in range(config.num_frames)]) for _ in range(2)])
    everything = np.broadcast_to(np.arange(S), (2, config.num_frames, S))
    layers = rng.integers(1, config.joint_depth + 1, (2, config.joint_tokens))
    imposed = refvt.Decisions((everything, chosen), layers)
    out = model(clips, full_ponder=True, decisions=imposed)
    assert np.array_equal(out.decisions.kept[-1], chosen)
    assert np.array_equal(out.decisions.halting_layer, layers)
    expected = layers[:, None, :] >= np.arange(1, config.joint_depth + 1)[:, None]
    assert np.array_equal(out.alive, expected)


def test_a_clip_leaves_when_cls_has_halted():
    model = small_model(push=0.4, seed=4)
    config = model.config
    clips = small_clips(config, 2)
    layers = np.full((2, config.joint_tokens), config.joint_depth)
    layers[0, 0], layers[0, 1] = 2, 1  # in clip 0, CLS halts in layer 2, one patch in layer 1, the others in the last
    early = model(clips, decisions=refvt.Decisions(None, layers))
    assert early.tokens_per_layer[0].tolist() == [config.joint_tokens, config.joint_tokens - 1, 0, 0]
    assert np.isnan(early.ponder[0, 2:]).all()
    assert np.isfinite(early.ponder[0, :2]).all()
    assert early.decisions.halting_layer[0, 2:].tolist() == [0] * (config.joint_tokens - 2)
    assert np.isfinite(early.ponder[1]).all()
    full = model(clips, full_ponder=True, decisions=refvt.Decisions(None, layers))
    assert np.isfinite(full.ponder).all()
    np.testing.assert_allclose(full.logits, early.logits, rtol=1e-12)
    assert early.gflops[0] < full.gflops[0]
    assert early.gflops[1] == full.gflops[1]
