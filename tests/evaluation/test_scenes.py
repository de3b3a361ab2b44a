"""Scenes are cut in windows, the windows' states joined again, and what changes is compared with what lives."""

import numpy as np
import pytest

from refvt.data.video import Frames
from refvt.evaluation.patches import ALIVE, DROPPED, HALTED
from refvt.evaluation.scenes import (
    Scene,
    alive_by_change,
    change_auc,
    change_threshold,
    changing_patches,
    cut_windows,
    join_windows,
    whole_frame_changes,
)


def test_windows_are_cut_and_joined_in_place() -> None:
    scene = np.random.default_rng(0).integers(0, 4, (2, 4, 6)).astype(np.int8)  # [T, 4, 6]
    cut = cut_windows(scene, 2)
    assert cut.shape == (6, 2, 2, 2)
    np.testing.assert_array_equal(cut[4], scene[:, 2:, 2:4])
    np.testing.assert_array_equal(join_windows(cut[:, None], 2, 3)[0], scene)


def scene(states: np.ndarray, grey: np.ndarray) -> Scene:
    images = np.zeros((*grey.shape, 3), np.uint8)
    frames = Frames(images, np.arange(len(grey)), len(grey), None, 1)
    height, width = grey.shape[1:]
    return Scene(images, grey, states, (1, 1), frames, (height, width), gflops=1.0, gflops_without_halting=2.0)


def test_a_patch_changes_against_either_neighbour() -> None:
    grey = np.full((4, 4, 8), 100.0)
    grey[1, :2, :2] += 5  # patch (0, 0) blinks in frame 1
    grey[:, 2:, 6:] += 30 * np.arange(4)[:, None, None]  # patch (1, 3) brightens all the time
    grey[2:, :2, 4:6] += 3  # below the threshold
    found = changing_patches(scene(np.zeros((1, 4, 2, 4), np.int8), grey))
    assert found[:, 0, 0].tolist() == [True, True, True, False]
    assert found[:, 1, 3].all()
    assert found.sum() == 7
    assert change_threshold(scene(np.zeros((1, 4, 2, 4), np.int8), grey)) == 4
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


SIDE, PATCH, T = 48, 12, 8


def film(shift: float = 0, noise: float = 0, light: float = 0, blob: bool = False) -> Scene:
    """A smooth texture that shifts and brightens from frame to frame, with noise, and a square that moves over it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    waves = [(rng.uniform(-0.5, 0.5, 2), rng.uniform(0, 7)) for _ in range(12)]
    grey = np.empty((T, SIDE, SIDE))
    for t in range(T):
        grey[t] = 128 + light * t
        for (a, b), phase in waves:
            grey[t] += 10 * np.sin(a * y + b * (x + shift * t) + phase)
        if blob:
            grey[t, 12:24, 4 * t : 4 * t + 12] = 255
    grey = (grey + rng.normal(0, noise, grey.shape)).clip(0, 255)
    return scene(np.zeros((1, T, SIDE // PATCH, SIDE // PATCH), np.int8), grey)


@pytest.mark.parametrize("noise", [0, 2, 8, 30])
def test_a_camera_that_stands_still_is_told_from_one_that_moves_whatever_its_noise(noise: int) -> None:
    """The mean |difference| of a patch of 144 pixels has a relative error of 0.76/12: the quartiles differ by less."""
    assert not whole_frame_changes(film(noise=noise))
    assert not whole_frame_changes(film(noise=noise, blob=True))
    # noise adds to both differences, so a slow camera is lost in strong noise; with 30 grey levels every camera is
    for shift in {0: (0.25, 0.5, 1, -2), 2: (0.25, 0.5, 1, -2), 8: (1, 1.5), 30: ()}[noise]:
        assert whole_frame_changes(film(shift, noise))
        assert whole_frame_changes(film(shift, noise, blob=True))


def test_light_that_grows_changes_the_whole_frame_and_two_frames_show_nothing() -> None:
    assert whole_frame_changes(film(light=3))
    assert not whole_frame_changes(film(light=0.5))  # 3.5 grey levels in all
    two = film(shift=2)
    assert not whole_frame_changes(scene(two.states[:, :2], two.grey[:2]))
    assert change_threshold(film(noise=30)) > 30  # twice E|n − n'| = 2 · 30 · 2/√π, for the quietest quarter
