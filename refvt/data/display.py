"""How a stored picture is to be shown: which way up, which pixels are opaque, how wide a pixel is.

A camera held on its side stores its pictures on their side and says so beside them: a video in the display matrix of
its track (ISO/IEC 14496-12), a JPEG, PNG or WebP in the EXIF tag Orientation. Both say which of the eight symmetries
of a rectangle leads to the upright picture, mirrored ones included.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

# EXIF orientation → display matrix (a, b, c, d): a stored point (x, y) is shown at (a x + c y, b x + d y), y downwards
EXIF_ORIENTATIONS = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
MOST_STRETCH = 8  # of a pixel; real formats stay below 3


def size_of(image: Pixels) -> str:
    """Return width × height as text."""
    return f"{image.shape[1]}×{image.shape[0]}"


def turn(image: Pixels, matrix: Sequence[float]) -> Pixels:
    """Return a picture [height, width, …] turned and mirrored by the display matrix (a, b, c, d), of any scale.

    A matrix of zeros says nothing: the picture is returned as it is. ValueError for a matrix that does not turn by a
    multiple of 90 degrees.
    """
    a, b, c, d = matrix
    if not any(matrix):
        return image
    small = 1e-3 * max(abs(value) for value in matrix)
    if abs(b) <= small and abs(c) <= small and min(abs(a), abs(d)) > small:
        flip_columns, flip_rows = a < 0, d < 0
    elif abs(a) <= small and abs(d) <= small and min(abs(b), abs(c)) > small:
        image, flip_columns, flip_rows = image.swapaxes(0, 1), c < 0, b < 0
    else:
        degrees = np.degrees(np.arctan2(b, a))
        raise ValueError(f"its display matrix turns by {degrees:.0f} degrees: expected a multiple of 90")
    return np.ascontiguousarray(image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def check_opaque(alpha: Pixels) -> None:
    """Raise ValueError if a pixel is transparent: nothing says which colour is behind it."""
    share = float((alpha < 255).mean())
    if share > 0:
        text = "less than 1 %" if share < 0.01 else f"{share:.0%}"
        raise ValueError(f"{text} of its pixels are transparent: put it on a background of one colour first")


def make_square(image: Pixels, aspect: Fraction | None) -> Pixels:
    """Return a picture with square pixels. aspect: width : height of its pixels, None if unknown (taken as square).

    The height is kept; the width is scaled with a bilinear filter and rounded to the nearest pixel. ValueError for an
    aspect outside 1/8 … 8, which only damaged files have.
    """
    if aspect is None or aspect <= 0 or aspect == 1:
        return image
    if not Fraction(1, MOST_STRETCH) <= aspect <= MOST_STRETCH:
        raise ValueError(
            f"its pixels have the aspect ratio {aspect.numerator}:{aspect.denominator}: expected at most 8:1"
        )
    height, width = image.shape[:2]
    wide = max(1, round(width * aspect))
    return np.asarray(Image.fromarray(image).resize((wide, height), Image.Resampling.BILINEAR))
