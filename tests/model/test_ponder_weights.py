"""Weights of patches in the ponder loss: what they multiply, and the gradient."""

import numpy as np
import pytest

from refvt.model.decisions import values_of_tokens
from tests.support.models import small_batch, small_model

LOSS = {"ponder_weight": 0.7}


def weights_of(config, B=3, seed=5):
    return np.random.default_rng(seed).standard_normal((B, config.num_frames, config.patches_per_frame))


@pytest.mark.parametrize("fuse", [False, True])
def test_each_patch_counts_by_its_weight_cls_and_fused_patches_by_one(fuse):
    model = small_model(fuse_dropped=fuse)
    clips, labels, moving = small_batch(model.config)
    weights = weights_of(model.config)
    loss, _ = model.loss_and_gradients(clips, labels, moving, patch_ponder_weights=weights, **LOSS)
    kept, ponder = loss.output.decisions.kept[-1], loss.output.ponder
    total = ponder[:, 0].sum()
    for b, t, s in np.ndindex(*kept.shape):
        patch = kept[b, t, s]
        total += (1 if patch < 0 else weights[b, t, patch]) * ponder[b, 1 + s * model.config.num_frames + t]
    assert (kept < 0).any() == fuse
    assert loss.ponder == pytest.approx(total / ponder.size)
    assert loss.total == pytest.approx(loss.recognition + 0.7 * loss.ponder + loss.motion)


def test_the_gradient_is_that_of_the_weighted_loss():
    """Along a random direction, against central differences with the decisions held fixed."""
    model = small_model(push=0.4)
    clips, labels, moving = small_batch(model.config)
    settings = {"patch_ponder_weights": 5 * weights_of(model.config), **LOSS}
    loss, gradients = model.loss_and_gradients(clips, labels, moving, **settings)
    assert len(np.unique(loss.output.decisions.halting_layer)) > 1
    rng = np.random.default_rng(6)
    start = {name: value.copy() for name, value in model.parameters.items()}
    direction = {name: rng.standard_normal(value.shape) for name, value in start.items()}
    h, found = 1e-5, []
    for sign in (1, -1):
        model.parameters = {name: value + sign * h * direction[name] for name, value in start.items()}
        moved, _ = model.loss_and_gradients(clips, labels, moving, decisions=loss.output.decisions, **settings)
        found.append(moved.total)
    along = sum((gradients[name] * direction[name]).sum() for name in start)
    assert (found[0] - found[1]) / (2 * h) == pytest.approx(along, rel=1e-6)


@pytest.mark.parametrize("backend", ["reference", "jit"])
def test_weights_of_one_are_the_papers_loss(backend):
    model = small_model(backend=backend)
    clips, labels, moving = small_batch(model.config)
    plain, gradients = model.loss_and_gradients(clips, labels, moving, **LOSS)
    ones = np.ones_like(weights_of(model.config))
    loss, same = model.loss_and_gradients(clips, labels, moving, patch_ponder_weights=ones, **LOSS)
    assert (loss.total, loss.ponder) == (plain.total, plain.ponder)
    for name in gradients:
        np.testing.assert_array_equal(same[name], gradients[name])
    trace = model.trace(clips, gradients=True, labels=labels, patch_ponder_weights=0 * ones, **LOSS)
    assert (trace["d(ponder)"][:, 1:] == 0).all()
    assert (trace["d(ponder)"][:, 0] != 0).all()


def test_values_go_to_the_tokens_of_their_patches():
    values, kept = np.arange(12.0).reshape(1, 2, 6), np.array([[[5, 0, -1], [2, 3, -1]]])
    assert values_of_tokens(values, kept, -7).tolist() == [[-7, 5, 8, 0, 9, -7, -7]]
    assert values_of_tokens(values, None, 1)[0].tolist() == [1, 0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]


@pytest.mark.parametrize("bad", [np.ones((3, 6, 3)), np.full((3, 3, 6), np.nan), np.full((3, 3, 6), "a")])
def test_weights_that_do_not_fit_are_refused(bad):
    model = small_model()
    clips, labels, moving = small_batch(model.config)
    with pytest.raises(ValueError, match=r"patch_ponder_weights: expected finite numbers \[3, 3, 6\], got"):
        model.loss_and_gradients(clips, labels, moving, patch_ponder_weights=bad)
