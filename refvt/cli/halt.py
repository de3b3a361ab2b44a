"""``refvt halt``: a model on a video; which tokens live in which layer, as numbers, a picture, an animation, a page."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import refvt
from refvt.checks import NotFiniteError
from refvt.cli import halt_report
from refvt.cli.data_sets import check_takes_videos, settings_of_videos
from refvt.cli.options import (
    DEFAULT_PRESET,
    add_backend,
    add_checkpoint,
    add_config,
    add_json,
    add_pictures,
    checkpoint_settings,
    read_config,
    refuse_checkpoint_settings,
    refuse_options,
)
from refvt.files import MARK, read_regular, refuse_strangers, write_whole
from refvt.limits import LIST_BYTES

if TYPE_CHECKING:
    from refvt.evaluation.scenes import Scene
    from refvt.evaluation.videos import VideoRun
    from refvt.model.config import HaltingVTConfig

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Run a model on a video and draw which tokens live, layer by layer."
TRAINED, HANDMADE = "photographs", "handmade"
STRIDE = 1  # of the trained model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt halt``."""
    parser.add_argument("video", type=Path, help="a video file, or a folder of frames")
    parser.add_argument(
        "--stride",
        type=int,
        default=None,
        help=f"frames between samples; default: {STRIDE} for the small trained model, which knows slow motion; that of "
        "the recipe, if --config is one; else what fits, at most 32",
    )
    parser.add_argument(
        "--place",
        type=float,
        default=None,
        metavar="0…1",
        help="where in the video the clip is: 0 is the beginning, 1 the end; default: the middle",
    )
    parser.add_argument(
        "--weights",
        default=TRAINED,
        metavar="NAME|FILE",
        help=f"{TRAINED} (default): the small model that comes with refvt, trained on digits that move over "
        f"photographs, in grey, in windows of 48×48 pixels over the frame; {HANDMADE}: weights of the paper's size set "
        "by hand; or a checkpoint: .pth, .safetensors or .npz",
    )
    add_checkpoint(parser)
    parser.add_argument("--labels", type=Path, default=None, help="class names for a checkpoint, one per line")
    add_json(parser, "print the numbers as JSON; frames are counted from 0 in it")
    add_config(parser)
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
    _check(options)
    return _run_in_windows(options) if options.weights == TRAINED else _run_whole(options)


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for an option that would be ignored, or a place outside of the video."""
    if options.weights == TRAINED:
        reason = f"expected with a checkpoint or with --weights {HANDMADE} only"
        refuse_options(options, ("preset", "config"), reason)
    if options.weights in (TRAINED, HANDMADE):
        reason = "expected with a checkpoint only"
        refuse_options(options, ("labels",), reason)
        refuse_checkpoint_settings(options, reason)
    if options.place is not None and not 0 <= options.place <= 1:
        raise ValueError(f"--place: expected a number from 0 to 1, got {options.place}")


def _place(options: argparse.Namespace) -> float | None:
    """The place as ``read_frames`` takes it: below 1."""
    return None if options.place is None else min(options.place, math.nextafter(1, 0))


def _pictures(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the files to draw. FileExistsError, before any work, if there is one that refvt did not make."""
    picture, animation = (options.out / f"{options.video.stem}{ending}" for ending in (".png", ".gif"))
    refuse_strangers([picture, animation, *([options.html] if options.html else [])], options.overwrite)
    return picture, animation


# ---- the trained model, in windows over the frame


def _run_in_windows(options: argparse.Namespace) -> int:
    from refvt import weights
    from refvt.evaluation.scenes import run_on_scene
    from refvt.plots.scene import draw_scene, scene_page

    pictures = _pictures(options)
    model, _ = weights.load(TRAINED, options.backend)
    stride = STRIDE if options.stride is None else options.stride
    scene = run_on_scene(model, options.video, stride=stride, place=_place(options))
    report = {
        "video": str(options.video),
        "weights": TRAINED,
        **_what_was_seen(options, scene),
        **_figures_of_scene(scene),
        **_files(options, pictures),
    }
    _print(options, report, halt_report.lines_of_scene)
    title = _title(options, report)
    draw_scene(scene, title, options.out, options.video.stem)
    if options.html is not None:
        write_whole(options.html, f"{scene_page(model, scene, title)}\n{MARK['.html']}\n".encode())
    return 0


