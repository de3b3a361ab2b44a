"""Data sets in the sizes of a model, as the commands ``train`` and ``evaluate`` need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refvt.data.annotations import AnnotatedVideos
from refvt.model.config import HaltingVTConfig

__all__ = ["open_annotated_videos"]


def open_annotated_videos(annotations: Path, root: Path, config: HaltingVTConfig, **settings: Any) -> AnnotatedVideos:
    """Open an annotation list for a model. settings: those of ``AnnotatedVideos``, stride and so on.

    ValueError if the model does not take 3 channels; the errors of ``AnnotatedVideos``.
    """
    c = config
    if c.channels != 3:
        raise ValueError(f"config.channels: expected 3 for videos, got {c.channels}")
    return AnnotatedVideos(annotations, root, c.num_classes, c.num_frames, image_size=c.image_size, **settings)
