"""The elementary functions of the jit column, against SciPy in double precision."""

import numpy as np
import pytest
from scipy.special import erfc as true_erfc

from refvt.backends.jit import erfc, exp, kernel


@kernel
def _exp(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])


@kernel
def _erfc(x, y):
    for i in range(len(x)):
        y[i] = erfc(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp(dtype):
    x = np.concatenate([np.linspace(-86.9, 80, 100_001), [0.0, -1e-8]]).astype(dtype)
    y = np.empty_like(x)
    _exp(x, y)
    truth = np.exp(x.astype(np.float64))
    assert (np.abs(y / truth - 1) <= 3 * np.finfo(dtype).eps).all()
    low = np.array([-np.inf, -1000.0], dtype=dtype)
    out = np.empty_like(low)
    _exp(low, out)
    assert (out == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erfc_is_accurate_relatively_in_both_tails(dtype):
    x = np.linspace(-6, 6, 100_001).astype(dtype)
    y = np.empty_like(x)
    _erfc(x, y)
    truth = true_erfc(x.astype(np.float64))
    # its own approximation, and the rounding of the exponent −x²; in float64 SciPy's truth has as much error again
    sides = 2 if dtype is np.float64 else 1
    allowed = sides * (4 + np.square(x)) * np.finfo(dtype).eps
    assert (np.abs(y / truth - 1) <= allowed).all()
