"""Which frames of a video make up a clip: in testing one clip from the centre, in training one from anywhere."""

import numpy as np
from numpy.typing import NDArray

from refvt.checks import check_int


def sample_indices(
    num_available: int, num_frames: int, stride: int, place: float | None = None, loop: bool = False
) -> NDArray[np.int64]:
    """The frame numbers of a clip: `num_frames` frames, `stride` apart.

    A clip owns a window of num_frames · stride frames and takes the first frame of each stride. With place None the
    window is centred in the video; a number in [0, 1), drawn uniformly, puts it at any place with equal chance. A video
    shorter than the window, but long enough for the clip, is read from frame 0.
    One too short for the clip is refused, or, with `loop`, read from frame 0 again and again, frame i standing for
    frame i modulo num_available, as MMAction does, which the paper's configurations use.

    Returns int64 [num_frames], all below `num_available`, increasing unless looped. Raises ValueError when the video is
    too short, and says which stride would fit.
    """
    num_available = check_int("num_available", num_available, minimum=0)
    num_frames = check_int("num_frames", num_frames)
    stride = check_int("stride", stride)
    if place is not None and not 0 <= place < 1:
        raise ValueError(f"place: expected a number in [0, 1), got {place}")
    needed = (num_frames - 1) * stride + 1
    if num_available < needed and not (loop and num_available):
        raise ValueError(_too_short(num_available, num_frames, stride))
    starts = max(1, num_available - num_frames * stride + 1)  # how many places there are for the window
    start = starts // 2 if place is None else int(place * starts)
    return (start + stride * np.arange(num_frames, dtype=np.int64)) % num_available


def largest_stride(num_available: int, num_frames: int, at_most: int = 32) -> int:
    """The largest stride, never above `at_most`, at which `num_frames` frames fit in the video.

    Raises ValueError when there are fewer frames than asked for.
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
    if num_available < num_frames:
        return f"{num_frames} frame{'s' if num_frames > 1 else ''} asked for; the video has {num_available}"
    needed = (num_frames - 1) * stride + 1
    fits = (num_available - 1) // (num_frames - 1)
    return (
        f"{num_frames} frames {stride} apart need {needed} frames; the video has {num_available}; use stride <= {fits}"
    )
