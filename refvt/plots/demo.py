"""The pictures of ``refvt demo``: held-out digits, and what halting follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.data.moving_digits import MovingDigits
from refvt.evaluation.patches import GROUPS, alive_around
from refvt.plots.sheets import SheetClip, brighten, following_picture, halting_film, halting_sheet

__all__ = ["draw_digits", "draw_following"]


def draw_digits(
    clips: Array, states: NDArray[np.int8], logits: Array, classes: Array, data: MovingDigits, out: Path
) -> list[Path]:
    """Draw one held-out clip of every class, as a sheet and a film; returns the files written.

    Shapes: clips [n, C, T, height, width], states [n, L, T, rows, columns], logits [n, K], classes [n].
    """
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    shown = []
    for k, name in enumerate(data.names):
        i = int(np.flatnonzero(classes == k)[0])
        answer = int(logits[i].argmax())
        result = "recognised" if answer == k else f"taken for {data.names[answer]}"
        title = f"{name}: {result} ({probability[i, answer]:.0%})"
        shown.append(SheetClip(brighten(clips[i]), states[i], title, answer == k))
    title = "One held-out clip of every class, and which patches the trained model computes"
    note = (
        "Beside a layer: the share of the clip's patches that are alive. In brackets: the probability that the model "
        "gives to its answer. CLS, the token that gives the answer, is not drawn. The model stops when CLS has halted; "
        "the picture goes on until every patch has halted. Before layer 1 the Glimpser drops the same share of every "
        "frame. A digit that leaves at one edge comes in at the opposite one. Clips are drawn lighter than the model "
        "sees them, so that living patches can be told from dropped ones."
    )
    halting_sheet(shown, title, note, out / "digits.png")
    halting_film(shown, "Which patches of held-out clips the trained model computes", note, out / "digits.gif")
    return [out / "digits.png", out / "digits.gif"]


def draw_following(
    states: NDArray[np.int8], shares: NDArray[np.float64], data: MovingDigits, patch_size: int, out: Path
) -> Path:
    """Draw where patches are alive relative to the digit, and the shares [L, groups]; returns the file written."""
    maps = alive_around(states, data.places() + data.digit_size // 2, patch_size, data.size)
    title = f"Which patches are alive, as seen from the digit: mean of {len(states)} held-out clips"
    note = (
        "Each frame was rolled until its digit came to the white square. Bright is where patches are most often alive, "
        "on one scale for all maps; the numbers above a map are its darkest and its brightest point. Bars: the share "
        "alive of all patches that have the digit in them in this frame, in another frame of the clip, or never."
    )
    following_picture(maps, shares, GROUPS, data.digit_size, title, note, out / "following.png")
    return out / "following.png"
