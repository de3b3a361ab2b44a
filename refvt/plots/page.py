"""A page to draw on, without matplotlib's global state, and the files it is saved to.

All lengths are in pixels, and y counts downwards, as in images.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from refvt.files import MARK, write_whole

__all__ = [
    "BLUE",
    "FAINT",
    "GREY",
    "INK",
    "Page",
    "Paragraph",
    "footnote",
    "format_count",
    "format_number",
    "format_percent",
    "heading",
    "resize",
    "save_gif",
]

BLUE, GREY, INK, FAINT = "#0072B2", "#DDDDDD", "#1A1A1A", "#666666"
DPI = 110
LINE_HEIGHT = {15: 30, 12: 25, 11: 22, 10: 20, 9.5: 18, 9: 17}  # by type size


class Paragraph:
    """Text wrapped to a width. Its height is known before there is a page, whose height depends on it."""

    def __init__(self, text: str, width: int, size: float, **style: Any) -> None:
        # a letter is about 0.62 of the type size wide on average
        self.lines = textwrap.wrap(text, max(10, int(width / (0.62 * size * DPI / 72))))
        self.size, self.style = size, style
        self.line_height = LINE_HEIGHT[size]
        self.height = self.line_height * len(self.lines)


def heading(text: str, width: int, size: float) -> Paragraph:
    """A bold paragraph for the top of a page."""
    return Paragraph(text, width, size, weight="bold")


def footnote(text: str, width: int, size: float) -> Paragraph:
    """A faint paragraph for the bottom of a page."""
    return Paragraph(text, width, size, color=FAINT)


class Page:
    """A white page to put text, boxes and images on. ModuleNotFoundError without matplotlib."""

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
        self._figure: Any = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        self._canvas: Any = FigureCanvasAgg(self._figure)

    def text(self, x: float, y: float, text: str, size: float, va: str = "center", **style: Any) -> None:
        """Write one line of text; y is its middle. What cannot be printed is drawn as \N{REPLACEMENT CHARACTER}."""
        style.setdefault("color", INK)
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        self._figure.text(x / self.width, 1 - y / self.height, shown, size=size, va=va, parse_math=False, **style)

    def paragraph(self, x: float, y: float, paragraph: Paragraph) -> None:
        """Write a paragraph; y is the middle of its first line."""
        for i, line in enumerate(paragraph.lines):
            self.text(x, y + paragraph.line_height * i, line, paragraph.size, **paragraph.style)

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Draw a filled rectangle below the images, which may lie on it."""
        corner = x / self.width, 1 - (y + height) / self.height
        size = width / self.width, height / self.height
        transform = self._figure.transFigure
        self._figure.add_artist(self._rectangle(corner, *size, facecolor=colour, transform=transform, zorder=-1))

    def curve(self, xs: NDArray[np.float64], ys: NDArray[np.float64], colour: str) -> None:
        """Draw a line through points, with a dot at each."""
        from matplotlib.lines import Line2D

        style: dict[str, Any] = {"color": colour, "linewidth": 1.4, "marker": "o", "markersize": 3.5, "zorder": -0.5}
        transform = self._figure.transFigure
        self._figure.add_artist(Line2D(xs / self.width, 1 - ys / self.height, transform=transform, **style))

    def image(self, x: int, y: int, image: NDArray[np.uint8]) -> None:
        """Put an image [height, width, 3] on the page, pixel for pixel, its top left corner at (x, y)."""
        self._figure.figimage(image, x, self.height - y - len(image), origin="upper")

    def pixels(self) -> NDArray[np.uint8]:
        """The page as uint8 [height, width, 3]."""
        with warnings.catch_warnings():
            # a name in letters that matplotlib's font lacks is drawn with empty boxes: no fault of the user's
            warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
            self._canvas.draw()
        return np.array(self._canvas.buffer_rgba(), np.uint8)[:, :, :3]

    def save(self, path: str | Path) -> None:
        """Write the page as a PNG, whole or not at all."""
        made_by = PngInfo()
        name, value = MARK[".png"].split("\0")
        made_by.add_text(name, value)
        # not Pillow's "optimize", which takes six times as long for 5 % fewer bytes
        encoded = iio.imwrite("<bytes>", self.pixels(), extension=".png", plugin="pillow", pnginfo=made_by)
        write_whole(path, encoded)


def save_gif(path: str | Path, pages: Sequence[Page], milliseconds: int, hold: int = 1) -> None:
    """Write pages as a looping GIF, whole or not at all.

    A step lasts ``milliseconds``, rounded to the 10 ms that GIFs count in, and the last one ``hold`` times as long.
    """
    step = 10 * max(1, round(milliseconds / 10))
    durations = [step] * (len(pages) - 1) + [hold * step]
    images = _reduce_colours(np.stack([page.pixels() for page in pages]))
    encoded = iio.imwrite(
        "<bytes>", images, extension=".gif", plugin="pillow", duration=durations, loop=0, comment=MARK[".gif"]
    )
    write_whole(path, encoded)


def resize(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The image in another size; enlarged pixels stay squares, so that a clip of 32 × 32 does not look like more."""
    method = Image.Resampling.LANCZOS if width < image.shape[1] else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def format_number(value: float) -> str:
    """Whole numbers as they are, others with three figures and never an exponent."""
    if value == round(value):
        return f"{value:.0f}"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{digits}f}"


def format_count(value: float, unit: str) -> str:
    """A number with its unit in the singular or the plural."""
    return f"{format_number(value)} {unit}{'' if value == 1 else 's'}"


def format_percent(part: float, total: float) -> str:
    """A part of a total in per cent; a dash if the total is zero."""
    return f"{100 * part / total:.0f} %" if total else "–"


def _reduce_colours(steps: NDArray[np.uint8]) -> NDArray[np.uint8]:
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
