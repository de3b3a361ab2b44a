"""Pages that show several clips at once: where each is still computed, and where that is as seen from a digit.

`halting_sheet` writes a PNG with a block per clip, its frames from left to right and its layers from top to bottom;
`halting_film` a GIF that plays the same clips, the layers side by side. `following_picture` shows shares of living
patches as maps and bars. Colours and states are those of `refvt.plots.halting`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from numpy.typing import NDArray

from refvt.files import write_whole
from refvt.plots.halting import ALIVE, MEANING, painted
from refvt.plots.page import BLUE, FAINT, GREY, INK, Page, scaled, with_256_colours, wrapped

__all__ = ["SheetClip", "following_picture", "halting_film", "halting_sheet"]

_WRONG = "#B34700"  # for what the model got wrong
_GAP, _EDGE = 3, 18


@dataclass(frozen=True)
class SheetClip:
    """One clip of a sheet.

    frames: uint8 [T, height, width, 3]; states: int8 [L, T, rows, columns], see `refvt.plots.halting.token_states`.
    title stands above it, in another colour if not `right`. T, L and the sizes are the same for all clips of a sheet.
    """

    frames: NDArray[np.uint8]
    states: NDArray[np.int8]
    title: str
    right: bool = True

    def rows(self) -> list[NDArray[np.uint8]]:
        """The frames as they are, then as every layer has them: 1 + L arrays [T, height, width, 3]."""
        patch = self.frames.shape[1] // self.states.shape[2]
        return [self.frames, *(painted(self.frames, states, patch) for states in self.states)]

    def labels(self) -> list[tuple[str, str]]:
        """What to call these rows, and the share of all patches that is alive in them."""
        shares = (self.states == ALIVE).mean(axis=(1, 2, 3))
        return [("the clip", ""), *((f"layer {i}", f"{share:.0%}") for i, share in enumerate(shares, start=1))]


def halting_sheet(
    clips: Sequence[SheetClip], title: str, note: str, path: str | Path, columns: int = 2, cell: int = 64
) -> None:
    """Write a PNG with a block for every clip: a column per frame, `cell` pixels wide, a row per layer.

    The file appears whole or not at all. Raises ValueError for clips that do not fit together, ModuleNotFoundError
    without matplotlib, OSError when the file cannot be written.
    """
    T, L, tall = _check(clips, cell)
    label, head = 92, 28
    block_width, block_height = label + T * (cell + _GAP), head + (1 + L) * (tall + _GAP) + 14
    page, top = _page(clips, title, note, columns, block_width, block_height)
    for x, y, clip in _places(clips, columns, top, block_width, block_height):
        _draw_title(page, x, y, clip)
        for row, (images, (name, share)) in enumerate(zip(clip.rows(), clip.labels(), strict=True)):
            y_row = y + head + row * (tall + _GAP)
            page.text(x, y_row + tall / 2 - (9 if share else 0), name, 9.5, weight="bold")
            page.text(x, y_row + tall / 2 + 9, share and f"{share} alive", 9)
            for t, image in enumerate(images):
                page.image(x + label + t * (cell + _GAP), y_row, scaled(image, cell, tall))
    write_whole(Path(path), iio.imwrite("<bytes>", page.pixels(), extension=".png", plugin="pillow", optimize=True))


def halting_film(
    clips: Sequence[SheetClip],
    title: str,
    note: str,
    path: str | Path,
    columns: int = 2,
    cell: int = 96,
    milliseconds: int = 400,
) -> None:
    """Write a looping GIF, a step per frame: of every clip the frame, then beside it as each layer has it.

    Arguments and errors as in `halting_sheet`; a step lasts `milliseconds`, rounded to the 10 ms that GIFs count in.
    """
    T, L, tall = _check(clips, cell)
    head = 44
    block_width, block_height = (1 + L) * (cell + _GAP), head + tall + 16
    pages = []
    for t in range(T):
        page, top = _page(clips, f"{title} · frame {t + 1} of {T}", note, columns, block_width, block_height)
        for x, y, clip in _places(clips, columns, top, block_width, block_height):
            _draw_title(page, x, y, clip)
            for column, (images, (name, share)) in enumerate(zip(clip.rows(), clip.labels(), strict=True)):
                left = x + column * (cell + _GAP)
                page.text(left, y + 33, f"{name}: {share}" if share else name, 8)
                page.image(left, y + head, scaled(images[t], cell, tall))
        pages.append(page.pixels())
    step = 10 * max(1, round(milliseconds / 10))
    images = with_256_colours(np.stack(pages))
    write_whole(
        Path(path), iio.imwrite("<bytes>", images, extension=".gif", plugin="pillow", duration=[step] * T, loop=0)
    )


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
    colours, from 0 to the largest of them all. A white square of `middle` points of the map marks its middle. The file
    appears whole or not at all; errors as in `halting_sheet`.
    """
    L = len(maps)
    if maps.ndim != 3 or shares.shape != (L, len(groups)):
        raise ValueError(
            f"shares must be [{L}, {len(groups)}], layers of maps by groups, not {list(shares.shape)}; "
            f"maps must be [layers, height, width], not {list(maps.shape)}"
        )
    side, between, bar = 210, 30, 42
    width = 2 * _EDGE + L * (side + between) - between
    title_lines, note_lines = wrapped(title, width - 2 * _EDGE, 12), wrapped(note, width - 2 * _EDGE, 9.5)
    top = _EDGE + 25 * len(title_lines) + 34
    bars = top + side + 22
    page = Page(width, bars + bar * len(groups) + 18 * len(note_lines) + 2 * _EDGE)
    for i, line in enumerate(title_lines):
        page.text(_EDGE, _EDGE + 10 + 25 * i, line, 12, weight="bold")
    largest = maps.max() or 1.0
    for layer in range(L):
        x = _EDGE + layer * (side + between)
        page.text(x, top - 16, f"layer {layer + 1}", 11, weight="bold")
        page.text(x + side, top - 16, f"{maps[layer].min():.0%} to {maps[layer].max():.0%}", 9, ha="right", color=FAINT)
        page.image(x, top, _with_square(scaled(_coloured(maps[layer] / largest), side, side), middle / maps.shape[1]))
        for row, (name, share) in enumerate(zip(groups, shares[layer], strict=True)):
            y = bars + bar * row
            page.text(x, y + 8, name, 8.5)
            page.text(x + side, y + 8, f"{share:.0%}", 8.5, ha="right", weight="bold")
            page.box(x, y + 18, side, 12, GREY)
            page.box(x, y + 18, side * share, 12, BLUE)
    for i, line in enumerate(note_lines):
        page.text(_EDGE, bars + bar * len(groups) + 18 + 18 * i, line, 9.5, color=FAINT)
    write_whole(Path(path), iio.imwrite("<bytes>", page.pixels(), extension=".png", plugin="pillow", optimize=True))


