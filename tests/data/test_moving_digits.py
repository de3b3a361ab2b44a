"""Moving digits move as their class says, and one frame says nothing about it."""

import dataclasses
import hashlib
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from refvt.data import MovingDigits
from refvt.data.moving_digits import _COSINE, _SINE, SPLITS, _digits, _scaled_photographs


def way(data: MovingDigits, index: int) -> np.ndarray:
    """Where the digit is, [T, 2], followed without jumps where the canvas wraps around, in pixels."""
    draw = type(data._draws)(*(part[index : index + 1] for part in data._draws))
    places = data._path(np.array([data.target(index)]), draw)[0]
    steps = (np.diff(places, axis=0) + data.size // 2) % data.size - data.size // 2
    return np.concatenate([[[0, 0]], np.cumsum(steps, axis=0)])


@pytest.mark.parametrize("digit_size", [8, 16])
def test_every_class_moves_as_it_is_called(digit_size: int) -> None:
    data = MovingDigits(clips=400, frames=16, size=64, digit_size=digit_size)
    scale = digit_size // 8
    slow, fast = scale - 1, 3 * scale + 1  # whole pixels: speeds are rounded to the frame
    for index in range(len(data)):
        name = data.names[data.target(index)]
        path = way(data, index)
        steps = np.diff(path, axis=0)
        if name in ("left", "right", "up", "down"):
            axis, sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}[name]
            assert (steps[:, 1 - axis] == 0).all()
            assert (sign * steps[:, axis] >= slow).all()
            assert (sign * steps[:, axis] <= fast).all()
            assert 15 * scale - 1 <= sign * path[-1, axis] <= 15 * 3 * scale + 1
        elif name == "still":
            assert (steps == 0).all()
        elif name == "zigzag":
            ahead = int(np.abs(path[-1]).argmax())  # it goes on along one axis …
            assert abs(path[-1, ahead]) >= 15 * scale - 1
            side = path[:, 1 - ahead]  # … and to and fro along the other, every four frames
            assert 2 * slow <= np.ptp(side) <= 2 * fast
            np.testing.assert_array_equal(side[4:], side[:-4])
            assert (np.sign(side[2:-2] - side[:-4]) == -np.sign(side[4:] - side[2:-2])).all()
        else:
            # Twice the signed area that the way sweeps around the first point; rows run downwards.
            area = (path[:-1, 1] * path[1:, 0] - path[:-1, 0] * path[1:, 1]).sum()
            assert (area > 0) == (name == "clockwise")
            assert 6 * scale - 1 <= np.ptp(path, axis=0).max() <= 10 * scale + 1  # the diameter


def test_the_digit_is_drawn_where_its_way_says() -> None:
    data = MovingDigits("test", clips=16)
    for index in range(16):
        frames = np.rint(data.clip(index)[0] * 127.5 + 127.5).astype(int)
        draw = type(data._draws)(*(part[index : index + 1] for part in data._draws))
        places = data._path(np.array([data.target(index)]), draw)[0]
        digit = _digits(1)[SPLITS["test"]][draw.digit[0]]
        for frame, place in zip(frames, places, strict=True):
            expected = np.zeros((32, 32), int)
            expected[:8, :8] = digit
            np.testing.assert_array_equal(frame, np.roll(expected, tuple(place), (0, 1)))


def test_the_same_bits_everywhere() -> None:
    # The values were made on x86-64 with NumPy 2.4. All is integers but one division per pixel, exactly rounded by
    # IEEE 754: another machine that finds others draws other data.
    clips, classes = MovingDigits("train", clips=24, clutter=2, noise=12, seed=3).arrays()
    assert hashlib.sha256(clips.astype("<f4").tobytes()).hexdigest()[:16] == "899daa1739ec79b8"
    assert classes.tolist() == list(range(8)) * 3


def test_the_circle_is_far_from_any_rounding_edge() -> None:
    # cos is not the same to the last bit on all machines; no table entry may hang on it.
    exact = 1024 * np.cos(2 * np.pi * np.arange(64) / 64)
    assert np.abs(np.abs(exact - np.floor(exact)) - 0.5).min() > 1e-3
    np.testing.assert_array_equal(_COSINE, np.rint(exact))
    np.testing.assert_array_equal(_SINE, np.rint(1024 * np.sin(2 * np.pi * np.arange(64) / 64)))


@pytest.mark.parametrize("settings", [{}, {"clutter": 3, "noise": 20, "channels": 3, "size": 40, "digit_size": 16}])
def test_clip_by_clip_is_all_at_once(settings: dict[str, int]) -> None:
    data = MovingDigits("test", clips=300, frames=5, **settings)  # more than one block
    clips, classes = data.arrays()
    assert clips.dtype == np.float32
    assert clips.shape == (300, data.channels, 5, data.size, data.size)
    for index in (0, 7, 255, 256, 299):
        np.testing.assert_array_equal(data.clip(index), clips[index])
        assert data.target(index) == classes[index]
    assert (clips[:, :1] == clips).all()  # grey


