"""``refvt halt``: HaltingVT on a video: what lives in which layer, as numbers, a picture and an animation."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt import backends
from refvt.model import flops
from refvt.model.config import PRESETS, HaltingVTConfig
from refvt.model.warmup import compile_all

__all__ = ["add_arguments", "picture_options", "run"]

UNTRAINED = (
    "These weights are not trained. They were set by hand so that a patch lives as long as something moves in it; "
    "the network recognises nothing."
)


def picture_options(parser: argparse.ArgumentParser) -> None:
    """What ``refvt halt`` and ``refvt demo`` both ask for."""
    parser.add_argument(
        "--backend", default=None, choices=list(backends.BACKENDS), help="default: the fastest on the CPU"
    )
    parser.add_argument("--out", type=Path, default=Path("refvt-demo"), help="folder for the pictures")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``refvt halt``."""
    parser.add_argument("video", type=Path, help="a video file, or a folder of frames")
    parser.add_argument(
        "--stride", type=int, default=None, help="frames between samples; default: what fits, at most 32"
    )
    parser.add_argument("--weights", type=Path, default=None, help="a checkpoint: .pth, .safetensors or .npz")
    parser.add_argument("--labels", type=Path, default=None, help="class names for --weights, one per line")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--preset", default="minik-g03-b10", choices=list(PRESETS), help="configuration")
    picture_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run the model on the video, print and draw. ValueError or OSError for what cannot be read or does not fit."""
    from refvt.data import read_clip
    from refvt.weights.handmade import handmade_parameters

    config = HaltingVTConfig.preset(options.preset)
    names = None if options.labels is None else _class_names(options.labels, config.num_classes)
    if options.weights is None:
        model = refvt.HaltingVT(config, handmade_parameters(config), backend=options.backend)
    else:
        model = refvt.load(options.weights, config, backend=options.backend)
    clip, frames = read_clip(options.video, config.num_frames, options.stride, config.image_size)
    if model.backend == "jit":
        compile_all(training=False)
    start = time.perf_counter()
    out = model(clip[None], full_ponder=True)
    seconds = time.perf_counter() - start
    report = _halting_report(config, options, frames, out, seconds)
    if options.weights is not None:
        report["classes"] = _best_classes(out.logits[0], names)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _print_halting(config, report)
    _draw(config, options, frames, out, report)
    return 0


def _class_names(path: Path, number: int) -> list[str]:
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != number:
        raise ValueError(f"{path}: expected {number} class names, one per line, got {len(names)}")
    return names


def _best_classes(logits: Any, names: list[str] | None, number: int = 5) -> list[dict[str, Any]]:
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    best = np.argsort(-probability, kind="stable")[:number]
    return [{"class": names[i] if names else f"class {i}", "probability": float(probability[i])} for i in best]


def _halting_report(config: HaltingVTConfig, options: argparse.Namespace, frames: Any, out: Any, seconds: float) -> Any:
    L, tokens = config.joint_depth, out.tokens_per_layer[0]
    full = np.full(L, config.joint_tokens)
    name = Path(options.video).stem
    return {
        "video": str(options.video),
        "frames": [int(i) for i in frames.indices],
        "frames_available": int(frames.num_available),
        "preset": options.preset,
        "weights": "handmade" if options.weights is None else str(options.weights),
        "tokens_per_layer": [int(n) for n in tokens],
        "gflops_per_layer": [float(g) for g in flops.joint_multiply_adds(config, tokens) / 1e9],
        "gflops_per_layer_without_halting": [float(g) for g in flops.joint_multiply_adds(config, full) / 1e9],
        "gflops": float(out.gflops[0]),
        "gflops_without_halting": float(flops.clip_gflops(config, full[None])[0]),
        "mean_ponder": float(np.mean(out.ponder)),
        "seconds": seconds,
        "picture": str(options.out / f"{name}.png"),
        "animation": str(options.out / f"{name}.gif"),
    }


def _print_halting(config: HaltingVTConfig, report: dict[str, Any]) -> None:
    T, stride = config.num_frames, np.diff(report["frames"])[0] if config.num_frames > 1 else 0
    print(f"   {report['video']}: {T} frames, {stride} apart, of {report['frames_available']}")
    print(f"   HaltingVT {report['preset']}, {config.joint_tokens} tokens enter the {config.joint_depth} joint blocks")
    if report["weights"] == "handmade":
        print(f"   {UNTRAINED}")
    for row in report.get("classes", []):
        print(f"   {row['probability']:6.1%}  {row['class']}")
    print("   layer   tokens alive   GFLOPs   without halting")
    rows = zip(
        report["tokens_per_layer"],
        report["gflops_per_layer"],
        report["gflops_per_layer_without_halting"],
        strict=True,
    )
    for layer, (tokens, cost, full) in enumerate(rows, start=1):
        print(f"   {layer:5d}   {tokens:12d}   {cost:6.3f}   {full:15.3f}")
    print(
        f"   whole clip: {report['gflops']:.2f} GFLOPs against {report['gflops_without_halting']:.2f} without halting, "
        f"mean ponder {report['mean_ponder']:.2f}, {report['seconds']:.1f} s"
    )
    print(f"   picture:   {report['picture']}\n   animation: {report['animation']}")


def _draw(config: HaltingVTConfig, options: argparse.Namespace, frames: Any, out: Any, report: dict[str, Any]) -> None:
    from refvt.plots import halting as plots

    options.out.mkdir(parents=True, exist_ok=True)
    assert out.decisions.kept is not None
    kept = (
        out.decisions.kept[-1][0]
        if out.decisions.kept
        else np.tile(np.arange(config.patches_per_frame), (config.num_frames, 1))
    )
    title = f"HaltingVT ({options.preset}) on {Path(options.video).name}"
    arguments = (
        frames.images,
        config.patch_size,
        kept,
        out.alive[0],
        report["tokens_per_layer"],
        report["gflops_per_layer"],
        report["gflops_per_layer_without_halting"],
        title,
        UNTRAINED if options.weights is None else f"Weights: {options.weights.name}",
    )
    plots.halting_picture(*arguments, report["picture"])
    plots.halting_gif(*arguments, report["animation"])
