"""Adam and AdamW against their formulas written out, and against PyTorch's."""

import math

import numpy as np
import pytest

from refvt.backends.jit import workspace
from refvt.ops.optimiser.jit import TILE
from refvt.training.optimiser import Adam, clip_scale, global_norm, select_no_decay
from refvt.training.vectors import Vector

SHAPES = {
    "cls_token": (1, 1, 3),
    "head.weight": (5, 3),
    "big.weight": (2, TILE),
    "norm.weight": (3,),
    "head.bias": (5,),
}
BETAS, EPSILON, DECAY = (0.8, 0.95), 1e-6, 0.1


def drawn(seed, dtype="float64"):
    rng = np.random.default_rng(seed)
    return Vector(SHAPES, dtype).set({name: rng.standard_normal(shape) for name, shape in SHAPES.items()})


def adam(parameters, no_decay, decoupled):
    return Adam(parameters, no_decay, decoupled, DECAY, BETAS, EPSILON)


@pytest.mark.parametrize("decoupled", [True, False])
def test_each_number_moves_as_the_formula_says(decoupled):
    parameters, no_decay = drawn(0), {"cls_token", "norm.weight"}
    expected = parameters.vector.tolist()
    names = [name for name, place in parameters.places.items() for _ in range(place.stop - place.start)]
    checked = [*range(0, len(names), 997), *range(len(names) - 9, len(names))]
    m, v = dict.fromkeys(checked, 0.0), dict.fromkeys(checked, 0.0)
    optimiser = adam(parameters, no_decay, decoupled)
    for t in (1, 2, 3):
        rate, scale, gradients = 0.1 / t, 0.5 * t, drawn(t)
        before = gradients.vector.copy()
        optimiser.step(gradients, rate, scale)
        assert np.array_equal(gradients.vector, before)
        for i in checked:
            w, g = expected[i], scale * float(before[i])
            decay = 0.0 if names[i] in no_decay else DECAY
            if decoupled:
                w = w - rate * decay * w
            else:
                g = g + decay * w
            m[i] = BETAS[0] * m[i] + (1 - BETAS[0]) * g
            v[i] = BETAS[1] * v[i] + (1 - BETAS[1]) * g * g
            mean, square = m[i] / (1 - BETAS[0] ** t), v[i] / (1 - BETAS[1] ** t)
            expected[i] = w - rate * mean / (math.sqrt(square) + EPSILON)
        # a dozen roundings a step, of numbers of order one
        assert parameters.vector[checked] == pytest.approx([expected[i] for i in checked], rel=0, abs=1e-14)
    assert optimiser.steps == 3


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("decoupled", [True, False])
def test_steps_are_those_of_pytorch(decoupled, dtype):
    torch = pytest.importorskip("torch")
    parameters, no_decay = drawn(0, dtype), {"cls_token", "norm.weight", "head.bias"}
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in parameters.arrays.items()}
    groups = [
        {"params": [w for name, w in theirs.items() if name not in no_decay], "weight_decay": DECAY},
        {"params": [w for name, w in theirs.items() if name in no_decay], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    other = kind(groups, betas=BETAS, eps=EPSILON)
    optimiser = adam(parameters, no_decay, decoupled)
    for t in range(1, 6):
        gradients, rate, largest = drawn(t, dtype), 0.1 / t, 20.0 * t**2
        for name, w in theirs.items():
            w.grad = torch.tensor(gradients.arrays[name])
        norm = float(torch.nn.utils.clip_grad_norm_(list(theirs.values()), largest))
        for group in other.param_groups:
            group["lr"] = rate
        other.step()
        assert global_norm(gradients) == pytest.approx(norm, rel=1e-5)
        optimiser.step(gradients, rate, clip_scale(norm, largest, 1e-6))  # PyTorch's way to clip
    # five steps of a dozen roundings; where gradient and decay cancel, the quotient m / √v makes more of them
    allowed = 1000 * np.finfo(dtype).eps
    for name, w in theirs.items():
        ours, other = parameters.arrays[name], w.detach().numpy()
        assert np.linalg.norm(ours - other) <= allowed * np.linalg.norm(other)


@pytest.mark.torch
def test_clipped_gradients_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for scale in (1e-7, 1e-6, 1e-3, 1.0, 100.0):
        for share in (0.5, 1.0, 2.0):  # of the norm: clipped, just clipped, not clipped
            gradients = {name: scale * rng.standard_normal(shape) for name, shape in SHAPES.items()}
            norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
            theirs = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES.values()]
            for tensor, g in zip(theirs, gradients.values(), strict=True):
                tensor.grad = torch.tensor(g)
            torch.nn.utils.clip_grad_norm_(theirs, share * norm)
            factor = clip_scale(norm, share * norm, 1e-6)
            assert (factor < 1) is (share * norm < norm + 1e-6)
            for tensor, g in zip(theirs, gradients.values(), strict=True):
                # a product and a quotient, and the rounding of two norms
                np.testing.assert_allclose(factor * g, tensor.grad.numpy(), rtol=64 * np.finfo(float).eps)


def test_who_does_not_decay():
    names = ["cls_token", "pos_embed", "time_embed", "norm.weight", "blocks.0.norm1.bias", "head.bias", "head.weight"]
    assert select_no_decay(names, norms_and_biases=False) == set(names[:3])
    assert select_no_decay(names, norms_and_biases=True) == set(names[:6])
    assert select_no_decay(names, norms_and_biases=True, embeddings=False) == set(names[3:6])
    assert select_no_decay(names, norms_and_biases=False, embeddings=False) == set()  # as in the released code
    assert select_no_decay(["blocks.0.temporal_norm1.weight"], norms_and_biases=True)


def test_norm_and_clipping():
    gradients = Vector({"a": (2,), "b": (1, 2)}, "float32").set({"a": np.array([1, 2]), "b": np.array([[-2, 4]])})
    assert global_norm(gradients) == 5.0
    assert clip_scale(5.0, None) == clip_scale(5.0, 5.0) == clip_scale(5.0, 6.0) == 1.0
    assert clip_scale(5.0, 2.0) == 0.4
    assert clip_scale(5.0, 2.0, 3.0) == 0.25
    assert clip_scale(5.0, 6.0, 3.0) == 0.75  # also where only the sum exceeds it
    assert clip_scale(5.0, None, 3.0) == clip_scale(5.0, 8.0, 3.0) == 1.0


def test_a_vector_is_seen_through_its_arrays():
    vector = Vector({"a": (2, 2), "b": (3,)}, "float32")
    vector.vector[:] = np.arange(7)
    assert vector.arrays["a"].tolist() == [[0, 1], [2, 3]]
    vector.arrays["b"] += 1
    assert vector.vector.tolist() == [0, 1, 2, 3, 5, 6, 7]
    with pytest.raises(KeyError):
        vector.set({"a": np.zeros((2, 2))})


def test_the_number_of_threads_changes_no_bit():
    threads, results = workspace.num_threads(), []
    try:
        for number in (1, 3):
            workspace.set_num_threads(number)
            parameters, gradients = drawn(0, "float32"), drawn(1, "float32")
            adam(parameters, {"norm.weight"}, True).step(gradients, 0.1)
            results.append((global_norm(gradients), parameters.vector.tobytes()))
    finally:
        workspace.set_num_threads(threads)
    assert results[0] == results[1]
