"""The paper's frame sampling, against its definition and against what MMAction2 1.0.0 gave."""

import numpy as np
import pytest

from refvt.data import largest_stride, sample_indices


@pytest.mark.parametrize(
    ("available", "num_frames", "stride", "expected"),
    [
        (300, 8, 32, [37, 69, 101, 133, 165, 197, 229, 261]),  # (300 − 225) // 2 = 37
        (301, 4, 10, [135, 145, 155, 165]),
        (250, 8, 32, [12, 44, 76, 108, 140, 172, 204, 236]),
        (1000, 10, 64, [211, 275, 339, 403, 467, 531, 595, 659, 723, 787]),
        (226, 8, 32, [0, 32, 64, 96, 128, 160, 192, 224]),
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
                before, after = int(indices[0]), available - 1 - int(indices[-1])
                assert 0 <= after - before <= 1


def test_place_one_half_is_the_centred_window_of_the_frameworks_0x_releases() -> None:
    assert sample_indices(300, 8, 32, 0.5)[0] == 22  # (300 − 256 + 1) // 2
    assert sample_indices(250, 8, 32, 0.5)[0] == 0  # longer than the clip, shorter than its window
    for available in range(1, 300):
        indices = sample_indices(available, 4, 7, 0.5, loop=True)
        assert indices[0] == max(available - 28 + 1, 0) // 2


@pytest.mark.parametrize(
    ("available", "place", "start"),
    [
        (300, 0.0, 0),
        (300, 0.5, 22),  # 45 places for a window of 256 frames
        (300, 0.9999, 44),
        (256, 0.9999, 0),
        (250, 0.9999, 0),  # shorter than the window
    ],
)
def test_a_place_in_training(available: int, place: float, start: int) -> None:
    assert sample_indices(available, 8, 32, place).tolist() == list(range(start, start + 225, 32))


def test_every_place_has_the_same_chance() -> None:
    places = (np.arange(4500) + 0.5) / 4500
    starts = [int(sample_indices(300, 8, 32, place)[0]) for place in places]
    assert np.bincount(starts).tolist() == [100] * 45


def test_looped() -> None:
    # As MMAction: frame i stands for frame i modulo the length.
    assert sample_indices(100, 8, 32, loop=True).tolist() == [0, 32, 64, 96, 28, 60, 92, 24]
    assert sample_indices(100, 8, 32, 0.7, loop=True).tolist() == [0, 32, 64, 96, 28, 60, 92, 24]
    assert sample_indices(1, 3, 5, loop=True).tolist() == [0, 0, 0]
    assert sample_indices(225, 8, 32, loop=True).tolist() == sample_indices(225, 8, 32).tolist()
    with pytest.raises(ValueError, match="num_frames: expected at most 0"):
        sample_indices(0, 8, 32, loop=True)
    with pytest.raises(ValueError, match=r"place: expected a number in \[0, 1\), got 1"):
        sample_indices(300, 8, 32, 1)


def test_too_short_says_what_would_fit() -> None:
    with pytest.raises(ValueError, match=r"^8 frames 32 apart need 225 frames; the video has 120; use stride <= 17$"):
        sample_indices(120, 8, 32)
    assert sample_indices(120, 8, 17)[-1] == 119
    with pytest.raises(ValueError, match=r"^num_frames: expected at most 7, the length of the video, got 8$"):
        sample_indices(7, 8, 2)
    with pytest.raises(ValueError, match=r"^num_frames: expected at most 0, the length of the video, got 1$"):
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
    with pytest.raises(ValueError, match="stride: expected at least 1, got 0"):
        sample_indices(100, 8, 0)
    with pytest.raises(ValueError, match="num_frames: expected at least 1, got -2"):
        largest_stride(100, -2)
    with pytest.raises(TypeError, match=r"stride: expected a whole number, got 2\.5"):
        sample_indices(100, 8, 2.5)  # type: ignore[arg-type]