def test_a_seed_gives_the_same_clips_and_another_gives_others() -> None:
    assert (MovingDigits(clips=8).arrays()[0] == MovingDigits(clips=8).arrays()[0]).all()
    assert (MovingDigits(clips=8).arrays()[0] != MovingDigits(clips=8, seed=1).arrays()[0]).any()
    assert len(MovingDigits(clips=3)) == 3


def test_with_a_generator_clips_are_drawn_afresh() -> None:
    data = MovingDigits(clips=16, noise=5, clutter=1)
    for index in (0, 6):
        once, again = data.clip(index, np.random.default_rng(4)), data.clip(index, np.random.default_rng(4))
        np.testing.assert_array_equal(once, again)
        assert (once != data.clip(index)).any()
        assert (once != data.clip(index, np.random.default_rng(5))).any()
    still = data.names.index("still")
    quiet = dataclasses.replace(data, noise=0).clip(still, np.random.default_rng(4))
    assert (quiet == quiet[:, :1]).all()  # a fresh clip is of the same class


def test_no_digit_is_in_both_splits() -> None:
    images = _digits(1)
    train, test = images[SPLITS["train"]], images[SPLITS["test"]]
    assert len(train) + len(test) == 1797
    assert len(test) == 360
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)  # and the set holds no image twice
    for split in SPLITS:
        draws = MovingDigits(split, clips=4000, clutter=2)._draws
        assert draws.digit.max() < len(images[SPLITS[split]])
        assert draws.clutter[:, :, 0].max() < len(images[SPLITS[split]])


def test_noise_and_clutter() -> None:
    plain = MovingDigits(clips=64, clutter=2)
    noisy = dataclasses.replace(plain, noise=16)
    grey = [np.rint(data.arrays()[0] * 127.5 + 127.5) for data in (plain, noisy)]
    middle = (grey[0] > 80) & (grey[0] < 175)  # five standard deviations from black and from white
    error = (grey[1] - grey[0])[middle]
    # The standard error of the deviation of n normal numbers is σ/√(2n), of their mean σ/√n; four of each.
    n = error.size
    assert abs(error.std() - 16) < 4 * 16 / np.sqrt(2 * n) + 0.05  # 0.05: rounding to whole grey levels
    assert abs(error.mean()) < 4 * 16 / np.sqrt(n)
    first, second = (np.where(middle, grey[1] - grey[0], 0)[:, 0, t].ravel() for t in (0, 1))
    both = middle[:, 0, :2].all(axis=1).ravel()
    assert abs(np.corrcoef(first[both], second[both])[0, 1]) < 4 / np.sqrt(both.sum())  # every frame has its own
    bare = dataclasses.replace(plain, clutter=0).arrays()[0]
    still = plain.names.index("still")
    assert (np.ptp(grey[0][still::8], axis=2) == 0).all()  # clutter does not move
    assert np.rint(bare * 127.5 + 127.5).sum() < grey[0].sum()


def test_most_patches_never_change() -> None:
    # What halting lives on: of 16 patches of 8×8, those that the digit crosses in 8 frames are the smaller part.
    clips = MovingDigits(clips=512, clutter=2).arrays()[0]
    changes = np.ptp(clips[:, 0], axis=1).reshape(512, 4, 8, 4, 8).max(axis=(2, 4)) > 0
    assert changes.mean() < 0.5
    covered = (clips[:, 0, 0].reshape(512, 4, 8, 4, 8).max(axis=(2, 4)) > -1).mean()
    assert covered < 0.55


ON_BLACK: dict[str, Any] = {"clutter": 1, "noise": 8}
ON_PHOTOGRAPHS: dict[str, Any] = {"size": 48, "digit_size": 16, "background": "photographs", "noise": 4}


@pytest.mark.parametrize("settings", [ON_BLACK, ON_PHOTOGRAPHS], ids=["black", "photographs"])
def test_one_frame_says_nothing_and_two_say_much(settings: dict[str, Any]) -> None:
    """A linear probe: on one frame at chance; on where consecutive frames match, far above."""
    (train, train_classes), (test, test_classes) = (
        MovingDigits(split, clips=clips, **settings).arrays() for split, clips in (("train", 2048), ("test", 1024))
    )
    if settings is ON_PHOTOGRAPHS:  # what does not move matches itself
        train, test = (clips - clips.mean(axis=2, keepdims=True) for clips in (train, test))
    right = {}
    for name, features in {"frame": one_frame, "pairs": matches}.items():
        probe = RidgeClassifier(alpha=100.0).fit(features(train), train_classes)
        right[name] = probe.score(features(test), test_classes)
    deviation = np.sqrt(1 / 8 * 7 / 8 / 1024)  # of the share that guessing gets right
    assert abs(right["frame"] - 1 / 8) < 4 * deviation
    # The two circles have the same pairs of frames, only in another order: 7/8 is the most there is to get.
    assert 0.6 < right["pairs"] < 7 / 8 + 4 * deviation


def one_frame(clips: np.ndarray) -> np.ndarray:
    return clips[:, 0, 3].reshape(len(clips), -1)


