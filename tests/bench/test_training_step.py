"""The step of training that the bench times moves the parameters as AdamW does."""

import numpy as np

import refvt
from refvt.bench import training_step
from refvt.bench.training_step import RefvtStep

CONFIG = refvt.HaltingVTConfig(
    image_size=(32, 32), num_frames=2, width=32, num_heads=2, depth=5, keep_rates=(1.0, 0.5), num_classes=5
)


def test_a_step_moves_the_parameters_by_adamw():
    """The learning rate of the bench is lost in float32; in float64 it must show."""
    rng = np.random.default_rng(0)
    start = refvt.HaltingVT(CONFIG, dtype="float64").parameters
    clips = rng.standard_normal((2, 3, 2, 32, 32))
    step = RefvtStep(CONFIG, start, (clips, np.array([0, 1]), np.array([1, 0])), "reference")
    step()
    step()
    moved = step._model.parameters["head.weight"] - start["head.weight"]
    assert 0 < np.abs(moved).max() <= 2.1 * training_step.RATE
    assert step.losses[1] < step.losses[0]


def test_a_loss_that_is_no_number_does_not_agree():
    for last in (np.nan, np.inf):
        assert not training_step._agreement({"one": [1.0, 1.0], "other": [1.0, last]}, "float32")["holds"]
    assert training_step._agreement({"one": [1.0, 1.0], "other": [1.0, 1.0]}, "float32")["holds"]
