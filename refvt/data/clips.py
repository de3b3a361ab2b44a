"""From the frames of a video to a clip for the model: scaling, cropping, normalisation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refvt.checks import check_int
from refvt.data.resize import check_filter, scale_and_cut, scaled_size
from refvt.data.video import Frames, read_frames


def check_images(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return frames as an array [T, height, width, 3]. TypeError unless uint8, ValueError for another shape."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"images: expected uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ValueError(f"images: expected [T, height, width, 3], none of them zero, got {list(images.shape)}")
    return images


def resize_and_crop(
    images: NDArray[np.uint8],
    crop: Sequence[int] = (224, 224),
    short_side: int | None = None,
    place: Sequence[float] | None = None,
    resize: str = "antialiased",
) -> NDArray[np.uint8]:
    """Scale the short side to ``short_side`` pixels, then crop (height, width) from the centre, or from ``place``.

    images: uint8 [T, height, width, 3] → uint8 [T, *crop, 3]. The aspect ratio is kept. ``short_side`` None means
    256/224 of the crop's longer side, the paper's ratio in testing. If a margin is odd, the extra pixel is at the
    bottom or on the right. ``place`` is two numbers in [0, 1), vertical and horizontal; drawn uniformly, they make all
    positions equally likely. ``resize``: "antialiased" or "opencv", the filter of the released configurations; both
    are bilinear (see ``refvt.data.resize``).

    Raises TypeError for other dtypes, ValueError for other shapes and filters and for a crop larger than the scaled
    frame.
    """
    images = check_images(images)
    check_filter(resize)
    if len(crop) != 2:
        raise ValueError(f"crop: expected (height, width), got {tuple(crop)}")
    crop_height, crop_width = check_int("crop height", crop[0]), check_int("crop width", crop[1])
    short_side = _short_side((crop_height, crop_width), short_side)

    height, width = images.shape[1:3]
    new_height, new_width = scaled_size(height, width, short_side, resize)
    if new_height < crop_height or new_width < crop_width:
        raise ValueError(
            f"crop: expected at most the scaled frame, {new_height}×{new_width} (height × width) with a short side of "
            f"{short_side}, got {crop_height}×{crop_width}"
        )
    top, left = (new_height - crop_height) // 2, (new_width - crop_width) // 2
    if place is not None:
        if len(place) != 2 or not all(0 <= p < 1 for p in place):
            raise ValueError(f"place: expected two numbers in [0, 1), got {tuple(place)}")
        top, left = int(place[0] * (new_height - crop_height + 1)), int(place[1] * (new_width - crop_width + 1))
    return scale_and_cut(images, (new_height, new_width), (top, left), (crop_height, crop_width), resize)


def _short_side(crop: Sequence[int], short_side: int | None) -> int:
    return check_int("short_side", round(max(crop) * 256 / 224) if short_side is None else short_side)


def cropped_size(
    size: Sequence[int], crop: Sequence[int] = (224, 224), short_side: int | None = None, resize: str = "antialiased"
) -> tuple[int, int]:
    """Height and width of what ``resize_and_crop`` shows of a frame, in pixels of the frame itself.

    size: (height, width) of the frame; the other arguments are those of ``resize_and_crop``.
    """
    scaled = scaled_size(size[0], size[1], _short_side(crop, short_side), resize)
    height, width = (round(n * of / to) for n, of, to in zip(crop, size, scaled, strict=True))
    return height, width


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale to −1 … 1: uint8 [T, height, width, C] → float32 [C, T, height, width], (x − 127.5)/127.5."""
    channels_first = np.asarray(images).transpose(3, 0, 1, 2)
    clip = np.array(channels_first, dtype=np.float32, order="C")
    clip -= np.float32(127.5)
    clip /= np.float32(127.5)
    return clip


def preprocess(
    images: NDArray[np.uint8],
    crop: Sequence[int] = (224, 224),
    short_side: int | None = None,
    resize: str = "antialiased",
) -> NDArray[np.float32]:
    """Scale, crop and normalise: uint8 [T, height, width, 3] → float32 [3, T, *crop]; errors of ``resize_and_crop``."""
    return normalise(resize_and_crop(images, crop, short_side, resize=resize))


def read_clip(
    path: str | Path,
    num_frames: int,
    stride: int | None = None,
    image_size: Sequence[int] = (224, 224),
    resize: str = "antialiased",
) -> tuple[NDArray[np.float32], Frames]:
    """Read a video's centre clip; returns it ready for the model, and as images.

    The clip is float32 [3, num_frames, *image_size]. The images of the frames are cropped in the same way, uint8
    [num_frames, *image_size, 3]. Raises the errors of ``read_frames`` and ``resize_and_crop``.
    """
    frames = read_frames(path, num_frames, stride)
    images = resize_and_crop(frames.images, image_size, resize=resize)
    return normalise(images), replace(frames, images=images)
