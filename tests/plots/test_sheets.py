"""Sheets and films show every clip, frame and layer once, in its place."""

from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from refvt.evaluation.patches import ALIVE, DONE, DROPPED, HALTED
from refvt.plots.sheets import SheetClip, contact_sheet, following_picture, halting_film, halting_sheet

RED, GREEN = (200, 20, 20), (20, 180, 60)  # no other part of the pictures has these colours


def clip(colour: tuple[int, int, int], T: int = 4, L: int = 3, patches: int = 4, P: int = 8) -> SheetClip:
    """Frames of one colour in which nothing is dropped or halts."""
    frames = np.full((T, patches * P, patches * P, 3), colour, np.uint8)
    return SheetClip(frames, np.full((L, T, patches, patches), ALIVE, np.int8), "a clip that costs $5_")


def count(image: np.ndarray, colour: tuple[int, int, int], off: int = 2) -> int:
    return int((np.abs(image.astype(int) - colour).max(axis=-1) <= off).sum())


def sheet(tmp_path: Path, clips: list[SheetClip]) -> np.ndarray:
    halting_sheet(clips, "A title", "a note " * 40, tmp_path / "a.png", cell=64)
    return np.asarray(iio.imread(tmp_path / "a.png"))


def test_a_sheet_has_every_frame_of_every_layer(tmp_path: Path) -> None:
    image = sheet(tmp_path, [clip(RED), clip(GREEN), clip(RED)])
    assert count(image, RED) == 2 * 4 * (1 + 3) * 64 * 64
    assert count(image, GREEN) == 4 * (1 + 3) * 64 * 64
    for border in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert (border == 255).all()
    # Two columns: the green clip stands beside the first red one and above nothing.
    green = np.argwhere(np.abs(image.astype(int) - GREEN).max(axis=-1) <= 2)
    red = np.argwhere(np.abs(image.astype(int) - RED).max(axis=-1) <= 2)
    assert green[:, 0].min() == red[:, 0].min()
    assert green[:, 0].max() < red[:, 0].max()
    assert green[:, 1].min() > red[:, 1].max()


def test_a_patch_is_painted_in_its_layer_frame_and_place(tmp_path: Path) -> None:
    whole = sheet(tmp_path, [clip(RED)])
    for state in (DROPPED, HALTED, DONE):
        part = clip(RED)
        part.states[1, 2, 3, 0] = state
        image = sheet(tmp_path, [part])
        assert count(whole, RED) - count(image, RED) == 16 * 16
        rows = np.flatnonzero((np.abs(whole.astype(int) - RED).max(axis=-1) <= 2).any(axis=1))
        columns = np.flatnonzero((np.abs(whole.astype(int) - RED).max(axis=-1) <= 2).any(axis=0))
        y, x = rows[2 * 64 + 48], columns[2 * 64]  # the clip, layer 1, then layer 2; frame 3; the bottom left patch
        assert count(image[y : y + 16, x : x + 16], RED) == 0
        assert (image[y - 1, x] == whole[y - 1, x]).all()


def test_patches_that_halt_leave_their_rows(tmp_path: Path) -> None:
    living, dying = clip(RED), clip(RED)
    dying.states[1:] = HALTED  # all patches halt in layer 1
    for clips, rows in (((living,) * 3, 12), ((living, dying), 6), ((dying,), 2)):
        assert count(sheet(tmp_path, list(clips)), RED) == rows * 4 * 64 * 64
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_labels_say_how_many_patches_live() -> None:
    part = clip(RED)
    part.states[1, :, :2] = DROPPED
    part.states[2, :, :3] = HALTED
    assert part.labels() == [("the clip", ""), ("layer 1", "100%"), ("layer 2", "50%"), ("layer 3", "25%")]


