"""Attention whose logits are large: what float32 can give, and no more error than that; cuda: ``test_executed``.

A logit of size S has a rounding error of about u · S, u = 2⁻²⁴, whoever computes it, and its weight e^S the relative
error u · S. So gradients through the softmax may err by a small multiple of u · (1 + S), S the largest |logit|. Two
habits of fused attention err far more, and are avoided: a weight as e^(s − lse) with shift and sum rounded together,
and Σ w · dw as y · dy in another order of summation than dw itself: noise is left where one key has all the weight.
"""

import numpy as np
import pytest

from refvt import backends
from refvt.packing import offsets_of

U = 2.0**-24
MULTIPLE = 4


def gradients(backend, dtype, factor, heads, keys, biased, queries=(100, 70)):
    rng, D = np.random.default_rng(1), 64
    sizes = [int(n * keys) for n in queries]
    q, dy = (rng.standard_normal((sum(queries), D)) for _ in range(2))
    k, v = (rng.standard_normal((sum(sizes), D)) for _ in range(2))
    q, k = q * factor, k * factor
    bias = factor * rng.standard_normal(len(k)) if biased else None
    q, k, v, dy = (a.astype(np.float32).astype(dtype) for a in (q, k, v, dy))
    bias = None if bias is None else bias.astype(np.float32).astype(dtype)
    d = D // heads
    largest = np.abs(q[:, :d] @ k[:, :d].T).max() / d**0.5
    return forward_and_backward(backend, q, k, v, dy, queries, sizes, heads, bias), largest


def forward_and_backward(backend, q, k, v, dy, queries, keys, heads, bias=None):
    table = backends.get(backend)
    up, down = table.arrays.from_numpy, table.arrays.to_numpy
    offsets = offsets_of(np.array(queries)), offsets_of(np.array(keys))
    y, cache = table.attention.forward(up(q), up(k), up(v), *offsets, heads, bias)
    found = (y, *table.attention.backward(up(dy), cache))
    return {name: down(x) for name, x in zip(("y", "dq", "dk", "dv"), found, strict=True)}


def check_errors(backend, *how):
    true, largest = gradients("reference", "float64", *how)
    found, _ = gradients(backend, "float32", *how)
    for name, exact in true.items():
        error = np.linalg.norm(found[name] - exact) / np.linalg.norm(exact)
        assert error <= MULTIPLE * U * (1 + largest), name


def check_one_key_with_all_the_weight(backend):
    rng = np.random.default_rng(2)
    k = (1e4 * np.eye(16)).astype(np.float32)
    v, dy = (rng.standard_normal((16, 16)).astype(np.float32) for _ in range(2))
    found = forward_and_backward(backend, k, k, v, dy, [16], [16], 1)
    assert np.array_equal(found["y"], v)
    assert np.array_equal(found["dv"], dy)
    assert not found["dq"].any()
    assert not found["dk"].any()


@pytest.mark.parametrize("backend", [name for name in backends.available() if name != "cuda"])
@pytest.mark.parametrize("factor", [1, 3, 10, 30])
@pytest.mark.parametrize(("heads", "keys", "biased"), [(2, 1, False), (1, 1, False), (2, 1.5, True), (2, 0.5, False)])
def test_the_error_is_that_of_the_logits(backend, factor, heads, keys, biased):
    check_errors(backend, factor, heads, keys, biased)


@pytest.mark.parametrize(("heads", "keys", "biased"), [(2, 1, False), (1, 1, False), (2, 1.5, True), (2, 0.5, False)])
def test_beyond_it_jit_errs_no_more_than_the_reference(heads, keys, biased):
    """Where gradients are smaller than the rounding of a weight near 1 the bound ends, for the reference too."""
    true, largest = gradients("reference", "float64", 100, heads, keys, biased)
    plain, fused = (gradients(name, "float32", 100, heads, keys, biased)[0] for name in ("reference", "jit"))
    for name, exact in true.items():
        errors = [np.linalg.norm(found[name] - exact) / np.linalg.norm(exact) for found in (plain, fused)]
        assert errors[1] <= MULTIPLE * max(errors[0], U * (1 + largest)), name


@pytest.mark.parametrize("backend", [name for name in backends.available() if name != "cuda"])
def test_where_one_key_has_all_the_weight_nothing_passes_the_softmax(backend):
    """Logits so far apart that all other weights are 0 in float32: dq and dk are 0 to the bit."""
    check_one_key_with_all_the_weight(backend)
