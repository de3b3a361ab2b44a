"""Inference of small models in which tokens halt: a backend that keeps the counts on its device against reference."""

import numpy as np

import refvt
from tests.support.models import relative, small_clips, small_model

# how tokens halt: some early and some late, all at once, CLS before others, none before the end
HALTING = {
    "zero": {"push": 0.7, "seed": 38},  # CLS halts first, together with others, or in the middle
    "masked": {"push": 0.7, "seed": 38, "halted_keys": "masked"},
    "CLS late": {"push": 0.2, "seed": 29, "cls_skip": True},
    "all at once": {"push": 5.0},
    "none": {"push": -5.0},
    "fuse": {"push": 0.4, "seed": 15, "fuse_dropped": True, "keep_rates": (0.5, 0.5)},
    "one joint block": {"push": 0.4, "depth": 3},
}


def check_inference(backend, halting, dtype, tolerance, B=3, calls=1):
    """Check that the backend gives the results of reference, for other clips at every call.

    Returns the backend's model and the different numbers of tokens per layer that occurred.
    """
    reference = small_model(**HALTING[halting], dtype="float64")
    mine = refvt.HaltingVT(reference.config, reference.parameters, backend=backend, dtype=dtype)
    left = set()
    for call in range(calls):
        clips = small_clips(reference.config, B, seed=call).astype(dtype)
        for settings in ({}, {"full_ponder": True}, {"execution": "dense"}):
            expected, found = reference(clips.astype("float64"), **settings), mine(clips, **settings)
            assert np.array_equal(found.decisions.halting_layer, expected.decisions.halting_layer), settings
            assert all(map(np.array_equal, found.decisions.kept, expected.decisions.kept))
            assert np.array_equal(found.alive, expected.alive)
            for name in ("logits", "motion_logits", "features", "ponder"):
                a, b = getattr(found, name), getattr(expected, name)
                assert np.array_equal(np.isnan(a), np.isnan(b))
                assert relative(np.nan_to_num(a), np.nan_to_num(b)) <= tolerance, (call, settings, name)
        left.add(tuple(expected.tokens_per_layer.ravel().tolist()))
    return mine, left
