"""Data sets in the sizes of a model, as the commands ``train``, ``evaluate`` and ``halt`` need them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from refvt.data.annotations import RELEASED_VIDEOS, AnnotatedVideos
from refvt.model.config import HaltingVTConfig
from refvt.training.recipe import Recipe

__all__ = ["check_takes_videos", "open_annotated_videos", "settings_of_videos"]


def open_annotated_videos(annotations: Path, root: Path, config: HaltingVTConfig, **settings: Any) -> AnnotatedVideos:
    """Open an annotation list for a model. settings: those of ``AnnotatedVideos``, stride and so on.

    ValueError if the model does not take 3 channels; the errors of ``AnnotatedVideos``.
    """
    c = config
    check_takes_videos(c)
    return AnnotatedVideos(annotations, root, c.num_classes, c.num_frames, image_size=c.image_size, **settings)


def check_takes_videos(config: HaltingVTConfig) -> None:
    """ValueError if a model does not take 3 channels."""
    if config.channels != 3:
        raise ValueError(f"config.channels: expected 3 for videos, got {config.channels}")


def settings_of_videos(options: argparse.Namespace, recipe: Recipe | None) -> dict[str, Any]:
    """Return the settings of the videos on which the model of ``--preset`` or ``--config`` was trained.

    Those of its recipe; for a preset those of the released configuration; nothing where they are not known.
    """
    if recipe is not None:
        return dict(recipe.data_settings) if recipe.data == "videos" else {}
    if options.config is not None:
        return {}
    activitynet = (options.preset or "").startswith("anet-")
    return {"stride": 64 if activitynet else 32, "multi_label": activitynet, **RELEASED_VIDEOS}
