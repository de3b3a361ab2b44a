"""The paper's frame sampling, against its definition."""

import numpy as np
import pytest

from refvt.data import largest_stride, sample_indices


@pytest.mark.parametrize(
    ("available", "num_frames", "stride", "expected"),
    [
        (300, 8, 32, [22, 54, 86, 118, 150, 182, 214, 246]),  # (300 − 256 + 1) // 2 = 22
        (301, 4, 10, [131, 141, 151, 161]),
        (250, 8, 32, [0, 32, 64, 96, 128, 160, 192, 224]),  # longer than the clip, shorter than its window
        (225, 8, 32, [0, 32, 64, 96, 128, 160, 192, 224]),  # not a frame to spare
        (3, 3, 1, [0, 1, 2]),
        (9, 1, 1, [4]),
    ],
)
def test_centre_clip(available: int, num_frames: int, stride: int, expected: list[int]) -> None:
    indices = sample_indices(available, num_frames, stride)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


def test_every_clip_lies_inside_and_in_the_middle() -> None:
    for available in range(1, 60):
        for num_frames in range(1, 9):
            for stride in range(1, 9):
                if (num_frames - 1) * stride + 1 > available:
                    continue
                indices = sample_indices(available, num_frames, stride)
                assert indices[0] >= 0
                assert indices[-1] < available
                assert (np.diff(indices) == stride).all()
                before, after = int(indices[0]), available - int(indices[0]) - num_frames * stride
                if after >= 0:
                    assert 0 <= before - after <= 1


def test_too_short_says_what_would_fit() -> None:
    with pytest.raises(ValueError, match=r"^8 frames 32 apart need 225 frames; the video has 120; use stride <= 17$"):
        sample_indices(120, 8, 32)
    assert sample_indices(120, 8, 17)[-1] == 119
    with pytest.raises(ValueError, match=r"^8 frames asked for; the video has 7$"):
        sample_indices(7, 8, 2)
    with pytest.raises(ValueError, match=r"^1 frame asked for; the video has 0$"):
        largest_stride(0, 1)


def test_largest_stride_is_the_largest_that_fits() -> None:
    for num_frames in range(2, 9):
        for available in range(num_frames, 80):
            stride = largest_stride(available, num_frames)
            sample_indices(available, num_frames, stride)
            if stride < 32:
                with pytest.raises(ValueError, match=f"use stride <= {stride}$"):
                    sample_indices(available, num_frames, stride + 1)
    assert largest_stride(10_000, 8) == 32
    assert largest_stride(10_000, 8, at_most=64) == 64
    assert largest_stride(5, 1) == 32


def test_numbers_are_checked() -> None:
    with pytest.raises(ValueError, match="stride must be at least 1, not 0"):
        sample_indices(100, 8, 0)
    with pytest.raises(ValueError, match="num_frames must be at least 1, not -2"):
        largest_stride(100, -2)
    with pytest.raises(TypeError, match=r"stride must be a whole number, not 2\.5"):
        sample_indices(100, 8, 2.5)  # type: ignore[arg-type]
