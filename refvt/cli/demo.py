"""``refvt demo``: the model that comes with refvt on digits it never saw and on a real clip, then the golden files.

1. Does it work? Held-out clips of digits that move over photographs, class by class, and what they cost.
2. Does halting follow the digit? A patch of a frame has the digit in it, or has it in another frame of its clip, or
   never has it. The shares of each that are alive, layer by layer, and a map: the canvas wraps around, so every frame
   can be rolled until its digit is in the middle, and then averaged.
3. Where does it look in a real scene? It was trained on moving digits alone, so the class it gives means nothing; but
   its halting must choose all the same.
4. Is it right? The golden files of the PyTorch run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refvt import backends, weights
from refvt.array import Array
from refvt.cli.halt_report import name_frames
from refvt.cli.options import add_backend, add_pictures
from refvt.data import find_sample_video
from refvt.evaluation.patches import GROUPS, alive_by_group, digit_groups, states_of_output
from refvt.evaluation.scenes import SCENE_GROUPS, alive_by_change, change_auc, run_on_scene
from refvt.evaluation.selectivity import lives_of_clips, summarise_lives
from refvt.files import MARK, refuse_strangers, write_whole
from refvt.model import flops
from refvt.model.haltingvt import HaltingVT, Output
from refvt.model.warmup import compile_all
from refvt.training.recipe import make_moving_digits

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Recognise moving digits with the trained model, draw halting, and check the golden files."
CLIPS = 256
CHECK = ("golden", "verify")  # a command of refvt
PICTURES = ("digits.png", "digits.gif", "following.png", "bikes.png", "bikes.gif", "halting.html")

# bikes.mp4: a person walks past a wall, before a camera that moves slowly
VIDEO, STRIDE, PLACE = "bikes.mp4", 1, 0.8375
WINDOWS = (2, 4)  # rows and columns of windows over the scene


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt demo``."""
    add_backend(parser)
    add_pictures(parser)


def run(options: argparse.Namespace) -> int:
    """Classify, measure and draw, then check; 0, or 1 if a golden case failed."""
    refuse_strangers([options.out / name for name in PICTURES], options.overwrite)
    options.out.mkdir(parents=True, exist_ok=True)  # if it cannot be made, that is said before the long work
    fastest = backends.default()
    checks: list[subprocess.Popen[str]] = []
    at_once = fastest == "jit" and _has_threads()  # with one thread the checks would only delay the pictures
    try:
        if at_once:
            checks.append(_start_check("reference", "float64"))
        if (options.backend or fastest) == "jit":
            compile_all(training=False)  # the backward, which only the golden files need, is compiled by their check
        if at_once:
            checks.append(_start_check(fastest, "float32"))
        page = show(options.out, options.backend)
        print(f"\nThe pictures are ready, in {options.out}. In a browser {page} follows every token of the real clip.")
        print("\n4. Golden files: the same mathematics as the PyTorch run?", flush=True)
        if not at_once:
            checks = [_start_check("reference", "float64"), _start_check(fastest, "float32")]
        failed = [_finish(check) for check in checks]
    finally:
        for check in checks:
            check.kill()  # after an error or Ctrl-C; nothing happens to a process that has ended
    print("\nThe same for a video of your own: refvt halt VIDEO --html page.html")
    return 1 if any(failed) else 0


def _has_threads() -> bool:
    from refvt.backends.jit.workspace import num_threads  # imports Numba

    return num_threads() > 1


def _start_check(backend: str, dtype: str) -> subprocess.Popen[str]:
    """Start the check of the golden files in a process of its own, on one thread, while the pictures are drawn."""
    command = [sys.executable, "-m", "refvt", *CHECK, "--backend", backend, "--dtype", dtype]
    quiet = {**os.environ, "REFVT_QUIET": "1", "REFVT_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    check = subprocess.Popen(command, env=quiet, **pipes)
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, check.pid, 10)  # pictures first
    return check


def _finish(check: subprocess.Popen[str]) -> bool:
    """Print what a check printed, when it has ended; whether it failed."""
    out, errors = check.communicate()
    print(out, end="", flush=True)
    if check.returncode:
        print(errors, end="", file=sys.stderr)
    return check.returncode != 0


