"""Change of patches from frame to frame."""

import numpy as np
import pytest

from refvt.data.change import change_of_patches


def test_change_is_the_larger_difference_to_a_neighbouring_frame():
    rng = np.random.default_rng(3)
    clips = rng.random((2, 3, 4, 8, 12))
    found = change_of_patches(clips, 4)
    assert found.shape == (2, 4, 6)
    for b, t, row, column in np.ndindex(2, 4, 2, 3):
        piece = clips[b, :, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        changes = [np.abs(piece[:, t] - piece[:, u]).mean() for u in (t - 1, t + 1) if 0 <= u < 4]
        assert found[b, t, 3 * row + column] == pytest.approx(max(changes))
    assert (change_of_patches(clips[:, :, :1], 4) == 0).all()
