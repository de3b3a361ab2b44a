"""Pictures and the page of a model on a real scene: where it still computes, layer by layer."""

from __future__ import annotations

from pathlib import Path

from refvt.evaluation.scenes import Scene, clips_of_windows
from refvt.model.haltingvt import HaltingVT
from refvt.plots.halting_page import halting_page
from refvt.plots.sheets import SheetClip, halting_film, halting_sheet

__all__ = ["draw_scene", "scene_page"]

WHICH = "Which patches the small trained model computes"


def draw_scene(scene: Scene, clip_title: str, out: Path, name: str) -> list[Path]:
    """Draw a scene as a sheet, ``name``.png, and a film, ``name``.gif, in the folder ``out``; returns both paths.

    clip_title: what the scene is, the title of both.
    """
    note, clip = _note(scene), SheetClip(scene.images, scene.states, WHICH)
    halting_sheet([clip], clip_title, note, out / f"{name}.png", columns=1, cell=160)
    halting_film([clip], clip_title, note, out / f"{name}.gif", columns=1, cell=256)
    return [out / f"{name}.png", out / f"{name}.gif"]


def scene_page(model: HaltingVT, scene: Scene, title: str) -> str:
    """The halting page of a scene, see ``halting_page``: all its windows in one picture, every token followed."""
    clips = clips_of_windows(scene.grey, model.config)
    output = model(clips, full_ponder=True)
    indices = [int(i) for i in scene.frames.indices]
    title = f"{title} · {WHICH[0].lower()}{WHICH[1:]}"
    return halting_page(model, clips, output, scene.images, title, _note(scene), scene.windows, indices)


def _note(scene: Scene) -> str:
    (rows, columns), side = scene.windows, scene.grey.shape[1] // scene.windows[0]
    return (
        f"The model sees the scene in grey, in {rows} × {columns} windows of {side}×{side} pixels, each a clip of its "
        "own. Every token is followed to its own halt. The model was trained on digits that move over photographs and "
        "cannot say what this is."
    )
