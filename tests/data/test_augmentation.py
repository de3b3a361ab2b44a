"""Each operation against a known answer and against Pillow; a clip is treated as one."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from refvt.data import rand_augment, random_flip, random_scale_and_crop, resize_and_crop
from refvt.data.augmentation import OPERATIONS, apply

VALUE_OPERATIONS = {  # the same by Pillow, at u = magnitude/10, with its sign
    "auto_contrast": lambda image, u: ImageOps.autocontrast(image),
    "equalize": lambda image, u: ImageOps.equalize(image),
    "solarize": lambda image, u: ImageOps.solarize(image, 256 - 256 * u),
    "posterize": lambda image, u: ImageOps.posterize(image, 8 - round(4 * u)),
    "color": lambda image, u: ImageEnhance.Color(image).enhance(1 + 0.9 * u),
    "contrast": lambda image, u: ImageEnhance.Contrast(image).enhance(1 + 0.9 * u),
    "brightness": lambda image, u: ImageEnhance.Brightness(image).enhance(1 + 0.9 * u),
    "sharpness": lambda image, u: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * u),
}
SIGNED = ("rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")


def frames(height: int = 37, width: int = 50, count: int = 3) -> np.ndarray:
    """Frames unlike one another: soft shades in part of the range, with some noise."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(30, 200, width)[None, None, :, None] * np.linspace(0.5, 1, count)[:, None, None, None]
    return np.clip(ramp + rng.normal(0, 12, (count, height, width, 3)), 3, 250).astype(np.uint8)


@pytest.mark.parametrize("magnitude", [0, 3, 9, 10])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", list(VALUE_OPERATIONS))
def test_values_are_pillows(name: str, sign: int, magnitude: float) -> None:
    images = frames()
    u = magnitude / 10 * (sign if name in SIGNED else 1)
    expected = [np.asarray(VALUE_OPERATIONS[name](Image.fromarray(image), u)) for image in images]
    np.testing.assert_array_equal(apply(images, name, magnitude, sign), expected)


@pytest.mark.parametrize("name", ["auto_contrast", "equalize", "sharpness", "contrast"])
@pytest.mark.parametrize(
    "images",
    [
        np.full((2, 8, 9, 3), 77, np.uint8),  # flat
        np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3),  # fewer pixels than grey levels
        np.where(np.arange(2 * 40 * 40 * 3).reshape(2, 40, 40, 3) % 7 == 0, 200, 10).astype(np.uint8),  # two values
        np.random.default_rng(1).integers(0, 256, (2, 41, 17, 3), dtype=np.uint8),
    ],
    ids=["flat", "few", "two values", "noise"],
)
def test_odd_frames_are_pillows_too(name: str, images: np.ndarray) -> None:
    expected = [np.asarray(VALUE_OPERATIONS[name](Image.fromarray(image), 0.9)) for image in images]
    np.testing.assert_array_equal(apply(images, name, 9), expected)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
@pytest.mark.parametrize("sign", [1, -1])
def test_places_are_pillows(name: str, sign: int) -> None:
    images = frames(60, 80)
    u = 0.7 * sign
    for image, ours in zip(images, apply(images, name, 7, sign), strict=True):
        given = Image.fromarray(image)
        fill = (128, 128, 128)
        if name == "rotate":
            theirs = given.rotate(30 * u, Image.Resampling.NEAREST, fillcolor=fill)
        else:
            k = 0.3 * u
            matrix = (1, k, -k * 30, 0, 1, 0) if name == "shear_x" else (1, 0, 0, k, 1, -k * 40)
            theirs = given.transform(given.size, Image.Transform.AFFINE, matrix, fillcolor=fill)
        # Pillow counts places in 1/65536 pixel and errs by up to that much per step, 80 + 60 steps from the corner.
        # Places so close to either border of a pixel, in either axis, may go either way.
        apart = (np.asarray(theirs) != ours).any(axis=-1).mean()
        assert apart <= 2 * 2 * 140 / 65536


def test_known_places() -> None:
    images = frames(40, 40)
    right = apply(images, "translate_x", 10 * (8 / 40) / (150 / 331))  # by 8 pixels
    np.testing.assert_array_equal(right[:, :, 8:], images[:, :, :-8])
    assert (right[:, :, :8] == 128).all()
    up = apply(images, "translate_y", 10 * (8 / 40) / (150 / 331), -1)
    np.testing.assert_array_equal(up[:, :-8], images[:, 8:])
    assert (up[:, -8:] == 128).all()
    quarter = OPERATIONS["rotate"].run(images, 90.0)
    np.testing.assert_array_equal(quarter, np.rot90(images, 1, (1, 2)))
    # Sheared by half a pixel per row the rows above the middle move to the right, those below to the left.
    line = np.zeros((1, 41, 41, 3), np.uint8)
    line[:, :, 20] = 255
    sheared = OPERATIONS["shear_x"].run(line, 0.5)[0, :, :, 0]
    assert [int(np.flatnonzero(sheared[row] == 255)[0]) for row in (0, 10, 20, 30, 40)] == [30, 25, 20, 15, 10]
    turned = OPERATIONS["shear_y"].run(line.swapaxes(1, 2), 0.5)[0, :, :, 0]
    np.testing.assert_array_equal(turned, sheared.T)


