"""A model can be pickled and copied; what its dtype cannot hold is refused; messages are short and name the file."""

import copy
import pickle

import numpy as np
import pytest

import refvt
from refvt import backends
from refvt.model.checkpoints import CheckpointError
from tests.support.sliding_bars import CONFIG, SlidingBars

CLIPS = np.stack([SlidingBars().clip(i) for i in range(3)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name in backends.available() if name != "cuda"])
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_computes_the_same_and_is_independent(name, dtype, copied):
    model = refvt.HaltingVT(CONFIG, seed=3, backend=name, dtype=dtype)
    model(CLIPS)  # whatever the first call keeps
    other = copied(model)
    assert (other.config, other.backend, other.dtype) == (model.config, model.backend, model.dtype)
    before = model(CLIPS).logits
    assert np.array_equal(before, other(CLIPS).logits)
    for value in other.parameters.values():
        value += 1
    assert np.array_equal(before, model(CLIPS).logits)


def test_results_can_be_copied():
    model = refvt.HaltingVT(CONFIG, backend="reference")
    out, trace = model(CLIPS), model.trace(CLIPS, gradients=True)
    loss, _ = model.loss_and_gradients(CLIPS, np.array([0, 1, 2]), None)
    for result in (out, loss.output):
        assert np.array_equal(pickle.loads(pickle.dumps(result)).logits, copy.deepcopy(result).logits)
    assert list(pickle.loads(pickle.dumps(trace))) == list(copy.deepcopy(trace)) == list(trace)


@pytest.mark.parametrize("value", [1e39, -1e39, 1e300, 3.5e38])
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_what_float32_cannot_hold_is_refused(tmp_path, value, ending):
    model = refvt.HaltingVT(CONFIG, backend="reference", dtype="float64")
    model.parameters["head.bias"][1] = value
    model.save(tmp_path / f"large{ending}")
    with pytest.raises(CheckpointError, match=r"large\.\w+: .*\n  head\.bias: expected values that float32 can hold"):
        refvt.load(tmp_path / f"large{ending}", CONFIG, backend="reference")
    refvt.load(tmp_path / f"large{ending}", CONFIG, backend="reference", dtype="float64")
    with pytest.raises(ValueError, match=r"head\.bias: expected values that float32 can hold"):
        refvt.HaltingVT(CONFIG, model.parameters, backend="reference")


def test_labels_and_weights_that_float32_cannot_hold_are_refused():
    model = refvt.HaltingVT(CONFIG, backend="reference")
    soft = np.full((3, 3), 1e300)
    with pytest.raises(ValueError, match="labels: expected soft labels that float32 can hold"):
        model.loss_and_gradients(CLIPS, soft, None)
    labels = np.array([0, 1, 2])
    for name in ("ponder_weight", "motion_weight"):
        with pytest.raises(ValueError, match=name):
            model.loss_and_gradients(CLIPS, labels, None, **{name: 1e39})
    with pytest.raises(ValueError, match="patch_ponder_weights: expected numbers that float32 can hold"):
        model.loss_and_gradients(CLIPS, labels, None, patch_ponder_weights=np.full((3, 4, 4), 1e300))


def test_a_misfit_is_short_and_names_the_file(tmp_path):
    names = {f"{'x' * 1000}{i}\x1b[31m": np.zeros(3, np.float32) for i in range(500)}
    path = tmp_path / "others.npz"
    np.savez(path, **names)
    with pytest.raises(CheckpointError) as caught:
        refvt.load(path, CONFIG, backend="reference")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 10_000
    assert "\x1b" not in message
    assert "more" in message


def test_a_flipped_bit_in_a_model_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    refvt.HaltingVT(CONFIG, backend="reference").save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(len(whole) // 2, len(whole), size=8):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: refvt\.sha256: expected"):
            refvt.load(path, CONFIG, backend="reference")
    path.write_bytes(whole)
    refvt.load(path, CONFIG, backend="reference")
