"""Which frames of a video make up a clip: for testing from the centre, for training from a random place."""

import numpy as np
from numpy.typing import NDArray

from refvt.checks import check_int


def sample_indices(
    num_available: int, num_frames: int, stride: int, place: float | None = None, loop: bool = False
) -> NDArray[np.int64]:
    """Return the frame numbers of a clip of ``num_frames`` frames, ``stride`` apart, as int64 [num_frames].

    place None, for testing: the clip, which spans (num_frames − 1) · stride + 1 frames, begins at half of what is left
    of the video, rounded down. This is what MMAction2 1.0.0 does, the framework of the released configurations.

    A place in [0, 1), for training: the clip takes the first frame of each stride in a window of num_frames · stride
    frames. A place drawn uniformly makes all positions of the window equally likely; 0.5 is its centre, which releases
    0.x of MMAction took in testing. A video that is shorter than the window, but long enough for the clip, is read from
    frame 0.

    All numbers are below ``num_available``. They increase, unless the video is too short for the clip and ``loop`` is
    set: then frame i stands for frame i modulo num_available, as in MMAction2. Without ``loop`` such a video raises
    ValueError with the stride that would fit.
    """
    num_available = check_int("num_available", num_available, minimum=0)
    num_frames = check_int("num_frames", num_frames)
    stride = check_int("stride", stride)
    if place is not None and not 0 <= place < 1:
        raise ValueError(f"place: expected a number in [0, 1), got {place}")
    needed = (num_frames - 1) * stride + 1
    if num_available < needed and not (loop and num_available):
        raise ValueError(_too_short(num_available, num_frames, stride))
    if place is None:
        start = max(0, num_available - needed) // 2
    else:
        start = int(place * max(1, num_available - num_frames * stride + 1))  # of that many positions of the window
    return (start + stride * np.arange(num_frames, dtype=np.int64)) % num_available


def largest_stride(num_available: int, num_frames: int, at_most: int = 32) -> int:
    """Return the largest stride, at most ``at_most``, with which ``num_frames`` frames fit in the video.

    Raises ValueError if the video has fewer frames than that.
    """
    num_available = check_int("num_available", num_available, minimum=0)
    num_frames = check_int("num_frames", num_frames)
    at_most = check_int("at_most", at_most)
    if num_available < num_frames:
        raise ValueError(_too_short(num_available, num_frames, 1))
    if num_frames == 1:
        return at_most
    return min(at_most, (num_available - 1) // (num_frames - 1))


def _too_short(num_available: int, num_frames: int, stride: int) -> str:
    """Return the error message for a video that is too short."""
    if num_available < num_frames:
        return f"num_frames: expected at most {num_available}, the length of the video, got {num_frames}"
    needed = (num_frames - 1) * stride + 1
    fits = (num_available - 1) // (num_frames - 1)
    return (
        f"{num_frames} frames {stride} apart need {needed} frames; the video has {num_available}; use stride <= {fits}"
    )
