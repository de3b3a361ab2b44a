"""Pictures come out as they are to be shown: which way up, how wide a pixel, which colours."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from refvt.data import AnnotatedVideos, read_frames
from refvt.data.display import EXIF_ORIENTATIONS, make_square, turn

Encode = Callable[..., Path]
# x' = a x + c y, y' = b x + d y, y downwards → what NumPy does to [T, height, width, 3]
SYMMETRIES: dict[tuple[int, ...], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda v: v,
    (-1, 0, 0, 1): lambda v: v[:, :, ::-1],
    (1, 0, 0, -1): lambda v: v[:, ::-1],
    (-1, 0, 0, -1): lambda v: v[:, ::-1, ::-1],
    (0, 1, 1, 0): lambda v: v.swapaxes(1, 2),
    (0, -1, -1, 0): lambda v: v[:, ::-1, ::-1].swapaxes(1, 2),
    (0, 1, -1, 0): lambda v: np.rot90(v, -1, axes=(1, 2)),
    (0, -1, 1, 0): lambda v: np.rot90(v, 1, axes=(1, 2)),
}


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Write a display matrix in the track header of an MP4."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (round(65536 * value) for value in (a, b, c, d))
    data[start : start + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(data)


@pytest.mark.parametrize("matrix", SYMMETRIES)
def test_every_display_matrix(encode: Encode, matrix: tuple[int, ...]) -> None:
    path = encode("a.mp4", 6)
    plain = read_frames(path, 2).images
    with_matrix(path, *matrix)
    np.testing.assert_array_equal(read_frames(path, 2).images, SYMMETRIES[matrix](plain))


def test_a_matrix_that_turns_by_another_angle_is_refused(encode: Encode) -> None:
    path = encode("a.mp4", 6)
    with_matrix(path, 0.866, 0.5, -0.5, 0.866)
    with pytest.raises(ValueError, match=r"a\.mp4: its display matrix turns by 30 degrees: expected a multiple of 90"):
        read_frames(path, 2)


def test_a_matrix_of_any_scale_or_of_zeros() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(turn(image, (0, 3.5, -2, 0)), np.rot90(image, -1))
    np.testing.assert_array_equal(turn(image, (0, 0, 0, 0)), image)


@pytest.mark.parametrize("orientation", [*EXIF_ORIENTATIONS, 0, 9])
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_every_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    # Pillow's own transposition is the independent reader
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / f"0.{suffix}", exif=exif, lossless=True)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Image.Transpose
    shown = Image.fromarray(image)
    if orientation in turns:
        names = {0: "FLIP_LEFT_RIGHT", 1: "FLIP_TOP_BOTTOM", 2: "ROTATE_90", 3: "ROTATE_180", 4: "ROTATE_270"}
        names |= {5: "TRANSPOSE", 6: "TRANSVERSE"}
        shown = shown.transpose(Image.Transpose[names[turns[orientation]]])
    np.testing.assert_array_equal(read_frames(tmp_path, 1).images[0], np.asarray(shown))


def test_jpegs_held_on_their_side_as_opencv_reads_them(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:16, :16] = 255
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}" / "0.jpg"
        path.parent.mkdir()
        Image.fromarray(corner).save(path, exif=exif, quality=95)
        found = read_frames(path.parent, 1).images[0].astype(int)
        assert np.abs(found - cv2.imread(str(path))[:, :, ::-1]).max() <= 2


# ---- pixels that are not square


def write_with_aspect(path: Path, aspect: Fraction, height: int = 48, width: int = 60, codec: str = "mpeg4") -> Path:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = 200
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(4):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("aspect", "name", "width"),
    [
        (Fraction(64, 45), "dv.mp4", 85),
        (Fraction(4, 3), "hdv.mkv", 80),
        (Fraction(1, 2), "half.mp4", 30),
        (Fraction(1), "a.mp4", 60),
        (Fraction(12, 11), "vcd.avi", 65),
    ],
)
def test_pixels_are_widened_on_request(tmp_path: Path, aspect: Fraction, name: str, width: int) -> None:
    path = write_with_aspect(tmp_path / name, aspect)
    assert read_frames(path, 2).images.shape == (2, 48, 60, 3)  # as MMAction reads it
    frames = read_frames(path, 2, square_pixels=True).images
    assert frames.shape == (2, 48, width, 3)
    bright = frames[0, 24, :, 0] > 100
    assert abs(int(bright.sum()) - width / 2) <= 1
    assert bright[: width // 2 - 1].all()
    (tmp_path / "list.txt").write_text(f"{name} 0\n")
    options: dict[str, Any] = {"num_classes": 2, "frames": 2, "stride": 1, "image_size": (32, 32)}
    plain = AnnotatedVideos(tmp_path / "list.txt", tmp_path, **options)
    wide = AnnotatedVideos(tmp_path / "list.txt", tmp_path, **options, square_pixels=True)
    assert (repr(plain) == repr(wide)) is False
    assert np.array_equal(plain.clip(0), wide.clip(0)) == (aspect == 1)


def test_a_width_that_no_pixel_has_is_refused() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    for aspect in (Fraction(1, 100), Fraction(65535)):
        with pytest.raises(
            ValueError, match=rf"aspect ratio {aspect.numerator}:{aspect.denominator}: expected at most"
        ):
            make_square(image, aspect)
    assert make_square(image, Fraction(2)).shape == (4, 12, 3)
    for aspect in (None, Fraction(0), Fraction(1)):  # not stated
        assert make_square(image, aspect) is image


# ---- colours of videos


def grey_of(red: float, green: float, blue: float) -> float:
    return 0.299 * red + 0.587 * green + 0.114 * blue


@pytest.mark.parametrize(
    ("pixels", "codec"),
    [("yuv420p10le", "ffv1"), ("yuv444p12le", "ffv1"), ("gray16le", "ffv1"), ("gray10le", "ffv1"), ("rgb48be", "png"),
     ("rgba", "png"), ("yuva420p", "ffv1"), ("gbrp16le", "ffv1"), ("argb", "qtrle"), ("pal8", "png")],
)  # fmt: skip
def test_deep_grey_palette_and_alpha(tmp_path: Path, pixels: str, codec: str) -> None:
    colour = (30, 180, 90)
    path = tmp_path / ("a.mov" if codec in ("png", "qtrle") else "a.mkv")
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for _ in range(3):
            if pixels == "pal8":
                palette = np.zeros((256, 4), np.uint8)
                palette[7] = (255, *colour)  # ARGB
                frame = av.VideoFrame.from_ndarray((np.full((48, 64), 7, np.uint8), palette), "pal8")
            else:
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), "rgb24")
                frame = frame.reformat(format=pixels)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    found = read_frames(path, 2).images.reshape(-1, 3).astype(int)
    expected = [round(grey_of(*colour))] * 3 if pixels.startswith("gray") else colour
    # 8-bit Y'CbCr: half a step in each number is up to 1.6 in R, G or B, and FFmpeg's integers lose 1 each way
    assert np.abs(found - expected).max() <= (3 if pixels == "yuva420p" else 2)


def test_a_video_with_transparent_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mov"
    image = np.full((48, 64, 4), 255, np.uint8)
    image[:24, :, 3] = 0
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgba"
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgba")))
        out.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"a\.mov: 50% of its pixels are transparent: put it on a background"):
        read_frames(path, 2)


def to_rgb(y: float, u: float, v: float, full: bool, kr: float, kb: float) -> np.ndarray:
    """ITU-T H.273, equations 20 to 37: a triple of Y'CbCr as R'G'B' of 8 bits."""
    span, colour, zero = (255, 255, 0) if full else (219, 224, 16)
    luma, cb, cr = (y - zero) / span, (u - 128) / colour, (v - 128) / colour
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.round(255 * np.clip([red, green, blue], 0, 1))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "kr", "kb"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)])
def test_the_matrix_and_the_range_that_the_file_states(
    tmp_path: Path, full: bool, matrix: int, kr: float, kb: float
) -> None:
    path = tmp_path / "a.mkv"
    values = (100, 90, 160)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.color_range, stream.codec_context.colorspace = 1 + full, matrix
        for _ in range(3):
            frame: Any = av.VideoFrame(64, 48, "yuv444p")
            for plane, value in zip(frame.planes, values, strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            frame.color_range, frame.colorspace = 1 + full, matrix
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    found = read_frames(path, 2).images.reshape(-1, 3).astype(int)
    assert np.abs(found - to_rgb(*values, full, kr, kb)).max() <= 1
