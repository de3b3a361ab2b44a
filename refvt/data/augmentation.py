"""Augmentation for training: random scale and crop, mirroring, and RandAugment.

All functions take and return the frames of one clip, uint8 [T, height, width, 3]. Random choices are made once per clip
and applied to every frame: choices that differ between frames would look like motion.

RandAugment (Cubuk, Zoph, Shlens, Le, 2020, arXiv 1909.13719) applies ``num_ops`` operations, each drawn uniformly from
the 14 of ``OPERATIONS``, all at one magnitude m from 0 (no change) to 10 (strongest). With u = m/10:

| operation | at magnitude m | sign drawn |
| --- | --- | --- |
| identity | nothing | |
| auto_contrast | per frame and channel the darkest value becomes 0 and the brightest 255, for any m | |
| equalize | per frame and channel an even histogram, for any m | |
| rotate | by 30°·u about the centre | yes |
| solarize | values of at least 256 − 256·u are inverted | |
| color, contrast, brightness, sharpness | blended with grey, mean grey, black, a blurred frame by 1 ± 0.9·u | yes |
| posterize | keeps the upper 8 − 4·u bits | |
| shear_x, shear_y | by 0.3·u pixels per pixel, about the centre | yes |
| translate_x, translate_y | by 150/331·u of the width or height | yes |

The ranges are those of the paper's code, except that solarize and posterize get stronger with m. Pixels from outside
the frame are mid-grey. The point operations and blends give the same bits as Pillow's ImageOps and ImageEnhance, which
that code calls; rotate, shear and translate take the nearest pixel, as it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refvt.checks import check_int
from refvt.data.clips import check_images, resize_and_crop

Images = NDArray[np.uint8]  # [T, height, width, 3]

_OUTSIDE = 128
_MOST = 10.0


def random_scale_and_crop(
    images: Images, rng: np.random.Generator, crop: Sequence[int] = (224, 224), resize: str = "antialiased"
) -> Images:
    """Scale the short side to a length drawn uniformly from 256 … 320, then crop 224×224 at a position drawn uniformly.

    For other crops the lengths scale with the crop's longer side. ``resize`` is the filter. Raises the errors of
    ``resize_and_crop``. Source: the paper's training configurations.
    """
    longest = max(crop)
    short_side = int(rng.integers(round(longest * 256 / 224), round(longest * 320 / 224) + 1))
    down, across = rng.random(2)
    return resize_and_crop(images, crop, short_side, (down, across), resize)


def random_flip(images: Images, rng: np.random.Generator) -> Images:
    """Mirror left to right with probability 1/2. Not for classes that depend on left and right."""
    return images[:, :, ::-1] if rng.integers(2) else images


def rand_augment(images: Images, rng: np.random.Generator, num_ops: int = 2, magnitude: float = 9.0) -> Images:
    """Apply ``num_ops`` operations, drawn with replacement, at a ``magnitude`` from 0 to 10; the same to all frames.

    The defaults are those of Cubuk et al. for ResNet-50 on ImageNet. Raises TypeError or ValueError for other frames,
    numbers and magnitudes.
    """
    num_ops = check_int("num_ops", num_ops, minimum=0)
    for choice, sign in zip(rng.integers(len(OPERATIONS), size=num_ops), rng.integers(2, size=num_ops), strict=True):
        images = apply(images, list(OPERATIONS)[choice], magnitude, -1 if sign else 1)
    return images


def apply(images: Images, operation: str, magnitude: float, sign: int = 1) -> Images:
    """Apply one of ``OPERATIONS`` at a magnitude from 0 to 10. sign: −1 or 1, for operations with a direction."""
    images = check_images(images)
    if operation not in OPERATIONS:
        raise ValueError(f"operation: expected one of {', '.join(OPERATIONS)}, got {operation!r}")
    if not 0 <= magnitude <= _MOST:
        raise ValueError(f"magnitude: expected a number from 0 to {_MOST:g}, got {magnitude}")
    chosen = OPERATIONS[operation]
    return chosen.run(images, chosen.strength(sign * magnitude / _MOST))


# ---- operations on values


def _auto_contrast(images: Images, _: float) -> Images:
    low = images.min(axis=(1, 2))[..., None].astype(float)  # [T, 3, 1]
    high = images.max(axis=(1, 2))[..., None].astype(float)
    scale = 255.0 / np.maximum(high - low, 1)
    table = np.clip(np.trunc(np.arange(256) * scale + -low * scale), 0, 255)
    return _look_up(images, np.where(high > low, table, np.arange(256)))


def _equalize(images: Images, _: float) -> Images:
    T = len(images)
    where = 256 * np.arange(T * 3).reshape(T, 1, 1, 3) + images
    histogram = np.bincount(where.ravel(), minlength=T * 3 * 256).reshape(T, 3, 256)
    brightest = np.take_along_axis(histogram, images.max(axis=(1, 2)).astype(np.int64)[..., None], axis=-1)
    step = (histogram.sum(axis=-1, keepdims=True) - brightest) // 255  # pixels per grey level; 0 in flat frames
    below = np.cumsum(histogram, axis=-1) - histogram
    table = np.minimum((step // 2 + below) // np.maximum(step, 1), 255)
    return _look_up(images, np.where(step > 0, table, np.arange(256)))


def _look_up(images: Images, tables: NDArray[np.generic]) -> Images:
    """Replace every value by its entry in tables [T, 3, 256], by frame and channel."""
    T = len(images)
    flat = tables.astype(np.uint8).reshape(-1)
    looked_up: Images = flat[256 * np.arange(T * 3).reshape(T, 1, 1, 3) + images]
    return looked_up


def _solarize(images: Images, threshold: float) -> Images:
    return np.where(images < threshold, images, 255 - images)


def _posterize(images: Images, bits: float) -> Images:
    return images & np.uint8(256 - (1 << (8 - int(bits))))


def _color(images: Images, factor: float) -> Images:
    return _blend(_grey(images)[..., None], images, factor)


def _contrast(images: Images, factor: float) -> Images:
    mean = np.floor(_grey(images).mean(axis=(1, 2)) + 0.5)
    return _blend(mean[:, None, None, None], images, factor)


def _brightness(images: Images, factor: float) -> Images:
    return _blend(np.zeros(1), images, factor)


def _sharpness(images: Images, factor: float) -> Images:
    """Blend with a blur: 3×3 weights 1, centre 5, divided by 13. The edge of the frame is unchanged."""
    wide = images.astype(np.int32)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    blurred = images.copy()
    blurred[:, 1:-1, 1:-1] = (total + 6) // 13  # rounded to nearest; 13 is odd, there are no ties
    return _blend(blurred, images, factor)


def _grey(images: Images) -> NDArray[np.int32]:
    """Luma of ITU-R BT.601 in 16-bit fixed point, [T, height, width]."""
    luma = images.astype(np.int32) @ np.array([19595, 38470, 7471], np.int32)
    grey: NDArray[np.int32] = (luma + (1 << 15)) >> 16
    return grey


def _blend(base: NDArray[np.generic], images: Images, factor: float) -> Images:
    """base + factor · (images − base) in float32, clipped to 0 … 255 and truncated, as in Pillow."""
    start = base.astype(np.float32)
    mixed = start + np.float32(factor) * (images.astype(np.float32) - start)
    return np.clip(mixed, 0, 255).astype(np.uint8)


# ---- operations on positions


def _rotate(images: Images, degrees: float) -> Images:
    """Rotate counterclockwise."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _move(images, ((c, -s), (s, c)))


