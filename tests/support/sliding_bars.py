"""A data set in a few lines: a bright bar that slides left, slides right or stands still, on noise."""

import numpy as np

from refvt.model.config import HaltingVTConfig
from refvt.training import Recipe

CONFIG = HaltingVTConfig(
    image_size=(8, 8),
    patch_size=4,
    channels=1,
    num_frames=4,
    width=16,
    num_heads=2,
    mlp_ratio=2.0,
    glimpser_depth=1,
    depth=4,
    keep_rates=(0.75,),
    cls_skip=True,
    halting_scale=4.0,
    halting_center=3.0,
    num_classes=3,
)


def small_recipe(**changes):
    """Four steps of two or three micro-batches an epoch."""
    values = {
        "config": CONFIG,
        "data": "digits",
        "epochs": 2,
        "batch": 8,
        "micro_batch": 4,
        "learning_rate": 3e-3,
        "warmup_epochs": 1,
        "halting_start": 0.3,
        "drop_path": 0.1,
        "label_smoothing": 0.1,
        "max_grad_norm": 1.0,
    }
    return Recipe(**{**values, **changes})


class SlidingBars:
    """Classes 0: left, 1: right, 2: still. Without a generator a clip is the same every time."""

    num_classes = 3

    def __init__(self, clips=30, multi_label=False):
        self.clips, self.multi_label = clips, multi_label

    def __len__(self):
        return self.clips

    def clip(self, index, rng=None):
        rng = rng or np.random.default_rng(index)
        clip = 0.1 * rng.standard_normal((1, 4, 8, 8)).astype(np.float32) - 0.5
        start, move = rng.integers(8), (-1, 1, 0)[index % 3]
        for t in range(4):
            clip[0, t, :, (start + move * t) % 8] = 1
        return clip

    def target(self, index):
        if self.multi_label:
            return np.eye(3, dtype=np.float32)[index % 3]
        return index % 3
