"""Static twins: still copies of clips, from which the motion head learns to tell moving from static."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def static_twins(
    clips: NDArray[np.floating[Any]], rng: np.random.Generator
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """Add a static twin to every clip: one of its frames, drawn at random, repeated T times.

    clips: floating [B, C, T, height, width]. Returns the clips followed by their twins, [2B, C, T, height, width] of
    the same dtype, and the motion labels, int64 [2B]: B ones (moving), then B zeros (static). Twin b is clip b at frame
    rng.integers(T, size=B)[b].

    Raises TypeError for another dtype or generator, ValueError for another shape or an empty batch. Source: the paper's
    motion loss.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
    clips = np.asarray(clips)
    if not np.issubdtype(clips.dtype, np.floating):
        raise TypeError(f"clips: expected a floating dtype, got {clips.dtype}")
    if clips.ndim != 5 or 0 in clips.shape:
        raise ValueError(f"clips: expected [B, C, T, height, width], none of them zero, got {list(clips.shape)}")
    B, _, T, _, _ = clips.shape
    chosen = rng.integers(T, size=B)
    stills = clips[np.arange(B), :, chosen][:, :, None]  # [B, C, 1, height, width]
    out = np.empty((2 * B, *clips.shape[1:]), clips.dtype)
    out[:B] = clips
    out[B:] = stills
    labels = np.zeros(2 * B, np.int64)
    labels[:B] = 1
    return out, labels