def matches(clips: np.ndarray) -> np.ndarray:
    """Correlation of consecutive frames at shifts of up to 4 pixels, mean over the clip."""
    spectrum = np.fft.fft2(clips[:, 0])
    correlation = np.fft.ifft2(spectrum[:, 1:] * spectrum[:, :-1].conj()).real.mean(axis=1)
    return np.roll(correlation, (4, 4), (-2, -1))[:, :9, :9].reshape(len(clips), -1)


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="split: expected one of train, test, got 'val'"):
        MovingDigits("val")
    with pytest.raises(ValueError, match="digit_size: expected a multiple of 8, got 12"):
        MovingDigits(digit_size=12)
    with pytest.raises(ValueError, match="size: expected at least digit_size 16, got 8"):
        MovingDigits(digit_size=16, size=8)
    with pytest.raises(ValueError, match="channels: expected 1 or 3, got 2"):
        MovingDigits(channels=2)
    with pytest.raises(ValueError, match="frames: expected at least 1, got 0"):
        MovingDigits(frames=0)
    with pytest.raises(TypeError, match=r"clips: expected a whole number, got 1\.5"):
        MovingDigits(clips=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise: expected 0 to 128"):
        MovingDigits(noise=200)
    with pytest.raises(IndexError, match="index: expected 0 to 3, got 4"):
        MovingDigits(clips=4).clip(4)
    with pytest.raises(ValueError, match="background: expected one of black, photographs, got 'sky'"):
        MovingDigits(background="sky")
    with pytest.raises(ValueError, match="size: expected at most 208 on photographs, got 216"):
        MovingDigits(background="photographs", size=216)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    _digits.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"scikit-learn: pip install \"refvt\[demo\]\""):
        MovingDigits()


def test_ink_and_places_say_where_the_digit_is() -> None:
    plain = MovingDigits("test", clips=24, frames=5, size=24)
    clips, _ = plain.arrays()
    ink, places = plain.ink(), plain.places()
    np.testing.assert_array_equal(ink, clips[:, 0] > -1)
    for clip, frame in ((0, 0), (3, 4), (5, 2), (23, 1)):
        row, column = places[clip, frame]
        centred = np.roll(ink[clip, frame], (-row, -column), (0, 1))
        assert centred.any(axis=1).sum() >= 7  # scikit-learn's digits are scaled to be 8 pixels tall
        assert not centred[8:].any()
        assert not centred[:, 8:].any()
    # Clutter and noise are no ink: where a digit has ink the clip is at least as bright as the digit alone.
    cluttered = MovingDigits("test", clips=8, frames=3, clutter=3)
    assert 0 < cluttered.ink().sum() < (cluttered.arrays()[0] > -1).sum()
    assert (cluttered.arrays()[0][:, 0][cluttered.ink()] > -1).all()
    np.testing.assert_array_equal(cluttered.ink(), MovingDigits("test", clips=8, frames=3, clutter=3, noise=9).ink())


def test_on_photographs_only_the_digit_moves() -> None:
    data = MovingDigits("test", clips=64, **{**ON_PHOTOGRAPHS, "noise": 0})
    clips, _ = data.arrays()
    ink = data.ink()
    still = clips[:, 0] == clips[:, 0, :1]
    assert still[~ink & ~ink[:, :1]].all()  # without the digit now and in the first frame: the same background
    bare = dataclasses.replace(data, background="black").ink()
    np.testing.assert_array_equal(ink, bare)  # the background changes no digit
    assert [data.object_pixels(i).sum() for i in (0, 63)] == [ink[0].sum(), ink[63].sum()]


def test_the_background_is_a_photograph_and_every_digit_stands_out() -> None:
    data = MovingDigits("train", clips=64, **{**ON_PHOTOGRAPHS, "noise": 0})
    grey = np.rint(data.arrays()[0][:, 0] * 127.5 + 127.5)
    ink = data.ink()
    means = np.array([clip[~own].mean() for clip, own in zip(grey, ink, strict=True)])
    assert np.ptp(means) > 60  # brightness varies
    images = _digits(2)[SPLITS["train"]]
    for clip, place, own, mean in zip(grey, data.places(), range(64), means, strict=True):
        digit = images[data._draws.digit[own]]
        full = np.argwhere(digit == digit.max())[0]  # full ink, or nearly, shows the digit's level
        row, column = (place[0] + full) % 48
        assert 45 < abs(clip[0, row, column] - mean) < 145


def test_training_and_test_backgrounds_are_disjoint() -> None:
    from sklearn.datasets import load_sample_images

    whole = np.stack(load_sample_images().images).astype(int) @ np.array([77, 150, 29]) + 128 >> 8
    train, test = (_scaled_photographs(split)[1] for split in ("train", "test"))
    assert train.shape[2] + test.shape[2] == whole.shape[2]
    np.testing.assert_array_equal(np.concatenate([train, test], axis=2), whole)
    crop = MovingDigits("test", clips=1, size=208, digit_size=8, background="photographs")  # as wide as there is room
    assert crop.arrays()[0].shape == (1, 1, 8, 208, 208)
