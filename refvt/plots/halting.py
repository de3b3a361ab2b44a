"""Pictures of token halting in one clip: which patches are computed in which layer, and what that costs.

``halting_picture`` writes a PNG with one row of frames per joint layer, ``halting_gif`` an animation with one step per
layer. Both draw a ``ClipStates``, which ``ClipStates.of_output`` makes from what a model returned. They need
matplotlib. Navy, orange and white can be told apart by colour-blind eyes, and differ in lightness too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refvt.checks import check_int
from refvt.evaluation.patches import ALIVE, DONE, DROPPED, HALTED, kept_patches, patch_states
from refvt.model import flops
from refvt.model.config import HaltingVTConfig
from refvt.model.haltingvt import Output
from refvt.plots.page import (
    BLUE,
    FAINT,
    GREY,
    Page,
    footnote,
    format_count,
    format_number,
    format_percent,
    heading,
    resize,
    save_gif,
)

__all__ = ["MEANING", "ClipStates", "halting_gif", "halting_picture", "paint"]

MEANING = {
    ALIVE: "alive: computed",
    HALTED: "halted in an earlier layer",
    DROPPED: "dropped before layer 1",
    DONE: "not computed: CLS had halted",
}


@dataclass(frozen=True)
class ClipStates:
    """One clip of T frames, cut in patches of P × P pixels, and what L joint layers compute of it.

    frames uint8 [T, height, width, 3], RGB; patch_size P. kept integer [T, S] and alive bool [L, 1 + S·T] say which
    patches enter the joint blocks and which tokens enter each layer, see ``patches.patch_states``; full_ponder: every
    token was followed to its own halt. tokens_per_layer, gflops_per_layer and gflops_per_layer_dense, the same model
    without halting, are [L]. TypeError or ValueError for arrays that do not fit together.
    """

    frames: NDArray[np.uint8]
    patch_size: int
    kept: NDArray[np.integer[Any]]
    alive: NDArray[np.bool_]
    tokens_per_layer: ArrayLike
    gflops_per_layer: ArrayLike
    gflops_per_layer_dense: ArrayLike
    full_ponder: bool = False
    # made from the others
    states: NDArray[np.int8] = field(init=False)  # [L, T, rows of patches, columns of patches]
    tokens: NDArray[np.float64] = field(init=False)  # [L]
    gflops: NDArray[np.float64] = field(init=False)  # [L]
    dense: NDArray[np.float64] = field(init=False)  # [L], GFLOPs without halting

    @classmethod
    def of_output(
        cls,
        config: HaltingVTConfig,
        frames: NDArray[np.uint8],
        output: Output,
        clip: int = 0,
        full_ponder: bool = False,
    ) -> Self:
        """The record of one clip of a batch that a model was run on."""
        tokens = output.tokens_per_layer[clip]
        return cls(
            frames,
            config.patch_size,
            kept_patches(config, output)[clip],
            output.alive[clip],
            tokens,
            flops.joint_multiply_adds(config, tokens) / 1e9,
            flops.joint_multiply_adds(config, np.full(config.joint_depth, config.joint_tokens)) / 1e9,
            full_ponder,
        )

    def __post_init__(self) -> None:
        def set_field(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # the record is frozen

        for name in ("frames", "kept", "alive"):
            set_field(name, np.asarray(getattr(self, name)))
        grid = self._check_frames()
        self._check_tokens(grid)
        set_field("states", patch_states(self.kept, self.alive, grid, self.full_ponder))
        for name, given in (
            ("tokens", "tokens_per_layer"),
            ("gflops", "gflops_per_layer"),
            ("dense", "gflops_per_layer_dense"),
        ):
            set_field(name, self._curve(given))

    def _check_frames(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        frames, P = self.frames, check_int("patch_size", self.patch_size)
        if frames.dtype != np.uint8:
            raise TypeError(f"frames: expected uint8, got {frames.dtype}")
        if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(f"frames: expected [T, height, width, 3], got {list(frames.shape)}")
        _, height, width, _ = frames.shape
        if height % P or width % P:
            raise ValueError(f"frames: expected height and width to be multiples of {P}, got {height} and {width}")
        return height // P, width // P

    def _check_tokens(self, grid: tuple[int, int]) -> None:
        kept, alive, last = self.kept, self.alive, grid[0] * grid[1] - 1
        if not np.issubdtype(kept.dtype, np.integer):
            raise TypeError(f"kept: expected integers, got {kept.dtype}")
        if kept.ndim != 2 or len(kept) != len(self.frames):
            raise ValueError(f"kept: expected [{len(self.frames)}, patches kept per frame], got {list(kept.shape)}")
        if kept.size and not -1 <= kept.min() <= kept.max() <= last:
            raise ValueError(f"kept: expected numbers from −1 to {last}, got {kept.min()} to {kept.max()}")
        if alive.dtype != np.bool_:
            raise TypeError(f"alive: expected bool, got {alive.dtype}")
        if alive.ndim != 2 or len(alive) == 0 or alive.shape[1] != self.num_tokens:
            raise ValueError(f"alive: expected [layers, {self.num_tokens}], got {list(alive.shape)}")

    def _curve(self, name: str) -> NDArray[np.float64]:
        values, L = getattr(self, name), self.num_layers
        curve = np.asarray(values, np.float64)
        if curve.shape != (L,) or not np.isfinite(curve).all() or (curve < 0).any():
            raise ValueError(f"{name}: expected {L} finite numbers, none negative, got {values!r}")
        return curve

    @property
    def num_layers(self) -> int:
        """Number of joint layers, L."""
        return len(self.alive)

    @property
    def num_tokens(self) -> int:
        """Number of tokens that enter the first joint layer, CLS included."""
        return 1 + self.kept.size

    @property
    def shown_states(self) -> list[int]:
        """The states that occur, to be explained in a legend; ALIVE always."""
        return [state for state in MEANING if state == ALIVE or (self.states == state).any()]


def halting_picture(clip: ClipStates, title: str, note: str, path: str | Path) -> None:
    """Write a PNG: the frames on top, below them a row per joint layer that shows which patches it computes.

    Bars next to the rows show tokens and GFLOPs with and without halting. ``title`` stands above, ``note`` below.
    The file appears whole or not at all. ModuleNotFoundError without matplotlib, OSError if the file cannot be
    written.
    """
    _draw_picture(clip, title, note).save(path)


def halting_gif(clip: ClipStates, title: str, note: str, path: str | Path, milliseconds: int = 800) -> None:
    """Write a looping GIF of L + 1 steps: the frames as read, then what each joint layer computes.

    A step lasts ``milliseconds``, rounded to the 10 ms that GIFs count in, and the last one three times as long. The
    rest as in ``halting_picture``.
    """
    check_int("milliseconds", milliseconds)
    steps = [_draw_step(clip, title, note, layer) for layer in range(-1, clip.num_layers)]
    save_gif(path, steps, milliseconds, hold=3)


def paint(frames: NDArray[np.uint8], states: NDArray[np.int8], patch_size: int) -> NDArray[np.uint8]:
    """Frames [T, height, width, 3] with every patch in the colour of its state, [T, rows, columns]."""
    pixels = states.repeat(patch_size, axis=1).repeat(patch_size, axis=2)  # [T, height, width]
    out = frames.copy()
    for state, share, colour in (
        (DROPPED, 0.25, (22.0, 26.0, 74.0)),
        (HALTED, 0.35, (230.0, 159.0, 0.0)),
        (DONE, 0.12, (255.0, 255.0, 255.0)),
    ):
        here = pixels == state
        grey = frames[here] @ np.array([0.299, 0.587, 0.114])  # the weights of Rec. 601
        out[here] = np.rint(share * grey[:, None] + (1 - share) * np.array(colour)).clip(0, 255)
    return out


# ---- the picture

EDGE, GAP, LEFT, PANEL, BETWEEN = 18, 5, 130, 184, 26  # of the page, of cells, labels, a panel of bars, two panels


@dataclass(frozen=True)
class _Grid:
    """Positions and sizes of the rows and cells of the picture, in pixels."""

    cell_width: int
    cell_height: int
    row: int  # from one layer to the next
    top: int  # of the clip's own row
    layers: int  # top of the first layer

    def middle(self, layer: int) -> float:
        """Middle of a layer's row."""
        return self.layers + layer * self.row + self.cell_height / 2


