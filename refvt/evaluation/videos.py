"""A model on one video: which tokens it computes, what that costs, and what it recognises."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refvt.array import Array
from refvt.data import normalise, read_frames, resize_and_crop
from refvt.data.clips import cropped_size
from refvt.data.video import Frames
from refvt.model import flops
from refvt.model.haltingvt import HaltingVT, Output

__all__ = ["VideoRun", "best_classes", "halting_figures", "run_on_video"]


@dataclass(frozen=True)
class VideoRun:
    """A clip of a video and what a model made of it, every token followed to its own halt.

    images: uint8 [T, height, width, 3], what the model saw. frames: the whole frames, which they were cut from. seen:
    height and width of the part that the model saw, in pixels of the video. seconds: time of the forward pass, without
    reading the video and compiling kernels.
    """

    model: HaltingVT
    clip: Array  # [C, T, height, width]
    images: NDArray[np.uint8]
    frames: Frames
    seen: tuple[int, int]
    output: Output
    seconds: float


def run_on_video(
    model: HaltingVT,
    path: Path,
    stride: int | None = None,
    resize: str = "antialiased",
    place: float | None = None,
) -> VideoRun:
    """Run a model on a clip of a video. Errors: those of ``read_frames`` and ``resize_and_crop``.

    stride: number of frames from one sampled frame to the next; None: the largest that fits, at most 32. resize: the
    filter; "opencv" for published weights. place: where in the video, see ``read_frames``; None: the centre clip.
    """
    size = model.config.image_size
    frames = read_frames(path, model.config.num_frames, stride, place)
    images = resize_and_crop(frames.images, size, resize=resize)
    clip, seen = normalise(images), cropped_size(frames.images.shape[1:3], size, resize=resize)
    if model.backend != "reference":
        model(clip[None], full_ponder=True)  # compiles the kernels, or loads them
    start = time.perf_counter()
    output = model(clip[None], full_ponder=True)
    return VideoRun(model, clip, images, frames, seen, output, time.perf_counter() - start)


def halting_figures(run: VideoRun) -> dict[str, Any]:
    """Tokens and cost of a run layer by layer, with and without halting, as JSON can hold them."""
    config, tokens = run.model.config, run.output.tokens_per_layer[0]
    full = np.full(config.joint_depth, config.joint_tokens)
    return {
        "tokens_per_layer": [int(n) for n in tokens],
        "gflops_per_layer": [float(g) for g in flops.joint_multiply_adds(config, tokens) / 1e9],
        "gflops_per_layer_without_halting": [float(g) for g in flops.joint_multiply_adds(config, full) / 1e9],
        "gflops": float(run.output.gflops[0]),
        "gflops_without_halting": float(flops.clip_gflops(config, full[None])[0]),
        "mean_ponder": float(np.mean(run.output.ponder)),
        "seconds": run.seconds,
    }


def best_classes(logits: Array, names: list[str] | None = None, number: int = 5) -> list[dict[str, Any]]:
    """The most probable classes of one clip, best first, with their softmax probabilities. logits [K]."""
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    best = np.argsort(-probability, kind="stable")[:number]
    return [{"class": names[i] if names else f"class {i}", "probability": float(probability[i])} for i in best]
