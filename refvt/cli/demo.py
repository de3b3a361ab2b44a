"""``refvt demo``: the golden files, then the model that comes with refvt on digits it never saw and on a real clip.

1. Is it right? The golden files of the PyTorch run.
2. Does it work? Held-out clips of digits that move over photographs, class by class, and what they cost.
3. Does halting follow the digit? A patch of a frame has the digit in it, or has it in another frame of its clip, or
   never has it. The shares of each that are alive, layer by layer, and a map: the canvas wraps around, so every frame
   can be rolled until its digit is in the middle, and then averaged.
4. Where does it look in a real scene? It was trained on moving digits alone, so the class it gives means nothing; but
   its halting must choose all the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refvt import backends, weights
from refvt.array import Array
from refvt.cli.golden import print_verification, verify_all
from refvt.cli.options import add_backend, add_pictures
from refvt.data import find_sample_video
from refvt.evaluation.patches import GROUPS, alive_by_group, digit_groups, states_of_output
from refvt.evaluation.scenes import SCENE_GROUPS, alive_by_change, change_auc, run_on_scene
from refvt.evaluation.selectivity import lives_of_clips, summarise_lives
from refvt.files import refuse_strangers
from refvt.model import flops
from refvt.model.haltingvt import HaltingVT, Output
from refvt.model.warmup import compile_all
from refvt.training.recipe import make_moving_digits

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Check the golden files; recognise moving digits with the trained model and draw halting."
CLIPS = 256
PICTURES = ("digits.png", "digits.gif", "following.png", "bikes.png", "bikes.gif")

# bikes.mp4: a person walks past a wall, before a camera that stands still
VIDEO, STRIDE, PLACE = "bikes.mp4", 1, 0.8375
WINDOWS = (2, 4)  # rows and columns of windows over the scene


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt demo``."""
    add_backend(parser)
    add_pictures(parser)


def run(options: argparse.Namespace) -> int:
    """Check, classify, measure and draw; 0, or 1 if a golden case failed."""
    refuse_strangers([options.out / name for name in PICTURES], options.overwrite)
    print("1. Golden files: float64 and float32 against the PyTorch run")
    failed = 0
    for dtype in ("float64", "float32"):
        if backends.default() == "jit":
            compile_all(dtype)
        failed += print_verification(verify_all(backends.default(), dtype), dtype)
    show(options.out, options.backend)
    print("\nWhich patches live on a video of your own: refvt halt VIDEO")
    return 1 if failed else 0


def show(out: Path, backend: str | None = None) -> None:
    """Print parts 2 to 4 and draw their pictures into the folder ``out``."""
    from refvt.plots.demo import draw_digits, draw_following

    model, recipe = weights.load("photographs", backend)
    c = model.config
    data = make_moving_digits(recipe.changed({"data_settings.test_clips": CLIPS}))[1]
    clips, classes = data.arrays()
    output = model(clips)
    followed = model(clips, full_ponder=True)  # every token to its own halt, also if CLS has halted before it
    states = states_of_output(c, followed, full_ponder=True)
    out.mkdir(parents=True, exist_ok=True)

    print(f"\n2. Moving digits over photographs: the model that comes with refvt on {CLIPS} clips of digits and")
    print("   photographs that it never saw")
    _print_classes(model, output, classes, data.names)
    sheet, film = draw_digits(clips, states, output.logits, classes, data, out)
    print(f"   one clip of each: {sheet}, {film}")

    print("\n3. Does halting follow the digit? Patches that are alive, every token followed to its own halt")
    shares = alive_by_group(states, digit_groups(data.ink(), c.patch_size))
    _print_layers(shares, GROUPS)
    found = summarise_lives(lives_of_clips(data.ink(), c, followed))
    assert found is not None
    print(f"   A patch with the digit in it lives longer than one that never has it: AUC {found.auc:.2f} (0.5: chance)")
    print(f"   as seen from the digit: {draw_following(states, shares, data, c.patch_size, out)}")

    _show_scene(model, out)


def _print_classes(model: HaltingVT, output: Output, classes: Array, names: tuple[str, ...]) -> None:
    right = output.logits.argmax(axis=1) == classes
    layers = range(1, model.config.joint_depth + 1)
    print(f"   {'class':18s}  right   GFLOPs   tokens entering " + "".join(f"{f'layer {i}':>9s}" for i in layers))
    all_clips = np.ones(len(classes), np.bool_)
    for name, chosen in [*((name, classes == k) for k, name in enumerate(names)), ("all", all_clips)]:
        tokens = "".join(f"{n:9.1f}" for n in output.tokens_per_layer[chosen].mean(axis=0))
        print(f"   {name:18s}{right[chosen].mean():7.1%}{output.gflops[chosen].mean():9.4f}{'':19s}{tokens}")
    full = np.full((1, model.config.joint_depth), model.config.joint_tokens)
    cost = flops.clip_gflops(model.config, full)[0]
    print(f"   {'without halting':18s}{'':7s}{cost:9.4f}{'':19s}{''.join(f'{n:9d}' for n in full[0])}")


def _print_layers(shares: NDArray[np.float64], names: tuple[str, ...]) -> None:
    print(f"   {'':30s}" + "".join(f"{f'layer {i}':>9s}" for i in range(1, len(shares) + 1)))
    for name, of_layer in zip(names, shares.T, strict=True):
        print(f"   {name:30s}" + "".join(f"{share:9.1%}" for share in of_layer))


def _show_scene(model: HaltingVT, out: Path) -> None:
    from refvt.plots.scene import draw_scene

    side, T = model.config.image_size[0], model.config.num_frames
    scene = run_on_scene(model, find_sample_video(VIDEO), WINDOWS, STRIDE, PLACE)
    first, *_, last = scene.frames.indices
    print(f"\n4. A real clip: {VIDEO}, frames {first} to {last}, a person walks past a wall")
    print(f"   The same model in {WINDOWS[0]} × {WINDOWS[1]} windows of {side}×{side} pixels. It was trained on digits")
    print("   alone and cannot say what this is, but it must choose what to compute. Patches that are alive")
    _print_layers(alive_by_change(scene), SCENE_GROUPS)
    print(f"   A patch that changes lives longer than one that does not: AUC {change_auc(scene):.2f} (0.5: chance)")
    files = draw_scene(scene, f"{VIDEO}, {T} frames {STRIDE} apart", out, "bikes")
    print("   " + ", ".join(map(str, files)))
