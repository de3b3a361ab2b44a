"""``refvt evaluate``: accuracy and cost of a model on labelled clips."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import refvt
from refvt import weights
from refvt.checks import printable
from refvt.cli.data_sets import open_annotated_videos, settings_of_videos
from refvt.cli.options import (
    add_backend,
    add_checkpoint,
    add_config,
    checkpoint_settings,
    failure_in_json,
    read_config,
    refuse_checkpoint_settings,
    refuse_options,
)
from refvt.cli.progress import EvaluationBar
from refvt.data.annotations import SAMPLING
from refvt.data.dataset import Dataset
from refvt.data.moving_digits import MovingDigits
from refvt.data.resize import FILTERS
from refvt.evaluation import evaluate
from refvt.evaluation.metrics import Evaluation
from refvt.model.config import HaltingVTConfig
from refvt.model.haltingvt import HaltingVT
from refvt.training.recipe import Recipe

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Measure accuracy, GFLOPs and tokens per layer on labelled videos."

_CHOSEN, _SWITCHES = ("stride", "multi_label", "resize", "sampling"), ("strict", "with_offset", "square_pixels")
_LISTED = 20  # largest number of notes, and of skipped videos, in the printed report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt evaluate``."""
    add_config(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        default=None,
        help="checkpoint, .pth, .safetensors or .npz; default for --data digits: the model that comes with refvt",
    )
    add_checkpoint(parser)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--annotations", type=Path, metavar="LIST", help="annotation list in MMAction's format")
    data.add_argument("--data", choices=["digits"], help="moving digits, in the sizes of the configuration")
    parser.add_argument(
        "--root", type=Path, default=None, help="folder that the list's paths are relative to; default: its own folder"
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=None,
        help="frames between sampled frames; default: that of the recipe, else 32, for anet-…: 64",
    )
    parser.add_argument(
        "--multi-label",
        action=argparse.BooleanOptionalAction,
        help="several labels per video: mAP instead of top-1; default: that of the recipe, else yes for anet-… alone",
    )
    parser.add_argument(
        "--resize",
        choices=FILTERS,
        help="filter that scales the frames; default: that of the recipe; for a preset opencv, as in the released "
        "code; else antialiased",
    )
    parser.add_argument(
        "--sampling",
        choices=list(SAMPLING),
        help="which clip is centred: itself, as in MMAction2 1.0.0 (span), or its window, as in 0.x; default: that of "
        "the recipe, else span",
    )
    parser.add_argument(
        "--with-offset", action="store_true", help="the lines have offsets; only multi-label lists need to be told"
    )
    parser.add_argument(
        "--square-pixels", action="store_true", help="widen frames whose pixels are not square; MMAction does not"
    )
    parser.add_argument("--strict", action="store_true", help="refuse a list with any line that cannot be used")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=N",
        help="settings of the digits: clips, clutter, noise, seed …",
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="clips computed at once; default: 8")
    add_backend(parser)
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.jsonl", help="write a line of JSON per video")
    parser.add_argument("--resume", action="store_true", help="continue the file --out")
    parser.add_argument("--json", action="store_true", help="no progress bar; print the figures as JSON")


def run(options: argparse.Namespace) -> int:
    """Evaluate and print; returns 0, or 1 if no clip could be read. ValueError or OSError for a wrong request."""
    with failure_in_json(options):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    if options.resume and options.out is None:
        raise ValueError("--resume: needs --out, the file to continue")
    recipe: Recipe | None
    if options.weights is None:
        model, recipe = _load_shipped(options)
        config, options.weights = model.config, weights.find_files().weights
        dataset, problems = _open_data_set(options, config, recipe)
    else:
        config, recipe = read_config(options)
        dataset, problems = _open_data_set(options, config, recipe)
        model = refvt.load(options.weights, config, backend=options.backend, **checkpoint_settings(options))
    with closing(EvaluationBar(len(dataset))) as bar:
        observer = None if options.json else bar.add
        done = evaluate(model, dataset, options.batch, out=options.out, resume=options.resume, observer=observer)
    done = replace(done, skipped=[*problems, *done.skipped])
    if options.json:
        print(json.dumps({"weights": str(options.weights), "data": repr(dataset), **asdict(done)}, indent=1))
    else:
        print(printable(f"{options.weights} on {dataset!r}"))
        print(printable("\n".join(_report(done, config))))
    return 0 if done.clips else 1


