"""What every test shares: Hypothesis's profile (derandomised: CI never fails by luck) and the backends to test."""

import pytest
from hypothesis import settings

from refvt import backends

settings.register_profile("refvt", derandomize=True, deadline=None, max_examples=30, database=None)
settings.load_profile("refvt")


@pytest.fixture(params=backends.available())
def backend(request):
    return backends.get(request.param)
