"""Clips for the model: reading videos, sampling and scaling frames, augmentation, labelled data sets, static twins."""

from refvt.data.annotations import AnnotatedVideos, ShortVideoWarning
from refvt.data.augmentation import rand_augment, random_flip, random_scale_and_crop
from refvt.data.clips import normalise, preprocess, read_clip, resize_and_crop
from refvt.data.dataset import Dataset, UnreadableClipError
from refvt.data.moving_digits import MovingDigits
from refvt.data.sample_videos import find_sample_video
from refvt.data.sampling import largest_stride, sample_indices
from refvt.data.twins import static_twins
from refvt.data.video import Frames, read_frames

__all__ = [
    "AnnotatedVideos",
    "Dataset",
    "Frames",
    "MovingDigits",
    "ShortVideoWarning",
    "UnreadableClipError",
    "find_sample_video",
    "largest_stride",
    "normalise",
    "preprocess",
    "rand_augment",
    "random_flip",
    "random_scale_and_crop",
    "read_clip",
    "read_frames",
    "resize_and_crop",
    "sample_indices",
    "static_twins",
]
