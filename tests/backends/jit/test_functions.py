"""The elementary functions of the jit backend against SciPy in double precision."""

import numpy as np
import pytest
from scipy.special import ndtr

from refvt.backends.jit.functions import exp, exp2, gaussian_and_tail
from refvt.backends.jit.kernel import kernel


@kernel
def _exp(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])


@kernel
def _exp2(x, y):
    for i in range(len(x)):
        y[i] = exp2(x[i])


@kernel
def _gaussian_and_tail(x, height, tail):
    for i in range(len(x)):
        height[i], tail[i] = gaussian_and_tail(x[i])


@pytest.mark.parametrize(("compiled", "true", "lowest"), [(_exp, np.exp, -86.9), (_exp2, np.exp2, -125.9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_powers(compiled, true, lowest, dtype):
    x = np.concatenate([np.linspace(lowest, 80, 100_001), [0.0, -1e-8]]).astype(dtype)
    y = np.empty_like(x)
    compiled(x, y)
    truth = true(x.astype(np.float64))
    assert (np.abs(y / truth - 1) <= 3 * np.finfo(dtype).eps).all()
    low = np.array([-np.inf, -1e30, -1200.0], dtype=dtype)
    out = np.empty_like(low)
    compiled(low, out)
    assert (out == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tail_keeps_its_relative_accuracy_far_from_zero(dtype):
    x = np.linspace(-12.9, 12.9, 100_001).astype(dtype)
    height, tail = np.empty_like(x), np.empty_like(x)
    _gaussian_and_tail(x, height, tail)
    wide = x.astype(np.float64)
    # the approximations, and the rounding of the exponent x²/2; in float64 SciPy's truth has as much error again
    sides = 2 if dtype is np.float64 else 1
    allowed = sides * (6 + np.square(wide)) * np.finfo(dtype).eps
    assert (np.abs(height / np.exp(-wide * wide / 2) - 1) <= allowed).all()
    assert (np.abs(tail / ndtr(-np.abs(wide)) - 1) <= allowed).all()
