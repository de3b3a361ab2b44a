"""``refvt halt``: HaltingVT on a video; which tokens live in which layer, as numbers, a picture and an animation."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import refvt
from refvt.cli.options import add_backend, add_json, add_pictures, add_preset
from refvt.model.config import HaltingVTConfig

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Run HaltingVT on a video and draw which tokens live, layer by layer."
UNTRAINED = (
    "These weights are not trained. They were set by hand so that a patch lives as long as something moves in it; "
    "the network recognises nothing."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt halt``."""
    parser.add_argument("video", type=Path, help="a video file, or a folder of frames")
    parser.add_argument(
        "--stride", type=int, default=None, help="frames between samples; default: what fits, at most 32"
    )
    parser.add_argument("--weights", type=Path, default=None, help="a checkpoint: .pth, .safetensors or .npz")
    parser.add_argument("--labels", type=Path, default=None, help="class names for --weights, one per line")
    add_json(parser, "print the numbers as JSON")
    add_preset(parser)
    add_backend(parser)
    add_pictures(parser)


def run(options: argparse.Namespace) -> int:
    """Run the model on the video, print and draw; 0. ValueError or OSError for what cannot be read or does not fit."""
    from refvt.evaluation.videos import best_classes, halting_figures, run_on_video
    from refvt.plots.halting import ClipStates, halting_gif, halting_picture
    from refvt.weights.handmade import handmade_parameters

    config = HaltingVTConfig.preset(options.preset)
    names = None if options.labels is None else _read_names(options.labels, config.num_classes)
    if options.weights is None:
        model = refvt.HaltingVT(config, handmade_parameters(config), backend=options.backend)
    else:
        model = refvt.load(options.weights, config, backend=options.backend)
    found = run_on_video(model, options.video, options.stride)
    stem = options.video.stem
    report: dict[str, Any] = {
        "video": str(options.video),
        "preset": options.preset,
        "weights": "handmade" if options.weights is None else str(options.weights),
        **halting_figures(found),
        "picture": str(options.out / f"{stem}.png"),
        "animation": str(options.out / f"{stem}.gif"),
    }
    if options.weights is not None:
        report["classes"] = best_classes(found.output.logits[0], names)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _print(config, report)

    options.out.mkdir(parents=True, exist_ok=True)
    clip = ClipStates.of_output(config, found.frames.images, found.output, full_ponder=True)
    title = f"HaltingVT ({options.preset}) on {options.video.name}"
    note = UNTRAINED if options.weights is None else f"Weights: {options.weights.name}"
    halting_picture(clip, title, note, report["picture"])
    halting_gif(clip, title, note, report["animation"])
    return 0


def _read_names(path: Path, number: int) -> list[str]:
    """Names of classes from a file, one per line."""
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != number:
        raise ValueError(f"{path}: expected {number} class names, one per line, got {len(names)}")
    return names


def _print(config: HaltingVTConfig, report: dict[str, Any]) -> None:
    frames = report["frames"]
    stride = frames[1] - frames[0] if len(frames) > 1 else 0
    print(f"   {report['video']}: {len(frames)} frames, {stride} apart, of {report['frames_available']}")
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