def show(out: Path, backend: str | None = None) -> Path:
    """Print parts 1 to 3 and draw their pictures into the folder ``out``; returns the halting page, for a browser."""
    from refvt.plots.demo import draw_digits, draw_following

    model, recipe = weights.load("photographs", backend)
    c = model.config
    data = make_moving_digits(recipe.changed({"data_settings.test_clips": CLIPS}))[1]
    clips, classes = data.arrays()
    output = model(clips)
    followed = model(clips, full_ponder=True)  # every token to its own halt, also if CLS has halted before it
    states = states_of_output(c, followed, full_ponder=True)
    out.mkdir(parents=True, exist_ok=True)

    print(f"1. Moving digits over photographs: the model that comes with refvt on {CLIPS} clips of digits and")
    print("   photographs that it never saw")
    _print_classes(model, output, classes, data.names)
    sheet, film = draw_digits(clips, states, output.logits, classes, data, out)
    print(f"   one clip of each: {sheet}, {film}")

    print(
        "\n2. Does halting follow the digit? Patches that are alive, also after CLS has halted and the model could stop"
    )
    shares = alive_by_group(states, digit_groups(data.ink(), c.patch_size))
    _print_layers(shares, GROUPS)
    found = summarise_lives(lives_of_clips(data.ink(), c, followed))
    assert found is not None
    print(f"   A patch with the digit in it lives longer than one that never has it: AUC {found.auc:.2f} (0.5: chance)")
    print("   The model was trained without the motion loss and with a variant of the paper's ponder loss: a patch")
    print("   whose pixels change gets a gradient that makes it halt later. With the paper's ponder loss halting did")
    print("   not follow what moves in our runs (docs/training.md, changing_ponder).")
    print(f"   as seen from the digit: {draw_following(states, shares, data, c.patch_size, out)}")

    return _show_scene(model, out)


def _print_classes(model: HaltingVT, output: Output, classes: Array, names: tuple[str, ...]) -> None:
    c = model.config
    right = output.logits.argmax(axis=1) == classes
    layers = "".join(f"{f'layer {i}':>9s}" for i in range(1, c.joint_depth + 1))
    print(f"   {'':36s}tokens that enter")
    print(f"   {'class':18s}  right   GFLOPs{layers}")
    all_clips = np.ones(len(classes), np.bool_)
    for name, chosen in [*((name, classes == k) for k, name in enumerate(names)), ("all", all_clips)]:
        tokens = "".join(f"{n:9.1f}" for n in output.tokens_per_layer[chosen].mean(axis=0))
        print(f"   {name:18s}{right[chosen].mean():7.1%}{output.gflops[chosen].mean():9.4f}{tokens}")
    full = np.full((1, c.joint_depth), c.joint_tokens)
    cost = flops.clip_gflops(c, full)[0]
    print(f"   {'without halting':18s}{'':7s}{cost:9.4f}{''.join(f'{n:9d}' for n in full[0])}")
    fixed = cost - flops.joint_multiply_adds(c, full[0])[1:].sum() / 1e9
    patches = c.num_frames * c.patches_per_frame
    print(
        f"   {c.joint_tokens} tokens are CLS and the {c.joint_tokens - 1} of {patches} patches that the Glimpser keeps."
    )
    print(f"   Every clip costs {fixed:.4f} GFLOPs up to and with layer 1; halting saves only in the layers after it.")


def _print_layers(shares: NDArray[np.float64], names: tuple[str, ...]) -> None:
    print(f"   {'':30s}" + "".join(f"{f'layer {i}':>9s}" for i in range(1, len(shares) + 1)))
    for name, of_layer in zip(names, shares.T, strict=True):
        print(f"   {name:30s}" + "".join(f"{share:9.1%}" for share in of_layer))


def _show_scene(model: HaltingVT, out: Path) -> Path:
    from refvt.plots.scene import draw_scene, scene_page

    side = model.config.image_size[0]
    scene = run_on_scene(model, find_sample_video(VIDEO), WINDOWS, STRIDE, PLACE)
    title = f"{VIDEO}, {name_frames(scene.frames.indices.tolist(), scene.frames.num_available)}"
    print(f"\n3. A real clip: {title}: a person walks past a wall, the camera moves slowly")
    print(f"   The same model in {WINDOWS[0]} × {WINDOWS[1]} windows of {side}×{side} pixels. It was trained on digits")
    print("   alone and cannot say what this is, but it must choose what to compute. Patches that are alive")
    _print_layers(alive_by_change(scene), SCENE_GROUPS)
    print(f"   A patch that changes lives longer than one that does not: AUC {change_auc(scene):.2f} (0.5: chance)")
    print("   " + ", ".join(map(str, draw_scene(scene, title, out, "bikes"))))
    page = out / "halting.html"
    write_whole(page, f"{scene_page(model, scene, title)}\n{MARK['.html']}\n".encode())
    return page
