"""What ``halt_tokens`` refuses, in every backend that lives in main memory."""

import numpy as np
import pytest

from refvt import backends


@pytest.mark.parametrize("backend", ["reference", "jit"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": np.zeros((0, 5, 4))}, r"states: expected \[L, N, D\] with L ≥ 1, got shape \(0, 5, 4\)"),
        ({"states": np.zeros((5, 4))}, r"states: expected \[L, N, D\]"),
        ({"epsilon": 1.0}, "epsilon: expected a number between 0 and 1, got 1.0"),
        ({"forced": np.array([1, 2, 3, 1])}, r"forced: expected halting layers, integers \[5\], got int64 \[4\]"),
        ({"forced": np.ones(5)}, r"forced: expected halting layers, integers \[5\], got float64 \[5\]"),
        ({"forced": np.array([1, 2, 3, 1, 0])}, "forced: expected halting layers from 1 to 3, got 0 to 3"),
        ({"forced": np.array([1, 2, 4, 1, 1])}, "forced: expected halting layers from 1 to 3, got 1 to 4"),
    ],
)
def test_bad_arguments(backend, changes, message):
    arguments = {"states": np.zeros((3, 5, 4)), "scale": 1.0, "center": 0.0, "epsilon": 0.01, **changes}
    with pytest.raises(ValueError, match=message):
        backends.get(backend).halt_tokens.forward(**arguments)
