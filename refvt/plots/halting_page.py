"""The halting page: one HTML file in which a reader follows every token of a clip from layer to layer.

``halting_page`` puts frames and numbers into ``halting_page.html``, with its style and its script; the file needs no
server and no network. The numbers stand in it as JSON, with every digit of the model's own.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refvt.array import Array
from refvt.evaluation.patches import kept_patches
from refvt.evaluation.scores import HaltingScores, halting_scores
from refvt.model import flops
from refvt.model.config import HaltingVTConfig
from refvt.model.haltingvt import HaltingVT, Output

__all__ = ["embed_page", "halting_page"]

MOST = 768  # pixels of the longer side of a frame in the page
QUALITY = 82  # of its JPEG


def halting_page(
    model: HaltingVT,
    clips: Array,
    output: Output,
    images: NDArray[np.uint8],
    title: str,
    note: str,
    windows: tuple[int, int] = (1, 1),
    indices: Sequence[int] | None = None,
) -> str:
    """Return the text of an HTML page that shows the life of every token, and tokens and GFLOPs layer by layer.

    clips [B, C, T, height, width], output = model(clips). images uint8 [T, rows · P', columns · P', 3]: the frames to
    show, whose patches have any size P'. windows: (rows, columns) of clips in a frame, B = rows · columns, row by row;
    (1, 1) for one clip. title, note: plain text. indices: the number of each frame in its video, counted from 0. With
    ``full_ponder=True`` the page follows tokens to their own halt, and says which layers are not computed otherwise.
    ValueError or TypeError for arrays that do not fit together.
    """
    config = model.config
    _check(config, output, images, windows, indices)
    scores = halting_scores(model, clips, output)
    data = {
        "frames": [_encode(image) for image in images],
        "indices": None if indices is None else [int(i) for i in indices],
        "grid": list(config.grid),
        "windows": list(windows),
        "layers": config.joint_depth,
        "epsilon": config.epsilon,
        "tokens_entering": config.joint_tokens,
        "gflops_so_far_without_halting": _so_far(config, np.full(config.joint_depth, config.joint_tokens)),
        "clips": [_clip(config, output, scores, b) for b in range(len(output.alive))],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"title": html.escape(title), "note": html.escape(note), "data": text}
    for name in ("css", "js"):
        parts[name] = _read(f"halting_page.{name}")
    return re.sub(r"<!--(\w+)-->", lambda found: parts[found[1]], _read("halting_page.html"))


def embed_page(page: str, height: int = 900) -> str:
    """Return an iframe that holds a page, as HTML for the output of a notebook's cell; ``height`` in pixels."""
    return (
        f'<div><iframe title="The halting page" sandbox="allow-scripts" srcdoc="{html.escape(page)}" '
        f'style="width:100%;height:{height}px;border:1px solid #999"></iframe></div>'
    )


def _read(name: str) -> str:
    return files("refvt.plots").joinpath(name).read_text(encoding="utf-8")


def _check(
    config: HaltingVTConfig,
    output: Output,
    images: NDArray[np.uint8],
    windows: tuple[int, int],
    indices: Sequence[int] | None,
) -> None:
    B, T = len(output.alive), config.num_frames
    if windows[0] * windows[1] != B:
        raise ValueError(f"windows: expected rows · columns = {B} clips, got {windows[0]} × {windows[1]}")
    if images.dtype != np.uint8:
        raise TypeError(f"images: expected uint8, got {images.dtype}")
    if images.ndim != 4 or len(images) != T or images.shape[3] != 3:
        raise ValueError(f"images: expected [{T}, height, width, 3], got {list(images.shape)}")
    rows, columns = (n * m for n, m in zip(config.grid, windows, strict=True))
    height, width = images.shape[1:3]
    if not height or height % rows or width % columns or height // rows != width // columns:
        raise ValueError(f"images: expected {rows} × {columns} square patches, got {height} × {width} pixels")
    if indices is not None and len(indices) != T:
        raise ValueError(f"indices: expected {T} numbers, one per frame, got {len(indices)}")


def _encode(image: NDArray[np.uint8]) -> str:
    """A frame as the data URI of a JPEG."""
    picture, encoded = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((MOST, MOST))
    picture.save(encoded, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def _clip(config: HaltingVTConfig, output: Output, scores: HaltingScores, b: int) -> dict[str, Any]:
    """All that the page says about one clip."""
    halting_layer = output.decisions.halting_layer
    assert halting_layer is not None  # an output has all decisions
    alive, token, fused = output.alive[b].T, *_tokens_of_patches(config, output, b)  # alive [N', L]
    return {
        "token": token.tolist(),
        "fused": fused,
        "scores": [_numbers(h[entered]) for h, entered in zip(scores.scores[b].T, alive, strict=True)],
        "remainders": _numbers(scores.remainders[b]),
        "ponder": _numbers(output.ponder[b]),
        "halting_layer": halting_layer[b].tolist(),
        "tokens_per_layer": output.tokens_per_layer[b].tolist(),
        "gflops_so_far": _so_far(config, output.tokens_per_layer[b]),
    }


def _tokens_of_patches(config: HaltingVTConfig, output: Output, b: int) -> tuple[Array, list[list[int]]]:
    """The token of every patch of every frame [T, S], −1 − g if Glimpser block g dropped it; fused tokens, with frames.

    Blocks count from 0, as in the names of tensors.
    """
    T = config.num_frames
    token: Array = np.zeros((T, config.patches_per_frame), np.int64)
    for g, kept in enumerate(output.decisions.kept or (), start=1):
        for t, of_frame in enumerate(kept[b]):
            dropped = token[t] == 0
            dropped[of_frame[of_frame >= 0]] = False
            token[t, dropped] = -g
    fused = []
    for (t, s), patch in np.ndenumerate(kept_patches(config, output)[b]):
        number = 1 + s * T + t
        if patch < 0:
            fused.append([t, number])
        else:
            token[t, patch] = number
    return token, fused


def _so_far(config: HaltingVTConfig, tokens: Array) -> list[float]:
    """GFLOPs spent before the joint layers, and up to the end of each of them: L + 1 numbers."""
    fixed = sum(flops.fixed_multiply_adds(config).values())
    counts = np.concatenate([[fixed], flops.joint_multiply_adds(config, tokens)]).cumsum()
    return [float(count) / 1e9 for count in counts]


def _numbers(values: Array) -> list[float | None]:
    """Numbers with as many digits as their type needs to be read back exactly; None for NaN."""
    return [None if np.isnan(value) else float(str(value)) for value in values]
