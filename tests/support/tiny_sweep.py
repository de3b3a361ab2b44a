"""A recipe on moving digits that trains in a second, and in which some tokens halt early and some late."""

from refvt.training.recipe import RECIPES

SETTINGS = {
    "config.image_size": (16, 16),
    "config.patch_size": 4,
    "config.num_frames": 4,
    "config.width": 16,
    "config.num_heads": 2,
    "config.mlp_ratio": 2.0,
    "config.glimpser_depth": 2,
    "config.depth": 5,
    "config.keep_rates": (1.0, 0.5),
    "config.halting_scale": 20.0,
    "config.halting_center": 0.5,
    "data_settings": {"train_clips": 16, "test_clips": 10, "noise": 4},
    "epochs": 2,
    "batch": 8,
    "micro_batch": 8,
    "learning_rate": 1e-4,  # so that halting stays what the initialisation makes it
    "warmup_epochs": 1,
    "ponder_warmup_epochs": 1,
    "ponder_weight": 1e-3,
    "motion_weight": 0.2,
    "static_twins": True,
    "init": "paper",
}


def tiny_recipe(**changes):
    return RECIPES["digits"].changed({**SETTINGS, **changes})