def _draw_picture(clip: ClipStates, title: str, note: str) -> Page:
    T, height, width, _ = clip.frames.shape
    cell_width = int(np.clip(1000 // T, 88, 190))
    cell_height = round(cell_width * height / width)
    row = max(cell_height, 64) + 10
    frames_end = LEFT + T * (cell_width + GAP)
    bars = (frames_end + 18, frames_end + 18 + PANEL + BETWEEN)  # where the two panels begin
    page_width = bars[1] + PANEL + EDGE
    above, below = heading(title, page_width - 2 * EDGE, 15), footnote(note, page_width - 2 * EDGE, 10)
    top = EDGE + above.height + 6
    layers = top + max(row, 24 * len(clip.shown_states) + 12) + 40
    end = layers + clip.num_layers * row
    grid = _Grid(cell_width, cell_height, row, top, layers)

    page = Page(page_width, end + 34 + below.height + EDGE)
    page.paragraph(EDGE, EDGE + 12, above)
    _draw_frames(page, clip, grid)
    _draw_legend(page, clip, bars[0], top, columns=1, column_width=0)
    without = np.full(clip.num_layers, float(clip.num_tokens))
    _draw_bars(page, grid, bars[0], "tokens", clip.tokens, without, end)
    _draw_bars(page, grid, bars[1], "GFLOPs", clip.gflops, clip.dense, end)
    page.paragraph(EDGE, end + 42, below)
    return page


def _draw_frames(page: Page, clip: ClipStates, grid: _Grid) -> None:
    """Draw the clip, and below it what every layer computes of it."""

    def draw_row(y: int, images: NDArray[np.uint8]) -> None:
        for t, image in enumerate(images):
            x = LEFT + t * (grid.cell_width + GAP)
            page.image(x, y, resize(image, grid.cell_width, grid.cell_height))

    page.text(EDGE, grid.top + grid.cell_height / 2 - 10, "the clip", 12, weight="bold")
    page.text(EDGE, grid.top + grid.cell_height / 2 + 12, format_count(len(clip.frames), "frame"), 10)
    draw_row(grid.top, clip.frames)
    for layer in range(clip.num_layers):
        middle = grid.middle(layer)
        page.text(EDGE, middle - 21, f"layer {layer + 1}", 12, weight="bold")
        page.text(EDGE, middle, format_count(clip.tokens[layer], "token"), 10)
        _draw_cls(page, EDGE, middle + 20, clip, layer)
        draw_row(grid.layers + layer * grid.row, paint(clip.frames, clip.states[layer], clip.patch_size))


def _draw_bars(
    page: Page, grid: _Grid, x: int, name: str, values: NDArray[np.float64], dense: NDArray[np.float64], end: int
) -> None:
    """Draw a panel: for every layer a bar without halting (grey) and with it (blue), curves, and the totals."""
    L = len(values)
    scale = PANEL / (max(values.max(), dense.max()) or 1.0)
    page.text(x, grid.layers - 20, name, 12, weight="bold")
    page.text(x + PANEL, grid.layers - 20, "no halting", 10, ha="right", color=FAINT)
    for layer in range(L):
        y = grid.layers + layer * grid.row + grid.cell_height // 2
        page.text(x, y - 13, format_number(values[layer]), 10)
        page.text(x + PANEL - 7, y - 13, format_number(dense[layer]), 10, ha="right", color=FAINT)
        page.box(x, y, scale * dense[layer], 16, GREY)
        page.box(x, y, scale * values[layer], 16, BLUE)
    middles = grid.layers + grid.row * np.arange(L, dtype=np.float64) + grid.cell_height // 2 + 8.0
    for series, colour in ((dense, FAINT), (values, BLUE)):
        page.curve(x + scale * series, middles, colour)
    total = f"{format_number(values.sum())} of {format_number(dense.sum())}"
    page.text(x, end + 12, f"{total} ({format_percent(values.sum(), dense.sum())})", 10)


# ---- the animation


def _draw_step(clip: ClipStates, title: str, note: str, layer: int) -> Page:
    """Draw one step of the animation; layer −1 shows the frames as they are."""
    T, height, width, _ = clip.frames.shape
    grid_rows = max(1, round((T / 2) ** 0.5))
    grid_columns = -(-T // grid_rows)
    cell_width, cell_height = 160, round(160 * height / width)
    gap, edge = 4, 14
    page_width = max(grid_columns * (cell_width + gap) - gap, 560) + 2 * edge
    above, below = heading(title, page_width - 2 * edge, 11), footnote(note, page_width - 2 * edge, 9)
    head = edge + above.height
    top = head + 66
    legend = top + grid_rows * (cell_height + gap) + 8
    end = legend + 24 * -(-len(clip.shown_states) // 2)

    page = Page(page_width, end + below.height + edge)
    page.paragraph(edge, edge + 8, above)
    tokens = float(clip.num_tokens) if layer < 0 else clip.tokens[layer]
    _draw_step_head(page, clip, layer, edge, head + 12)
    page.box(edge, head + 34, page_width - 2 * edge, 18, GREY)
    page.box(edge, head + 34, (page_width - 2 * edge) * min(1.0, tokens / clip.num_tokens), 18, BLUE)
    images = clip.frames if layer < 0 else paint(clip.frames, clip.states[layer], clip.patch_size)
    for t, image in enumerate(images):
        row, column = divmod(t, grid_columns)
        x, y = edge + column * (cell_width + gap), top + row * (cell_height + gap)
        page.image(x, y, resize(image, cell_width, cell_height))
    _draw_legend(page, clip, edge, legend, columns=2, column_width=(page_width - 2 * edge) // 2)
    page.paragraph(edge, end + 8, below)
    return page


def _draw_step_head(page: Page, clip: ClipStates, layer: int, edge: int, y: int) -> None:
    """Draw the line above a step: the layer, whether CLS is alive, tokens and cost."""
    end = page.width - edge
    if layer < 0:
        page.text(edge, y, f"the clip: {format_count(len(clip.frames), 'frame')}", 13, weight="bold")
        page.text(end, y, f"{format_count(clip.num_tokens, 'token')} enter layer 1", 10, ha="right")
        return
    tokens = f"{format_number(clip.tokens[layer])} of {format_count(clip.num_tokens, 'token')}"
    cost = f"{format_number(clip.gflops[layer])} of {format_number(clip.dense[layer])} GFLOPs"
    page.text(edge, y, f"layer {layer + 1} of {clip.num_layers}", 13, weight="bold")
    _draw_cls(page, edge + 180, y, clip, layer)
    page.text(end, y, f"{tokens} · {cost}", 10, ha="right")


# ---- parts of both


def _draw_legend(page: Page, clip: ClipStates, x: int, y: int, columns: int, column_width: int) -> None:
    """Show and name the states, on a piece from the middle of the first frame."""
    height, width = clip.frames.shape[1:3]
    side = max(2, min(height, width) // 4)
    piece = clip.frames[:1, (height - side) // 2 :, (width - side) // 2 :][:, :side, :side]
    for i, state in enumerate(clip.shown_states):
        row, column = divmod(i, columns)
        sample = paint(piece, np.full((1, 1, 1), state, np.int8), side)[0]
        left, top = x + column * column_width, y + 24 * row
        page.box(left - 1, top - 1, 20, 20, FAINT)
        page.image(left, top, resize(sample, 18, 18))
        page.text(left + 27, top + 9, MEANING[state], 10)


def _draw_cls(page: Page, x: float, y: float, clip: ClipStates, layer: int) -> None:
    alive = bool(clip.alive[layer, 0])
    page.text(x, y, "● CLS alive" if alive else "○ CLS halted", 10, color=BLUE if alive else FAINT)
