"""``refvt demo``, after the golden files: the model that comes with refvt, on digits it never saw and on a real clip.

1. Is it right? Held-out clips of moving digits, class by class, and what they cost.
2. Does halting follow the digit? A patch of a frame has the digit in it, or had it or will have it in another frame of
   its clip, or never has it. The shares of each that are alive, layer by layer, and a map: the canvas wraps around, so
   every frame can be rolled until its digit stands in the middle, and then averaged.
3. What does it look at in a real scene? It knows nothing but digits, so what it calls this scene means nothing; but its
   Glimpser and its halting must choose all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refvt import weights
from refvt.array import Array
from refvt.data import MovingDigits, find_sample_video, read_frames, resize_and_crop
from refvt.model import flops
from refvt.model.haltingvt import HaltingVT, Output

__all__ = ["GROUPS", "alive_around", "alive_by_group", "digit_groups", "join_windows", "run", "windows"]

CLIPS = 256
GROUPS = ("digit in it now", "digit in it in another frame", "never a digit in it")

# bikes.mp4: somebody walks past a wall, before a camera that stands still; frames 190 to 211
VIDEO, STRIDE, PLACE = "bikes.mp4", 3, 0.8375
WINDOWS = (2, 4)  # rows and columns of windows over the scene
SHARPER = 4  # so many times finer than the model sees it is the scene in the pictures


def run(out: Path, backend: str | None = None) -> None:
    """Classify, measure, print and draw into the folder `out`. Errors: those of what is used, each one sentence."""
    model, recipe = weights.load("digits", backend)
    known = {name: value for name, value in recipe.data_settings.items() if not name.endswith("_clips")}
    c = model.config
    data = MovingDigits("test", clips=CLIPS, frames=c.num_frames, size=c.image_size[0], channels=c.channels, **known)
    clips, classes = data.arrays()
    output = model(clips)
    states = all_states(model, output)
    out.mkdir(parents=True, exist_ok=True)

    print(f"\n2. Moving digits: the model that comes with refvt on {CLIPS} clips of digits that it never saw")
    _print_classes(model, output, classes, data.names)
    _draw_digits(clips, states, output.logits, classes, data, out)

    print("\n3. Does halting follow the digit? Patches that are alive, of all patches")
    shares = alive_by_group(states, digit_groups(data.ink(), c.patch_size))
    _print_layers(shares, GROUPS)
    print("   of those that the Glimpser kept, so that halting alone shows")
    _print_layers(shares / np.where(shares[0], shares[0], np.nan), GROUPS)
    _draw_following(states, data, shares, c.patch_size, out)

    _real_clip(model, out)


def all_states(model: HaltingVT, output: Output) -> NDArray[np.int8]:
    """What every patch is in every layer of every clip, int8 [B, L, T, rows, columns]; see ``plots.token_states``."""
    from refvt.plots.halting import token_states

    assert output.decisions.kept
    return np.stack(
        [
            token_states(kept, alive, model.config.grid)
            for kept, alive in zip(output.decisions.kept[-1], output.alive, strict=True)
        ]
    )


# ---- 2. held-out digits


def _print_classes(model: HaltingVT, output: Output, classes: Array, names: tuple[str, ...]) -> None:
    right = output.logits.argmax(axis=1) == classes
    layers = range(1, model.config.joint_depth + 1)
    print(f"   {'class':18s}  right   GFLOPs   tokens entering " + "".join(f"{f'layer {i}':>9s}" for i in layers))
    everyone = np.ones(len(classes), np.bool_)
    for name, chosen in [*((name, classes == k) for k, name in enumerate(names)), ("all", everyone)]:
        tokens = "".join(f"{n:9.1f}" for n in output.tokens_per_layer[chosen].mean(axis=0))
        print(f"   {name:18s}{right[chosen].mean():7.1%}{output.gflops[chosen].mean():9.4f}{'':19s}{tokens}")
    full = np.full((1, model.config.joint_depth), model.config.joint_tokens)
    cost = flops.clip_gflops(model.config, full)[0]
    print(f"   {'without halting':18s}{'':7s}{cost:9.4f}{'':19s}{''.join(f'{n:9d}' for n in full[0])}")


def _draw_digits(
    clips: Array, states: NDArray[np.int8], logits: Array, classes: Array, data: MovingDigits, out: Path
) -> None:
    from refvt.plots.sheets import SheetClip, halting_film, halting_sheet

    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    shown = []
    for k, name in enumerate(data.names):
        i = int(np.flatnonzero(classes == k)[0])
        said = int(logits[i].argmax())
        found = "recognised" if said == k else f"taken for {data.names[said]}"
        title = f"{name}: {found} ({probability[i, said]:.0%})"
        shown.append(SheetClip(_bright(clips[i]), states[i], title, said == k))
    title = "One held-out clip of every class, and which patches the trained model computes"
    note = (
        "Percentages: how many of all patches of the clip are alive in a layer. Digits are drawn on grey, so that "
        "living patches can be told from dropped ones; the model sees them on black."
    )
    halting_sheet(shown, title, note, out / "digits.png")
    halting_film(shown, "Which patches of held-out clips the trained model computes", note, out / "digits.gif")
    print(f"   one clip of each: {out / 'digits.png'}, {out / 'digits.gif'}")


def _bright(clip: Array) -> NDArray[np.uint8]:
    """A clip [C, T, height, width] as frames to look at, uint8 [T, height, width, 3]: black becomes grey."""
    grey = np.rint(clip.mean(axis=0) * 72.5 + 182.5)
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


# ---- 3. what halting follows


def digit_groups(ink: NDArray[np.bool_], patch_size: int) -> NDArray[np.int8]:
    """Which of ``GROUPS`` a patch of a frame is in. ink [n, T, height, width] → int8 [n, T, rows, columns]."""
    n, T, height, width = ink.shape
    cut = ink.reshape(n, T, height // patch_size, patch_size, width // patch_size, patch_size)
    now = cut.max(axis=(3, 5))
    ever = np.broadcast_to(now.any(axis=1, keepdims=True), now.shape)
    return np.where(now, 0, np.where(ever, 1, 2)).astype(np.int8)


def alive_by_group(states: NDArray[np.int8], groups: NDArray[np.int8]) -> NDArray[np.float64]:
    """The share of each group that is alive. states [n, L, T, rows, columns], groups [n, T, rows, columns] → [L, 3].

    Dropped and halted patches count as not alive; a group that nobody is in has the share NaN.
    """
    from refvt.plots.halting import ALIVE

    number = np.bincount(groups.ravel(), minlength=len(GROUPS))
    shares = np.empty((states.shape[1], len(GROUPS)))
    for layer in range(states.shape[1]):
        alive = np.bincount(groups[states[:, layer] == ALIVE], minlength=len(GROUPS))
        shares[layer] = alive / np.where(number, number, np.nan)
    return shares


def alive_around(
    states: NDArray[np.int8], centres: NDArray[np.int64], patch_size: int, size: int
) -> NDArray[np.float64]:
    """How often a pixel lies in a living patch, seen from the digit: the mean over clips and frames, [L, size, size].

    states [n, L, T, rows, columns]; centres [n, T, 2], row and column of the digit's middle on the canvas of size ×
    size pixels, which wraps around. The digit's middle comes to pixel size // 2.
    """
    from refvt.plots.halting import ALIVE

    n, T = centres.shape[:2]
    away = np.arange(size) - size // 2
    patches = (centres[..., None] + away) % size // patch_size  # [n, T, 2, size]
    rows, columns = patches[:, :, 0, :, None], patches[:, :, 1, None, :]
    clip, frame = np.arange(n)[:, None, None, None], np.arange(T)[:, None, None]
    return np.stack(
        [(states[clip, layer, frame, rows, columns] == ALIVE).mean(axis=(0, 1)) for layer in range(states.shape[1])]
    )


def _print_layers(shares: NDArray[np.float64], names: tuple[str, ...]) -> None:
    print(f"   {'':30s}" + "".join(f"{f'layer {i}':>9s}" for i in range(1, len(shares) + 1)))
    for name, of_layer in zip(names, shares.T, strict=True):
        print(f"   {name:30s}" + "".join(f"{share:9.1%}" for share in of_layer))


def _draw_following(
    states: NDArray[np.int8], data: MovingDigits, shares: NDArray[np.float64], patch_size: int, out: Path
) -> None:
    from refvt.plots.sheets import following_picture

    maps = alive_around(states, data.places() + data.digit_size // 2, patch_size, data.size)
    title = f"Which patches are alive, as seen from the digit: mean of {len(states)} held-out clips"
    note = (
        "Each frame was rolled until its digit came to the white square. Bright is where patches are most often alive, "
        "on one scale for all maps; the numbers above a map are its darkest and its brightest point. Bars: the share "
        "alive of all patches that have the digit in them in this frame, in another frame of the clip, or never."
    )
    following_picture(maps, shares, GROUPS, data.digit_size, title, note, out / "following.png")
    print(f"   as seen from the digit: {out / 'following.png'}")


# ---- 4. a real clip


def windows(images: Array, side: int) -> Array:
    """A scene [T, height, width] cut in windows [windows, T, side, side], row by row."""
    T, height, width = images.shape
    cut = images.reshape(T, height // side, side, width // side, side)
    return cut.transpose(1, 3, 0, 2, 4).reshape(-1, T, side, side)


def join_windows(states: NDArray[np.int8], rows: int, columns: int) -> NDArray[np.int8]:
    """States of windows [rows · columns, L, T, r, c] as those of the scene, [L, T, rows · r, columns · c]."""
    _, L, T, r, c = states.shape
    return states.reshape(rows, columns, L, T, r, c).transpose(2, 3, 0, 4, 1, 5).reshape(L, T, rows * r, columns * c)


def _real_clip(model: HaltingVT, out: Path) -> None:
    from refvt.plots.halting import ALIVE
    from refvt.plots.sheets import SheetClip, halting_film, halting_sheet

    c = model.config
    side, P = c.image_size[0], c.patch_size
    frames = read_frames(find_sample_video(VIDEO), c.num_frames, STRIDE, PLACE)
    height, width = (n * side * SHARPER for n in WINDOWS)
    images = resize_and_crop(frames.images, (height, width), height)
    fine = images @ np.array([0.299, 0.587, 0.114])  # [T, height, width], the weights of Rec. 601
    T = len(fine)
    grey = fine.reshape(T, height // SHARPER, SHARPER, width // SHARPER, SHARPER).mean(axis=(2, 4))
    clips = ((windows(grey, side) - 127.5) / 127.5).astype(np.float32)[:, None]
    output = model(np.repeat(clips, c.channels, axis=1))
    states = join_windows(all_states(model, output), *WINDOWS)

    by_patch = grey.reshape(T, states.shape[2], P, states.shape[3], P)
    light, change = by_patch.mean(axis=(2, 4)), np.abs(by_patch - by_patch.mean(axis=0)).mean(axis=(2, 4))
    chosen = [each >= np.quantile(each, 0.8) for each in (change, light)] + [np.ones(light.shape, np.bool_)]
    shares = np.stack([(states[:, where] == ALIVE).mean(axis=1) for where in chosen], axis=1)  # [L, 3]
    print(f"\n4. A real clip: {VIDEO}, frames {frames.indices[0]} to {frames.indices[-1]}, somebody walks past a wall")
    print(f"   The same model in {WINDOWS[0]} × {WINDOWS[1]} windows of {side}×{side} pixels. It was trained on digits")
    print("   alone and cannot say what this is, but it must choose what to compute. Patches that are alive, of …")
    _print_layers(shares, ("the fifth that changes most", "the fifth that is lightest", "every patch"))
    clip = SheetClip(images, states, f"{VIDEO}, {T} frames {STRIDE} apart")
    title = "A model that was trained on moving digits alone, on a real clip: where it looks"
    note = (
        f"It sees the scene in grey, in {WINDOWS[0]} × {WINDOWS[1]} windows of {side}×{side} pixels, each a clip of "
        "its own of which the Glimpser keeps the same share. It cannot say what this is; it was never shown anything "
        "like it."
    )
    halting_sheet([clip], title, note, out / "bikes.png", columns=1, cell=160)
    halting_film([clip], title, note, out / "bikes.gif", columns=1, cell=256)
    print(f"   {out / 'bikes.png'}, {out / 'bikes.gif'}")
