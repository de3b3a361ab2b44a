"""Bad input raises one clear error that names the argument, what was expected and what was given."""

import numpy as np
import pytest

import refvt
from refvt.model.drop_path import draw_drop_path
from tests.support.models import SMALL, small_batch, small_clips, small_model

MODEL = small_model()
CLIPS = small_clips(MODEL.config)


@pytest.mark.parametrize(
    ("clips", "error", "message"),
    [
        (CLIPS[0], ValueError, r"clips: expected 5 axes \[B, 3, 3, 8, 12\].*got shape \[3, 3, 8, 12\]"),
        (CLIPS[None], ValueError, "clips: expected 5 axes"),
        (CLIPS.astype(int), TypeError, "clips: expected floating point pixels .*got int64"),
        ((CLIPS * 255).astype(np.uint8), TypeError, "clips: expected floating point pixels .*got uint8"),
        (CLIPS.astype(complex), TypeError, "complex128"),
        (CLIPS.tolist(), TypeError, "clips: expected a NumPy array .*got list"),
        (CLIPS[:0], ValueError, "clips: expected at least one clip"),
        (CLIPS[..., :11], ValueError, "multiples of patch_size 4, got 8×11"),
        (CLIPS[:, :, :, :4], ValueError, r"clips: expected .*got shape \[3, 3, 3, 4, 12\]"),
        (CLIPS[:, :2], ValueError, "clips: expected"),
        (CLIPS[:, :, :2], ValueError, "clips: expected"),
        (np.where(CLIPS > 2, np.nan, CLIPS), ValueError, "clips: expected finite numbers"),
        (np.where(CLIPS > 2, -np.inf, CLIPS), ValueError, "clips: expected finite numbers"),
    ],
)
def test_bad_clips(clips, error, message):
    for call in (MODEL, MODEL.trace, lambda c: MODEL.loss_and_gradients(c, np.zeros(3, int), np.zeros(3, int))):
        with pytest.raises(error, match=message):
            call(clips)


def test_clips_that_only_float32_cannot_hold():
    model = small_model(dtype="float32")
    with pytest.raises(ValueError, match="clips: expected finite numbers"):
        model(CLIPS * 1e300)


def test_non_contiguous_and_float16_clips_are_copied():
    out = MODEL(CLIPS)
    transposed = np.ascontiguousarray(CLIPS.transpose(4, 3, 2, 1, 0)).transpose(4, 3, 2, 1, 0)
    assert not transposed.flags.c_contiguous
    assert np.array_equal(MODEL(transposed).logits, out.logits)
    half = CLIPS.astype(np.float16)
    assert np.array_equal(MODEL(half).logits, MODEL(half.astype(np.float64)).logits)
    kept = CLIPS.copy()
    kept.setflags(write=False)
    assert np.array_equal(MODEL(kept).logits, out.logits)  # and the caller's array is not written to


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, 1])}, r"labels: expected integers \[3\]"),
        ({"labels": np.array([0, 1, 5])}, "labels: expected class numbers 0 to 4, got 0 to 5"),
        ({"labels": np.array([0, -1, 2])}, "labels: expected class numbers 0 to 4, got -1 to 2"),
        ({"labels": np.array([0.0, 1.0, 2.0])}, "labels: expected integers"),
        ({"labels": np.full((3, 5), np.nan)}, "labels: expected finite soft labels of at least 0, got nan"),
        ({"motion_labels": np.array([0, 1, 2])}, r"motion_labels: expected 3 numbers, .*, got \[0, 1, 2\]"),
        ({"motion_labels": np.array([0, 1])}, r"motion_labels: expected 3 numbers, .*, got int64 \[2\]"),
        ({"patch_ponder_weights": np.full((3, 3, 6), np.inf)}, "patch_ponder_weights: expected finite .*, got inf"),
        ({"ponder_weight": -1.0}, "ponder_weight: expected a number from 0"),
        ({"motion_weight": np.nan}, "motion_weight: expected a number from 0"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected a number from 0 and below 1"),
        ({"drop_path": 1.0, "rng": np.random.default_rng(0)}, "drop_path: expected a number from 0 and below 1"),
        ({"execution": "sparse"}, "execution: expected 'compact' or 'dense', got 'sparse'"),
    ],
)
def test_bad_training_arguments(changes, message):
    clips, labels, moving = small_batch(MODEL.config)
    arguments = {"labels": labels, "motion_labels": moving, **changes}
    with pytest.raises(ValueError, match=message):
        MODEL.loss_and_gradients(clips, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ponder_weight": "half"}, "ponder_weight: expected a number from 0 and below .*, got 'half'"),
        ({"drop_path": True}, "drop_path: expected a number from 0 and below 1, got True"),
        ({"decisions": {"halting_layer": None}}, "decisions: expected refvt.Decisions, got dict"),
    ],
)
def test_training_arguments_of_another_type(changes, message):
    with pytest.raises(TypeError, match=message):
        MODEL.loss_and_gradients(*small_batch(MODEL.config), **changes)


