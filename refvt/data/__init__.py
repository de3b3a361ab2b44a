"""Clips for the model: reading videos, sampling and scaling their frames, static twins."""

from refvt.data.clips import normalise, preprocess, read_clip, resize_and_crop
from refvt.data.samples import find_sample_video
from refvt.data.sampling import largest_stride, sample_indices
from refvt.data.twins import static_twins
from refvt.data.video import Frames, read_frames

__all__ = [
    "Frames",
    "find_sample_video",
    "largest_stride",
    "normalise",
    "preprocess",
    "read_clip",
    "read_frames",
    "resize_and_crop",
    "sample_indices",
    "static_twins",
]
