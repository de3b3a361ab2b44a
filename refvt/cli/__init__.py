"""The command line: ``refvt demo``, ``halt``, ``train``, ``evaluate``, ``experiment``, ``golden``, ``flops``,
``warmup``, ``bench`` and ``info``.

Exit codes: 0 done, 1 a check failed, 2 the request or its input was wrong.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import refvt
from refvt import backends
from refvt.bench import forward as bench
from refvt.cli import bench_kernels
from refvt.cli import evaluate as evaluation
from refvt.cli import experiment as experiments
from refvt.cli import golden as conformance
from refvt.cli import halt as halt_video
from refvt.cli import train as training
from refvt.model import flops
from refvt.model.config import PRESETS, HaltingVTConfig
from refvt.model.warmup import compile_all

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, TypeError, OSError, ImportError, backends.DeviceError) as error:
        return _fail(str(error), 2)


def _fail(message: str, code: int) -> int:
    print(f"refvt: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refvt",
        description="The reference implementation of HaltingVT: a video transformer that halts tokens layer by layer.",
    )
    parser.add_argument("--version", action="version", version=f"refvt {refvt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    demo = command(
        "demo", _demo, "Check the golden files; recognise moving digits with the trained model and draw halting."
    )
    halt_video.picture_options(demo)

    halt_video.add_arguments(
        command("halt", halt_video.run, "Run HaltingVT on a video and draw which tokens live, layer by layer.")
    )

    training.add_arguments(
        command("train", training.run, "Train a HaltingVT by a recipe; under mpiexec, with several processes.")
    )
    evaluation.add_arguments(
        command("evaluate", evaluation.run, "Measure accuracy, GFLOPs and tokens per layer on labelled videos.")
    )

    experiments.add_arguments(
        command("experiment", experiments.run, "Repeat one of the paper's experiments in small, on moving digits.")
    )

    conformance.add_arguments(command("golden", None, "Work with the golden files of the PyTorch run."))

    cost = command("flops", _flops, "Count multiply-adds per part and layer, by convention and as really executed.")
    cost.add_argument("--preset", default="minik-g03-b10", choices=list(PRESETS), help="configuration")
    cost.add_argument(
        "--tokens", default=None, metavar="N1,N2,…", help="tokens alive in each joint block; default: all"
    )
    cost.add_argument("--gflops", type=float, default=None, help="say what this total implies for the share alive")
    cost.add_argument("--json", action="store_true", help="print as JSON")

    warm = command(
        "warmup", _warmup, "Compile the kernels of the jit backend once, so that nothing waits for it later."
    )
    warm.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    warm.add_argument("--forward-only", action="store_true", help="leave out what only training needs")

    timing = command("bench", bench.run, "Time refvt against PyTorch, interleaved, with medians and ratios.")
    bench.add_arguments(timing)
    bench_kernels.add_to(timing)

    info = command("info", _info, "Print versions, backends, presets and where the golden files lie.")
    info.add_argument("--json", action="store_true", help="print as JSON")
    return parser


# ---- demo


def _demo(options: argparse.Namespace) -> int:
    from refvt.cli import demo

    print("1. Golden files: float64 and float32 against the PyTorch run")
    failed = 0
    for dtype in ("float64", "float32"):
        if backends.default() == "jit":
            compile_all(dtype)
        failed += conformance.print_verification(conformance.verify_all(backends.default(), dtype), dtype)
    demo.run(options.out, options.backend)
    print("\nHaltingVT at the paper's size on a video of your own, with weights set by hand: refvt halt VIDEO")
    return 1 if failed else 0


# ---- warmup


def _warmup(options: argparse.Namespace) -> int:
    seconds = compile_all(options.dtype, not options.forward_only)
    print(f"kernels for {options.dtype} are ready, {seconds:.1f} s; they are cached on disk")
    return 0


# ---- flops


def _flops(options: argparse.Namespace) -> int:
    config = HaltingVTConfig.preset(options.preset)
    L, N = config.joint_depth, config.joint_tokens
    tokens = np.full(L, N)
    if options.tokens is not None:
        try:
            tokens = np.array([int(n) for n in options.tokens.split(",")])
        except ValueError:
            raise ValueError(f"--tokens: expected whole numbers with commas, got {options.tokens!r}") from None
        if len(tokens) != L or tokens[0] != N or (np.diff(tokens) > 0).any() or tokens.min() < 0:
            raise ValueError(f"--tokens: expected {L} numbers that begin with {N} and never grow, got {options.tokens}")
    alive = np.arange(N) < tokens[:, None]  # CLS, token 0, lives as long as any
    fixed, really = flops.fixed_multiply_adds(config), flops.executed_fixed_multiply_adds(config)
    by_convention = flops.joint_multiply_adds(config, tokens)
    executed = flops.executed_joint_multiply_adds(config, alive[None])[0]
    report: dict[str, Any] = {
        "preset": options.preset,
        "parts": {part: {"gflops": fixed.get(part, 0) / 1e9, "executed": n / 1e9} for part, n in really.items()},
        "joint": [
            {"layer": i + 1, "tokens": int(n), "gflops": float(c) / 1e9, "executed": float(e) / 1e9}
            for i, (n, c, e) in enumerate(zip(tokens, by_convention, executed, strict=True))
        ],
        "gflops": float(flops.clip_gflops(config, tokens[None])[0]),
        "executed": float(flops.executed_multiply_adds(config, alive[None])[0]) / 1e9,
    }
    if options.gflops is not None:
        low, high = flops.implied_share(config, options.gflops)
        report["implied_share_alive"] = {"gflops": options.gflops, "lowest": low, "highest": high}
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    print(f"{options.preset}: 10⁹ multiply-adds of one clip")
    print(f"{'part':24s}{'tokens':>8s}{'convention':>12s}{'executed':>10s}")
    for part, found in report["parts"].items():
        print(f"{part:24s}{'':8s}{found['gflops']:12.3f}{found['executed']:10.3f}")
    for row in report["joint"]:
        print(f"joint layer {row['layer']:<12d}{row['tokens']:8d}{row['gflops']:12.3f}{row['executed']:10.3f}")
    print(f"{'whole clip':32s}{report['gflops']:12.3f}{report['executed']:10.3f}")
    if options.gflops is not None:
        print(
            f"{options.gflops} GFLOPs: on average {low:.1%} to {high:.1%} of the tokens are alive in the joint blocks"
        )
    return 0


# ---- info


def _info(options: argparse.Namespace) -> int:
    from refvt.conformance.golden import GoldenError, golden_directory, load_manifest

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    try:
        golden: str | None = str(golden_directory())
        cases = len(load_manifest())
    except GoldenError as error:
        golden, cases = str(error), 0
    packages = ("numpy", "numba", "scipy", "imageio", "safetensors", "threadpoolctl", "av", "matplotlib", "torch")
    report = {
        "refvt": refvt.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {package: installed(package) for package in packages},
        "backends": list(backends.available()),
        "default_backend": backends.default(),
        "presets": list(PRESETS),
        "golden": golden,
        "golden_cases": cases,
    }
    if options.json:
        print(json.dumps(report, indent=1))
        return 0
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{package} {found or '(not installed)'}" for package, found in value.items())
        print(f"{name:16s} {', '.join(value) if isinstance(value, list) else value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
