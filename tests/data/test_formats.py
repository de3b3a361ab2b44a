"""One test list, ten containers and pixel formats, all without loss: the same clips and the same figures from each.

REFVT_FORMAT_CLIPS=200 runs the list at full length (ten clips otherwise).
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import pytest

import refvt
from refvt.data import AnnotatedVideos, find_sample_video
from refvt.evaluation import Evaluation
from refvt.training import evaluate

CLIPS = int(os.environ.get("REFVT_FORMAT_CLIPS", "10"))
NAMES = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")
LENGTH = 10
HEIGHT, WIDTH = 72, 96
CONFIG = refvt.HaltingVTConfig(
    image_size=(32, 32), patch_size=8, channels=3, num_frames=4, width=16, num_heads=2, depth=4, num_classes=5
)

# name, encoder, pixel format, options
FORMATS = [
    ("ffv1.mkv", "ffv1", "yuv420p", {}),
    ("ffv1.nut", "ffv1", "yuv420p", {}),
    ("h264.mp4", "libx264", "yuv420p", {"qp": "0"}),
    ("h264.mov", "libx264", "yuv420p", {"qp": "0", "bf": "2"}),
    ("ffvhuff.avi", "ffvhuff", "yuv420p", {}),
    ("rgb-ffv1.mkv", "ffv1", "bgr0", {}),
    ("rgb-png.mov", "png", "rgb24", {}),
    ("rgb-qtrle.mov", "qtrle", "rgb24", {}),
    ("rgb-h264.mkv", "libx264rgb", "bgr24", {"qp": "0"}),
    ("frames", "", "rgb24", {}),  # a folder of PNG files
]


def small_frames(name: str, start: int) -> list[Any]:
    """LENGTH consecutive frames of a sample video, Y'CbCr 4:2:0 with the colours of standard definition."""
    with av.open(str(find_sample_video(name))) as source:
        frames = islice(source.decode(video=0), start, start + LENGTH)
        return [frame.reformat(WIDTH, HEIGHT, "yuv420p", dst_colorspace="ITU601") for frame in frames]


def write(path: Path, frames: Iterable[Any], encoder: str, pixels: str, options: dict[str, str]) -> None:
    if not encoder:
        path.mkdir()
        for number, frame in enumerate(frames):
            iio.imwrite(path / f"img_{number + 1:05}.png", frame.to_ndarray(format="rgb24"))
        return
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        for number, frame in enumerate(frames):
            if pixels != "yuv420p":
                frame = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


@pytest.fixture(scope="module")
def sources() -> list[tuple[int, list[Any]]]:
    """Per clip: its label, and its frames."""
    rng = np.random.default_rng(0)
    return [
        (int(rng.integers(CONFIG.num_classes)), small_frames(NAMES[i % 3], 110 * (i // 3) // max(CLIPS // 3, 1)))
        for i in range(CLIPS)
    ]


@pytest.fixture(scope="module")
def model() -> refvt.HaltingVT:
    drawn = refvt.HaltingVT(replace(CONFIG, halting_center=4.0, halting_scale=30.0), seed=1)
    rng = np.random.default_rng(1)
    parameters = {name: value + rng.normal(0, 0.1, value.shape) for name, value in drawn.parameters.items()}
    return refvt.HaltingVT(drawn.config, parameters, backend="jit")


def written(folder: Path, sources: list[tuple[int, list[Any]]], form: tuple[str, str, str, dict[str, str]]) -> Path:
    name, encoder, pixels, options = form
    lines = []
    for number, (label, frames) in enumerate(sources):
        path = folder / f"clip{number:03}-{name}"
        write(path, frames, encoder, pixels, options)
        lines.append(f"{path.name} {label}" if encoder else f"{path.name} {LENGTH} {label}")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    return folder / "list.txt"


def outcome(model: refvt.HaltingVT, path: Path) -> tuple[Evaluation, Iterator[np.ndarray]]:
    dataset = AnnotatedVideos(path, path.parent, CONFIG, stride=2)
    assert not dataset.problems
    return evaluate(model, dataset), (dataset.clip(i) for i in range(len(dataset)))


def test_the_same_figures_from_ten_formats(
    tmp_path: Path, sources: list[tuple[int, list[Any]]], model: refvt.HaltingVT
) -> None:
    first: tuple[Evaluation, list[np.ndarray]] | None = None
    for form in FORMATS:
        folder = tmp_path / form[0]
        folder.mkdir()
        figures, clips = outcome(model, written(folder, sources, form))
        assert figures.clips == CLIPS
        assert not figures.skipped
        if first is None:
            first = (figures, list(clips))
            continue
        for number, (expected, got) in enumerate(zip(first[1], clips, strict=True)):
            np.testing.assert_array_equal(got, expected, err_msg=f"{form[0]}, clip {number}")
        assert figures == first[0], form[0]
