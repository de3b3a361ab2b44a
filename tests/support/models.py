"""Small models in which tokens halt, for the tests of the model."""

import numpy as np

import refvt
from refvt.model.parameters import initial_parameters

SMALL = {
    "image_size": (8, 12),
    "patch_size": 4,
    "num_frames": 3,
    "width": 16,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "glimpser_depth": 2,
    "depth": 6,
    "keep_rates": (1.0, 0.5),
    "num_classes": 5,
}


def small_model(seed=1, spread=0.3, push=0.0, dtype="float64", backend="reference", **changes):
    """A model with random weights; every joint block adds ``push`` to the halting channel."""
    config = refvt.HaltingVTConfig(**{**SMALL, **changes})
    rng = np.random.default_rng(seed)
    parameters = {
        name: value + spread * rng.standard_normal(value.shape)
        for name, value in initial_parameters(config, rng, "float64").items()
    }
    for i in range(config.glimpser_depth, config.depth):
        parameters[f"blocks.{i}.mlp.fc2.bias"][0] += push
    return refvt.HaltingVT(config, parameters, dtype=dtype, backend=backend)


def small_clips(config, B=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((B, config.channels, config.num_frames, *config.image_size))


def small_batch(config, B=3, seed=0):
    """Random clips, labels and motion labels."""
    rng = np.random.default_rng(seed + 100)
    labels = rng.integers(0, config.num_classes, B)
    return small_clips(config, B, seed), labels, rng.integers(0, 2, B)


def relative(a, b):
    """Relative error ‖a − b‖ / ‖b‖, or ‖a‖ if b is zero."""
    norm = np.linalg.norm(b)
    return np.linalg.norm(a - b) / norm if norm > 0 else np.linalg.norm(a)
