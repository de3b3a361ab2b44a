"""``refvt halt``: a model on a video; which tokens live in which layer, as numbers, a picture, an animation, a page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt.checks import NotFiniteError, printable
from refvt.cli.options import (
    add_backend,
    add_checkpoint,
    add_json,
    add_pictures,
    add_preset,
    checkpoint_settings,
    refuse_checkpoint_settings,
)
from refvt.files import MARK, read_regular, refuse_strangers, write_whole
from refvt.limits import LIST_BYTES
from refvt.model.config import HaltingVTConfig

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Run a model on a video and draw which tokens live, layer by layer."
UNTRAINED = (
    "These weights are not trained. They were set by hand so that a patch lives as long as something moves in it; "
    "the network recognises nothing."
)
TRAINED, HANDMADE = "photographs", "handmade"
STRIDE = 1  # of the trained model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt halt``."""
    parser.add_argument("video", type=Path, help="a video file, or a folder of frames")
    parser.add_argument(
        "--stride",
        type=int,
        default=None,
        help=f"frames between samples; default: {STRIDE} for the trained model, which knows slow motion; else what "
        "fits, at most 32",
    )
    parser.add_argument(
        "--weights",
        default=TRAINED,
        metavar="NAME|FILE",
        help=f"{TRAINED}: the small trained model that comes with refvt, in windows over the frame (default); "
        f"{HANDMADE}: weights of the paper's size set by hand; or a checkpoint: .pth, .safetensors or .npz",
    )
    add_checkpoint(parser)
    parser.add_argument("--labels", type=Path, default=None, help="class names for a checkpoint, one per line")
    add_json(parser, "print the numbers as JSON")
    add_preset(parser)
    add_backend(parser)
    add_pictures(parser)
    parser.add_argument(
        "--html",
        type=Path,
        default=None,
        metavar="FILE",
        help="also write a page, one file for a browser, that shows the life of every token",
    )


def run(options: argparse.Namespace) -> int:
    """Run the model on the video, print and draw; 0. ValueError or OSError for what cannot be read or does not fit."""
    if options.weights in (TRAINED, HANDMADE):
        refuse_checkpoint_settings(options, "expected with a checkpoint only")
    if options.weights == TRAINED:
        if options.labels is not None:
            raise ValueError(f"--labels: expected with a checkpoint only, got {options.labels}")
        return _run_in_windows(options)
    return _run_whole(options)


