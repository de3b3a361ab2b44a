"""The pictures show what the arrays say, and are written whole or not at all."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

import refvt
from refvt.evaluation.patches import ALIVE, DONE, DROPPED, HALTED
from refvt.plots.halting import ClipStates, halting_gif, halting_picture, paint
from refvt.plots.page import format_number

RED = (200, 20, 20)  # no other part of the pictures has this colour


def case(T: int = 4, L: int = 3, patches: int = 4, kept: int = 16, P: int = 8) -> dict[str, Any]:
    """Plain red frames of patches × patches patches, of which the first `kept` enter; nothing ever halts."""
    frames = np.full((T, patches * P, patches * P, 3), RED, np.uint8)
    num_tokens = 1 + T * kept
    return {
        "frames": frames,
        "patch_size": P,
        "kept": np.tile(np.arange(kept), (T, 1)),
        "alive": np.ones((L, num_tokens), np.bool_),
        "tokens_per_layer": np.full(L, num_tokens),
        "gflops_per_layer": np.full(L, 0.5),
        "gflops_per_layer_dense": np.full(L, 0.5),
    }


TITLE, NOTE = "A title that costs $5_ or ^$ more", "a note " * 60


def drawn(tmp_path: Path, arrays: dict[str, Any]) -> np.ndarray:
    halting_picture(ClipStates(**arrays), TITLE, NOTE, tmp_path / "a.png")
    return np.asarray(iio.imread(tmp_path / "a.png"))


def red_pixels(image: np.ndarray) -> int:
    return int((np.abs(image.astype(int) - RED).max(axis=-1) <= 2).sum())


def states(arrays: dict[str, Any]) -> np.ndarray:
    return ClipStates(**arrays).states


# ---- what is shown


def test_tokens_are_patches_of_frames() -> None:
    arrays = case(T=4, L=2, kept=3)
    arrays["kept"] = np.array([[0, 5, 15], [1, 6, 14], [2, 7, 13], [3, 8, 12]])
    arrays["alive"][1] = False
    arrays["alive"][1, 1 + 2 * 4 + 1] = True  # rank 2 of frame 1, which is patch 14: row 3, column 2
    found = states(arrays)
    assert found.shape == (2, 4, 4, 4)
    assert np.argwhere(found[1] == ALIVE).tolist() == [[1, 3, 2]]
    assert (found[0] == ALIVE).sum() == 12
    assert (found[1] == HALTED).sum() == 11
    assert (found == DROPPED).sum() == 2 * (4 * 16 - 12)
    assert found[0, 2].ravel()[[2, 7, 13]].tolist() == [ALIVE] * 3


def test_fused_tokens_have_no_place() -> None:
    arrays = case(T=2, kept=3)
    arrays["kept"][:, 2] = -1
    assert (states(arrays) == ALIVE).sum() == 3 * 2 * 2
    assert (states(arrays)[:, :, 3, 3] == DROPPED).all()  # −1 is not the last patch


def test_layers_after_the_clip_is_done() -> None:
    arrays = case(T=2, L=4, kept=2)
    arrays["alive"][1:, 1] = False  # the first patch of frame 0 halts in layer 1
    arrays["alive"][2:] = False  # CLS halts in layer 2
    found = states(arrays)
    assert found[:, 0, 0, 0].tolist() == [ALIVE, HALTED, HALTED, HALTED]
    assert found[:, 1, 0, 0].tolist() == [ALIVE, ALIVE, DONE, DONE]
    assert (found[:, :, 3, 3] == DROPPED).all()


def test_where_every_token_is_followed_none_is_cut_off() -> None:
    arrays = case(T=2, L=4, kept=2)
    arrays["alive"][1:, 0] = False  # CLS halts in layer 1, its clip is followed on
    arrays["alive"][2:] = False  # all patches halt in layer 2
    assert (states(arrays)[2:] == DONE).any()
    found = states(arrays | {"full_ponder": True})
    assert not (found == DONE).any()
    assert (found[2:] == HALTED).sum() == 2 * 4


def test_a_record_is_made_from_what_a_model_returned() -> None:
    config = refvt.HaltingVTConfig(
        image_size=(16, 16), patch_size=4, num_frames=2, width=16, num_heads=2, depth=5, keep_rates=(1.0, 0.5)
    )
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), dtype=np.uint8)
    clips = (frames / 127.5 - 1).astype(np.float32).transpose(0, 4, 1, 2, 3)
    out = refvt.HaltingVT(config, backend="reference")(clips)
    clip = ClipStates.of_output(config, frames[1], out, clip=1)
    assert (clip.states[:, 0] != DROPPED).sum() == 3 * 8  # half of a frame's 16 patches in each of three layers
    np.testing.assert_array_equal(clip.tokens, out.tokens_per_layer[1])
    assert clip.gflops[0] == clip.dense[0] == pytest.approx(clip.dense.max())


def test_painting_marks_patches_and_leaves_living_ones_alone() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    before = frames.copy()
    result = paint(frames, np.array([[[ALIVE, DROPPED], [HALTED, DONE]]], np.int8), 8)
    np.testing.assert_array_equal(frames, before)
    np.testing.assert_array_equal(result[0, :8, :8], frames[0, :8, :8])
    means = [result[0, y : y + 8, x : x + 8].mean(axis=(0, 1)) for y, x in ((0, 8), (8, 0), (8, 8))]
    for i in range(3):
        for j in range(i):
            # Told apart by lightness alone, too.
            assert abs(means[i].mean() - means[j].mean()) > 40
    assert not (result[0, :8, 8:] == frames[0, :8, 8:]).all(axis=-1).any()


def test_the_picture_has_the_living_patches(tmp_path: Path) -> None:
    arrays = case(T=4, L=3)
    full = red_pixels(drawn(tmp_path, arrays))
    # 4 frames on top and 3 · 4 in the layers, 190 pixels wide, are all red; so is a sample in
    # the legend. In layers 2 and 3 a quarter of the patches halts.
    assert full == 16 * 190 * 190 + 18 * 18
    arrays["alive"][1:, 1 : 1 + 4 * 4] = False
    part = red_pixels(drawn(tmp_path, arrays))
    assert (full - part) / full == pytest.approx(2 * 4 * 0.25 / 16, rel=0.02)
    # With half of all patches dropped before the first layer, only the frames on top stay whole.
    half = red_pixels(drawn(tmp_path, case(T=4, L=3, kept=8)))
    assert (full - half) / full == pytest.approx(3 * 4 * 0.5 / 16, rel=0.02)


def test_bars_follow_the_numbers(tmp_path: Path) -> None:
    def blue(image: np.ndarray) -> int:
        return int((np.abs(image.astype(int) - (0, 0x72, 0xB2)).max(axis=-1) <= 2).sum())

    arrays = case(L=3)
    arrays["alive"][:, 0] = False  # no blue mark for CLS
    full = blue(drawn(tmp_path, arrays))
    arrays["gflops_per_layer"] = np.array([0.5, 0.25, 0.0])
    assert blue(drawn(tmp_path, arrays)) / full == pytest.approx((3 + 1.5) / 6, rel=0.02)


@pytest.mark.parametrize(("T", "L", "patches", "P"), [(8, 10, 14, 16), (4, 3, 4, 8), (1, 1, 2, 4), (16, 2, 4, 8)])
def test_sizes(tmp_path: Path, T: int, L: int, patches: int, P: int) -> None:
    image = drawn(tmp_path, case(T, L, patches, 3, P))
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert 500 < image.shape[1] < 2400
    assert image.shape[0] > 60 * (L + 1)
    # Nothing is cut off: a white margin all around.
    for border in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert (border == 255).all()
    assert (tmp_path / "a.png").stat().st_size < 3_000_000


# ---- the animation


def test_gif(tmp_path: Path) -> None:
    arrays = case(T=8, L=3)
    arrays["alive"][1, 1 : 1 + 8 * 8] = False
    arrays["alive"][2] = False
    path = tmp_path / "a.gif"
    halting_gif(ClipStates(**arrays), TITLE, NOTE, path, milliseconds=123)
    with Image.open(path) as gif:
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
        assert gif.info["loop"] == 0
    assert durations == [120, 120, 120, 360]
    images = iio.imread(path)
    assert images.shape[0] == 4
    assert (images[:, 0, 0] == 255).all()
    counts = [int((np.abs(image.astype(int) - RED).max(axis=-1) <= 12).sum()) for image in images]
    assert counts[0] == pytest.approx(8 * 160 * 160, rel=0.02)
    assert counts[1] == pytest.approx(8 * 160 * 160, rel=0.02)
    assert counts[2] == pytest.approx(8 * 160 * 160 / 2, rel=0.03)
    assert counts[3] < 1000  # the legend
    assert path.stat().st_size < 5_000_000


# ---- writing


@pytest.mark.parametrize("write", [halting_picture, halting_gif])
def test_nothing_half_written(tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ClipStates(**case(T=2, L=1))
    path = tmp_path / "out"
    path.write_text("the old picture")
    original = Path.write_bytes

    def full_disk(self: Path, data: bytes) -> int:
        original(self, data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write(clip, TITLE, NOTE, path)
    monkeypatch.undo()
    assert path.read_text() == "the old picture"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write(clip, TITLE, NOTE, tmp_path / "no folder" / "out")
    write(clip, TITLE, NOTE, path)
    assert list(tmp_path.iterdir()) == [path]
    assert iio.imread(path).shape[-1] == 3


@pytest.mark.parametrize("write", [halting_picture, halting_gif])
def test_without_matplotlib(tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.patches", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r'drawing pictures needs matplotlib: pip install "refvt\[demo\]"'):
        write(ClipStates(**case(T=2, L=1)), TITLE, NOTE, tmp_path / "a")
    assert not list(tmp_path.iterdir())


# ---- arrays that do not fit


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("frames", np.zeros((4, 32, 32, 3)), TypeError, "frames: expected uint8, got float64"),
        (
            "frames",
            np.zeros((4, 32, 32), np.uint8),
            ValueError,
            r"frames: expected \[T, height, width, 3\], got \[4, 32, 32\]",
        ),
        ("patch_size", 7, ValueError, "frames: expected height and width to be multiples of 7, got 32 and 32"),
        ("patch_size", 2.0, TypeError, "patch_size: expected a whole number"),
        ("kept", np.zeros((4, 16)), TypeError, "kept: expected integers, got float64"),
        (
            "kept",
            np.zeros((3, 16), int),
            ValueError,
            r"kept: expected \[4, patches kept per frame\], got \[3, 16\]",
        ),
        ("kept", np.full((4, 16), 16), ValueError, "kept: expected numbers from −1 to 15, got 16 to 16"),
        ("kept", np.full((4, 16), -2), ValueError, "kept: expected numbers from −1 to 15"),
        ("alive", np.ones((3, 65)), TypeError, "alive: expected bool, got float64"),
        ("alive", np.ones((3, 64), bool), ValueError, r"alive: expected \[layers, 65\], got \[3, 64\]"),
        ("alive", np.ones((0, 65), bool), ValueError, r"alive: expected \[layers, 65\]"),
        ("tokens_per_layer", [1, 2], ValueError, "tokens_per_layer: expected 3 finite numbers"),
        ("gflops_per_layer", [1, 2, np.nan], ValueError, "gflops_per_layer: expected 3 finite numbers"),
        ("gflops_per_layer_dense", [1, 2, -1], ValueError, "gflops_per_layer_dense: expected 3 finite numbers"),
    ],
)
def test_refused(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ClipStates(**(case() | {name: value}))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (473, "473"), (1e6, "1000000"), (0.0004567, "0.000457"), (9.876, "9.88"), (123.4, "123")],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text