@pytest.mark.parametrize("backend", ["reference", "jit"])
def test_scales_of_another_batch_are_refused(backend):
    """Kernels would read beyond the end of them."""
    model = small_model(backend=backend)
    right = draw_drop_path(model.config, 3, 0.5, np.random.default_rng(0))
    model.loss_and_gradients(*small_batch(model.config), drop_path=right)
    block = right.glimpser[1]
    wrong = {
        r"joint: expected finite numbers \[4, 2, 3\], got float64 \[4, 2, 2\]": right._replace(
            joint=right.joint[..., :2]
        ),
        r"glimpser\[1\].spatial: expected finite numbers \[3, 3\], got float64 \[3, 2\]": right._replace(
            glimpser=[right.glimpser[0], block._replace(spatial=block.spatial[:, :2])]
        ),
        r"glimpser\[0\].mlp: expected finite numbers \[3\], got nan": right._replace(
            glimpser=[right.glimpser[0]._replace(mlp=np.full(3, np.nan)), block]
        ),
    }
    for message, scales in wrong.items():
        with pytest.raises(ValueError, match=r"drop_path\." + message):
            model.loss_and_gradients(*small_batch(model.config), drop_path=scales)
    with pytest.raises(ValueError, match="drop_path: expected the scales of 2 Glimpser blocks, got 1"):
        model.trace(CLIPS, gradients=True, drop_path=right._replace(glimpser=right.glimpser[:1]))


def test_drop_path_needs_a_generator():
    with pytest.raises(TypeError, match="rng: drop_path > 0 needs a numpy Generator, got NoneType"):
        MODEL.loss_and_gradients(*small_batch(MODEL.config), drop_path=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept": ()}, "decisions.kept: expected 2 arrays, got 0"),
        (
            {"kept": (np.zeros((3, 3, 6), int), np.zeros((3, 3, 2), int))},
            r"decisions.kept\[1\]: expected integers of shape",
        ),
        ({"kept": (np.zeros((3, 3, 6)), np.zeros((3, 3, 3), int))}, r"decisions.kept\[0\]: expected integers"),
        (
            {"kept": (np.zeros((3, 3, 6), int), np.zeros((3, 3, 3), int))},
            r"decisions.kept\[0\]: expected every patch in its place",
        ),
        ({"halting_layer": np.zeros((3, 9), int)}, "decisions.halting_layer: expected integers of shape"),
        ({"halting_layer": np.full((3, 10), 5)}, "decisions.halting_layer: expected 0 to 4, got 5 to 5"),
    ],
)
def test_bad_decisions(changes, message):
    with pytest.raises(ValueError, match=message):
        MODEL(CLIPS, decisions=refvt.Decisions(**changes))


def test_a_patch_named_twice_is_refused():
    everything = np.broadcast_to(np.arange(6), (3, 3, 6))
    with pytest.raises(
        ValueError, match=r"decisions.kept\[1\]: expected .*, got patch 2 in clip 0, frame 0, which is named twice"
    ):
        MODEL(CLIPS, decisions=refvt.Decisions((everything, np.full((3, 3, 3), 2))))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_size": (8, 13)}, ValueError, "image_size: .*multiples of patch_size 4"),
        ({"image_size": 8}, TypeError, "image_size"),
        ({"width": 17}, ValueError, "width: expected a multiple of num_heads 2, got 17"),
        ({"width": 16.0}, TypeError, "width: expected a whole number"),
        ({"num_frames": 0}, ValueError, "num_frames: expected 1 to"),
        ({"keep_rates": (1.0,)}, ValueError, "keep_rates: expected 2 numbers"),
        ({"keep_rates": (1.0, 0.0)}, ValueError, "keep_rates"),
        ({"keep_rates": (1.0, float("nan"))}, ValueError, "keep_rates"),
        ({"glimpser_depth": 6, "keep_rates": (1.0,) * 6}, ValueError, "glimpser_depth: expected 0 to depth − 1 = 5"),
        ({"epsilon": 0.0}, ValueError, "epsilon"),
        ({"halted_keys": "ghost"}, ValueError, "halted_keys: expected 'zero' or 'masked', got 'ghost'"),
        ({"halting_center": float("inf")}, ValueError, "halting_center: expected a finite number"),
        ({"cls_skip": 1}, TypeError, "cls_skip: expected True or False"),
        ({"num_heads": True}, TypeError, "num_heads"),
    ],
)
def test_bad_configurations(changes, error, message):
    with pytest.raises(error, match=message):
        refvt.HaltingVTConfig(**{**SMALL, **changes})


def test_bad_model_arguments():
    config = MODEL.config
    with pytest.raises(ValueError, match=r"preset: expected one of .*'minik-g03-b10'.*got 'huge'"):
        refvt.HaltingVTConfig.preset("huge")
    with pytest.raises(ValueError, match=r"backend: expected one of .*got 'torch'"):
        refvt.HaltingVT(config, backend="torch")
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'float64', got 'float16'"):
        refvt.HaltingVT(config, dtype="float16")
    with pytest.raises(TypeError, match="config: expected a HaltingVTConfig, got dict"):
        refvt.HaltingVT(SMALL)
    with pytest.raises(ValueError, match="arrays: expected 'numpy' or 'device'"):
        MODEL(CLIPS, arrays="torch")


def test_parameters_that_do_not_fit_are_all_listed():
    parameters = dict(MODEL.parameters)
    del parameters["head.bias"]
    parameters["extra"] = np.zeros(3)
    parameters["norm.weight"] = np.zeros(3)
    parameters["cls_token"] = np.full_like(parameters["cls_token"], np.nan)
    parameters["norm.bias"] = np.zeros(16, dtype=int)
    with pytest.raises(ValueError, match="5 problems") as error:
        refvt.HaltingVT(MODEL.config, parameters)
    for part in (
        "missing: head.bias [5]",
        "unexpected: extra",
        "norm.weight: expected shape [16], got [3]",
        "cls_token: expected finite values, got NaN",
        "norm.bias: expected floating-point numbers, got int64",
    ):
        assert part in str(error.value)
