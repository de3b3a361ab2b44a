"""How much the patches of a clip change from frame to frame."""

from __future__ import annotations

import numpy as np

from refvt.array import Array

__all__ = ["change_of_patches"]


def change_of_patches(clips: Array, patch_size: int) -> Array:
    """Change of every patch from frame to frame, in the units of the clips, float64 [B, T, patches].

    clips [B, C, T, height, width]. The change is the mean of |x_t − x_t'| over the patch's pixels, for the neighbouring
    frame t' that differs more. It is zero for a clip of one frame.
    """
    B, C, T, height, width = clips.shape
    P = patch_size
    patches = clips.reshape(B, C, T, height // P, P, width // P, P)
    step = np.abs(np.diff(patches, axis=2)).mean(axis=(1, 4, 6))  # [B, T − 1, rows, columns]
    step = step.reshape(B, T - 1, (height // P) * (width // P))
    found = np.zeros((B, T, step.shape[2]))
    found[:, 1:] = step
    found[:, :-1] = np.maximum(found[:, :-1], step)
    return found