def _pictures(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the files to draw. FileExistsError, before any work, if there is one that refvt did not make."""
    picture, animation = (options.out / f"{options.video.stem}{ending}" for ending in (".png", ".gif"))
    refuse_strangers([picture, animation, *([options.html] if options.html else [])], options.overwrite)
    return picture, animation


# ---- the trained model, in windows over the frame


def _run_in_windows(options: argparse.Namespace) -> int:
    from refvt import weights
    from refvt.evaluation.scenes import alive_by_change, change_auc, changing_patches, run_on_scene
    from refvt.plots.scene import draw_scene, scene_page

    pictures = _pictures(options)
    model, _ = weights.load(TRAINED, options.backend)
    scene = run_on_scene(model, options.video, stride=STRIDE if options.stride is None else options.stride)
    shares = alive_by_change(scene)
    report: dict[str, Any] = {
        "video": str(options.video),
        "weights": TRAINED,
        "windows": list(scene.windows),
        "frames": [int(i) for i in scene.frames.indices],
        "frames_available": int(scene.frames.num_available),
        "patches": scene.states[0].size,
        "patches_changing": int(changing_patches(scene).sum()),
        "alive_changing_per_layer": _numbers(shares[:, 0]),
        "alive_unchanging_per_layer": _numbers(shares[:, 1]),
        "auc_of_change": _numbers([change_auc(scene)])[0],
        "picture": str(pictures[0]),
        "animation": str(pictures[1]),
        **_page_of(options),
    }
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _print_scene(report)
    options.out.mkdir(parents=True, exist_ok=True)
    frames = report["frames"]
    title = f"{options.video.name}, frames {frames[0]} to {frames[-1]}"
    draw_scene(scene, title, options.out, options.video.stem)
    if options.html is not None:
        write_whole(options.html, f"{scene_page(model, scene, title)}\n{MARK['.html']}\n".encode())
    return 0


def _numbers(values: Any) -> list[float | None]:
    """Values as JSON can hold them; null for NaN."""
    return [None if value != value else float(value) for value in values]


def _print_scene(report: dict[str, Any]) -> None:
    rows, columns = report["windows"]
    _print_frames(report)
    print(f"   The trained model that comes with refvt, in {rows} × {columns} windows over the frame")
    print(f"   {report['patches_changing']} of {report['patches']} patches change between neighbouring frames")
    print("   layer   alive, of those that change   of those that do not")
    pairs = zip(report["alive_changing_per_layer"], report["alive_unchanging_per_layer"], strict=True)
    for layer, shares in enumerate(pairs, start=1):
        changing, other = ("-" if share is None else f"{share:.1%}" for share in shares)
        print(f"   {layer:5d}   {changing:>27s}   {other:>20s}")
    auc = report["auc_of_change"]
    if auc is not None:
        print(f"   A patch that changes lives longer than one that does not: AUC {auc:.2f} (0.5: chance, 1: always)")
    _print_files(report)


# ---- a model of the paper's size, on the whole frame


def _run_whole(options: argparse.Namespace) -> int:
    from refvt.evaluation.videos import best_classes, halting_figures, run_on_video
    from refvt.plots.halting import ClipStates, halting_gif, halting_picture
    from refvt.plots.halting_page import halting_page
    from refvt.weights.handmade import handmade_parameters

    pictures = _pictures(options)
    config = HaltingVTConfig.preset(options.preset)
    names = None if options.labels is None else _read_names(options.labels, config.num_classes)
    trained = options.weights != HANDMADE
    if trained:
        model = refvt.load(options.weights, config, backend=options.backend, **checkpoint_settings(options))
    else:
        model = refvt.HaltingVT(config, handmade_parameters(config), backend=options.backend)
    # a checkpoint gets the pixels of the released code, in which published weights were trained
    found = run_on_video(model, options.video, options.stride, "opencv" if trained else "antialiased")
    if not np.isfinite(found.output.logits).all():
        raise NotFiniteError(f"{options.weights}: expected finite logits, got NaN or infinity")
    report: dict[str, Any] = {
        "video": str(options.video),
        "preset": options.preset,
        "weights": options.weights,
        **halting_figures(found),
        "picture": str(pictures[0]),
        "animation": str(pictures[1]),
        **_page_of(options),
    }
    if trained:
        report["classes"] = best_classes(found.output.logits[0], names)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _print_whole(config, report)

    options.out.mkdir(parents=True, exist_ok=True)
    clip = ClipStates.of_output(config, found.frames.images, found.output, full_ponder=True)
    title = f"HaltingVT ({options.preset}) on {options.video.name}"
    note = f"Weights: {Path(options.weights).name}" if trained else UNTRAINED
    halting_picture(clip, title, note, report["picture"])
    halting_gif(clip, title, note, report["animation"])
    if options.html is not None:
        clips, images, indices = found.clip[None], found.frames.images, report["frames"]
        page = halting_page(model, clips, found.output, images, title, note, indices=indices)
        write_whole(options.html, f"{page}\n{MARK['.html']}\n".encode())
    return 0


def _read_names(path: Path, number: int) -> list[str]:
    """Names of classes from a file, one per line."""
    try:
        text = read_regular(path, LIST_BYTES, "class names").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected class names in UTF-8, got {error}") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != number:
        raise ValueError(f"{path}: expected {number} class names, one per line, got {len(names)}")
    return names


def _print_whole(config: HaltingVTConfig, report: dict[str, Any]) -> None:
    _print_frames(report)
    print(f"   HaltingVT {report['preset']}, {config.joint_tokens} tokens enter the {config.joint_depth} joint blocks")
    if report["weights"] == HANDMADE:
        print(f"   {UNTRAINED}")
    for row in report.get("classes", []):
        print(f"   {row['probability']:6.1%}  {printable(str(row['class']))}")
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
    _print_files(report)


# ---- both


def _page_of(options: argparse.Namespace) -> dict[str, str]:
    """The page as an entry of the report, if one is asked for."""
    return {} if options.html is None else {"page": str(options.html)}


def _print_frames(report: dict[str, Any]) -> None:
    frames = report["frames"]
    stride = frames[1] - frames[0] if len(frames) > 1 else 0
    print(f"   {printable(report['video'])}: {len(frames)} frames, {stride} apart, of {report['frames_available']}")


def _print_files(report: dict[str, Any]) -> None:
    for name in ("picture", "animation", "page"):
        if name in report:
            print(f"   {f'{name}:':10s} {printable(report[name])}")