def _figures_of_scene(scene: Scene) -> dict[str, Any]:
    """What the model computed of a scene, and whether it follows what changes, as JSON can hold it."""
    from refvt.evaluation.scenes import (
        alive_by_change,
        change_auc,
        change_threshold,
        changing_patches,
        whole_frame_changes,
    )

    shares = alive_by_change(scene)
    return {
        "windows": list(scene.windows),
        "patches": scene.states[0].size,
        "patches_changing": int(changing_patches(scene).sum()),
        "change_threshold": change_threshold(scene),
        "whole_frame_changes": whole_frame_changes(scene),
        "alive_changing_per_layer": _numbers(shares[:, 0]),
        "alive_unchanging_per_layer": _numbers(shares[:, 1]),
        "auc_of_change": _numbers([change_auc(scene)])[0],
        "gflops": scene.gflops,
        "gflops_without_halting": scene.gflops_without_halting,
    }


def _numbers(values: Any) -> list[float | None]:
    """Values as JSON can hold them; null for NaN."""
    return [None if value != value else float(value) for value in values]


# ---- a model of the paper's size, or of one's own, on the whole frame


def _run_whole(options: argparse.Namespace) -> int:
    from refvt.evaluation.videos import best_classes, halting_figures
    from refvt.plots.halting import ClipStates, halting_gif, halting_picture
    from refvt.plots.halting_page import halting_page

    pictures = _pictures(options)
    config, recipe = read_config(options)
    check_takes_videos(config)
    names = None if options.labels is None else _read_names(options.labels, config.num_classes)
    stride = recipe.data_settings.get("stride") if recipe is not None and options.stride is None else options.stride
    # a checkpoint gets the pixels in which it was trained
    resize = "antialiased" if options.weights == HANDMADE else settings_of_videos(options, recipe).get("resize")
    found = _run_model(options, config, stride, resize or "antialiased")
    report: dict[str, Any] = {
        "video": str(options.video),
        **_name_of_config(options),
        "weights": options.weights,
        **_what_was_seen(options, found),
        **halting_figures(found),
        **_files(options, pictures),
    }
    if options.weights != HANDMADE:
        report["classes"] = best_classes(found.output.logits[0], names)
    _print(options, report, lambda report: halt_report.lines_of_model(config, report))

    clip = ClipStates.of_output(config, found.images, found.output, full_ponder=True)
    name = next(iter(_name_of_config(options).values()))
    title = f"{_title(options, report)} · which patches HaltingVT ({Path(name).name}) computes"
    note = halt_report.UNTRAINED if options.weights == HANDMADE else f"Weights: {Path(options.weights).name}"
    halting_picture(clip, title, note, report["picture"])
    halting_gif(clip, title, note, report["animation"])
    if options.html is not None:
        indices = report["frames"]
        page = halting_page(found.model, found.clip[None], found.output, found.images, title, note, indices=indices)
        write_whole(options.html, f"{page}\n{MARK['.html']}\n".encode())
    return 0


def _run_model(options: argparse.Namespace, config: HaltingVTConfig, stride: int | None, resize: str) -> VideoRun:
    from refvt.evaluation.videos import run_on_video
    from refvt.weights.handmade import handmade_parameters

    if options.weights == HANDMADE:
        model = refvt.HaltingVT(config, handmade_parameters(config), backend=options.backend)
    else:
        model = refvt.load(options.weights, config, backend=options.backend, **checkpoint_settings(options))
    found = run_on_video(model, options.video, stride, resize, _place(options))
    if not np.isfinite(found.output.logits).all():
        raise NotFiniteError(f"{options.weights}: expected finite logits, got NaN or infinity")
    return found


def _name_of_config(options: argparse.Namespace) -> dict[str, str]:
    """The configuration as an entry of the report."""
    if options.config is not None:
        return {"config": str(options.config)}
    return {"preset": options.preset or DEFAULT_PRESET}


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


# ---- both


def _what_was_seen(options: argparse.Namespace, found: Scene | VideoRun) -> dict[str, Any]:
    """Which frames and pixels of the video the model saw, as JSON can hold it; sizes are (height, width)."""
    frames = found.frames
    return {
        "frames": [int(i) for i in frames.indices],
        "frames_available": int(frames.num_available),
        "place": options.place,
        "frame_size": list(frames.images.shape[1:3]),
        "frame_size_seen": list(found.seen),
    }


def _files(options: argparse.Namespace, pictures: tuple[Path, Path]) -> dict[str, str]:
    """The files that are written, as entries of the report."""
    page = {} if options.html is None else {"page": str(options.html)}
    return {"picture": str(pictures[0]), "animation": str(pictures[1]), **page}


def _title(options: argparse.Namespace, report: dict[str, Any]) -> str:
    return f"{options.video.name}, {halt_report.name_frames(report['frames'], report['frames_available'])}"


def _print(
    options: argparse.Namespace, report: dict[str, Any], lines_of: Callable[[dict[str, Any]], Iterator[str]]
) -> None:
    """Print the report and make the folder for the pictures."""
    print(json.dumps(report, indent=1) if options.json else "\n".join(f"   {line}" for line in lines_of(report)))
    options.out.mkdir(parents=True, exist_ok=True)
