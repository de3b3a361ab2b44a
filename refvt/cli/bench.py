"""``refvt bench``: time refvt next to PyTorch and to what the machine can do at best."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from refvt import backends
from refvt.backends.jit import workspace
from refvt.bench import torch_model
from refvt.bench.contestants import ENGINES
from refvt.bench.engines import missing_engines
from refvt.bench.forward import QUICK, WORKLOADS, Settings, Sizes, Workload, measure
from refvt.bench.report import render_markdown, render_text
from refvt.bench.training_step import WORKLOADS as TRAINING_WORKLOADS
from refvt.bench.training_step import TrainingWorkload, measure_steps, render_steps
from refvt.cli import bench_kernels
from refvt.cli.options import add_dtype, add_overwrite, at_least_one
from refvt.files import MARK, refuse_strangers, write_whole

__all__ = ["HELP", "add_arguments", "run", "run_training_step"]

HELP = "Time refvt against PyTorch, interleaved, with medians and ratios."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt bench``."""
    parser.add_argument("--backend", nargs="+", default=None, metavar="NAME", help="default: the fastest on the CPU")
    parser.add_argument(
        "--workload", nargs="+", default=None, metavar="NAME", help=f"default: all of {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--clips", type=int, default=1, choices=[1, 4], help="clips in a batch; 4 halt unequally")
    parser.add_argument("--pass", dest="passes", default=None, choices=["forward", "train", "both"])
    parser.add_argument("--repeats", type=int, default=None, metavar="N", help="rounds, default: 9")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="default: all this process may use")
    add_dtype(parser)
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    engines = "time ONNX Runtime and OpenVINO too, forward; needs the extra bench, and some minutes to export the model"
    parser.add_argument("--engines", action="store_true", help=engines)
    parser.add_argument("--json", default=None, metavar="FILE", help="write every sample; - prints nothing but that")
    parser.add_argument("--markdown", default=None, metavar="FILE", help="write the tables; - prints nothing but them")
    parser.add_argument("--growth", default=None, metavar="FILE.png", help="plot time against multiply-adds too")
    parser.add_argument(
        "--training-step",
        action="store_true",
        help=f"time steps with AdamW, at the sizes of training recipes: {', '.join(TRAINING_WORKLOADS)}",
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of two forward passes, no memory: a first look")
    add_overwrite(parser)
    bench_kernels.add_to(parser)


def run(
    options: argparse.Namespace, *, _workloads: Mapping[str, Workload] = WORKLOADS, _sizes: Sizes | None = None
) -> int:
    """Measure, print, write; 0, or 1 if contestants disagree. ValueError for a request that cannot be met."""
    if options.training_step:
        return run_training_step(options)
    names = options.workload or [name for name in _workloads if not options.quick or name in QUICK]
    chosen = _choose_backends(options)
    _check(options, names, _workloads)
    if options.engines:
        _check_engines(options, chosen)
    if options.growth is not None:
        if not options.growth.endswith(".png"):
            raise ValueError(f"--growth: expected a name that ends in .png, got {options.growth!r}")
        if find_spec("matplotlib") is None:
            raise ModuleNotFoundError('drawing pictures needs matplotlib: pip install "refvt[demo]"')
    notes = _notes(options)
    passes = {"forward": [False], "train": [True], "both": [False, True]}
    settings = Settings(
        chosen,
        {name: _workloads[name] for name in names},
        options.threads or workspace.num_threads(),
        passes=passes[options.passes or ("forward" if options.quick else "both")],
        clips=options.clips,
        repeats=options.repeats or (3 if options.quick else 9),
        dtype=options.dtype,
        with_torch=_why_no_torch(options) is None,
        memory=not options.quick,
        growth=(_workloads.get("dense") or next(iter(_workloads.values()))) if options.growth else None,
        notes=notes,
        engines=ENGINES if options.engines else (),
        sizes=_sizes or Sizes(),
    )
    report = measure(settings, _say)
    if options.growth is not None:
        from refvt.plots.charts import draw_growth

        draw_growth(report["growth"], report["environment"]["cpu"], options.growth)
    data = json.dumps({"generator": "refvt", **report}, indent=1, ensure_ascii=False) + "\n"
    _publish(options, data, render_markdown(report), render_text(report))
    return 0 if all(result["agreement"]["holds"] for result in report["results"]) else 1


def run_training_step(
    options: argparse.Namespace, *, _workloads: Mapping[str, TrainingWorkload] = TRAINING_WORKLOADS
) -> int:
    """Measure training steps instead of passes; prints, writes and returns as ``run`` does."""
    for option, untouched in (("clips", 1), ("passes", None), ("growth", None), ("quick", False), ("engines", False)):
        if getattr(options, option) != untouched:
            raise ValueError(f"--training-step: takes no --{option.replace('passes', 'pass')}")
    names = options.workload or list(_workloads)
    _check(options, names, _workloads)
    chosen = _choose_backends(options)
    _notes(options)
    report = measure_steps(
        chosen,
        {name: _workloads[name] for name in names},
        options.threads or workspace.num_threads(),
        _say,
        repeats=options.repeats or 9,
        dtype=options.dtype,
        with_torch=_why_no_torch(options) is None,
    )
    text = render_steps(report["results"])
    _publish(
        options,
        json.dumps({"generator": "refvt", **report}, indent=1) + "\n",
        f"# A training step\n\n```\n{text}```\n",
        text,
    )
    return 0 if all(result["agreement"]["holds"] for result in report["results"]) else 1


def _choose_backends(options: argparse.Namespace) -> list[str]:
    """The backends to time, each once. ValueError for one that cannot be timed here."""
    chosen = list(dict.fromkeys(options.backend or [backends.default()]))
    for name in chosen:
        if name not in backends.BACKENDS:
            raise ValueError(f"--backend: expected some of {', '.join(backends.BACKENDS)}, got {name!r}")
    if "cuda" in chosen and len(chosen) > 1:
        raise ValueError(f"--backend: cuda is timed alone, next to PyTorch on the same GPU; got {', '.join(chosen)}")
    for name in chosen:
        backends.get(name)
    return chosen


def _check_engines(options: argparse.Namespace, chosen: list[str]) -> None:
    """ValueError, or ModuleNotFoundError, if the engines cannot take part."""
    if options.dtype != "float32" or "cuda" in chosen:
        raise ValueError(f"--engines: expected float32 on the CPU, got {options.dtype}, {', '.join(chosen)}")
    why_not = missing_engines() or _why_no_torch(options)
    if why_not is not None:
        raise ModuleNotFoundError(f"--engines: {why_not}")


def _check(options: argparse.Namespace, names: list[str], workloads: Mapping[str, Any]) -> None:
    """Find everything that can be wrong with a request before the first minute is spent."""
    for name in names:
        if name not in workloads:
            raise ValueError(f"--workload: expected some of {', '.join(workloads)}, got {name!r}")
    for option in ("repeats", "threads"):
        at_least_one(f"--{option}", getattr(options, option), 1)
    if options.json == "-" and options.markdown == "-":
        raise ValueError("--json and --markdown: only one of them can be printed")
    for option in ("json", "markdown", "growth"):
        file = getattr(options, option)
        if file not in (None, "-"):
            if not Path(file).parent.is_dir():
                raise ValueError(f"--{option}: no such folder: {Path(file).parent}")
            refuse_strangers([Path(file)], options.overwrite)


def _why_no_torch(options: argparse.Namespace) -> str | None:
    return "--no-torch was given" if options.no_torch else torch_model.missing()


def _notes(options: argparse.Namespace) -> list[str]:
    """Remarks for a reader of the numbers; they are printed at once as well."""
    why_not = _why_no_torch(options)
    notes = [] if why_not is None else [f"PyTorch left out: {why_not}"]
    if "OPENBLAS_CORETYPE" in os.environ:
        kind = os.environ["OPENBLAS_CORETYPE"]
        notes.append(f"OPENBLAS_CORETYPE={kind} is set: these are not the numbers of this CPU's best kernels")
    for note in notes:
        _say(f"warning: {note}")
    return notes


def _say(line: str) -> None:
    """Print a line on stderr about what is being done."""
    print(f"refvt bench: {line}", file=sys.stderr, flush=True)


def _publish(options: argparse.Namespace, data: str, page: str, text: str) -> None:
    """Write the files asked for, whole or not at all, and print one of the three."""
    for file, content in ((options.json, data), (options.markdown, f"{page.rstrip()}\n\n{MARK['.md']}\n")):
        if file not in (None, "-"):
            write_whole(file, content.encode())
    print(data if options.json == "-" else page if options.markdown == "-" else text, end="")
