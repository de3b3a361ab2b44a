"""A model on a scene that is larger than its clips: the scene is cut in windows, and each window is a clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.data import read_frames, resize_and_crop
from refvt.evaluation.patches import ALIVE, states_of_output
from refvt.model.haltingvt import HaltingVT

__all__ = ["SCENE_GROUPS", "Scene", "alive_by_change", "cut_windows", "join_windows", "run_on_scene"]

SCENE_GROUPS = ("the fifth that changes most", "the fifth that is lightest", "every patch")


@dataclass(frozen=True)
class Scene:
    """A scene as a model saw it, and what it computed of it.

    images: uint8 [T, height, width, 3], to look at; grey: float [T, rows · P, columns · P], what the model saw, from 0
    to 255; states: int8 [L, T, rows, columns], see ``patches.patch_states``; indices: numbers of the frames.
    """

    images: NDArray[np.uint8]
    grey: Array
    states: NDArray[np.int8]
    indices: Array


def run_on_scene(
    model: HaltingVT, path: Path, windows: tuple[int, int], stride: int, place: float, finer: int = 4
) -> Scene:
    """Run a model on a video in grey, cut in ``windows`` (rows, columns) of the model's own size.

    stride, place: which frames, see ``read_frames``. finer: ``images`` has this many times the resolution that the
    model sees. Errors: those of ``read_frames``.
    """
    c = model.config
    side = c.image_size[0]
    frames = read_frames(path, c.num_frames, stride, place)
    height, width = (n * side * finer for n in windows)
    images = resize_and_crop(frames.images, (height, width), height)
    fine = images @ np.array([0.299, 0.587, 0.114])  # [T, height, width], the weights of Rec. 601
    grey = fine.reshape(len(fine), height // finer, finer, width // finer, finer).mean(axis=(2, 4))
    clips = ((cut_windows(grey, side) - 127.5) / 127.5).astype(np.float32)[:, None]  # [windows, 1, T, side, side]
    output = model(np.repeat(clips, c.channels, axis=1))
    return Scene(images, grey, join_windows(states_of_output(c, output), *windows), frames.indices)


def alive_by_change(scene: Scene) -> NDArray[np.float64]:
    """Share of the patches that is alive, [L, 3], of those named in ``SCENE_GROUPS``.

    A patch's change is its mean distance from its own mean over time.
    """
    T, rows, columns = scene.states.shape[1:]
    P = scene.grey.shape[1] // rows
    by_patch = scene.grey.reshape(T, rows, P, columns, P)
    light, change = by_patch.mean(axis=(2, 4)), np.abs(by_patch - by_patch.mean(axis=0)).mean(axis=(2, 4))
    chosen = [each >= np.quantile(each, 0.8) for each in (change, light)] + [np.ones(light.shape, np.bool_)]
    return np.stack([(scene.states[:, where] == ALIVE).mean(axis=1) for where in chosen], axis=1)


def cut_windows(images: Array, side: int) -> Array:
    """A scene [T, height, width] cut in windows [windows, T, side, side], row by row."""
    T, height, width = images.shape
    cut = images.reshape(T, height // side, side, width // side, side)
    return cut.transpose(1, 3, 0, 2, 4).reshape(-1, T, side, side)


def join_windows(states: NDArray[np.int8], rows: int, columns: int) -> NDArray[np.int8]:
    """States of windows [rows · columns, L, T, r, c] as those of the scene, [L, T, rows · r, columns · c]."""
    _, L, T, r, c = states.shape
    return states.reshape(rows, columns, L, T, r, c).transpose(2, 3, 0, 4, 1, 5).reshape(L, T, rows * r, columns * c)