def _shear_x(images: Images, amount: float) -> Images:
    return _move(images, ((1, amount), (0, 1)))


def _shear_y(images: Images, amount: float) -> Images:
    return _move(images, ((1, 0), (amount, 1)))


def _translate_x(images: Images, fraction: float) -> Images:
    return _move(images, shift=(fraction * images.shape[2], 0))


def _translate_y(images: Images, fraction: float) -> Images:
    return _move(images, shift=(0, fraction * images.shape[1]))


def _move(
    images: Images,
    matrix: tuple[tuple[float, float], tuple[float, float]] = ((1, 0), (0, 1)),
    shift: tuple[float, float] = (0, 0),
) -> Images:
    """Move pixels: output at p, (x, y) from the centre, is the input at matrix · p − shift, to the nearest pixel."""
    height, width = images.shape[1:3]
    x = np.arange(width) + 0.5 - width / 2
    y = (np.arange(height) + 0.5 - height / 2)[:, None]
    columns = np.floor(matrix[0][0] * x + matrix[0][1] * y - shift[0] + width / 2).astype(np.int64)
    rows = np.floor(matrix[1][0] * x + matrix[1][1] * y - shift[1] + height / 2).astype(np.int64)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = images[:, np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    moved[:, ~inside] = _OUTSIDE
    return moved


class _Operation(NamedTuple):
    run: Callable[[Images, float], Images]
    strength: Callable[[float], float] = float  # from the signed magnitude, −1 … 1


OPERATIONS: dict[str, _Operation] = {
    "identity": _Operation(lambda images, _: images),
    "auto_contrast": _Operation(_auto_contrast),
    "equalize": _Operation(_equalize),
    "rotate": _Operation(_rotate, lambda u: 30 * u),
    "solarize": _Operation(_solarize, lambda u: 256 - 256 * abs(u)),
    "color": _Operation(_color, lambda u: 1 + 0.9 * u),
    "posterize": _Operation(_posterize, lambda u: 8 - round(4 * abs(u))),
    "contrast": _Operation(_contrast, lambda u: 1 + 0.9 * u),
    "brightness": _Operation(_brightness, lambda u: 1 + 0.9 * u),
    "sharpness": _Operation(_sharpness, lambda u: 1 + 0.9 * u),
    "shear_x": _Operation(_shear_x, lambda u: 0.3 * u),
    "shear_y": _Operation(_shear_y, lambda u: 0.3 * u),
    "translate_x": _Operation(_translate_x, lambda u: 150 / 331 * u),
    "translate_y": _Operation(_translate_y, lambda u: 150 / 331 * u),
}
