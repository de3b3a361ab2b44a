"""What every test shares: Hypothesis's profile (derandomised: CI never fails by luck) and the backends to test."""

import os

import pytest
from hypothesis import settings

from refvt import backends

settings.register_profile("refvt", derandomize=True, deadline=None, max_examples=30, database=None)
settings.load_profile("refvt")
os.environ["REFVT_QUIET"] = "1"  # what a command says must not depend on whether kernels are compiled already


# the simulator is too slow for all cases and laws: tests/backends/cuda/test_simulated.py runs what it can bear
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


@pytest.fixture(params=[name for name in backends.available() if not (SIMULATED and name == "cuda")])
def backend(request):
    return backends.get(request.param)
