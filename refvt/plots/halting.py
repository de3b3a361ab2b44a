"""Pictures of token halting: which patches of a clip are still computed in which layer, and what that costs.

`halting_picture` writes a PNG with one row of frames per joint layer, `halting_gif` an animation with one
step per layer; `halting_sheet` shows several clips side by side. They take NumPy arrays and need matplotlib. Navy,
orange and white can be told apart by colour-blind eyes, and differ in lightness too. `contact_sheet` shows clips as a
model gets them, one row each.

Arrays, for one clip of T frames, each cut in patches of P × P pixels:
- frames: uint8 [T, height, width, 3], RGB;
- kept: integer [T, S], the patches that enter the joint blocks, by their number in the frame, row by row; −1
  stands for a fused token, which has no place in the frame;
- alive: bool [L, 1 + S·T], what enters each joint layer: CLS first, then token 1 + s·T + t, which is patch
  kept[t, s] of frame t. A layer without any live token was never computed: the clip was done.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
from numpy.typing import ArrayLike, NDArray

from refvt.checks import check_int
from refvt.files import write_whole
from refvt.plots.page import BLUE, FAINT, GREY, Page, as_count, as_number, as_percent, scaled, with_256_colours, wrapped

# What a patch is in a layer.
ALIVE, DROPPED, HALTED, DONE = range(4)
MEANING = {
    ALIVE: "alive: computed",
    HALTED: "halted in an earlier layer",
    DROPPED: "dropped by the Glimpser",
    DONE: "not computed: CLS had halted",
}


def halting_picture(
    frames: NDArray[np.uint8],
    patch_size: int,
    kept: NDArray[np.integer[Any]],
    alive: NDArray[np.bool_],
    tokens_per_layer: ArrayLike,
    gflops_per_layer: ArrayLike,
    gflops_per_layer_dense: ArrayLike,
    title: str,
    note: str,
    path: str | Path,
) -> None:
    """Write a PNG: the frames on top, below them a row per joint layer that shows which patches it computes.

    Arrays as at the head of this module; tokens_per_layer, gflops_per_layer and gflops_per_layer_dense (the
    same model without halting) are [L] and become bars beside their rows. `title` stands above, `note` below.
    The file appears whole or not at all. Raises TypeError or ValueError for arrays that do not fit together,
    ModuleNotFoundError without matplotlib, OSError when the file cannot be written.
    """
    clip = _check(frames, patch_size, kept, alive, tokens_per_layer, gflops_per_layer, gflops_per_layer_dense)
    encoded = iio.imwrite("<bytes>", _draw_picture(clip, title, note).pixels(), extension=".png", plugin="pillow")
    write_whole(Path(path), encoded)


def halting_gif(
    frames: NDArray[np.uint8],
    patch_size: int,
    kept: NDArray[np.integer[Any]],
    alive: NDArray[np.bool_],
    tokens_per_layer: ArrayLike,
    gflops_per_layer: ArrayLike,
    gflops_per_layer_dense: ArrayLike,
    title: str,
    note: str,
    path: str | Path,
    milliseconds: int = 800,
) -> None:
    """Write a looping GIF of L + 1 steps: the frames as read, then what each joint layer computes.

    Arguments and errors as in `halting_picture`. A step lasts `milliseconds`, rounded to the 10 ms that GIFs
    count in, and the last one three times as long.
    """
    clip = _check(frames, patch_size, kept, alive, tokens_per_layer, gflops_per_layer, gflops_per_layer_dense)
    step = 10 * max(1, round(check_int("milliseconds", milliseconds) / 10))
    steps = [_draw_step(clip, title, note, layer) for layer in range(-1, clip.num_layers)]
    images = with_256_colours(np.stack(steps))
    durations = [step] * clip.num_layers + [3 * step]
    encoded = iio.imwrite("<bytes>", images, extension=".gif", plugin="pillow", duration=durations, loop=0)
    write_whole(Path(path), encoded)


def halting_sheet(
    clips: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.integer[Any]], NDArray[np.bool_]]],
    patch_size: int,
    title: str,
    path: str | Path,
    side: int = 40,
) -> None:
    """Write a PNG of several clips, two beside one another: of each its frames, and below a row per joint layer.

    clips: (name, frames, kept, alive), the arrays as at the head of this module and of the same shapes in all clips.
    Frames are drawn `side` pixels wide. Beside a row stands how many tokens enter the layer, CLS included. The file
    appears whole or not at all. Errors as in `halting_picture`; ValueError for no clips or unequal ones.
    """
    if not clips:
        raise ValueError("clips must be at least one")
    pages = []
    for _, frames, kept, alive in clips:
        tokens = np.asarray(alive).sum(axis=1)
        pages.append(_check(frames, patch_size, kept, alive, tokens, tokens, tokens))
    shapes = {(clip.frames.shape, clip.states.shape) for clip in pages}
    if len(shapes) > 1:
        raise ValueError(f"clips must have the same shapes of frames and layers, not {sorted(shapes)}")
    T, height, width, _ = pages[0].frames.shape
    L = pages[0].num_layers
    gap, edge, label, count, between = 3, 14, 62, 40, 26
    tall = round(side * height / width)
    block_width, block_height = label + T * (side + gap) + count, 24 + (L + 1) * (tall + gap) + 14
    columns = min(2, len(clips))
    page_width = 2 * edge + columns * block_width + (columns - 1) * between
    title_lines = wrapped(title, page_width - 2 * edge, 11)
    top = edge + 22 * len(title_lines) + 8
    rows = -(-len(clips) // columns)
    shown = max(pages, key=lambda clip: len(_shown(clip)))
    legend = top + rows * block_height
    page = Page(page_width, legend + 24 * -(-len(_shown(shown)) // 2) + edge)
    for i, line in enumerate(title_lines):
        page.text(edge, edge + 8 + 22 * i, line, 11, weight="bold")
    for i, (clip, (name, *_)) in enumerate(zip(pages, clips, strict=True)):
        row, column = divmod(i, columns)
        x, y = edge + column * (block_width + between), top + row * block_height
        page.text(x, y + 10, name, 10)
        for layer in range(-1, L):
            line_y = y + 24 + (layer + 1) * (tall + gap)
            images = clip.frames if layer < 0 else painted(clip.frames, clip.states[layer], clip.patch_size)
            page.text(x, line_y + tall / 2, "clip" if layer < 0 else f"layer {layer + 1}", 9, color=FAINT)
            for t, image in enumerate(images):
                page.image(x + label + t * (side + gap), line_y, scaled(image, side, tall))
            if layer >= 0:
                page.text(x + label + T * (side + gap) + 4, line_y + tall / 2, as_number(clip.tokens[layer]), 9)
    _draw_legend(page, shown, edge, legend, columns=2, column_width=(page_width - 2 * edge) // 2)
    encoded = iio.imwrite("<bytes>", page.pixels(), extension=".png", plugin="pillow", optimize=True)
    write_whole(Path(path), encoded)


def contact_sheet(
    clips: NDArray[np.floating[Any]], names: Sequence[str], title: str, path: str | Path, side: int = 64
) -> None:
    """Write a PNG of clips [n, C, T, height, width] from −1 to 1: a row for each, with its name before it.

    After the frames stands their maximum over time, in which moving things leave a trail. Frames are drawn `side`
    pixels wide. C is 1 or 3. The file appears whole or not at all. Raises ValueError for other shapes and another
    number of names, ModuleNotFoundError without matplotlib, OSError when the file cannot be written.
    """
    clips = np.asarray(clips)
    if clips.ndim != 5 or 0 in clips.shape or clips.shape[1] not in (1, 3):
        raise ValueError(f"clips must be [n, 1 or 3, T, height, width], none of them zero, not {list(clips.shape)}")
    n, _, T, height, width = clips.shape
    if len(names) != n:
        raise ValueError(f"names must be {n}, one for each clip, not {len(names)}")
    pixels = np.clip(np.rint(clips * 127.5 + 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 4, 1)
    images = np.broadcast_to(pixels, (n, T, height, width, 3))  # [n, T, height, width, 3]

    gap, edge, label = 4, 14, 172
    tall = round(side * height / width)
    title_lines = wrapped(title, label + (T + 1) * (side + gap) + gap, 11)
    top = edge + 22 * len(title_lines) + 26
    trail = edge + label + T * (side + gap) + 3 * gap
    page = Page(trail + side + edge, top + n * (tall + gap) - gap + edge)
    for i, line in enumerate(title_lines):
        page.text(edge, edge + 8 + 22 * i, line, 11, weight="bold")
    for t in range(T):
        page.text(edge + label + t * (side + gap), top - 14, f"frame {t + 1}" if t == 0 else str(t + 1), 9, color=FAINT)
    page.text(trail, top - 14, "all", 9, color=FAINT)
    for row, (name, frames) in enumerate(zip(names, images, strict=True)):
        y = top + row * (tall + gap)
        page.text(edge, y + tall / 2, name, 11)
        for t, frame in enumerate(frames):
            page.image(edge + label + t * (side + gap), y, scaled(frame, side, tall))
        page.image(trail, y, scaled(frames.max(axis=0), side, tall))
    encoded = iio.imwrite("<bytes>", page.pixels(), extension=".png", plugin="pillow", optimize=True)
    write_whole(Path(path), encoded)


# ---- what is to be drawn


class _Clip(NamedTuple):
    frames: NDArray[np.uint8]  # [T, height, width, 3]
    patch_size: int
    states: NDArray[np.int8]  # [L, T, rows of patches, columns of patches]
    cls_alive: NDArray[np.bool_]  # [L]
    num_tokens: int  # that enter the first joint layer, CLS included
    tokens: NDArray[np.float64]  # [L]
    gflops: NDArray[np.float64]  # [L]
    dense: NDArray[np.float64]  # [L], GFLOPs without halting

    @property
    def num_layers(self) -> int:
        return len(self.states)


def token_states(kept: NDArray[np.integer[Any]], alive: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.int8]:
    """What every patch of a clip is in every layer: ALIVE, DROPPED, HALTED or DONE, int8 [L, T, rows, columns].

    kept [T, S] and alive [L, 1 + S·T] as at the head of this module; grid is (rows, columns).
    """
    L, T = len(alive), len(kept)
    states = np.full((L, T, grid[0] * grid[1]), DROPPED, np.int8)
    t, s = np.nonzero(kept >= 0)
    before = np.ones(alive.shape[1], np.bool_)  # alive in the last layer that was computed
    for layer in range(L):
        if alive[layer].any():
            before = alive[layer]
            of_token = np.where(before, ALIVE, HALTED)
        else:
            of_token = np.where(before, DONE, HALTED)
        states[layer, t, kept[t, s]] = of_token[1 + s * T + t]
    return states.reshape(L, T, *grid)


def _check(
    frames: NDArray[np.uint8],
    patch_size: int,
    kept: NDArray[np.integer[Any]],
    alive: NDArray[np.bool_],
    tokens_per_layer: ArrayLike,
    gflops_per_layer: ArrayLike,
    gflops_per_layer_dense: ArrayLike,
) -> _Clip:
    frames, kept, alive = np.asarray(frames), np.asarray(kept), np.asarray(alive)
    P = check_int("patch_size", patch_size)
    if frames.dtype != np.uint8:
        raise TypeError(f"frames must be uint8, not {frames.dtype}")
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be [T, height, width, 3], not {list(frames.shape)}")
    T, height, width, _ = frames.shape
    if height % P or width % P:
        raise ValueError(f"frames of {height}×{width} (height × width) cannot be cut in patches of {P}×{P}")
    rows, columns = height // P, width // P
    if not np.issubdtype(kept.dtype, np.integer):
        raise TypeError(f"kept must be of an integer dtype, not {kept.dtype}")
    if kept.ndim != 2 or len(kept) != T:
        raise ValueError(f"kept must be [{T}, patches kept per frame], not {list(kept.shape)}")
    if kept.size and not -1 <= kept.min() <= kept.max() < rows * columns:
        raise ValueError(f"kept must lie in −1 … {rows * columns - 1}, not in {kept.min()} … {kept.max()}")
    if alive.dtype != np.bool_:
        raise TypeError(f"alive must be bool, not {alive.dtype}")
    num_tokens = 1 + kept.size
    if alive.ndim != 2 or len(alive) == 0 or alive.shape[1] != num_tokens:
        raise ValueError(f"alive must be [layers, {num_tokens}], not {list(alive.shape)}")
    L = len(alive)
    curves = []
    for name, values in (
        ("tokens_per_layer", tokens_per_layer),
        ("gflops_per_layer", gflops_per_layer),
        ("gflops_per_layer_dense", gflops_per_layer_dense),
    ):
        curve = np.asarray(values, np.float64)
        if curve.shape != (L,) or not np.isfinite(curve).all() or (curve < 0).any():
            raise ValueError(f"{name} must be {L} finite numbers, none negative, not {values!r}")
        curves.append(curve)

    states = token_states(kept, alive, (rows, columns))
    return _Clip(frames, P, states, alive[:, 0], num_tokens, *curves)


def painted(frames: NDArray[np.uint8], states: NDArray[np.int8], patch_size: int) -> NDArray[np.uint8]:
    """frames [T, height, width, 3] with every patch painted as its state, [T, rows, columns], asks."""
    pixels = states.repeat(patch_size, axis=1).repeat(patch_size, axis=2)  # [T, height, width]
    grey = frames @ np.array([0.299, 0.587, 0.114])  # [T, height, width], the weights of Rec. 601
    out = frames.copy()
    for state, share, colour in (
        (DROPPED, 0.25, (22.0, 26.0, 74.0)),
        (HALTED, 0.35, (230.0, 159.0, 0.0)),
        (DONE, 0.12, (255.0, 255.0, 255.0)),
    ):
        here = pixels == state
        out[here] = np.rint(share * grey[here][:, None] + (1 - share) * np.array(colour)).clip(0, 255)
    return out


# ---- drawing


def _draw_picture(clip: _Clip, title: str, note: str) -> Page:
    T, height, width, _ = clip.frames.shape
    L = clip.num_layers
    cell_width = int(np.clip(1000 // T, 88, 190))
    cell_height = round(cell_width * height / width)
    gap, edge, left, panel, between = 5, 18, 130, 184, 26
    row = max(cell_height, 64) + 10
    frames_end = left + T * (cell_width + gap)
    bars = (frames_end + 18, frames_end + 18 + panel + between)  # where the two panels begin
    page_width = bars[1] + panel + edge
    title_lines = wrapped(title, page_width - 2 * edge, 15)
    note_lines = wrapped(note, page_width - 2 * edge, 10)
    top = edge + 30 * len(title_lines) + 6
    layers = top + max(row, 24 * len(_shown(clip)) + 12) + 40  # where the rows of the layers begin
    end = layers + L * row
    page = Page(page_width, end + 34 + 20 * len(note_lines) + edge)

    def put_row(y: int, images: NDArray[np.uint8]) -> None:
        for t, image in enumerate(images):
            page.image(left + t * (cell_width + gap), y, scaled(image, cell_width, cell_height))

    for i, line in enumerate(title_lines):
        page.text(edge, edge + 12 + 30 * i, line, 15, weight="bold")
    page.text(edge, top + cell_height / 2 - 10, "the clip", 12, weight="bold")
    page.text(edge, top + cell_height / 2 + 12, as_count(T, "frame"), 10)
    put_row(top, clip.frames)
    _draw_legend(page, clip, bars[0], top, columns=1, column_width=0)

    for layer in range(L):
        y = layers + layer * row
        middle = y + cell_height / 2
        page.text(edge, middle - 21, f"layer {layer + 1}", 12, weight="bold")
        page.text(edge, middle, as_count(clip.tokens[layer], "token"), 10)
        _draw_cls(page, edge, middle + 20, clip, layer)
        put_row(y, painted(clip.frames, clip.states[layer], clip.patch_size))

    without = np.full(L, float(clip.num_tokens))
    for x, name, values, dense in (
        (bars[0], "tokens", clip.tokens, without),
        (bars[1], "GFLOPs", clip.gflops, clip.dense),
    ):
        scale = panel / (max(values.max(), dense.max()) or 1.0)
        page.text(x, layers - 20, name, 12, weight="bold")
        page.text(x + panel, layers - 20, "no halting", 10, ha="right", color=FAINT)
        for layer in range(L):
            y = layers + layer * row + cell_height // 2
            page.text(x, y - 13, as_number(values[layer]), 10)
            page.text(x + panel - 7, y - 13, as_number(dense[layer]), 10, ha="right", color=FAINT)
            page.box(x, y, scale * dense[layer], 16, GREY)
            page.box(x, y, scale * values[layer], 16, BLUE)
        middles = layers + row * np.arange(L) + cell_height // 2 + 8.0
        for series, colour in ((dense, FAINT), (values, BLUE)):
            page.curve(x + scale * series, middles, colour)
        total = f"{as_number(values.sum())} of {as_number(dense.sum())}"
        page.text(x, end + 12, f"{total} ({as_percent(values.sum(), dense.sum())})", 10)
    for i, line in enumerate(note_lines):
        page.text(edge, end + 42 + 20 * i, line, 10, color=FAINT)
    return page


def _draw_step(clip: _Clip, title: str, note: str, layer: int) -> NDArray[np.uint8]:
    """One step of the animation, uint8 [height, width, 3]; layer −1 shows the frames as they are."""
    T, height, width, _ = clip.frames.shape
    grid_rows = max(1, round((T / 2) ** 0.5))
    grid_columns = -(-T // grid_rows)
    cell_width, cell_height = 160, round(160 * height / width)
    gap, edge = 4, 14
    page_width = max(grid_columns * (cell_width + gap) - gap, 560) + 2 * edge
    end = page_width - edge
    title_lines = wrapped(title, page_width - 2 * edge, 11)
    note_lines = wrapped(note, page_width - 2 * edge, 9)
    head = edge + 22 * len(title_lines)
    top = head + 66
    legend = top + grid_rows * (cell_height + gap) + 8
    notes = legend + 24 * -(-len(_shown(clip)) // 2)
    page = Page(page_width, notes + 17 * len(note_lines) + edge)

    for i, line in enumerate(title_lines):
        page.text(edge, edge + 8 + 22 * i, line, 11, weight="bold")
    if layer < 0:
        images, tokens = clip.frames, float(clip.num_tokens)
        page.text(edge, head + 12, f"the clip: {as_count(T, 'frame')}", 13, weight="bold")
        page.text(end, head + 12, f"{as_count(tokens, 'token')} enter layer 1", 10, ha="right")
    else:
        images = painted(clip.frames, clip.states[layer], clip.patch_size)
        tokens = clip.tokens[layer]
        cost = f"{as_number(clip.gflops[layer])} of {as_number(clip.dense[layer])} GFLOPs"
        page.text(edge, head + 12, f"layer {layer + 1} of {clip.num_layers}", 13, weight="bold")
        _draw_cls(page, edge + 180, head + 12, clip, layer)
        of_tokens = f"{as_number(tokens)} of {as_count(clip.num_tokens, 'token')}"
        page.text(end, head + 12, f"{of_tokens} · {cost}", 10, ha="right")
    page.box(edge, head + 34, page_width - 2 * edge, 18, GREY)
    page.box(edge, head + 34, (page_width - 2 * edge) * min(1.0, tokens / clip.num_tokens), 18, BLUE)
    for t, image in enumerate(images):
        row, column = divmod(t, grid_columns)
        x, y = edge + column * (cell_width + gap), top + row * (cell_height + gap)
        page.image(x, y, scaled(image, cell_width, cell_height))
    _draw_legend(page, clip, edge, legend, columns=2, column_width=(page_width - 2 * edge) // 2)
    for i, line in enumerate(note_lines):
        page.text(edge, notes + 8 + 17 * i, line, 9, color=FAINT)
    return page.pixels()


def _draw_legend(page: Page, clip: _Clip, x: int, y: int, columns: int, column_width: int) -> None:
    """What the states look like, on a piece from the middle of the first frame."""
    height, width = clip.frames.shape[1:3]
    side = max(2, min(height, width) // 4)
    piece = clip.frames[:1, (height - side) // 2 :, (width - side) // 2 :][:, :side, :side]
    for i, state in enumerate(_shown(clip)):
        row, column = divmod(i, columns)
        sample = painted(piece, np.full((1, 1, 1), state, np.int8), side)[0]
        left, top = x + column * column_width, y + 24 * row
        page.box(left - 1, top - 1, 20, 20, FAINT)
        page.image(left, top, scaled(sample, 18, 18))
        page.text(left + 27, top + 9, MEANING[state], 10)


def _draw_cls(page: Page, x: float, y: float, clip: _Clip, layer: int) -> None:
    alive = bool(clip.cls_alive[layer])
    page.text(x, y, "● CLS alive" if alive else "○ CLS halted", 10, color=BLUE if alive else FAINT)


def _shown(clip: _Clip) -> list[int]:
    """The states that occur; there is always something alive to explain."""
    return [state for state in MEANING if state == ALIVE or (clip.states == state).any()]
