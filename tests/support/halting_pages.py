"""Small models whose halting pages the tests read and drive."""

import numpy as np

import refvt
from refvt.plots.halting_page import halting_page

LEAVING = {"halting_scale": 1.0, "halting_center": 0.5}  # CLS halts before the last layer, some tokens do not


def run_model(full_ponder, clips=1, **changes):
    """A random model of 4 × 6 patches, 4 frames and 4 joint layers, with what it returned for random clips."""
    sizes = {"image_size": (64, 96), "width": 32, "num_heads": 2, "depth": 6, "num_frames": 4, "num_classes": 3}
    config = refvt.HaltingVTConfig(**{**sizes, "keep_rates": (0.9, 0.6), **LEAVING, **changes})
    model = refvt.HaltingVT(config, seed=3, backend="reference")
    model.parameters["cls_token"][..., 0] = 3
    x = np.random.default_rng(0).uniform(-1, 1, (clips, 3, 4, 64, 96)).astype(np.float32)
    return model, x, model(x, full_ponder=full_ponder)


def page_of(model, clips, output, title="Noise", note="Nothing to see.", windows=(1, 1), indices=None):
    shape = 4, 64 * windows[0], 96 * windows[1], 3
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    return halting_page(model, clips, output, images, title, note, windows, indices)