def test_a_wrong_answer_has_another_colour(tmp_path: Path) -> None:
    right, wrong = clip(RED), SheetClip(clip(RED).frames, clip(RED).states, clip(RED).title, right=False)
    colour = (0xB3, 0x47, 0x00)
    assert count(sheet(tmp_path, [right]), colour) == 0
    assert count(sheet(tmp_path, [wrong]), colour) > 50


def test_a_film_has_a_step_per_frame(tmp_path: Path) -> None:
    part = clip(RED, T=5, L=2)
    part.states[1, 3] = DROPPED
    halting_film([part], "A title", "a note", tmp_path / "a.gif", cell=96, milliseconds=123)
    images = iio.imread(tmp_path / "a.gif", index=None)
    assert len(images) == 5
    counts = [count(image, RED, 12) / 96**2 for image in images]
    assert counts == pytest.approx([3, 3, 3, 2, 3], rel=0.02)
    meta = iio.immeta(tmp_path / "a.gif", index=2)
    assert meta["duration"] == 120


def test_the_picture_of_following_shows_maps_and_bars(tmp_path: Path) -> None:
    def blue(image: np.ndarray) -> int:
        return count(image, (0, 0x72, 0xB2))

    maps = np.zeros((2, 8, 8))
    maps[0, 4, 4] = 0.8
    shares = np.array([[1.0, 0.5], [0.5, 0.25]])
    following_picture(maps, shares, ["near", "far"], 2, "A title", "a note", tmp_path / "a.png")
    full = np.asarray(iio.imread(tmp_path / "a.png"))
    assert blue(full) == pytest.approx((1 + 0.5 + 0.5 + 0.25) * 210 * 12, rel=0.02)
    bright, dark = (0xFE, 0xE8, 0x38), (0x00, 0x22, 0x4E)  # the ends of cividis
    side = 210 / 8
    assert count(full, bright, 3) == pytest.approx(side**2, rel=0.25)  # less what the white square covers
    assert count(full, dark, 3) == pytest.approx(127 * side**2, rel=0.02)
    following_picture(maps, shares / 2, ["near", "far"], 2, "A title", "a note", tmp_path / "a.png")
    assert blue(np.asarray(iio.imread(tmp_path / "a.png"))) == pytest.approx(blue(full) / 2, rel=0.02)
    with pytest.raises(ValueError, match=r"shares: expected \[2, 1\]"):
        following_picture(maps, shares, ["near"], 2, "", "", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("write", [halting_sheet, halting_film])
def test_clips_that_do_not_fit(tmp_path: Path, write: Callable[..., None]) -> None:
    good = clip(RED)
    for clips, message in (
        ([], "clips: expected at least one, got none"),
        (
            [good, clip(RED, T=5)],
            r"clips: expected frames \[4, 32, 32, 3\] and states \[3, 4, 4, 4\] in all, got \[5, ",
        ),
        ([SheetClip(good.frames, good.states[:, :, :3], "")], "states: expected square patches of frames"),
        ([SheetClip(good.frames, good.states[:, :3], "")], "states: expected square patches of frames"),
    ):
        with pytest.raises(ValueError, match=message):
            write(clips, "", "", tmp_path / "a")
    assert not list(tmp_path.iterdir())


# ---- the contact sheet


@pytest.mark.parametrize("channels", [1, 3])
def test_contact_sheet_shows_every_frame_and_the_trail(tmp_path: Path, channels: int) -> None:
    clips = np.full((2, channels, 3, 8, 8), -1, np.float32)
    for t in range(3):
        clips[1, :, t, 2, 2 * t] = 1  # a dot that goes to the right
    contact_sheet(clips, ["nothing", "a dot"], "A title", tmp_path / "a.png", side=32)
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
    with pytest.raises(ValueError, match="names: expected 2, one for each clip, got 1"):
        contact_sheet(clips, ["one"], "", tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"clips: expected \[n, 1 or 3, T, height, width\].*got \[2, 2, 3, 8, 8\]"):
        contact_sheet(clips.repeat(2, axis=1), ["one", "two"], "", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
