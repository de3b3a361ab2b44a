"""Inference of small models that halt: a column that keeps the counts to itself against the readable one."""

import numpy as np

import refvt
from tests.support.models import relative, small_clips, small_model

# who halts when: some early and some late, by themselves or all at once, CLS before others, nobody
LIVES = {
    "zero": {"push": 0.7, "seed": 38},  # CLS first, among others, and in the middle
    "masked": {"push": 0.7, "seed": 38, "halted_keys": "masked"},
    "CLS late": {"push": 0.2, "seed": 29, "cls_skip": True},
    "all at once": {"push": 5.0},
    "nobody": {"push": -5.0},
    "fuse": {"push": 0.4, "seed": 15, "fuse_dropped": True, "keep_rates": (0.5, 0.5)},
    "one joint block": {"push": 0.4, "depth": 3},
}


def check_inference(backend, life, dtype, tolerance, B=3, calls=1):
    """The same answers, for other clips at every call."""
    right = small_model(**LIVES[life], dtype="float64")
    mine = refvt.HaltingVT(right.config, right.parameters, backend=backend, dtype=dtype)
    left = set()
    for call in range(calls):
        clips = small_clips(right.config, B, seed=call).astype(dtype)
        for settings in ({}, {"full_ponder": True}, {"execution": "dense"}):
            expected, found = right(clips.astype("float64"), **settings), mine(clips, **settings)
            assert np.array_equal(found.decisions.halting_layer, expected.decisions.halting_layer), settings
            assert all(map(np.array_equal, found.decisions.kept, expected.decisions.kept))
            assert np.array_equal(found.alive, expected.alive)
            for name in ("logits", "motion_logits", "features", "ponder"):
                a, b = getattr(found, name), getattr(expected, name)
                assert np.array_equal(np.isnan(a), np.isnan(b))
                assert relative(np.nan_to_num(a), np.nan_to_num(b)) <= tolerance, (call, settings, name)
        left.add(tuple(expected.tokens_per_layer.ravel().tolist()))
    return mine, left
