"""The command line: ``refvt demo``, ``halt``, ``train``, ``evaluate``, ``experiment``, ``golden``, ``flops``,
``warmup``, ``bench`` and ``info``.

Exit codes: 0 done, 1 a check failed, 2 the request or its input was wrong.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt import backends, flops
from refvt.experiments import bench
from refvt.experiments import command as experiments
from refvt.model.config import PRESETS, HaltingVTConfig
from refvt.training import command as training
from refvt.training import evaluation

__all__ = ["main"]

UNTRAINED = (
    "These weights are not trained. They were set by hand so that a patch lives as long as something moves in it; "
    "the network recognises nothing."
)


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

    def picture_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--backend", default=None, choices=list(backends.COLUMNS), help="default: the fastest on the CPU"
        )
        sub.add_argument("--out", type=Path, default=Path("refvt-demo"), help="folder for the pictures")

    picture_options(
        command(
            "demo", _demo, "Check the golden files; recognise moving digits with the trained model and draw halting."
        )
    )

    halt = command("halt", _halt, "Run HaltingVT on a video and draw which tokens live, layer by layer.")
    halt.add_argument("video", type=Path, help="a video file, or a folder of frames")
    halt.add_argument("--stride", type=int, default=None, help="frames between samples; default: what fits, at most 32")
    halt.add_argument("--weights", type=Path, default=None, help="a checkpoint: .pth, .safetensors or .npz")
    halt.add_argument("--labels", type=Path, default=None, help="class names for --weights, one per line")
    halt.add_argument("--json", action="store_true", help="print the numbers as JSON")
    halt.add_argument("--preset", default="minik-g03-b10", choices=list(PRESETS), help="configuration")
    picture_options(halt)

    training.add_arguments(
        command("train", training.run, "Train a HaltingVT by a recipe; under mpiexec, with several processes.")
    )
    evaluation.add_arguments(
        command("evaluate", evaluation.run, "Measure accuracy, GFLOPs and tokens per layer on labelled videos.")
    )

    experiments.add_arguments(
        command("experiment", experiments.run, "Repeat one of the paper's experiments in small, on moving digits.")
    )

    golden = command("golden", None, "Work with the golden files of the PyTorch run.")
    actions = golden.add_subparsers(required=True, metavar="ACTION")
    verify = actions.add_parser("verify", help="hold a backend against every golden case (needs no torch)")
    verify.add_argument("--backend", default="reference", choices=list(backends.COLUMNS))
    verify.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    verify.add_argument("--golden", type=Path, default=None, help="another folder of golden files")
    verify.add_argument("--tiny", action="store_true", help="only the tiny cases, for slow machines")
    verify.add_argument("--json", action="store_true", help="print every case as JSON")
    verify.set_defaults(run=_golden_verify)
    generate = actions.add_parser("generate", help="write the golden files anew (needs torch and a checkout)")
    generate.add_argument("--out", type=Path, default=None, help="folder to write, default: golden/data")
    generate.add_argument("--check", action="store_true", help="compare with the files there are, change nothing")
    generate.set_defaults(run=_golden_generate)

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

    bench.add_arguments(
        command("bench", bench.run, "Time refvt against PyTorch, interleaved, with medians and ratios.")
    )

    info = command("info", _info, "Print versions, backends, presets and where the golden files lie.")
    info.add_argument("--json", action="store_true", help="print as JSON")
    return parser


# ---- demo and halt


def _demo(options: argparse.Namespace) -> int:
    from refvt import demo

    print("1. Golden files: float64 and float32 against the PyTorch run")
    failed = 0
    for dtype in ("float64", "float32"):
        if backends.default() == "jit":
            _compile(dtype)
        failed += _print_verification(_verify_all(backends.default(), dtype), dtype)
    demo.run(options.out, options.backend)
    print("\nHaltingVT at the paper's size on a video of your own, with weights set by hand: refvt halt VIDEO")
    return 1 if failed else 0


def _halt(options: argparse.Namespace) -> int:
    from refvt.data import read_clip
    from refvt.model.handmade import handmade_parameters

    config = HaltingVTConfig.preset(options.preset)
    names = None if options.labels is None else _class_names(options.labels, config.num_classes)
    if options.weights is None:
        model = refvt.HaltingVT(config, handmade_parameters(config), backend=options.backend)
    else:
        model = refvt.load(options.weights, config, backend=options.backend)
    clip, frames = read_clip(options.video, config.num_frames, options.stride, config.image_size)
    if model.backend == "jit":
        _compile(training=False)
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
    from refvt import plots

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


# ---- warmup


def _compile(dtype: str = "float32", training: bool = True, quiet: bool = False) -> float:
    """Compile or load the jit kernels with a progress line on stderr; returns the seconds it took."""
    from refvt.model.warmup import warm_up

    def line(done: int, of: int, what: str) -> None:
        if not quiet:
            end = "\n" if done == of else ""
            print(f"\rkernels: {done}/{of} {what:30s} {time.perf_counter() - start:5.1f} s", end=end, file=sys.stderr)

    start = time.perf_counter()
    warm_up("jit", dtype, training, line)
    return time.perf_counter() - start


def _warmup(options: argparse.Namespace) -> int:
    seconds = _compile(options.dtype, not options.forward_only)
    print(f"kernels for {options.dtype} are ready, {seconds:.1f} s; they are cached on disk")
    return 0


# ---- golden


def _verify_all(backend: str, dtype: str, directory: Path | None = None, tiny: bool = False) -> list[Any]:
    from refvt.conformance.golden import load_manifest
    from refvt.conformance.verify import verify

    cases = [case for case in load_manifest(directory).values() if case.tiny or not tiny]
    return verify(cases, backend, dtype)


def _print_verification(results: list[Any], dtype: str) -> int:
    """A short table; returns how many cases failed."""
    print(f"   {dtype}   cases   hold   comparisons   largest share of the error budget")
    for kind, label in (("op", "operations"), ("model", "models"), ("training", "training")):
        group = [r for r in results if r.case.kind == kind]
        worst = max((r for r in group if r.worst), key=lambda r: r.worst.share, default=None)
        share = f"{worst.worst.share:6.1%}  {worst.case.name}: {worst.worst.name}" if worst else "–"
        compared = sum(len(r.comparisons) for r in group)
        print(f"   {label:10s}{len(group):5d}{sum(r.holds for r in group):7d}{compared:14d}   {share}")
    for result in results:
        for note in result.ambiguous:
            print(f"   ambiguous: {result.case.name}: {note}")
        if not result.holds:
            reason = result.problem or (
                f"{result.worst.name}: error {result.worst.error:.3g}, allowed {result.worst.allowed:.3g}"
                if result.worst
                else "nothing was compared"
            )
            print(f"   FAILED {result.case.name}: {reason}")
    return sum(not r.holds for r in results)


def _golden_verify(options: argparse.Namespace) -> int:
    backends.get(options.backend)  # one that is not there is one error, not one per case
    results = _verify_all(options.backend, options.dtype, options.golden, options.tiny)
    if not options.json:
        return 1 if _print_verification(results, options.dtype) else 0
    table = [
        {
            "case": r.case.name,
            "holds": r.holds,
            "problem": r.problem,
            "ambiguous": r.ambiguous,
            "comparisons": len(r.comparisons),
            "largest_error": max((c.error for c in r.comparisons), default=None),
            "worst": None if r.worst is None else r.worst.name,
            "share_of_budget": None if r.worst is None else r.worst.share,
        }
        for r in results
    ]
    print(json.dumps(table, indent=1))
    return 0 if all(r.holds for r in results) else 1


def _golden_generate(options: argparse.Namespace) -> int:
    checkout = Path(refvt.__file__).resolve().parent.parent
    if not (checkout / "golden" / "generate.py").is_file():
        return _fail("golden generate: needs a checkout of the repository; an installed package only verifies", 2)
    if find_spec("torch") is None:
        return _fail('golden generate: needs PyTorch: pip install "refvt[torch]"', 2)
    sys.path.insert(0, str(checkout))
    from golden.generate import main as generate

    arguments = ["--check"] if options.check else []
    arguments += [] if options.out is None else ["--out", str(options.out)]
    return int(generate(arguments) or 0)


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
