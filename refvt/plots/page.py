"""A page to draw on: matplotlib without its global state, and what words and images on it need.

All lengths are in pixels, and y counts downwards, as in images.
"""

import textwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "BLUE",
    "FAINT",
    "GREY",
    "INK",
    "Page",
    "as_count",
    "as_number",
    "as_percent",
    "scaled",
    "with_256_colours",
    "wrapped",
]

BLUE, GREY, INK, FAINT = "#0072B2", "#DDDDDD", "#1A1A1A", "#666666"
_DPI = 110


class Page:
    """A white page to put text, boxes and images on: matplotlib, without its global state."""

    def __init__(self, width: int, height: int) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.patches import Rectangle
        except ModuleNotFoundError as error:
            message = 'drawing pictures needs matplotlib: pip install "refvt[demo]"'
            raise ModuleNotFoundError(message, name="matplotlib") from error
        self.width, self.height = width, height
        self._rectangle: Any = Rectangle
        self._figure: Any = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self._canvas: Any = FigureCanvasAgg(self._figure)

    def text(self, x: float, y: float, text: str, size: float, va: str = "center", **style: Any) -> None:
        style.setdefault("color", INK)
        self._figure.text(x / self.width, 1 - y / self.height, text, size=size, va=va, parse_math=False, **style)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        # Below the images, which may lie on a box.
        corner = x / self.width, 1 - (y + height) / self.height
        size = width / self.width, height / self.height
        transform = self._figure.transFigure
        self._figure.add_artist(self._rectangle(corner, *size, facecolor=colour, transform=transform, zorder=-1))

    def curve(self, xs: NDArray[np.float64], ys: NDArray[np.float64], colour: str) -> None:
        from matplotlib.lines import Line2D

        style: dict[str, Any] = {"color": colour, "linewidth": 1.4, "marker": "o", "markersize": 3.5, "zorder": -0.5}
        transform = self._figure.transFigure
        self._figure.add_artist(Line2D(xs / self.width, 1 - ys / self.height, transform=transform, **style))

    def image(self, x: int, y: int, image: NDArray[np.uint8]) -> None:
        self._figure.figimage(image, x, self.height - y - len(image), origin="upper")

    def pixels(self) -> NDArray[np.uint8]:
        """The page as uint8 [height, width, 3]."""
        self._canvas.draw()
        return np.array(self._canvas.buffer_rgba(), np.uint8)[:, :, :3]


def scaled(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    # Enlarged pixels stay squares: a toy clip of 32 × 32 is not blurred to look like more than it is.
    method = Image.Resampling.LANCZOS if width < image.shape[1] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def wrapped(text: str, width: int, size: float) -> list[str]:
    """Lines that fit in `width` pixels; a letter is about 0.62 of the type size wide on average."""
    return textwrap.wrap(text, max(10, int(width / (0.62 * size * _DPI / 72))))


def as_number(value: float) -> str:
    """Whole numbers as they are, others with three figures and never an exponent."""
    if value == round(value):
        return f"{value:.0f}"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{digits}f}"


def as_count(value: float, unit: str) -> str:
    return f"{as_number(value)} {unit}{'' if value == 1 else 's'}"


def as_percent(part: float, total: float) -> str:
    return f"{100 * part / total:.0f} %" if total else "–"


def with_256_colours(steps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The steps [n, height, width, 3] in the 256 colours that a GIF can hold, one palette for all, dithered.

    With a palette per step colours would flicker; without dither smooth walls and skies turn to blotches.
    """
    sample = steps[[0, len(steps) // 2, -1], ::2, ::2]  # enough to choose from
    tall = Image.fromarray(sample.reshape(-1, *sample.shape[2:]))
    chosen = tall.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)
    colours = np.array(chosen.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours[(colours > 247).all(axis=1)] = 255  # the page stays pure white
    chosen.putpalette(colours.tobytes())
    out = np.empty_like(steps)
    for i, step in enumerate(steps):
        dithered = Image.fromarray(step).quantize(palette=chosen, dither=Image.Dither.FLOYDSTEINBERG)
        out[i] = np.asarray(dithered.convert("RGB"))
    return out