def test_known_values() -> None:
    images = np.array([[0, 50, 100], [150, 200, 250]], np.uint8).reshape(1, 1, 2, 3).repeat(2, axis=1)
    value = lambda name, *how: apply(images, name, *how)[0, 0].ravel().tolist()  # noqa: E731
    assert value("identity", 10) == [0, 50, 100, 150, 200, 250]
    assert value("auto_contrast", 10) == [0, 0, 0, 255, 255, 255]  # each channel has two values
    assert value("solarize", 5) == [0, 50, 100, 105, 55, 5]  # from 128 on
    assert value("solarize", 10) == [255, 205, 155, 105, 55, 5]
    assert value("posterize", 10) == [0, 48, 96, 144, 192, 240]
    assert value("brightness", 10, -1) == [0, 5, 10, 15, 20, 25]
    assert value("brightness", 10, 1) == [0, 95, 190, 255, 255, 255]
    grey = 0.299 * 0 + 0.587 * 50 + 0.114 * 100
    assert value("color", 10, -1)[:3] == [int(round(grey) + 0.1 * (v - round(grey))) for v in (0, 50, 100)]


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_magnitude_zero_is_nothing_and_frames_do_not_mix(name: str) -> None:
    images = frames()
    before = images.copy()
    if name not in ("auto_contrast", "equalize"):  # these know no magnitude
        for sign in (1, -1):
            np.testing.assert_array_equal(apply(images, name, 0, sign), images)
    whole = apply(images, name, 8, -1)
    assert whole.dtype == np.uint8
    assert whole.shape == images.shape
    for t in range(len(images)):
        np.testing.assert_array_equal(apply(images[t : t + 1], name, 8, -1)[0], whole[t])
    if name in SIGNED:
        assert (apply(images, name, 8, 1) != whole).any()
    if name != "identity":
        assert (whole != images).any()
    np.testing.assert_array_equal(images, before)


def test_rand_augment_draws_once_for_all_frames() -> None:
    still = frames(count=1).repeat(4, axis=0)
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        out = rand_augment(still, rng, 2, 9)
        assert (out == out[:1]).all()
        np.testing.assert_array_equal(out, rand_augment(still, np.random.default_rng(seed), 2, 9))
        seen.add(out[0].tobytes())
    assert len(seen) > 40
    np.testing.assert_array_equal(rand_augment(still, np.random.default_rng(0), 0), still)


def test_every_operation_is_drawn() -> None:
    images = frames(24, 24, 1)
    singles = {(name, sign): apply(images, name, 9, sign).tobytes() for name in OPERATIONS for sign in (1, -1)}
    drawn = {rand_augment(images, np.random.default_rng(seed), 1, 9).tobytes() for seed in range(400)}
    # 23 different outcomes (5 operations have no sign), the rarest with chance 1/28: missed once in 20 million times
    assert drawn == set(singles.values())


def test_random_scale_and_crop() -> None:
    images = frames(90, 120, 2)
    seen = set()
    for seed in range(20):
        out = random_scale_and_crop(images, np.random.default_rng(seed), (56, 56))
        assert out.shape == (2, 56, 56, 3)
        rng = np.random.default_rng(seed)
        short_side = rng.integers(64, 81)
        place = rng.random(2)
        np.testing.assert_array_equal(out, resize_and_crop(images, (56, 56), short_side, place))
        seen.add(int(short_side))
    assert min(seen) >= 64
    assert max(seen) <= 80
    assert len(seen) > 8


def test_crop_reaches_every_corner() -> None:
    images = frames(10, 12)
    cut = lambda *place: resize_and_crop(images, (8, 8), 10, place)  # noqa: E731
    np.testing.assert_array_equal(cut(0, 0), images[:, :8, :8])
    np.testing.assert_array_equal(cut(0.999, 0.999), images[:, 2:, 4:])
    np.testing.assert_array_equal(cut(0.34, 0.39), images[:, 1:9, 1:9])  # of 3 and 5 places the second
    with pytest.raises(ValueError, match=r"place: expected two numbers in \[0, 1\), got \(0, 1\)"):
        cut(0, 1)


def test_random_flip() -> None:
    images = frames()
    flipped = [bool((random_flip(images, np.random.default_rng(seed)) != images).any()) for seed in range(40)]
    assert 8 < sum(flipped) < 32
    seed = flipped.index(True)
    np.testing.assert_array_equal(random_flip(images, np.random.default_rng(seed))[:, :, 0], images[:, :, -1])


def test_refused() -> None:
    images = frames()
    with pytest.raises(TypeError, match="images: expected uint8, got float64"):
        apply(images.astype(float), "rotate", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"images: expected \[T, height, width, 3\].*got \[37, 50, 3\]"):
        apply(images[0], "rotate", 1)
    with pytest.raises(ValueError, match=r"operation: expected one of identity, .*, got 'cutout'"):
        apply(images, "cutout", 1)
    with pytest.raises(ValueError, match="magnitude: expected a number from 0 to 10, got 11"):
        apply(images, "rotate", 11)
    with pytest.raises(ValueError, match="num_ops: expected at least 0, got -1"):
        rand_augment(images, np.random.default_rng(0), -1)
