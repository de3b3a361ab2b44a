"""Scenes are cut in windows, the windows' states joined again, and what changes is compared with what lives."""

import numpy as np
import pytest

from refvt.data.video import Frames
from refvt.evaluation.patches import ALIVE, DROPPED, HALTED
from refvt.evaluation.scenes import Scene, alive_by_change, change_auc, changing_patches, cut_windows, join_windows


def test_windows_are_cut_and_joined_in_place() -> None:
    scene = np.random.default_rng(0).integers(0, 4, (2, 4, 6)).astype(np.int8)  # [T, 4, 6]
    cut = cut_windows(scene, 2)
    assert cut.shape == (6, 2, 2, 2)
    np.testing.assert_array_equal(cut[4], scene[:, 2:, 2:4])
    np.testing.assert_array_equal(join_windows(cut[:, None], 2, 3)[0], scene)


def scene(states: np.ndarray, grey: np.ndarray) -> Scene:
    images = np.zeros((*grey.shape, 3), np.uint8)
    return Scene(images, grey, states, (1, 1), Frames(images, np.arange(len(grey)), len(grey), None, 1))


def test_a_patch_changes_against_either_neighbour() -> None:
    grey = np.full((4, 4, 8), 100.0)
    grey[1, :2, :2] += 5  # patch (0, 0) blinks in frame 1
    grey[:, 2:, 6:] += 30 * np.arange(4)[:, None, None]  # patch (1, 3) brightens all the time
    grey[2:, :2, 4:6] += 3  # below the threshold
    found = changing_patches(scene(np.zeros((1, 4, 2, 4), np.int8), grey))
    assert found[:, 0, 0].tolist() == [True, True, True, False]
    assert found[:, 1, 3].all()
    assert found.sum() == 7
    noisy = grey + np.random.default_rng(0).normal(0, 20, grey.shape)
    assert not changing_patches(scene(np.zeros((1, 4, 2, 4), np.int8), noisy))[:, 0, 0].all()  # lost in the noise


def test_patches_that_change_are_compared_with_the_others() -> None:
    grey = np.full((2, 2, 8), 100.0)
    grey[1, :, :4] += 50  # of four patches the first two change, in both frames
    states = np.full((3, 2, 1, 4), HALTED, np.int8)
    states[0] = ALIVE
    states[1, :, :, :2] = ALIVE
    states[2, 0, 0, 2] = states[1, 0, 0, 2] = ALIVE  # one of the others lives longest
    states[:, 1, 0, 3] = DROPPED
    found = scene(states, grey)
    # layers lived: 2, 2, 2, 2 against 3, 1, 1; the dropped one does not count
    assert change_auc(found) == pytest.approx(2 / 3)
    np.testing.assert_allclose(alive_by_change(found), [[1, 3 / 4], [1, 1 / 4], [0, 1 / 4]])
    grey[:] = 100.0
    assert np.isnan(change_auc(scene(states, grey)))
    assert np.isnan(alive_by_change(scene(states, grey))[:, 0]).all()
