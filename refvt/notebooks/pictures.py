"""Pictures of the notebooks that are not pictures of videos."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.plots.charts import make_accuracy_charts, make_chart, plot_runs

__all__ = ["Picture", "draw_alive", "draw_lives", "draw_model", "draw_points"]

COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#D55E00")


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows as the value of a cell."""

    png: bytes = field(repr=False)

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
    return _picture(figure)


def _picture(figure: Any) -> Picture:
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png")
    return Picture(encoded.getvalue())


def draw_model(config: HaltingVTConfig) -> Picture:
    """Draw the whole model from bottom to top: its parts, the tokens between them, and the heads that read CLS."""
    c = config
    patches, T = c.patches_entering(), c.num_frames
    # (what a part does, its colour, the tokens that leave it)
    parts = [
        (f"clip: {T} frames of {c.image_size[0]} × {c.image_size[1]} pixels", "white", ""),
        ("cut in patches, project, add place and time; CLS joins", COLOURS[1], f"N = {1 + T * patches[0]} tokens"),
    ]
    for g in range(c.glimpser_depth):
        rate = c.keep_rates[g]
        does = "keeps all patches" if rate == 1 else f"keeps the best {patches[g + 1]} of {patches[g]} patches a frame"
        parts.append(
            (
                f"Glimpser block {g}: attention in time, then in each frame; {does}",
                COLOURS[4],
                f"{1 + T * patches[g + 1]} tokens",
            )
        )
    L = c.joint_depth
    if L > 1:
        first = "joint block 1: attention among all tokens; scores h, some tokens halt"
        parts.append((first, COLOURS[2], "living tokens"))
    if L > 2:
        middle = f"joint blocks 2 … {L - 1}" if L > 3 else "joint block 2"
        parts.append((f"{middle}: the same, among those that live", COLOURS[2], "fewer"))
    parts.append((f"joint block {L}, the last: every score is 1, all tokens halt", COLOURS[2], "y of CLS"))
    parts.append(("norm, then two heads read y of CLS: class and motion", COLOURS[3], ""))
    figure, axes = make_chart(8, 0.62 * len(parts) + 0.3)
    for row, (text, colour, leaves) in enumerate(parts):
        axes.barh(row, 1, height=0.62, color=colour, alpha=0.35, edgecolor="black", linewidth=1)
        axes.text(0.5, row, text, ha="center", va="center", fontsize=9)
        if row < len(parts) - 1:
            arrow = {"arrowstyle": "-|>", "color": "black"}
            axes.annotate("", (0.5, row + 0.7), (0.5, row + 0.3), arrowprops=arrow)
            axes.text(0.52, row + 0.5, leaves, va="center", fontsize=8)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.5, len(parts) - 0.5)
    axes.axis("off")
    return _picture(figure)


def draw_alive(shares: Mapping[str, Sequence[float]], title: str) -> Picture:
    """Draw the shares of tokens that are alive, layer by layer, one line per name. shares: name → [L], each 0 to 1."""
    figure, axes = make_chart(7, 3)
    for i, (name, values) in enumerate(shares.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": "osD^vP"[i % 6]}
        axes.plot(np.arange(1, len(values) + 1), 100 * np.asarray(values), label=name, **style)
        axes.set_xticks(np.arange(1, len(values) + 1))
    axes.set_ylim(-4, 104)
    axes.set_xlabel("joint layer")
    axes.set_ylabel("alive [%]")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    return _picture(figure)


def draw_points(title: str, runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Picture:
    """Draw accuracy against GFLOPs: for each name its runs, small, and their mean, large with the name beside it.

    runs: name → (GFLOPs of each run, accuracy of each run, 0 to 1).
    """
    figure, (axes,) = make_accuracy_charts(title, height=3.8)
    for i, (name, (gflops, top1)) in enumerate(runs.items()):
        middle = plot_runs(axes, gflops, top1, "osD^vP"[i % 6], COLOURS[i // 2 % len(COLOURS)])
        axes.annotate(name, middle, (6, 4), textcoords="offset points", fontsize=8)
    axes.margins(0.14)  # room for the names
    return _picture(figure)
