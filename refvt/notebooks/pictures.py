"""Pictures of the notebooks that are not pictures of videos."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refvt.array import Array

__all__ = ["Picture", "draw_lives"]

COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#D55E00")


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows as the value of a cell."""

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png


def draw_lives(scores: Array, epsilon: float, names: Sequence[str]) -> Picture:
    """Draw each token's life as a bar that fills up to 1.

    scores [L, N]: h of every layer, 1 in the last. The part of a layer has its colour and number; the remainder, the
    last part, is hatched. A dashed line marks 1 − ε. What the last score had too much is drawn faintly beyond 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    L, N = scores.shape
    figure = Figure(figsize=(8, 0.6 * N + 1.3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for k in range(N):
        used = 0.0
        for layer in range(L):
            h = float(scores[layer, k])
            halts = used + h > 1 - epsilon
            width = 1 - used if halts else h
            colour = COLOURS[layer % len(COLOURS)]
            axes.barh(k, width, left=used, color=colour, edgecolor="white", hatch="//" if halts else None)
            paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}
            label = f"r = {width:.3g}" if halts else f"{width:.3g}"
            if width > 0.08:
                axes.text(used + width / 2, k, label, ha="center", va="center", fontsize=8, bbox=paper)
            if halts:
                axes.barh(k, max(0.0, used + h - 1), left=1, color=colour, alpha=0.25)
                axes.text(max(1.0, used + h) + 0.02, k, f"halts in layer {layer + 1}", va="center", fontsize=8)
                break
            used += h
    for layer in range(L):
        axes.barh(0, 0, color=COLOURS[layer % len(COLOURS)], label=f"layer {layer + 1}")
    axes.legend(loc="center right", fontsize=8, frameon=False)
    axes.axvline(1 - epsilon, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(np.arange(N), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 2.5)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("sum of the scores; the dashed line is 1 − ε")
    axes.spines[["top", "right"]].set_visible(False)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png")
    return Picture(encoded.getvalue())