# ---- what sheet and film share


def _check(clips: Sequence[SheetClip], cell: int) -> tuple[int, int, int]:
    """T, L and the height of a cell."""
    if not clips:
        raise ValueError("clips must be at least one")
    frames, states = clips[0].frames.shape, clips[0].states.shape
    for clip in clips:
        if clip.frames.shape != frames or clip.states.shape != states:
            found = f"{list(clip.frames.shape)} and {list(clip.states.shape)}"
            raise ValueError(f"clips must be alike: frames {list(frames)} and states {list(states)}, not {found}")
    if frames[0] != states[1] or frames[1] % states[2] or frames[1] // states[2] * states[3] != frames[2]:
        raise ValueError(f"states {list(states)} do not cut frames {list(frames)} in square patches")
    return frames[0], states[0], round(cell * frames[1] / frames[2])


def _page(
    clips: Sequence[SheetClip], title: str, note: str, columns: int, block_width: int, block_height: int
) -> tuple[Page, int]:
    """A page with title, legend and note, and where the blocks of the clips begin."""
    columns = min(columns, len(clips))
    width = 2 * _EDGE + columns * (block_width + _EDGE) - _EDGE
    title_lines, note_lines = wrapped(title, width - 2 * _EDGE, 12), wrapped(note, width - 2 * _EDGE, 9.5)
    legend = _EDGE + 25 * len(title_lines) + 6
    top = legend + 36
    end = top + -(-len(clips) // columns) * block_height
    page = Page(width, end + 18 * len(note_lines) + _EDGE)
    for i, line in enumerate(title_lines):
        page.text(_EDGE, _EDGE + 10 + 25 * i, line, 12, weight="bold")
    x = _EDGE
    middle = np.full((1, 2, 2, 3), 110, np.uint8)  # a grey patch in every state
    for state, meaning in MEANING.items():
        if any((clip.states == state).any() for clip in clips):
            page.box(x - 1, legend - 1, 18, 18, FAINT)
            page.image(x, legend, scaled(painted(middle, np.full((1, 1, 1), state, np.int8), 2)[0], 16, 16))
            page.text(x + 24, legend + 8, meaning, 9.5)
            x += 56 + 8 * len(meaning)
    for i, line in enumerate(note_lines):
        page.text(_EDGE, end + 8 + 18 * i, line, 9.5, color=FAINT)
    return page, top


def _places(
    clips: Sequence[SheetClip], columns: int, top: int, block_width: int, block_height: int
) -> list[tuple[int, int, SheetClip]]:
    """Every clip with the corner of its block."""
    return [
        (_EDGE + i % columns * (block_width + _EDGE), top + i // columns * block_height, clip)
        for i, clip in enumerate(clips)
    ]


def _draw_title(page: Page, x: int, y: int, clip: SheetClip) -> None:
    page.text(x, y + 12, clip.title, 10.5, weight="bold", color=INK if clip.right else _WRONG)


def _with_square(image: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """The square image with a white outline about its middle, whose sides are this share of its own."""
    low, high = (round(len(image) * (0.5 + sign * share / 2)) for sign in (-1, 1))
    inside = np.zeros(image.shape[:2], np.bool_)
    inside[low:high, low:high] = True
    inside[low + 2 : high - 2, low + 2 : high - 2] = False
    return np.where(inside[:, :, None], np.uint8(255), image)


def _coloured(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Numbers from 0 to 1 as colours, black to yellow, uint8 [height, width, 3]."""
    from matplotlib import colormaps

    colours: NDArray[np.uint8] = colormaps["cividis"](values, bytes=True)[:, :, :3]
    return colours
