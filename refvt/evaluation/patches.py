"""What happens to every patch of a clip, joint layer by joint layer, and what decides about it.

A model reports tokens. Here they become patches of frames again: alive, halted, dropped by the Glimpser, or not
computed because their clip was done. On moving digits the position of the digit is known, so one can count whether
tokens halt where there is nothing to see: ``digit_groups`` sorts patches by whether the digit is in them,
``alive_by_group`` gives the share of each group that is alive, and ``alive_around`` a map centred on the digit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.model.haltingvt import Output

__all__ = [
    "ALIVE",
    "DONE",
    "DROPPED",
    "GROUPS",
    "HALTED",
    "alive_around",
    "alive_by_group",
    "digit_groups",
    "kept_patches",
    "patch_states",
    "states_of_output",
]

# What a patch is in a joint layer.
ALIVE, DROPPED, HALTED, DONE = range(4)

GROUPS = ("digit in it now", "digit in it in another frame", "never a digit in it")


def kept_patches(config: HaltingVTConfig, output: Output) -> Array:
    """Which patches enter the joint blocks, integer [B, T, S]; all of them where no Glimpser block selects."""
    if output.decisions.kept:
        return output.decisions.kept[-1]
    everything = np.arange(config.patches_per_frame)
    return np.broadcast_to(everything, (len(output.alive), config.num_frames, len(everything)))


def patch_states(
    kept: NDArray[np.integer[Any]], alive: NDArray[np.bool_], grid: tuple[int, int], full_ponder: bool = False
) -> NDArray[np.int8]:
    """State of every patch of one clip in every joint layer: ALIVE, DROPPED, HALTED or DONE.

    Shapes: kept [T, S], the patches that enter the joint blocks, −1 for a fused token, which has no place in the
    frame; alive [L, 1 + S·T], CLS first, then token 1 + s·T + t, which is patch kept[t, s] of frame t; grid (rows,
    columns) → int8 [L, T, rows, columns].

    A clip is done when its CLS has halted: no token is alive in the layers after that, and patches that were alive in
    the last layer computed are DONE. With ``full_ponder=True`` the model followed every token to its own halt, so a
    patch that is no longer alive has HALTED.
    """
    L, T = len(alive), len(kept)
    states = np.full((L, T, grid[0] * grid[1]), DROPPED, np.int8)
    t, s = np.nonzero(kept >= 0)
    before = np.ones(alive.shape[1], np.bool_)  # alive in the last layer that was computed
    for layer in range(L):
        if alive[layer].any() or full_ponder:
            before = alive[layer]
            of_token = np.where(before, ALIVE, HALTED)
        else:
            of_token = np.where(before, DONE, HALTED)
        states[layer, t, kept[t, s]] = of_token[1 + s * T + t]
    return states.reshape(L, T, *grid)


def states_of_output(config: HaltingVTConfig, output: Output, full_ponder: bool = False) -> NDArray[np.int8]:
    """State of every patch of every clip of a batch, int8 [B, L, T, rows, columns]; see ``patch_states``."""
    pairs = zip(kept_patches(config, output), output.alive, strict=True)
    return np.stack([patch_states(kept, alive, config.grid, full_ponder) for kept, alive in pairs])


# ---- clips of moving digits


def digit_groups(ink: NDArray[np.bool_], patch_size: int) -> NDArray[np.int8]:
    """Group of every patch of every frame, as an index into ``GROUPS``.

    Shapes: ink [n, T, height, width], true where a pixel belongs to the digit → int8 [n, T, rows, columns].
    """
    n, T, height, width = ink.shape
    cut = ink.reshape(n, T, height // patch_size, patch_size, width // patch_size, patch_size)
    now = cut.max(axis=(3, 5))
    ever = np.broadcast_to(now.any(axis=1, keepdims=True), now.shape)
    return np.where(now, 0, np.where(ever, 1, 2)).astype(np.int8)


def alive_by_group(states: NDArray[np.int8], groups: NDArray[np.int8]) -> NDArray[np.float64]:
    """Share of each group of patches that is alive, layer by layer.

    Shapes: states [n, L, T, rows, columns], groups [n, T, rows, columns] → [L, 3]. Dropped and halted patches count as
    not alive; a group without any patch has the share NaN.
    """
    number = np.bincount(groups.ravel(), minlength=len(GROUPS))
    shares = np.empty((states.shape[1], len(GROUPS)))
    for layer in range(states.shape[1]):
        alive = np.bincount(groups[states[:, layer] == ALIVE], minlength=len(GROUPS))
        shares[layer] = alive / np.where(number, number, np.nan)
    return shares


def alive_around(
    states: NDArray[np.int8], centres: NDArray[np.int64], patch_size: int, size: int
) -> NDArray[np.float64]:
    """How often a pixel lies in a living patch, by its position relative to the digit: mean over clips and frames.

    Shapes: states [n, L, T, rows, columns]; centres [n, T, 2], row and column of the digit's middle on the canvas of
    size × size pixels, which wraps around → [L, size, size]. The digit's middle comes to pixel size // 2.
    """
    n, T = centres.shape[:2]
    away = np.arange(size) - size // 2
    patches = (centres[..., None] + away) % size // patch_size  # [n, T, 2, size]
    rows, columns = patches[:, :, 0, :, None], patches[:, :, 1, None, :]
    clip, frame = np.arange(n)[:, None, None, None], np.arange(T)[:, None, None]
    return np.stack(
        [(states[clip, layer, frame, rows, columns] == ALIVE).mean(axis=(0, 1)) for layer in range(states.shape[1])]
    )
