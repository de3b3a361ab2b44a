"""What must hold for any patch embedding."""

from __future__ import annotations

import numpy as np

from refvt.ops.laws import Computes, Inputs, Law, LawBroken, agree, forward

__all__ = ["LAWS"]


def _tokens(op: Computes, inputs: Inputs) -> np.ndarray:
    """The tokens of the inputs' clips [B, N, D]."""
    y: np.ndarray = forward(op, inputs)[0]["y"]
    return y.reshape(len(inputs["clips"]), -1, y.shape[1])


def cls_sees_no_pixel(op: Computes, inputs: Inputs) -> None:
    """CLS is cls_token + pos_embed[0], whatever the clip shows; it gets no time embedding."""
    tokens = _tokens(op, inputs)
    expected = np.broadcast_to(inputs["cls_token"][0, 0] + inputs["pos_embed"][0, 0], tokens[:, 0].shape)
    if not np.array_equal(tokens[:, 0], expected):
        raise LawBroken("embed: CLS is not cls_token + pos_embed[0]")


def a_patch_sees_only_its_pixels(op: Computes, inputs: Inputs) -> None:
    """Changing one patch of one frame changes the token 1 + s·T + t and no other."""
    clips = inputs["clips"]
    B, _, T, H, W = clips.shape
    P = inputs["weight"].shape[2]
    rows, columns = H // P, W // P
    b, t, i, j = B - 1, T - 1, rows - 1, columns // 2
    changed = clips.copy()
    changed[b, :, t, i * P : (i + 1) * P, j * P : (j + 1) * P] += 1
    differs = (_tokens(op, inputs) != _tokens(op, {**inputs, "clips": changed})).any(axis=2)  # [B, N]
    if [(int(x), int(y)) for x, y in np.argwhere(differs)] != [(b, 1 + (i * columns + j) * T + t)]:
        raise LawBroken(f"embed: patch ({i}, {j}) of frame {t} changed tokens {np.argwhere(differs).tolist()}")


def clips_are_independent(op: Computes, inputs: Inputs) -> None:
    """Reversing the batch reverses the results."""
    tokens, swapped = _tokens(op, inputs), _tokens(op, {**inputs, "clips": inputs["clips"][::-1].copy()})
    patches = inputs["weight"][0].size
    scale = np.abs(inputs["clips"]).max() * np.abs(inputs["weight"]).max() * patches
    agree("embed: the batch", swapped[::-1], tokens, scale + np.abs(tokens), patches)


LAWS: dict[str, tuple[Law, ...]] = {"embed": (cls_sees_no_pixel, a_patch_sees_only_its_pixels, clips_are_independent)}
