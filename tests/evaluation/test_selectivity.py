"""Selectivity is an area under the ROC curve, over the right tokens."""

import numpy as np
import pytest

import refvt
from refvt.data import MovingDigits
from refvt.evaluation.selectivity import (
    Lives,
    auc_of,
    compute_lives,
    object_tokens,
    selectivity_of,
    summarise_lives,
)
from tests.support.sliding_bars import SlidingBars
from tests.support.tiny_sweep import tiny_recipe

RECIPE = tiny_recipe()
DATA = MovingDigits("test", clips=6, frames=4, size=16)


@pytest.fixture(scope="module")
def model():
    """A model in which CLS of some clips halts before other tokens."""
    start = refvt.HaltingVT(RECIPE.config, seed=1).parameters
    return refvt.HaltingVT(RECIPE.config, {name: 30 * value for name, value in start.items()}, backend="reference")


def test_auc_is_the_share_of_pairs_in_order_ties_half():
    rng = np.random.default_rng(0)
    for _ in range(20):
        high, low = rng.integers(1, 5, size=rng.integers(1, 9)), rng.integers(1, 5, size=rng.integers(1, 9))
        pairs = [(a > b) + 0.5 * (a == b) for a in high for b in low]
        assert auc_of(np.bincount(high, minlength=5), np.bincount(low, minlength=5)) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc_of(np.array([0, 0]), np.array([0, 3])))


def test_tokens_are_sorted_by_the_pixels_of_their_patches(model):
    clips, _ = DATA.arrays()
    out = model(clips, full_ponder=True)
    ink, groups = DATA.ink(), object_tokens(DATA.ink(), RECIPE.config, out)
    assert set(np.unique(groups)) == {-1, 0, 1}
    kept = out.decisions.kept[-1]
    for b, t, s in np.ndindex(*kept.shape):
        row, column = divmod(int(kept[b, t, s]), 4)
        pixels = ink[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected = 1 if pixels[t].mean() >= 0.2 else -1 if pixels.any() else 0
        assert groups[b, s * 4 + t] == expected


def test_every_token_is_followed_to_its_own_halt(model):
    """A clip that ends because CLS halts has the same lives as with CLS alive."""
    lives = compute_lives(model, DATA, range(6))
    early = model(DATA.arrays()[0])
    assert (early.alive.sum(axis=(1, 2)) < model(DATA.arrays()[0], full_ponder=True).alive.sum(axis=(1, 2))).any()
    out = model.trace(DATA.arrays()[0], execution="dense").output
    lived = out.decisions.halting_layer[:, 1:]
    groups = object_tokens(DATA.ink(), RECIPE.config, out)
    for each, own, group in zip(lives, lived, groups, strict=True):
        np.testing.assert_array_equal(each.object, np.bincount(own[group == 1], minlength=4))
        np.testing.assert_array_equal(each.background, np.bincount(own[group == 0], minlength=4))


def test_the_figures_over_clips():
    lives = [
        Lives(np.array([0, 0, 1, 3]), np.array([0, 6, 2, 0])),
        Lives(np.array([0, 0, 0, 4]), np.array([0, 7, 0, 1])),
        Lives(np.array([0, 4, 0, 0]), np.array([0, 0, 0, 0])),  # left out: no background
    ]
    found = summarise_lives(lives)
    assert found.clips == 2
    # of 8 object tokens all enter layers 1 and 2 and seven layer 3; of 16 of the background 16, 3 and 1
    assert found.object_alive == pytest.approx([1, 1, 7 / 8])
    assert found.background_alive == pytest.approx([1, 3 / 16, 1 / 16])
    assert (found.layer, found.ratio) == (3, pytest.approx(14))
    assert found.auc == pytest.approx(np.mean([(3 * 8 + 6 + 2 / 2) / 32, (4 * 7 + 4 / 2) / 32]))
    assert summarise_lives(lives[2:]) is None
    assert summarise_lives([Lives(np.array([0, 0, 4]), np.array([0, 9, 0]))]).ratio is None  # JSON has no infinity


def test_data_without_a_known_object_have_none(model):
    assert selectivity_of(model, SlidingBars(4)) is None
    assert selectivity_of(model, DATA, batch=4) == summarise_lives(compute_lives(model, DATA, range(6)))
