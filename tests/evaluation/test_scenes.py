"""Scenes are cut in windows, and the windows' states joined again."""

import numpy as np

from refvt.evaluation.scenes import cut_windows, join_windows


def test_windows_are_cut_and_joined_in_place() -> None:
    scene = np.random.default_rng(0).integers(0, 4, (2, 4, 6)).astype(np.int8)  # [T, 4, 6]
    cut = cut_windows(scene, 2)
    assert cut.shape == (6, 2, 2, 2)
    np.testing.assert_array_equal(cut[4], scene[:, 2:, 2:4])
    np.testing.assert_array_equal(join_windows(cut[:, None], 2, 3)[0], scene)
