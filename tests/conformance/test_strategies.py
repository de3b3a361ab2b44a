"""Edges of an operation's domain are what their names say, and the reference keeps its laws at all of them."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from refvt import backends
from refvt.conformance.laws import laws_of
from refvt.conformance.strategies import EDGES, edges_of, inputs_for, offsets, shapes
from refvt.ops import operations

EVERY = [(name, edge) for name in operations() for edge in edges_of(name)]


def examples(strategy, count=25):
    found = []

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example):
        found.append(example)

    collect()
    return found


@pytest.mark.parametrize(("operation", "edge"), [(n, e) for n, e in EVERY if e != "denormal"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_keeps_its_laws_at_every_edge(operation, edge, dtype):
    large = edge == "large"  # there, bounds for inputs of order one do not hold
    laws = [law for law in laws_of(operation) if law.__name__ != "adjoint"]
    laws = [law for law in laws if not (large and law.__name__ == "linear_in_cotangent")]
    for inputs in examples(inputs_for(operation, dtype, edge=edge), 10):
        for law in laws:
            law(backends.get("reference")[operation], inputs)


@pytest.mark.parametrize("operation", [n for n, e in EVERY if e == "denormal"])
def test_denormal_inputs_give_finite_results(operation):
    op = backends.get("reference")[operation]
    for inputs in examples(inputs_for(operation, "float32", edge="denormal"), 10):
        results = op.forward(**inputs) if op.backward is None else op.forward(**inputs)[0]
        assert np.isfinite(np.asarray(results)).all()


def test_denormal_means_below_the_smallest_normal_number():
    tiny = np.finfo(np.float32).tiny
    values = np.concatenate([e["x"].ravel() for e in examples(inputs_for("gelu", "float32", edge="denormal"))])
    assert (np.abs(values) < tiny).all()
    assert values.any()


def test_near_the_threshold_both_decisions_are_close():
    sides = set()
    for inputs in examples(inputs_for("halt", edge="near the threshold"), 60):
        h = 1 / (1 + np.exp(inputs["center"] - inputs["scale"] * inputs["logit"]))
        distance = inputs["used"] + h - 0.99
        assert (np.abs(distance) < 2e-2).all()  # a score is at least 1e-3, also where 1 − ε is almost used
        sides |= set(np.sign(np.where(np.abs(distance) > 1e-9, distance, 0)))
    assert sides == {-1.0, 0.0, 1.0}
    for inputs in examples(inputs_for("halt_tokens", edge="near the threshold"), 30):
        h = 1 / (1 + np.exp(inputs["center"] - inputs["scale"] * inputs["states"][:, :, 0]))
        assert (np.abs(np.cumsum(h, axis=0) - 0.99).min(axis=0) < 1e-2).all()


def test_all_halting_halts_all():
    for inputs in examples(inputs_for("halt_tokens", edge="all halting")):
        results = backends.get("reference")["halt_tokens"].forward(**{**inputs, "forced": None})[0]
        assert (results[2] == 1).all()
    for inputs in examples(inputs_for("halt", edge="all halting")):
        assert backends.get("reference")["halt"].forward(**{**inputs, "forced": None})[0][2].all()
    assert all(e["halted"].all() for e in examples(inputs_for("compact", edge="all halting")))


def test_one_patch_empty_large_and_ties():
    assert {e["scores"].shape for e in examples(inputs_for("top_k", edge="one patch"))} == {(1, 1)}
    assert {e["states"].shape[1] for e in examples(inputs_for("halt_tokens", edge="one patch"))} == {1}
    assert {len(e["index"]) for e in examples(inputs_for("gather", edge="empty"))} == {0}
    assert all((np.diff(e["key_offsets"]) == 0).any() for e in examples(inputs_for("attention", edge="empty")))
    large = np.concatenate([e["x"].ravel() for e in examples(inputs_for("gelu", edge="large"))])
    assert large.min() < -1000
    assert large.max() > 1000
    assert all((e["k"] == e["k"][:1]).all() for e in examples(inputs_for("cls_scores", edge="ties")))


def test_shapes_and_offsets():
    for shape in examples(shapes(largest=3)):
        assert (1 + shape.S * shape.T, shape.A * shape.d) == (shape.N, shape.D)
        assert 1 <= min(shape) <= max(shape) <= 3
    assert {shape.S for shape in examples(shapes(edge="one patch"))} == {1}
    lengths = [np.diff(value) for value in examples(offsets(3, 4))]
    assert min(length.min() for length in lengths) == 0
    assert all(np.diff(value).min() > 0 and value[0] == 0 for value in examples(offsets(3, 4, empty=False)))


def test_names_that_are_not_there():
    with pytest.raises(ValueError, match="operation: expected one of"):
        inputs_for("softmax")
    with pytest.raises(ValueError, match=r"edge: expected None or one of .* for gelu, got 'ties'"):
        inputs_for("gelu", edge="ties")
    with pytest.raises(ValueError, match="edge: expected None or 'one patch'"):
        shapes(edge="large")


def test_every_edge_is_explained_and_used():
    assert set(EDGES) == {edge for _, edge in EVERY}
