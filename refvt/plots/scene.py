"""Pictures of a model on a real scene: where it still computes, layer by layer."""

from __future__ import annotations

from pathlib import Path

from refvt.evaluation.scenes import Scene
from refvt.plots.sheets import SheetClip, halting_film, halting_sheet

__all__ = ["draw_scene"]

TITLE = "A model that was trained on moving digits, on a real clip: which patches live"


def draw_scene(scene: Scene, clip_title: str, out: Path, name: str) -> list[Path]:
    """Draw a scene as a sheet, ``name``.png, and a film, ``name``.gif, in the folder ``out``; returns both paths."""
    (rows, columns), side = scene.windows, scene.grey.shape[1] // scene.windows[0]
    note = (
        f"The model sees the scene in grey, in {rows} × {columns} windows of {side}×{side} pixels, each a clip of its "
        "own. Every token is followed to its own halt. The model cannot say what this is: it was trained on nothing "
        "like it."
    )
    clip = SheetClip(scene.images, scene.states, clip_title)
    halting_sheet([clip], TITLE, note, out / f"{name}.png", columns=1, cell=160)
    halting_film([clip], TITLE, note, out / f"{name}.gif", columns=1, cell=256)
    return [out / f"{name}.png", out / f"{name}.gif"]
