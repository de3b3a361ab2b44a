"""Pages that show several clips at once: where each is still computed, and where that is relative to a digit.

``halting_sheet`` writes a PNG with a block per clip, its frames from left to right and its layers from top to bottom;
``halting_film`` a GIF that plays the same clips, the layers side by side. ``following_picture`` shows shares of living
patches as maps and bars. ``contact_sheet`` shows clips as a model gets them, one row each. Colours are those of
``refvt.plots.halting``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refvt.evaluation.patches import ALIVE
from refvt.plots.halting import MEANING, paint
from refvt.plots.page import BLUE, FAINT, GREY, INK, Page, footnote, heading, resize, save_gif

__all__ = ["SheetClip", "brighten", "contact_sheet", "following_picture", "halting_film", "halting_sheet"]

WRONG = "#B34700"  # for what the model got wrong
GAP, EDGE = 3, 18


@dataclass(frozen=True)
class SheetClip:
    """One clip of a sheet.

    frames: uint8 [T, height, width, 3]; states: int8 [L, T, rows, columns], see ``patches.patch_states``. title stands
    above it, in another colour if not ``right``. T, L and the sizes are the same for all clips of a sheet.
    """

    frames: NDArray[np.uint8]
    states: NDArray[np.int8]
    title: str
    right: bool = True

    def rows(self) -> list[NDArray[np.uint8]]:
        """The frames as they are, then as every layer computes them: 1 + L arrays [T, height, width, 3]."""
        patch = self.frames.shape[1] // self.states.shape[2]
        return [self.frames, *(paint(self.frames, states, patch) for states in self.states)]

    def labels(self) -> list[tuple[str, str]]:
        """Names of these rows, and the share of all patches that is alive in them."""
        shares = (self.states == ALIVE).mean(axis=(1, 2, 3))
        return [("the clip", ""), *((f"layer {i}", f"{share:.0%}") for i, share in enumerate(shares, start=1))]


def halting_sheet(
    clips: Sequence[SheetClip], title: str, note: str, path: str | Path, columns: int = 2, cell: int = 64
) -> None:
    """Write a PNG with a block for every clip: a column per frame, ``cell`` pixels wide, a row per layer.

    The file appears whole or not at all. Raises ValueError for clips that do not fit together, ModuleNotFoundError
    without matplotlib, OSError when the file cannot be written.
    """
    T, L, tall = _check(clips, cell)
    label, head = 92, 28
    block_width, block_height = label + T * (cell + GAP), head + (1 + L) * (tall + GAP) + 14
    page, top = _make_page(clips, title, note, columns, block_width, block_height)
    for x, y, clip in _place_blocks(clips, columns, top, block_width, block_height):
        _draw_title(page, x, y, clip)
        for row, (images, (name, share)) in enumerate(zip(clip.rows(), clip.labels(), strict=True)):
            y_row = y + head + row * (tall + GAP)
            page.text(x, y_row + tall / 2 - (9 if share else 0), name, 9.5, weight="bold")
            page.text(x, y_row + tall / 2 + 9, share and f"{share} alive", 9)
            for t, image in enumerate(images):
                page.image(x + label + t * (cell + GAP), y_row, resize(image, cell, tall))
    page.save(path)


def halting_film(
    clips: Sequence[SheetClip],
    title: str,
    note: str,
    path: str | Path,
    columns: int = 2,
    cell: int = 96,
    milliseconds: int = 400,
) -> None:
    """Write a looping GIF with a step per frame: the frame of every clip, and next to it what each layer computes.

    Arguments and errors as in ``halting_sheet``; a step lasts ``milliseconds``, rounded to the 10 ms that GIFs count
    in.
    """
    T, L, tall = _check(clips, cell)
    head = 44
    block_width, block_height = (1 + L) * (cell + GAP), head + tall + 16
    painted = [list(zip(clip.rows(), clip.labels(), strict=True)) for clip in clips]
    pages = []
    for t in range(T):
        page, top = _make_page(clips, f"{title} · frame {t + 1} of {T}", note, columns, block_width, block_height)
        places = _place_blocks(clips, columns, top, block_width, block_height)
        for (x, y, clip), rows in zip(places, painted, strict=True):
            _draw_title(page, x, y, clip)
            for column, (images, (name, share)) in enumerate(rows):
                left = x + column * (cell + GAP)
                page.text(left, y + 33, f"{name}: {share}" if share else name, 8)
                page.image(left, y + head, resize(images[t], cell, tall))
        pages.append(page)
    save_gif(path, pages, milliseconds)


def following_picture(
    maps: NDArray[np.float64],
    shares: NDArray[np.float64],
    groups: Sequence[str],
    middle: int,
    title: str,
    note: str,
    path: str | Path,
) -> None:
    """Write a PNG with a map for every layer and, below it, a bar for every group of patches.

    maps [L, height, width] and shares [L, groups] are shares of living patches, from 0 to 1; the maps have one scale of
    colours, from 0 to the largest of them all. A white square of ``middle`` points of the map marks its middle. The
    file appears whole or not at all; errors as in ``halting_sheet``.
    """
    if maps.ndim != 3:
        raise ValueError(f"maps: expected [layers, height, width], got {list(maps.shape)}")
    L = len(maps)
    if shares.shape != (L, len(groups)):
        raise ValueError(f"shares: expected [{L}, {len(groups)}], layers by groups, got {list(shares.shape)}")
    side, between, bar = 210, 30, 42
    width = 2 * EDGE + L * (side + between) - between
    above, below = heading(title, width - 2 * EDGE, 12), footnote(note, width - 2 * EDGE, 9.5)
    top = EDGE + above.height + 34
    bars = top + side + 22
    page = Page(width, bars + bar * len(groups) + below.height + 2 * EDGE)
    page.paragraph(EDGE, EDGE + 10, above)
    largest = maps.max() or 1.0
    for layer in range(L):
        x = EDGE + layer * (side + between)
        page.text(x, top - 16, f"layer {layer + 1}", 11, weight="bold")
        page.text(x + side, top - 16, f"{maps[layer].min():.0%} to {maps[layer].max():.0%}", 9, ha="right", color=FAINT)
        image = resize(_apply_colours(maps[layer] / largest), side, side)
        page.image(x, top, _outline_middle(image, middle / maps.shape[1]))
        for row, (name, share) in enumerate(zip(groups, shares[layer], strict=True)):
            y = bars + bar * row
            page.text(x, y + 8, name, 8.5)
            page.text(x + side, y + 8, f"{share:.0%}", 8.5, ha="right", weight="bold")
            page.box(x, y + 18, side, 12, GREY)
            page.box(x, y + 18, side * share, 12, BLUE)
    page.paragraph(EDGE, bars + bar * len(groups) + 18, below)
    page.save(path)


def contact_sheet(
    clips: NDArray[np.floating[Any]], names: Sequence[str], title: str, path: str | Path, side: int = 64
) -> None:
    """Write a PNG of clips [n, C, T, height, width] from −1 to 1: a row for each, with its name before it.

    After the frames stands their maximum over time, in which moving things leave a trail. Frames are drawn ``side``
    pixels wide. C is 1 or 3. The file appears whole or not at all. Raises ValueError for other shapes and another
    number of names, ModuleNotFoundError without matplotlib, OSError when the file cannot be written.
    """
    clips = np.asarray(clips)
    if clips.ndim != 5 or 0 in clips.shape or clips.shape[1] not in (1, 3):
        raise ValueError(f"clips: expected [n, 1 or 3, T, height, width], none of them zero, got {list(clips.shape)}")
    n, _, T, height, width = clips.shape
    if len(names) != n:
        raise ValueError(f"names: expected {n}, one for each clip, got {len(names)}")
    pixels = np.clip(np.rint(clips * 127.5 + 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 4, 1)
    images = np.broadcast_to(pixels, (n, T, height, width, 3))  # [n, T, height, width, 3]

    gap, edge, label = 4, 14, 172
    tall = round(side * height / width)
    above = heading(title, label + (T + 1) * (side + gap) + gap, 11)
    top = edge + above.height + 26
    trail = edge + label + T * (side + gap) + 3 * gap
    page = Page(trail + side + edge, top + n * (tall + gap) - gap + edge)
    page.paragraph(edge, edge + 8, above)
    for t in range(T):
        page.text(edge + label + t * (side + gap), top - 14, f"frame {t + 1}" if t == 0 else str(t + 1), 9, color=FAINT)
    page.text(trail, top - 14, "all", 9, color=FAINT)
    for row, (name, frames) in enumerate(zip(names, images, strict=True)):
        y = top + row * (tall + gap)
        page.text(edge, y + tall / 2, name, 11)
        for t, frame in enumerate(frames):
            page.image(edge + label + t * (side + gap), y, resize(frame, side, tall))
        page.image(trail, y, resize(frames.max(axis=0), side, tall))
    page.save(path)


def brighten(clip: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """A clip [C, T, height, width] from −1 to 1 as grey frames to look at, uint8 [T, height, width, 3].

    Black becomes grey, so that living patches of a dark clip can be told from dropped ones.
    """
    grey = np.rint(clip.mean(axis=0) * 72.5 + 182.5)
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


# ---- parts of sheet and film


def _check(clips: Sequence[SheetClip], cell: int) -> tuple[int, int, int]:
    """Check that clips fit together; returns T, L and the height of a cell."""
    if not clips:
        raise ValueError("clips: expected at least one, got none")
    frames, states = clips[0].frames.shape, clips[0].states.shape
    for clip in clips:
        if clip.frames.shape != frames or clip.states.shape != states:
            found = f"{list(clip.frames.shape)} and {list(clip.states.shape)}"
            raise ValueError(f"clips: expected frames {list(frames)} and states {list(states)} in all, got {found}")
    if frames[0] != states[1] or frames[1] % states[2] or frames[1] // states[2] * states[3] != frames[2]:
        raise ValueError(f"states: expected square patches of frames {list(frames)}, got {list(states)}")
    return frames[0], states[0], round(cell * frames[1] / frames[2])


def _make_page(
    clips: Sequence[SheetClip], title: str, note: str, columns: int, block_width: int, block_height: int
) -> tuple[Page, int]:
    """Make a page with title, legend and note; returns it and the y at which the blocks of the clips begin."""
    columns = min(columns, len(clips))
    width = 2 * EDGE + columns * (block_width + EDGE) - EDGE
    above, below = heading(title, width - 2 * EDGE, 12), footnote(note, width - 2 * EDGE, 9.5)
    legend = EDGE + above.height + 6
    top = legend + 36
    end = top + -(-len(clips) // columns) * block_height
    page = Page(width, end + below.height + EDGE)
    page.paragraph(EDGE, EDGE + 10, above)
    x = EDGE
    middle = np.full((1, 2, 2, 3), 110, np.uint8)  # a grey patch in every state
    for state, meaning in MEANING.items():
        if any((clip.states == state).any() for clip in clips):
            page.box(x - 1, legend - 1, 18, 18, FAINT)
            page.image(x, legend, resize(paint(middle, np.full((1, 1, 1), state, np.int8), 2)[0], 16, 16))
            page.text(x + 24, legend + 8, meaning, 9.5)
            x += 56 + 8 * len(meaning)
    page.paragraph(EDGE, end + 8, below)
    return page, top


def _place_blocks(
    clips: Sequence[SheetClip], columns: int, top: int, block_width: int, block_height: int
) -> list[tuple[int, int, SheetClip]]:
    """Every clip with the corner of its block."""
    return [
        (EDGE + i % columns * (block_width + EDGE), top + i // columns * block_height, clip)
        for i, clip in enumerate(clips)
    ]


def _draw_title(page: Page, x: int, y: int, clip: SheetClip) -> None:
    page.text(x, y + 12, clip.title, 10.5, weight="bold", color=INK if clip.right else WRONG)


def _outline_middle(image: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """A square image with a white outline around its middle, whose sides are this share of the image's."""
    low, high = (round(len(image) * (0.5 + sign * share / 2)) for sign in (-1, 1))
    inside = np.zeros(image.shape[:2], np.bool_)
    inside[low:high, low:high] = True
    inside[low + 2 : high - 2, low + 2 : high - 2] = False
    return np.where(inside[:, :, None], np.uint8(255), image)


def _apply_colours(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Numbers from 0 to 1 as colours, black to yellow, uint8 [height, width, 3]."""
    from matplotlib import colormaps

    colours: NDArray[np.uint8] = colormaps["cividis"](values, bytes=True)[:, :, :3]
    return colours
