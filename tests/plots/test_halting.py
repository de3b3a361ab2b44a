"""The pictures show what the arrays say, and are written whole or not at all."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from refvt.plots import halting as plots
from refvt.plots.halting import halting_gif, halting_picture
from refvt.plots.page import as_number

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
        "title": "A title that costs $5_ or ^$ more",
        "note": "a note " * 60,
    }


def drawn(tmp_path: Path, arrays: dict[str, Any]) -> np.ndarray:
    halting_picture(**arrays, path=tmp_path / "a.png")
    return np.asarray(iio.imread(tmp_path / "a.png"))


def red_pixels(image: np.ndarray) -> int:
    return int((np.abs(image.astype(int) - RED).max(axis=-1) <= 2).sum())


def states(arrays: dict[str, Any]) -> np.ndarray:
    return plots._check(*(v for k, v in arrays.items() if k not in ("title", "note"))).states


# ---- what is shown


def test_tokens_are_patches_of_frames() -> None:
    arrays = case(T=4, L=2, kept=3)
    arrays["kept"] = np.array([[0, 5, 15], [1, 6, 14], [2, 7, 13], [3, 8, 12]])
    arrays["alive"][1] = False
    arrays["alive"][1, 1 + 2 * 4 + 1] = True  # rank 2 of frame 1, which is patch 14: row 3, column 2
    found = states(arrays)
    assert found.shape == (2, 4, 4, 4)
    assert np.argwhere(found[1] == plots.ALIVE).tolist() == [[1, 3, 2]]
    assert (found[0] == plots.ALIVE).sum() == 12
    assert (found[1] == plots.HALTED).sum() == 11
    assert (found == plots.DROPPED).sum() == 2 * (4 * 16 - 12)
    assert found[0, 2].ravel()[[2, 7, 13]].tolist() == [plots.ALIVE] * 3


def test_fused_tokens_have_no_place() -> None:
    arrays = case(T=2, kept=3)
    arrays["kept"][:, 2] = -1
    assert (states(arrays) == plots.ALIVE).sum() == 3 * 2 * 2
    assert (states(arrays)[:, :, 3, 3] == plots.DROPPED).all()  # −1 is not the last patch


def test_layers_after_the_clip_is_done() -> None:
    arrays = case(T=2, L=4, kept=2)
    arrays["alive"][1:, 1] = False  # the first patch of frame 0 halts in layer 1
    arrays["alive"][2:] = False  # CLS halts in layer 2
    found = states(arrays)
    assert found[:, 0, 0, 0].tolist() == [plots.ALIVE, plots.HALTED, plots.HALTED, plots.HALTED]
    assert found[:, 1, 0, 0].tolist() == [plots.ALIVE, plots.ALIVE, plots.DONE, plots.DONE]
    assert (found[:, :, 3, 3] == plots.DROPPED).all()


def test_painting_marks_patches_and_leaves_living_ones_alone() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    before = frames.copy()
    painted = plots.painted(frames, np.array([[[plots.ALIVE, plots.DROPPED], [plots.HALTED, plots.DONE]]], np.int8), 8)
    np.testing.assert_array_equal(frames, before)
    np.testing.assert_array_equal(painted[0, :8, :8], frames[0, :8, :8])
    means = [painted[0, y : y + 8, x : x + 8].mean(axis=(0, 1)) for y, x in ((0, 8), (8, 0), (8, 8))]
    for i in range(3):
        for j in range(i):
            # Told apart by lightness alone, too.
            assert abs(means[i].mean() - means[j].mean()) > 40
    assert not (painted[0, :8, 8:] == frames[0, :8, 8:]).all(axis=-1).any()


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
    halting_gif(**arrays, path=path, milliseconds=123)
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
    arrays = case(T=2, L=1)
    path = tmp_path / "out"
    path.write_text("the old picture")
    original = Path.write_bytes

    def full_disk(self: Path, data: bytes) -> int:
        original(self, data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write(**arrays, path=path)
    monkeypatch.undo()
    assert path.read_text() == "the old picture"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write(**arrays, path=tmp_path / "no folder" / "out")
    write(**arrays, path=path)
    assert list(tmp_path.iterdir()) == [path]
    assert iio.imread(path).shape[-1] == 3


@pytest.mark.parametrize("write", [halting_picture, halting_gif])
def test_without_matplotlib(tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.patches", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r'drawing pictures needs matplotlib: pip install "refvt\[demo\]"'):
        write(**case(T=2, L=1), path=tmp_path / "a")
    assert not list(tmp_path.iterdir())


# ---- arrays that do not fit


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("frames", np.zeros((4, 32, 32, 3)), TypeError, "frames must be uint8, not float64"),
        ("frames", np.zeros((4, 32, 32), np.uint8), ValueError, r"frames must be \[T, height, width, 3\]"),
        ("patch_size", 7, ValueError, "frames of 32×32 .* cannot be cut in patches of 7×7"),
        ("patch_size", 2.0, TypeError, "patch_size: expected a whole number"),
        ("kept", np.zeros((4, 16)), TypeError, "kept must be of an integer dtype, not float64"),
        (
            "kept",
            np.zeros((3, 16), int),
            ValueError,
            r"kept must be \[4, patches kept per frame\], not \[3, 16\]",
        ),
        ("kept", np.full((4, 16), 16), ValueError, "kept must lie in −1 … 15, not in 16 … 16"),
        ("kept", np.full((4, 16), -2), ValueError, "kept must lie in −1 … 15"),
        ("alive", np.ones((3, 65)), TypeError, "alive must be bool, not float64"),
        ("alive", np.ones((3, 64), bool), ValueError, r"alive must be \[layers, 65\], not \[3, 64\]"),
        ("alive", np.ones((0, 65), bool), ValueError, r"alive must be \[layers, 65\]"),
        ("tokens_per_layer", [1, 2], ValueError, "tokens_per_layer must be 3 finite numbers"),
        ("gflops_per_layer", [1, 2, np.nan], ValueError, "gflops_per_layer must be 3 finite numbers"),
        ("gflops_per_layer_dense", [1, 2, -1], ValueError, "gflops_per_layer_dense must be 3 finite numbers"),
    ],
)
@pytest.mark.parametrize("write", [halting_picture, halting_gif])
def test_refused(
    tmp_path: Path, write: Callable[..., None], name: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write(**(case() | {name: value}), path=tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (473, "473"), (1e6, "1000000"), (0.0004567, "0.000457"), (9.876, "9.88"), (123.4, "123")],
)
def test_numbers(value: float, text: str) -> None:
    assert as_number(value) == text


# ---- the contact sheet


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_shows_every_frame_and_the_trail(tmp_path: Path, channels: int) -> None:
    clips = np.full((2, channels, 3, 8, 8), -1, np.float32)
    for t in range(3):
        clips[1, :, t, 2, 2 * t] = 1  # a dot that goes to the right
    plots.contact_sheet(clips, ["nothing", "a dot"], "A title", tmp_path / "a.png", side=32)
    page = np.asarray(iio.imread(tmp_path / "a.png"))[:, :, :3].astype(int)
    black = (page == 0).all(axis=2)
    # Rows of tiles are where black is wide; each tile is 32 pixels, and there are three and the trail.
    rows = np.flatnonzero(black.sum(axis=1) > 3 * 32)
    assert len(rows) == 2 * 32
    tiles = black[rows[:32]].all(axis=0)
    starts = np.flatnonzero(np.diff(tiles.astype(int)) == 1) + 1
    assert len(starts) == 4
    second = page[rows[32:]]
    for t, start in enumerate(starts):
        tile = second[:, start : start + 32].reshape(8, 4, 8, 4, 3).mean(axis=(1, 3, 4))
        expected = np.zeros((8, 8))
        expected[2, [2 * t] if t < 3 else [0, 2, 4]] = 255
        np.testing.assert_array_equal(tile, expected)


def test_contact_sheet_refuses(tmp_path: Path) -> None:
    clips = np.zeros((2, 1, 3, 8, 8))
    with pytest.raises(ValueError, match="names must be 2, one for each clip, not 1"):
        plots.contact_sheet(clips, ["one"], "", tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"clips must be \[n, 1 or 3, T, height, width\].*not \[2, 2, 3, 8, 8\]"):
        plots.contact_sheet(clips.repeat(2, axis=1), ["one", "two"], "", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


# ---- several clips side by side


def sheet(tmp_path: Path, *alive: np.ndarray, **changes: Any) -> np.ndarray:
    arrays = case()
    clips = [(f"clip {i}", arrays["frames"], arrays["kept"], each) for i, each in enumerate(alive)]
    plots.halting_sheet(clips, **{"patch_size": 8, "title": "Some clips", "path": tmp_path / "sheet.png", **changes})
    return np.asarray(iio.imread(tmp_path / "sheet.png"))


def test_a_sheet_shows_every_layer_of_every_clip(tmp_path: Path) -> None:
    everything = case()["alive"]
    dying = everything.copy()
    dying[1:, 1:] = False  # all patches halt in layer 1
    # a frame of 40 × 40 pixels, four frames a row; a row for the clip and one for each of three layers
    legend = red_pixels(sheet(tmp_path, everything)) - 4 * 4 * 40 * 40
    assert legend == pytest.approx(18 * 18, abs=40)
    for clips, rows in (((everything,) * 3, 12), ((everything, dying), 6), ((dying,), 2)):
        assert red_pixels(sheet(tmp_path, *clips)) == rows * 4 * 40 * 40 + legend
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_sheet_refuses_no_clips_and_unequal_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        sheet(tmp_path)
    with pytest.raises(ValueError, match="same shapes"):
        sheet(tmp_path, case()["alive"], case(L=2)["alive"])
