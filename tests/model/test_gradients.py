"""The gradient of the whole model agrees with central differences in random directions, with fixed decisions."""

import numpy as np
import pytest

import refvt
from tests.support.models import small_batch, small_model

VARIANTS = [
    {"halted_keys": "zero", "cls_skip": False, "fuse_dropped": False, "keep_rates": (1.0, 0.5)},
    {"halted_keys": "masked", "cls_skip": True, "fuse_dropped": True, "keep_rates": (0.9, 0.5)},
    {"halted_keys": "zero", "cls_skip": True, "fuse_dropped": True, "keep_rates": (0.6, 0.5)},
    {"halted_keys": "masked", "cls_skip": False, "fuse_dropped": True, "keep_rates": (0.5, 1.0)},
    {"glimpser_depth": 0, "depth": 3, "keep_rates": ()},
]


@pytest.mark.parametrize(("execution", "drop_path"), [("compact", 0.0), ("dense", 0.4)])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))
def test_gradient_is_the_derivative(variant, execution, drop_path):
    model = small_model(push=0.3, **variant)
    clips, labels, moving = small_batch(model.config)
    settings = {"ponder_weight": 0.3, "motion_weight": 0.7, "label_smoothing": 0.1, "drop_path": drop_path}

    def run(parameters, decisions=None):
        shifted = refvt.HaltingVT(model.config, parameters, backend="reference", dtype="float64")
        rng = np.random.default_rng(5)
        return shifted.loss_and_gradients(
            clips, labels, moving, **settings, execution=execution, rng=rng, decisions=decisions
        )

    loss, gradients = run(model.parameters)
    decisions = loss.output.decisions
    layers = decisions.halting_layer
    assert len(np.unique(layers)) > 1, "the case must halt in several layers to mean anything"
    rng = np.random.default_rng(7)
    for name in gradients:  # the gradient of every parameter on its own
        v = rng.standard_normal(gradients[name].shape)
        h = 1e-4

        def at(step, name=name, v=v):
            return run({**model.parameters, name: model.parameters[name] + step * v}, decisions)[0].total

        slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        predicted = float((gradients[name] * v).sum())
        # 1e-6 of the derivative, and the rounding error of the loss divided by the step
        assert abs(slope - predicted) <= 1e-6 * abs(predicted) + 8 * np.finfo(float).eps * abs(loss.total) / h, name


def test_motion_loss_can_be_left_out():
    model = small_model()
    clips, labels, moving = small_batch(model.config)
    without, gradients = model.loss_and_gradients(clips, labels, None, ponder_weight=0.3)
    zero_weight, same = model.loss_and_gradients(clips, labels, moving, ponder_weight=0.3, motion_weight=0.0)
    assert without.total == zero_weight.total
    assert without.motion == 0
    assert not gradients["motion_head.weight"].any()
    assert all(np.array_equal(gradients[name], same[name]) for name in gradients)


def test_loss_parts_add_up():
    model = small_model(push=0.3)
    clips, labels, moving = small_batch(model.config)
    loss, _ = model.loss_and_gradients(clips, labels, moving, ponder_weight=0.3, motion_weight=0.7)
    assert loss.total == loss.recognition + 0.3 * loss.ponder + 0.7 * loss.motion
    assert loss.ponder == pytest.approx(loss.output.ponder.mean(), rel=1e-14)


def test_soft_labels_of_one_class_are_that_class():
    model = small_model()
    clips, labels, moving = small_batch(model.config)
    hard, hard_gradients = model.loss_and_gradients(clips, labels, moving, label_smoothing=0.1)
    soft, soft_gradients = model.loss_and_gradients(
        clips, np.eye(model.config.num_classes)[labels], moving, label_smoothing=0.1
    )
    assert soft.total == pytest.approx(hard.total, rel=1e-14)
    for name in hard_gradients:
        np.testing.assert_allclose(soft_gradients[name], hard_gradients[name], rtol=1e-12, atol=1e-15)


def test_gradients_have_the_parameters_names_order_and_dtype():
    for dtype in ("float32", "float64"):
        model = small_model(dtype=dtype)
        clips, labels, moving = small_batch(model.config)
        _, gradients = model.loss_and_gradients(clips, labels, moving)
        assert list(gradients) == list(model.parameters)
        for name, value in model.parameters.items():
            assert gradients[name].shape == value.shape
            assert gradients[name].dtype == value.dtype == np.dtype(dtype)
