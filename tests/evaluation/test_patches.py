"""What happens to patches: states, which patches have the digit, which of them are alive."""

import numpy as np
import pytest

from refvt.data import MovingDigits
from refvt.evaluation.patches import (
    ALIVE,
    DONE,
    DROPPED,
    HALTED,
    alive_around,
    alive_by_group,
    digit_groups,
)


def test_groups_by_hand() -> None:
    ink = np.zeros((1, 2, 4, 6), np.bool_)
    ink[0, 0, 1, 1] = True  # patch (0, 0) in frame 0
    ink[0, 1, 3, 5] = ink[0, 1, 2, 2] = True  # patches (1, 2) and (1, 1) in frame 1
    found = digit_groups(ink, 2)
    np.testing.assert_array_equal(found[0], [[[0, 2, 2], [2, 1, 1]], [[1, 2, 2], [2, 0, 0]]])


def test_shares_by_hand() -> None:
    groups = np.array([[[[0, 1], [2, 2]]]], np.int8)  # one clip, one frame
    states = np.array([[[[[ALIVE, DROPPED], [ALIVE, HALTED]]], [[[ALIVE, DROPPED], [DONE, HALTED]]]]], np.int8)
    np.testing.assert_array_equal(alive_by_group(states, groups), [[1, 0, 0.5], [1, 0, 0]])
    empty = alive_by_group(states, np.zeros_like(groups))
    np.testing.assert_array_equal(empty, [[0.5, np.nan, np.nan], [0.25, np.nan, np.nan]])


@pytest.mark.parametrize("patch_size", [4, 8])
def test_the_map_of_what_follows_the_digit_exactly(patch_size: int) -> None:
    data = MovingDigits("test", clips=16, frames=3, size=32)
    groups = digit_groups(data.ink(), patch_size)
    states = np.stack([np.where(groups == 0, ALIVE, DROPPED), np.full(groups.shape, HALTED)], axis=1)
    np.testing.assert_array_equal(alive_by_group(states, groups), [[1, 0, 0], [0, 0, 0]])
    maps = alive_around(states, data.places() + 4, patch_size, 32)
    assert maps.shape == (2, 32, 32)
    assert maps[0, 13:19, 15:17].min() == 1  # every digit has ink in its middle columns
    # Ink lies within 4 pixels of the middle, and a patch with ink reaches up to patch_size − 1 pixels beyond it.
    away = np.abs(np.arange(32) - 15.5) > 4 + patch_size
    assert maps[0][away].max() == 0
    assert maps[0][:, away].max() == 0
    assert maps[1].max() == 0


def test_the_map_turns_with_the_canvas() -> None:
    states = np.full((1, 1, 1, 4, 4), DROPPED, np.int8)
    states[0, 0, 0, 3, 0] = ALIVE  # pixels 24 to 31 below, 0 to 7 across
    (found,) = alive_around(states, np.array([[[2, 30]]]), 8, 32)
    # Row 24 is 10 above the digit's middle at row 2, over the edge; column 0 is 2 right of its middle at column 30.
    expected = np.zeros((32, 32))
    expected[16 - 10 : 16 - 2, 16 + 2 : 16 + 10] = 1
    np.testing.assert_array_equal(found, expected)
