"""Scaling frames by one of two bilinear filters.

``antialiased``: Pillow's bilinear filter, which is widened when scaling down, so that every pixel of the source counts.
``opencv``: the plain bilinear filter of OpenCV (``cv2.resize``, INTER_LINEAR), which the released configurations use.
It reads four pixels of the source for one of the result, also when scaling down: where the short side is 720 or 1080 it
skips pixels, and fine texture aliases. It is computed here in NumPy, to the bit. For 8-bit images OpenCV computes in
fixed point::

    place    f = float32((i + 1/2) · old/new − 1/2),   low = floor(f),   f ← f − low        for row or column i
    weights  w0 = round(2048 · (1 − f)),   w1 = round(2048 · f)                              in float32, halves to even
    columns  a = w0 · s[low] + w1 · s[low + 1]                                               exact
    rows     (((w0 · (a[low] >> 4)) >> 16) + ((w1 · (a[low + 1] >> 4)) >> 16) + 2) >> 2

Outside of the image the pixel at its edge counts. Where both factors are exactly 2, OpenCV takes the mean of 2×2 pixels
instead, rounded, halves up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refvt.array import Array

__all__ = ["FILTERS", "check_filter", "scale_and_cut", "scaled_size"]

FILTERS = ("antialiased", "opencv")

Images = NDArray[np.uint8]  # [T, height, width, 3]
Size = tuple[int, int]  # height, width


def check_filter(name: str) -> str:
    """Return the name of a filter. ValueError for another one."""
    if name not in FILTERS:
        raise ValueError(f"resize: expected one of {', '.join(FILTERS)}, got {name!r}")
    return name


def scaled_size(height: int, width: int, short_side: int, resize: str) -> Size:
    """Return the size of a frame whose short side is scaled to ``short_side``, rounded to the nearest pixel.

    "opencv" rounds as the released pipeline does, with a factor in double precision: where a side falls on half a pixel
    it may be one pixel smaller.
    """
    short = min(height, width)
    if resize == "opencv":
        factor = short_side / short
        return int(height * factor + 0.5), int(width * factor + 0.5)
    return (height * short_side + short // 2) // short, (width * short_side + short // 2) // short


def scale_and_cut(images: Images, size: Size, corner: Size, crop: Size, resize: str) -> Images:
    """Scale frames to ``size`` and cut out ``crop`` at ``corner`` (top, left), all in (height, width).

    images: uint8 [T, height, width, 3] → uint8 [T, *crop, 3]. resize: one of ``FILTERS``.
    """
    if resize == "opencv":
        return _scale_as_opencv(images, size, corner, crop)
    out = np.empty((len(images), *crop, 3), np.uint8)
    top, left = corner
    for t, image in enumerate(images):
        scaled = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        out[t] = np.asarray(scaled.crop((left, top, left + crop[1], top + crop[0])))
    return out


def _scale_as_opencv(images: Images, size: Size, corner: Size, crop: Size) -> Images:
    height, width = images.shape[1:3]
    (top, left), (rows, columns) = corner, crop
    if _factor(height, size[0]) == _factor(width, size[1]) == 2:
        part = images[:, 2 * top : 2 * (top + rows), 2 * left : 2 * (left + columns)].astype(np.int32)
        four = part.reshape(len(part), rows, 2, columns, 2, 3).sum(axis=(2, 4))
        return np.asarray((four + 2) >> 2, np.uint8)

    low, weight0, weight1 = _places(height, size[0], top, rows)
    needed = slice(max(int(low[0]), 0), int(low[-1]) + 2)  # of the source's rows
    across = _scale_columns(images[:, needed], width, size[1], left, columns)  # [T, needed, columns, 3], int32
    upper, lower = (np.clip(low + k, 0, height - 1) - needed.start for k in (0, 1))
    total = (weight0[:, None, None] * (across[:, upper] >> 4)) >> 16
    total += (weight1[:, None, None] * (across[:, lower] >> 4)) >> 16
    return np.asarray((total + 2) >> 2, np.uint8)


def _scale_columns(images: Images, old: int, new: int, first: int, count: int) -> Array:
    """Columns ``first`` … of the scaled image, times 2048: uint8 [T, rows, old, 3] → int32 [T, rows, count, 3]."""
    low, weight0, weight1 = _places(old, new, first, count)
    left, right = (np.clip(low + k, 0, old - 1) for k in (0, 1))
    return weight0[:, None] * images[:, :, left] + weight1[:, None] * images[:, :, right]


def _places(old: int, new: int, first: int, count: int) -> tuple[Array, Array, Array]:
    """Where rows (or columns) ``first`` … of the result lie: the place below, and the weights of it and the next."""
    f = ((np.arange(first, first + count) + 0.5) * _factor(old, new) - 0.5).astype(np.float32)
    low = np.floor(f)
    f -= low
    weights = [np.rint(np.float32(2048) * w).astype(np.int32) for w in (np.float32(1) - f, f)]
    return low.astype(np.int64), *weights


def _factor(old: int, new: int) -> float:
    """old / new, rounded as OpenCV does: it divides twice."""
    return 1 / (new / old)
