"""Pictures of the notebooks that are not pictures of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refvt.array import Array

__all__ = ["draw_lives"]

COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#D55E00")


def draw_lives(scores: Array, epsilon: float, names: Sequence[str]) -> Any:
    """Draw each token's life as a bar that fills up to 1, and return the matplotlib figure.

    scores [L, N]: h of every layer, 1 in the last. The part of a layer has its colour and number; the remainder, the
    last part, is hatched. A dashed line marks 1 − ε. What the last score had too much is drawn faintly beyond 1.
    """
    from matplotlib.figure import Figure

    L, N = scores.shape
    figure = Figure(figsize=(8, 0.6 * N + 1.3), dpi=100, layout="constrained")
    axes = figure.subplots()
    for k in range(N):
        used = 0.0
        for layer in range(L):
            h = float(scores[layer, k])
            halts = used + h > 1 - epsilon
            width = 1 - used if halts else h
            colour = COLOURS[layer % len(COLOURS)]
            axes.barh(k, width, left=used, color=colour, edgecolor="white", hatch="//" if halts else None)
            label = f"layer {layer + 1}: {'r = ' if halts else ''}{width:.3g}"
            if width > 0.12:
                axes.text(used + width / 2, k, label, ha="center", va="center", fontsize=8, color="white")
            if halts:
                axes.barh(k, max(0.0, used + h - 1), left=1, color=colour, alpha=0.25)
                axes.text(max(1.0, used + h) + 0.02, k, f"halts in layer {layer + 1}", va="center", fontsize=8)
                break
            used += h
    axes.axvline(1 - epsilon, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(np.arange(N), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 2.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("sum of the scores; the dashed line is 1 − ε")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
