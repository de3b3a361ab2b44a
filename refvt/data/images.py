"""Frames that are stored as images: which files of a folder they are, their order, and their pixels."""

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
from PIL import Image

from refvt.checks import words_of
from refvt.data.display import EXIF_ORIENTATIONS, Pixels, check_opaque, turn
from refvt.files import check_regular
from refvt.limits import check_frames

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
_ORIENTATION = 0x0112  # the EXIF tag
_NUMBER = re.compile(r"[0-9]+")
_MMACTION = "img_#"  # MMAction's names of colour frames: img_00001.jpg, beside flow_x_00001.jpg and flow_y_00001.jpg
_LISTED = 5  # largest number of series in a message


def list_frames(folder: Path) -> list[Path]:
    """Return the images of a folder that are the frames of its clip, in their order.

    Hidden files (a name that begins with a dot, such as macOS's ._img_00001.jpg) and folders are passed over. Names are
    sorted by their numbers: 2.png before 10.png. Images whose names differ in more than numbers are of several series;
    if one is MMAction's img_00001.jpg, it is the clip.

    Raises IsADirectoryError for a folder without images; ValueError for several series without that one, for two images
    of the same number, for names that count along two numbers, and for a number that is missing.
    """
    images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    images = [path for path in images if not path.is_dir()]
    if not images:
        raise IsADirectoryError(f"{folder}: a folder without images ({', '.join(IMAGE_SUFFIXES)})")
    series: dict[str, list[Path]] = {}
    for path in images:
        series.setdefault(_template(path), []).append(path)
    if not any("#" in template for template in series):
        return sorted(images, key=lambda path: path.name)
    template = _choose_series(folder, series)
    frames = sorted(series[template], key=lambda path: (_numbers(path), path.name))
    _check_numbers(folder, template, frames)
    return frames


def _template(path: Path) -> str:
    """Return a name with # for each number: the same for all frames of a series."""
    suffix = path.suffix.lower()
    return _NUMBER.sub("#", path.stem) + (".jpg" if suffix == ".jpeg" else suffix)


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in _NUMBER.findall(path.stem))


def _choose_series(folder: Path, series: dict[str, list[Path]]) -> str:
    if len(series) == 1:
        return next(iter(series))
    colour = [template for template in series if template.rpartition(".")[0] == _MMACTION]
    if len(colour) == 1:
        return colour[0]
    listed = [f"{template} ({len(paths)})" for template, paths in sorted(series.items())]
    text = ", ".join(listed[:_LISTED]) + (", …" if len(listed) > _LISTED else "")
    raise ValueError(
        f"{folder}: images of several series: {text}; leave one series in the folder, or name its frames img_00001.jpg "
        "and so on"
    )


def _check_numbers(folder: Path, template: str, frames: Sequence[Path]) -> None:
    """Raise ValueError unless the numbers of sorted frames count along one line without a gap."""
    numbers = [_numbers(path) for path in frames]
    for i in range(1, len(frames)):
        if numbers[i] == numbers[i - 1]:
            raise ValueError(f"{folder}: {frames[i - 1].name} and {frames[i].name} have the same number")
    counts = [len(set(column)) for column in zip(*numbers, strict=True)]
    varying = [i for i, count in enumerate(counts) if count > 1]
    if len(varying) > 1 and prod(counts) == len(frames):
        raise ValueError(f"{folder}: its names {template} count along {len(varying)} numbers: several series?")
    if len(varying) != 1:  # several numbers are a date and a time, for example: no gap can be seen in them
        return
    line = [number[varying[0]] for number in numbers]
    steps = np.diff(line)
    step = steps.min()
    gaps = np.flatnonzero(steps != step)
    # frames taken at times, or at every 7th or 8th frame in turn, have no common step
    if len(gaps) and 2 * len(gaps) <= len(steps) and not (steps % step).any():
        before, after = frames[gaps[0]].name, frames[gaps[0] + 1].name
        raise ValueError(
            f"{folder}: a frame is missing between {before} and {after}; a clip across the gap would jump in time"
        )


def read_image(path: Path, count: int = 1) -> Pixels:
    """Read one picture, upright, as uint8 [height, width, 3], RGB. count: how many of its size a clip will hold.

    16-bit channels are divided by 256, palettes and CMYK converted; the EXIF orientation is applied.
    ValueError, with the path, for a file that is no readable image, holds several pictures, has transparent pixels or
    other numbers than 8 or 16 bits, or declares far more pixels than a file of its size holds.
    """
    stored = check_regular(path, "an image").st_size
    try:
        with Image.open(path) as image:
            check_frames("its pixels", count, *image.size, count * stored)
            pictures = (
                1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            )  # MPO: a photograph and its previews
            upright = _upright(image)
            image.load()  # the pixels stay when the file is closed
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected a readable image ({words_of(error)})") from error
    if pictures > 1:
        raise ValueError(f"{path}: expected one picture a file in a folder of frames, got an animation of {pictures}")
    try:
        return turn(to_rgb(image, image.format), upright)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _upright(image: Image.Image) -> tuple[int, int, int, int]:
    """The matrix that turns an image upright, as its EXIF data say."""
    return EXIF_ORIENTATIONS.get(image.getexif().get(_ORIENTATION, 1), EXIF_ORIENTATIONS[1])


def to_rgb(image: Image.Image, format: str | None = None) -> Pixels:
    """Convert a Pillow image to uint8 [height, width, 3]. ValueError for transparent pixels and other numbers."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and format in ("PNG", "PPM")):  # 16 bits; older Pillow calls them I
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "RGBA", "LA", "PA", "RGBX"):
        raise ValueError(f"expected colours of 8 or 16 bits a channel, got Pillow's mode {mode}")
    if mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        check_opaque(rgba[:, :, 3])
        return np.ascontiguousarray(rgba[:, :, :3])
    return np.array(image.convert("RGB"))


def count_pictures(path: Path) -> int:
    """Return how many pictures an animated image holds. ValueError, with the path, if it cannot be read."""
    try:
        with Image.open(path) as image:
            check_frames("its pixels", 1, *image.size, path.stat().st_size)
            return int(getattr(image, "n_frames", 1))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected a readable image ({words_of(error)})") from error


def read_pictures(path: Path, wanted: Sequence[int]) -> Pixels:
    """Read the wanted pictures of an animated image, uint8 [n, height, width, 3]. Errors: those of ``read_image``."""
    try:
        with Image.open(path) as image:
            check_frames("its pixels", len(wanted), *image.size, path.stat().st_size)
            upright, found = _upright(image), np.empty(0, np.uint8)
            for place, number in enumerate(wanted):
                image.seek(number)
                picture = turn(to_rgb(image, image.format), upright)
                if place == 0:
                    found = np.empty((len(wanted), *picture.shape), np.uint8)
                found[place] = picture
            return found
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {words_of(error)}") from error
