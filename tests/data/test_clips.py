"""Scaling, cropping and normalising keep shapes as shapes and put the middle in the middle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refvt.data import normalise, preprocess, read_clip, read_frames, resize_and_crop
from refvt.data.clips import cropped_size


def noise(height: int, width: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 65), (65, 47), (33, 200), (64, 64)])
def test_without_scaling_it_is_the_centre_crop(height: int, width: int) -> None:
    images = noise(height, width)
    top, left = (height - 31) // 2, (width - 32) // 2
    expected = images[:, top : top + 31, left : left + 32]
    np.testing.assert_array_equal(resize_and_crop(images, (31, 32), min(height, width)), expected)


@pytest.mark.parametrize(("height", "width"), [(272, 640), (719, 405), (90, 111), (256, 256)])
def test_aspect_and_centre_are_kept(height: int, width: int) -> None:
    # A bright square in the middle: it must come out square, in the middle, and 256/short times as large.
    images = np.zeros((1, height, width, 3), np.uint8)
    side = min(height, width) // 2
    top, left = (height - side) // 2, (width - side) // 2
    images[:, top : top + side, left : left + side] = 255
    out = resize_and_crop(images)[0, :, :, 0].astype(float) / 255
    assert out.shape == (224, 224)
    assert out[112].sum() == pytest.approx(side * 256 / min(height, width), abs=1.5)  # width of the square
    assert out[:, 112].sum() == pytest.approx(side * 256 / min(height, width), abs=1.5)  # and its height
    for weights in (out.sum(axis=0), out.sum(axis=1)):
        assert (weights * np.arange(224)).sum() / weights.sum() == pytest.approx(111.5, abs=1.5)


@pytest.mark.parametrize(
    ("size", "crop", "short", "expected"),
    [
        ((240, 320), (96, 96), 96, (240, 240)),
        ((240, 320), (224, 224), None, (210, 210)),
        ((90, 60), (32, 64), None, (26, 53)),
        ((64, 64), (64, 64), 64, (64, 64)),
    ],
)
def test_the_part_that_is_shown_is_said_in_pixels_of_the_frame(size, crop, short, expected) -> None:
    assert cropped_size(size, crop, short) == expected
    # a frame whose brightness says where: the crop spans as much of the frame as is said, to a pixel of the crop
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    frame = np.stack([255 * y / size[0], 255 * x / size[1], 0 * x], axis=-1)
    shown = resize_and_crop(frame.round().astype(np.uint8)[None], crop, short)[0].astype(float)
    for axis in (0, 1):
        line = shown.mean(axis=1 - axis)[:, axis]
        spanned = (line[-1] - line[0]) / 255 * size[axis] * crop[axis] / (crop[axis] - 1)
        step = size[axis] / 255 + size[axis] / crop[axis]  # a level of brightness, and a pixel at the edge
        assert spanned == pytest.approx(expected[axis], abs=step)


def test_nothing_aliases() -> None:
    checks = np.zeros((1, 64, 64, 3), np.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 255
    small = resize_and_crop(checks, (16, 16), 16)
    assert np.abs(small.astype(int) - 127).max() <= 4  # grey, not black, white or stripes


def test_the_short_side_follows_the_crop() -> None:
    # 256 : 224 whatever the crop; 32 cut from 37.
    images = noise(37, 50)
    np.testing.assert_array_equal(resize_and_crop(images, (32, 32)), resize_and_crop(images, (32, 32), 37))
    # A wide crop fits even a tall frame.
    assert resize_and_crop(noise(90, 60), (32, 64)).shape == (2, 32, 64, 3)


def test_normalise() -> None:
    images = np.array([0, 255, 127, 128], np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3)
    clip = normalise(images)
    assert clip.dtype == np.float32
    assert clip.flags.c_contiguous
    assert clip.shape == (3, 1, 2, 2)
    np.testing.assert_array_equal(clip[1, 0], np.float32([[-1, 1], [-0.5 / 127.5, 0.5 / 127.5]]))
    images = noise(4, 5)
    assert normalise(images)[2, 1, 3, 4] == np.float32((float(images[1, 3, 4, 2]) - 127.5) / 127.5)


def test_preprocess_is_both() -> None:
    images = noise(90, 111)
    np.testing.assert_array_equal(preprocess(images), normalise(resize_and_crop(images)))
    assert preprocess(images, (32, 48)).shape == (3, 2, 32, 48)


def test_read_clip(encode: Callable[..., Path]) -> None:
    path = encode("a.mp4", 40)
    clip, frames = read_clip(path, 4, 5, (24, 32))
    assert clip.shape == (3, 4, 24, 32)
    assert frames.images.shape == (4, 24, 32, 3)
    np.testing.assert_array_equal(clip, normalise(frames.images))
    raw = read_frames(path, 4, 5)
    np.testing.assert_array_equal(clip, preprocess(raw.images, (24, 32)))
    assert frames.indices.tolist() == raw.indices.tolist() == [12, 17, 22, 27]


def test_refused() -> None:
    images = noise(40, 50)
    with pytest.raises(TypeError, match="images: expected uint8, got float64"):
        resize_and_crop(images.astype(float), (32, 32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images: expected \[T, height, width, 3\].*got \[40, 50, 3\]"):
        resize_and_crop(images[0], (32, 32))
    with pytest.raises(ValueError, match=r"got \[0, 40, 50, 3\]"):
        resize_and_crop(images[:0], (32, 32))
    with pytest.raises(ValueError, match=r"crop: expected at most .* 40×50 .* short side of 40, got 32×64"):
        resize_and_crop(images, (32, 64), 40)
    with pytest.raises(ValueError, match=r"crop: expected \(height, width\)"):
        resize_and_crop(images, (32,))
    with pytest.raises(ValueError, match="crop width: expected at least 1, got 0"):
        resize_and_crop(images, (32, 0))