def _load_shipped(options: argparse.Namespace) -> tuple[HaltingVT, Recipe]:
    """Load the model that comes with refvt. ValueError if the other options ask for another one."""
    if options.data != "digits":
        raise ValueError("--weights: required with --annotations; the model that comes with refvt knows only digits")
    own = "needs --weights; the model that comes with refvt has its own configuration"
    refuse_options(options, ("preset", "config"), own)
    refuse_checkpoint_settings(options, "needs --weights")
    return weights.load("digits", options.backend)


def _open_data_set(
    options: argparse.Namespace, config: HaltingVTConfig, recipe: Recipe | None
) -> tuple[Dataset, Sequence[str]]:
    """Return the labelled clips and the problems of an annotation list. recipe: the model's, if known."""
    if options.annotations is not None:
        if options.set:
            raise ValueError("--set: only for --data digits")
        root = options.annotations.parent if options.root is None else options.root
        videos = open_annotated_videos(options.annotations, root, config, **_video_settings(options, recipe))
        return videos, videos.problems
    refuse_options(options, ("root", *_CHOSEN, *_SWITCHES), "only for --annotations")
    return _open_digits(options.set, config, recipe.data_settings if recipe and recipe.data == "digits" else {}), ()


def _video_settings(options: argparse.Namespace, recipe: Recipe | None) -> dict[str, Any]:
    """Return the settings of an annotation list: those given, else those with which the model was trained."""
    given = {name: getattr(options, name) for name in _CHOSEN if getattr(options, name) is not None}
    switches = {name: True for name in _SWITCHES if getattr(options, name)}
    return {**settings_of_videos(options, recipe), **given, **switches}


def _open_digits(texts: Sequence[str], config: HaltingVTConfig, settings: Mapping[str, Any]) -> MovingDigits:
    """Return the test set of moving digits in a model's sizes. texts: NAME=VALUE, which replace ``settings``."""
    if config.image_size[0] != config.image_size[1]:
        raise ValueError(f"--data digits: expected a square image_size in the configuration, got {config.image_size}")
    known = {"clips", "digit_size", "clutter", "noise", "seed", "background"}
    chosen: dict[str, Any] = {name: value for name, value in settings.items() if name in known}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            chosen[name] = value if name == "background" else int(value)
        except ValueError:
            raise ValueError(f"--set: expected NAME=N with a whole number N, got {text!r}") from None
    if chosen.keys() - known:
        raise ValueError(f"--set: expected settings among {', '.join(sorted(known))}, got {', '.join(chosen)}")
    size, T, channels = config.image_size[0], config.num_frames, config.channels
    return MovingDigits("test", frames=T, size=size, channels=channels, **chosen)


def _report(done: Evaluation, config: HaltingVTConfig) -> Iterator[str]:
    """Yield the lines of the printed report."""
    yield f"clips read        {done.clips}"
    if done.clips:
        if done.mean_average_precision is not None:
            left_out = f"  ({done.classes_without_clips} classes without clips left out)"
            yield f"mAP               {done.mean_average_precision:.2%}{left_out if done.classes_without_clips else ''}"
        if done.top1 is not None and done.top5 is not None:
            yield f"top-1, top-5      {done.top1:.2%}, {done.top5:.2%}"
        yield f"recognition loss  {done.loss:.4f}"
        yield f"GFLOPs            {done.gflops:.3f}"
        tokens = ", ".join(f"{n:.1f}" for n in done.tokens_per_layer or ())
        yield f"tokens per layer  {tokens}  (of {config.joint_tokens})"
    for title, lines in (("notes", done.notes), ("skipped", done.skipped)):
        if lines:
            yield f"{title}: {len(lines)}"
            yield from (f"  {line}" for line in lines[:_LISTED])
            if len(lines) > _LISTED:
                yield f"  … and {len(lines) - _LISTED} more; --json lists all"
