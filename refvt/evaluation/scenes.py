"""A model on a scene that is larger than its clips: the scene is cut in windows, and each window is a clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.data import read_frames, resize_and_crop
from refvt.data.change import change_of_patches
from refvt.data.clips import cropped_size
from refvt.data.video import Frames
from refvt.evaluation.patches import ALIVE, DROPPED, states_of_output
from refvt.evaluation.selectivity import auc_of
from refvt.model.config import HaltingVTConfig
from refvt.model.flops import clip_gflops
from refvt.model.haltingvt import HaltingVT

__all__ = [
    "SCENE_GROUPS",
    "Scene",
    "alive_by_change",
    "change_auc",
    "change_threshold",
    "changing_patches",
    "clips_of_windows",
    "cut_windows",
    "join_windows",
    "run_on_scene",
    "whole_frame_changes",
]

CHANGE, ABOVE_NOISE = 4.0, 2.0  # grey levels; times the first quartile of the changes
QUIET = 0.25  # of the patches, the first quartile
SCENE_GROUPS = ("patches that change", "patches that do not")


@dataclass(frozen=True)
class Scene:
    """A scene as a model saw it, and what it computed of it.

    images: uint8 [T, height, width, 3], to look at; grey: float [T, rows · P, columns · P], what the model saw, from 0
    to 255; states: int8 [L, T, rows, columns], see ``patches.patch_states``, every token followed to its own halt;
    windows: rows and columns of windows; frames: the whole frames, which the images were cut from; seen: height and
    width of the part that the model saw, in pixels of the video; gflops: of all windows, with and without halting.
    """

    images: NDArray[np.uint8]
    grey: Array
    states: NDArray[np.int8]
    windows: tuple[int, int]
    frames: Frames
    seen: tuple[int, int]
    gflops: float
    gflops_without_halting: float


def run_on_scene(
    model: HaltingVT,
    path: Path,
    windows: tuple[int, int] | None = None,
    stride: int | None = None,
    place: float | None = None,
    finer: int = 4,
) -> Scene:
    """Run a model on a video in grey, cut in ``windows`` (rows, columns) of the model's own size.

    Every token is followed to its own halt. windows None: two windows along the shorter side of the frame, and as many
    along the longer one as fit. stride, place: which frames, see ``read_frames``. finer: ``images`` has this many times
    the resolution that the model sees. Errors: those of ``read_frames``.
    """
    c = model.config
    side = c.image_size[0]
    frames = read_frames(path, c.num_frames, stride, place)
    if windows is None:
        tall, wide = frames.images.shape[1:3]
        windows = (2, max(1, 2 * wide // tall)) if tall <= wide else (2 * tall // wide, 2)
    height, width = (n * side * finer for n in windows)
    tall, wide = frames.images.shape[1:3]
    short = max(height, -(-width * tall // wide)) if tall <= wide else max(width, -(-height * wide // tall))
    images = resize_and_crop(frames.images, (height, width), short)
    fine = images @ np.array([0.299, 0.587, 0.114])  # [T, height, width], the weights of Rec. 601
    grey = fine.reshape(len(fine), height // finer, finer, width // finer, finer).mean(axis=(2, 4))
    output = model(clips_of_windows(grey, c), full_ponder=True)
    states = join_windows(states_of_output(c, output, full_ponder=True), *windows)
    every = np.full((1, c.joint_depth), c.joint_tokens)
    cost = float(output.gflops.sum()), len(output.gflops) * float(clip_gflops(c, every)[0])
    seen = cropped_size((tall, wide), (height, width), short)
    return Scene(images, grey, states, windows, frames, seen, *cost)


def changing_patches(scene: Scene) -> NDArray[np.bool_]:
    """Return the patches that change between neighbouring frames, [T, rows, columns].

    The change of a patch is the mean of |x_t − x_t'| over its pixels, for the neighbouring frame t' that differs more.
    A patch changes if that is more than ``change_threshold``.
    """
    found: NDArray[np.bool_] = _change(scene) > change_threshold(scene)
    return found


def change_threshold(scene: Scene) -> float:
    """Grey levels: the larger of ``CHANGE`` and ``ABOVE_NOISE`` times the first quartile of all patches' changes.

    The quartile is the camera's noise if a quarter of the scene stands still.
    """
    return _threshold(_change(scene))


def whole_frame_changes(scene: Scene) -> bool:
    """Whether even the quietest quarter of the scene changes, as it does where the camera or the light moves.

    The noise of a camera is new in every frame. So it makes the first frame differ from the last as much as from the
    second. Where the camera moves, the difference grows with the distance in time. Hence the rule for a patch once
    more: the first quartile, over the patches, of the mean of |x_T − x_1| is more than ``CHANGE`` grey levels and
    ``ABOVE_NOISE`` times the first quartile between neighbouring frames.

    Not found is a camera so fast that neighbouring frames have nothing in common, or so slow that noise hides it. False
    for a clip of one frame or two.
    """
    if len(scene.grey) < 3:
        return False
    neighbours = np.stack([scene.grey[:-1], scene.grey[1:]], axis=1)  # clips of two frames
    ends = scene.grey[None, [0, -1]]
    near, far = (change_of_patches(pairs[:, None], _patch_size(scene)) for pairs in (neighbours, ends))
    return float(np.quantile(far, QUIET)) > _threshold(near)


def _patch_size(scene: Scene) -> int:
    size: int = scene.grey.shape[1] // scene.states.shape[2]
    return size


def _change(scene: Scene) -> NDArray[np.float64]:
    """The change of every patch of every frame, [T, rows, columns], in grey levels."""
    change = change_of_patches(scene.grey[None, None], _patch_size(scene))
    return change.reshape(scene.states.shape[1:])


def _threshold(change: NDArray[np.float64]) -> float:
    return max(CHANGE, ABOVE_NOISE * float(np.quantile(change, QUIET)))


def change_auc(scene: Scene) -> float:
    """P(a changing patch lives longer than one that does not) + ½ P(equal), of the patches that were not dropped.

    NaN if all patches are of one kind. 0.5 is blind to change.
    """
    L = len(scene.states)
    changing, lived = changing_patches(scene), (scene.states == ALIVE).sum(axis=0)
    entered = scene.states[0] != DROPPED
    return auc_of(*(np.bincount(lived[entered & which], minlength=L + 1) for which in (changing, ~changing)))


def alive_by_change(scene: Scene) -> NDArray[np.float64]:
    """Share of the patches of each of ``SCENE_GROUPS`` that is alive, [L, 2]; NaN for a group without patches."""
    changing = changing_patches(scene)
    alive = scene.states == ALIVE
    with np.errstate(invalid="ignore"):
        return np.stack(
            [alive[:, which].sum(axis=1) / np.float64(which.sum()) for which in (changing, ~changing)], axis=1
        )


def clips_of_windows(grey: Array, config: HaltingVTConfig) -> Array:
    """The clips that a model gets of a scene's ``grey`` [T, height, width]: float32 [windows, C, T, side, side]."""
    clips = ((cut_windows(grey, config.image_size[0]) - 127.5) / 127.5).astype(np.float32)[:, None]
    return np.repeat(clips, config.channels, axis=1)


def cut_windows(images: Array, side: int) -> Array:
    """A scene [T, height, width] cut in windows [windows, T, side, side], row by row."""
    T, height, width = images.shape
    cut = images.reshape(T, height // side, side, width // side, side)
    return cut.transpose(1, 3, 0, 2, 4).reshape(-1, T, side, side)


def join_windows(states: NDArray[np.int8], rows: int, columns: int) -> NDArray[np.int8]:
    """States of windows [rows · columns, L, T, r, c] as those of the scene, [L, T, rows · r, columns · c]."""
    _, L, T, r, c = states.shape
    return states.reshape(rows, columns, L, T, r, c).transpose(2, 3, 0, 4, 1, 5).reshape(L, T, rows * r, columns * c)
