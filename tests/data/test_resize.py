"""Both filters: OpenCV's against OpenCV itself, its formula written out, and bits that OpenCV computed once."""

import hashlib

import numpy as np
import pytest

from refvt.data import resize_and_crop
from refvt.data.resize import check_filter, scale_and_cut, scaled_size


def noise(height: int, width: int, seed: int = 0, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def by_hand(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The formula of the module, pixel by pixel in Python's integers."""
    ends = (image.shape[0], image.shape[1])

    def place(i: int, old: int, new: int) -> tuple[int, int, int]:
        f = np.float32((i + 0.5) * (1 / (new / old)) - 0.5)
        low = int(np.floor(f))
        f = np.float32(f - np.float32(low))
        return low, round(float(np.float32(2048) * (np.float32(1) - f))), round(float(np.float32(2048) * f))

    out = np.zeros((height, width, 3), np.uint8)
    for y in range(height):
        row, v0, v1 = place(y, ends[0], height)
        for x in range(width):
            column, w0, w1 = place(x, ends[1], width)
            for c in range(3):
                across = []
                for r in (row, row + 1):
                    r = min(max(r, 0), ends[0] - 1)
                    left, right = (int(image[r, min(max(column + k, 0), ends[1] - 1), c]) for k in (0, 1))
                    across.append(w0 * left + w1 * right)
                total = ((v0 * (across[0] >> 4)) >> 16) + ((v1 * (across[1] >> 4)) >> 16)
                out[y, x, c] = (total + 2) >> 2
    return out


@pytest.mark.parametrize(
    ("old", "new"), [((9, 13), (5, 7)), ((9, 13), (20, 31)), ((1, 6), (3, 4)), ((7, 7), (7, 7)), ((8, 12), (4, 5))]
)
def test_opencvs_formula(old: tuple[int, int], new: tuple[int, int]) -> None:
    image = noise(*old)
    whole = scale_and_cut(image, new, (0, 0), new, "opencv")
    np.testing.assert_array_equal(whole[0], by_hand(image[0], *new))
    corner, crop = (new[0] // 3, new[1] // 2), (new[0] - new[0] // 3 - 1, 2)
    part = scale_and_cut(image, new, corner, crop, "opencv")
    inside = whole[:, corner[0] : corner[0] + crop[0], corner[1] : corner[1] + crop[1]]
    np.testing.assert_array_equal(part, inside)


def test_twice_as_small_is_a_mean_of_four() -> None:
    image = noise(12, 20, 1)
    four = image[0].reshape(6, 2, 10, 2, 3).astype(int).sum(axis=(1, 3))
    np.testing.assert_array_equal(scale_and_cut(image, (6, 10), (0, 0), (6, 10), "opencv")[0], (four + 2) // 4)
    # with one factor of two the ordinary formula is right
    np.testing.assert_array_equal(scale_and_cut(image, (6, 9), (0, 0), (6, 9), "opencv")[0], by_hand(image[0], 6, 9))


# sizes of frames, of which OpenCV 5.0.0 computed the centre crop of 224 after scaling noise to a short side of 256
OPENCV = {
    (256, 340): "93a906f4e3c22639",
    (272, 640): "ec59b501b9197c1b",
    (720, 1280): "fd2b848ee0576cb3",
    (144, 176): "7990a49fc3f1591b",
    (512, 682): "1024b13434e8290a",
    (1080, 608): "4f339e87d1a0a429",
}


@pytest.mark.parametrize(("height", "width"), OPENCV)
def test_bits_that_opencv_computed(height: int, width: int) -> None:
    out = resize_and_crop(noise(height, width, height + width), resize="opencv")
    assert hashlib.sha256(out.tobytes()).hexdigest()[:16] == OPENCV[height, width]


@pytest.mark.parametrize("seed", range(4))
def test_bits_are_opencvs(seed: int) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    pairs = [(tuple(rng.integers(1, 150, 2)), tuple(rng.integers(1, 150, 2))) for _ in range(40)]
    pairs += [((720, 1280), (256, 455)), ((272, 640), (256, 602)), ((512, 912), (256, 456)), ((1, 1), (4, 5))]
    for old, new in pairs:
        image = noise(*old, seed)
        theirs = cv2.resize(image[0], (int(new[1]), int(new[0])), interpolation=cv2.INTER_LINEAR)
        ours = scale_and_cut(image, new, (0, 0), new, "opencv")
        np.testing.assert_array_equal(ours[0], theirs, err_msg=f"{old} to {new}")


def test_every_frame_by_itself_and_nothing_is_changed() -> None:
    images = noise(30, 40, 2, count=3)
    before = images.copy()
    for resize in ("opencv", "antialiased"):
        out = resize_and_crop(images, (16, 16), resize=resize)
        for t in range(3):
            np.testing.assert_array_equal(out[t : t + 1], resize_and_crop(images[t : t + 1], (16, 16), resize=resize))
    np.testing.assert_array_equal(images, before)
    assert (resize_and_crop(images, (16, 16), 18, resize="opencv") != resize_and_crop(images, (16, 16), 18)).any()


def test_sizes_are_rounded_as_in_the_released_pipeline() -> None:
    # MMCV: int(side · factor + 0.5) with the factor in double precision
    for short, long in ((720, 1280), (272, 640), (144, 176), (256, 340), (84, 294), (360, 483)):
        for target in (256, 257, 311):
            expected = int(short * (target / short) + 0.5), int(long * (target / short) + 0.5)
            assert scaled_size(short, long, target, "opencv") == expected
            assert scaled_size(long, short, target, "opencv") == expected[::-1]
            assert abs(scaled_size(short, long, target, "antialiased")[1] - expected[1]) <= 1
    # half a pixel: 294 · 257/84 = 899.5, and the factor is a little less than 257/84
    assert scaled_size(84, 294, 257, "opencv") == (257, 899)
    assert scaled_size(84, 294, 257, "antialiased") == (257, 900)


def test_other_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="resize: expected one of antialiased, opencv, got 'bicubic'"):
        check_filter("bicubic")
    with pytest.raises(ValueError, match="resize: expected one of antialiased, opencv, got 'cubic'"):
        resize_and_crop(noise(30, 40), (8, 8), resize="cubic")
