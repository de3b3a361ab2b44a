"""Folders of frames: which images are the clip, in what order, and their pixels; or a refusal that names the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refvt.data import read_frames


def save(path: Path, value: int = 200, size: tuple[int, int] = (16, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def order(folder: Path, names: list[str]) -> list[str]:
    """Save images of these names and return them in the order in which they are read."""
    for number, name in enumerate(names):
        save(folder / name, 10 * number)
    images = read_frames(folder, len(names), 1).images
    return [names[image[0, 0, 0] // 10] for image in images]


# ---- which files


@pytest.mark.parametrize("name", ["._img_00001.png", "._x.jpg", ".hidden.png", ".thumbs/1.png", "thumbs.png/1.png"])
def test_hidden_companions_and_folders_are_passed_over(tmp_path: Path, name: str) -> None:
    for i in range(1, 5):
        save(tmp_path / f"img_{i:05}.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\x16\7\0\2\0\0" + bytes(100))
    assert read_frames(tmp_path, 4).num_available == 4


@pytest.mark.parametrize(
    "names",
    [
        ["2.png", "10.png", "100.png"],
        ["img_1.png", "img_2.png", "img_3.png"],
        ["frame 8.png", "frame 9.png", "frame 10.png"],
        ["2024-01-02_23-59-58.png", "2024-01-02_23-59-59.png", "2024-01-03_00-00-00.png"],
        ["1403636579763555584.png", "1403636579813555456.png", "1403636579863555584.png"],
        ["000.png", "005.png", "010.png", "015.png"],
        ["00.png", "07.png", "15.png", "22.png", "30.png"],  # every 7.5th frame of a video
        ["a.png", "b.png", "c.png"],
        ["1.PNG", "2.png", "3.PNG"],
    ],
)
def test_names_are_in_natural_order(tmp_path: Path, names: list[str]) -> None:
    assert order(tmp_path, names) == names


@pytest.mark.parametrize(
    "others", [["flow_x_#.png", "flow_y_#.png"], ["depth_#.png"], ["x_#.png", "y_#.png", "m#.png"]]
)
def test_of_several_series_mmactions_colour_frames_are_read(tmp_path: Path, others: list[str]) -> None:
    for i in range(1, 7):
        save(tmp_path / f"img_{i:05}.png", 100)
        for other in others:
            save(tmp_path / other.replace("#", f"{i:05}"), 200)
    frames = read_frames(tmp_path, 3)
    assert frames.num_available == 6
    assert (frames.images == 100).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["left_1.png", "left_2.png", "right_1.png", "right_2.png"], r"several series: left_#.png \(2\), right_#.png"),
        (["cover.png", "1.png", "2.png"], r"images of several series: #.png \(2\), cover.png \(1\)"),
        (["img_1.png", "img_1.jpg", "img_2.png"], r"several series: img_#.jpg \(1\), img_#.png \(2\)"),
        (["flow_x_1.png", "flow_y_1.png"], "several series: flow_x_#.png"),
        (["f1_cam0.png", "f1_cam1.png", "f2_cam0.png", "f2_cam1.png"], "count along 2 numbers: several series"),
        (["1.png", "01.png", "2.png"], "01.png and 1.png have the same number"),
        (["img_1.png", "img_2.png", "img_4.png", "img_5.png"], "missing between img_2.png and img_4.png"),
        (["000.png", "005.png", "010.png", "020.png"], "a frame is missing between 010.png and 020.png"),
        (["1.png", "2.png", "4.png"], "a frame is missing between 2.png and 4.png"),
        (
            ["img_00001.png", "img_00001 (1).png", "img_00003.png", "img_00004.png"],
            "between img_00001.png and img_00003",
        ),
    ],
)
def test_folders_in_doubt_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        save(tmp_path / name)
    with pytest.raises(ValueError, match=f"^{tmp_path}: .*{message}"):
        read_frames(tmp_path, 2)


def test_mixed_sizes_and_mixed_orientations_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    save(tmp_path / "2.png", size=(12, 16))
    with pytest.raises(ValueError, match=r"2\.png: 12×16, but the images before it are 16×12"):
        read_frames(tmp_path, 2, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (16, 12)).save(tmp_path / "2.png", exif=exif)
    with pytest.raises(ValueError, match=r"2\.png: 12×16, but the images before it are 16×12"):
        read_frames(tmp_path, 2, 1)


def test_a_part_of_a_folder(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / f"img_{i + 1:05}.png", 20 * i)
    frames = read_frames(tmp_path, 4, 1, part=(2, 4))
    assert frames.images[:, 0, 0, 0].tolist() == [40, 60, 80, 100]
    assert frames.indices.tolist() == [2, 3, 4, 5]
    assert frames.num_available == 4
    with pytest.raises(ValueError, match="expected frames 7 to 10, counted from 0, got 10 images"):
        read_frames(tmp_path, 4, 1, part=(7, 4))
    with pytest.raises(ValueError, match="expected a folder of images where a part is asked for"):
        read_frames(tmp_path / "img_00001.png", 1, part=(0, 1))


# ---- which pixels

RAMP = np.linspace(0, 65535, 12 * 16).reshape(12, 16).astype(np.uint16)
COLOURS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def read_one(folder: Path, image: Any, suffix: str = "png", **options: Any) -> np.ndarray:
    image.save(folder / f"0.{suffix}", **options)
    return read_frames(folder, 1).images[0]


def palette_image() -> Image.Image:
    return Image.fromarray(COLOURS).quantize(16)


def one_of_palette(number: int) -> Image.Image:
    image = Image.new("P", (16, 12), number)
    image.putpalette([i % 256 for i in range(768)])
    return image


def opaque(mode: str) -> Image.Image:
    return Image.fromarray(COLOURS).convert("L" if mode == "LA" else "RGB").convert(mode)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Image.fromarray(RAMP), (RAMP >> 8)[:, :, None].repeat(3, 2)),
        (lambda: Image.fromarray(COLOURS[:, :, 0]), COLOURS[:, :, :1].repeat(3, 2)),
        (lambda: Image.fromarray(COLOURS[:, :, 0] > 99), (255 * (COLOURS[:, :, :1] > 99)).repeat(3, 2)),
        (palette_image, np.asarray(palette_image().convert("RGB"))),
        (lambda: opaque("RGBA"), COLOURS),
        (lambda: opaque("LA"), np.asarray(opaque("LA").convert("L"))[:, :, None].repeat(3, 2)),
    ],
    ids=["16-bit grey", "grey", "black and white", "palette", "RGBA", "LA"],
)
def test_png_of_every_kind(tmp_path: Path, make: Callable[[], Image.Image], expected: np.ndarray) -> None:
    np.testing.assert_array_equal(read_one(tmp_path, make()), expected)


def test_sixteen_bit_images_as_opencv_reads_them(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    deep = np.random.default_rng(1).integers(0, 65536, (12, 16, 3), dtype=np.uint16)
    for name, image in (("0.png", deep), ("1.png", RAMP), ("2.ppm", deep)):
        path = tmp_path / name[0] / name
        path.parent.mkdir()
        cv2.imwrite(str(path), image)
        found = read_frames(path.parent, 1).images[0].astype(int)
        assert np.abs(found - cv2.imread(str(path))[:, :, ::-1]).max() <= 1


def test_cmyk_jpegs(tmp_path: Path) -> None:
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:] = (200, 40, 90, 60)
    found = read_one(tmp_path, Image.fromarray(inks, "CMYK"), "jpg", quality=100)
    expected = [(255 - ink) * (255 - 60) / 255 for ink in (200, 40, 90)]
    assert np.abs(found.reshape(-1, 3) - expected).max() <= 3


@pytest.mark.parametrize(
    ("make", "suffix", "message"),
    [
        (lambda: Image.fromarray(np.dstack([COLOURS, COLOURS[:, :, 0]])), "png", r"\d+% of its pixels are transparent"),
        (lambda: Image.fromarray(np.dstack([COLOURS, COLOURS[:, :, 0]])), "webp", ".* of its pixels are transparent"),
        (lambda: Image.new("LA", (16, 12), (200, 0)), "png", "100% of its pixels are transparent"),
        (lambda: one_of_palette(3), "png", "100% of its pixels are transparent"),
    ],
)
def test_transparent_pixels_are_refused(
    tmp_path: Path, make: Callable[[], Image.Image], suffix: str, message: str
) -> None:
    more: dict[str, Any] = {"transparency": 3} if make().mode == "P" else {}
    with pytest.raises(ValueError, match=rf"0\.{suffix}: {message}: put it on a background of one colour first"):
        read_one(tmp_path, make(), suffix, **more)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_in_a_folder_of_frames_is_refused(tmp_path: Path, suffix: str) -> None:
    first, *rest = (Image.new("RGB", (16, 12), (40 * i,) * 3) for i in range(1, 4))
    with pytest.raises(
        ValueError, match=rf"0\.{suffix}: expected one picture a file in a folder of frames, got an animation of 3"
    ):
        read_one(tmp_path, first, suffix, save_all=True, append_images=rest, duration=100)


def test_a_photograph_with_a_preview_is_one_picture(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 12), (90,) * 3), Image.new("RGB", (8, 6), (200,) * 3)
    found = read_one(tmp_path, first, "jpg", format="MPO", save_all=True, append_images=[second])
    assert found.shape == (12, 16, 3)
    assert np.abs(found.astype(int) - 90).max() <= 2
