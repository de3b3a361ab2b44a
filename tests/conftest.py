"""What every test shares: Hypothesis's profile (derandomised: CI never fails by luck) and the backends to test."""

import os
import re
from collections import Counter

import pytest
from hypothesis import settings

from refvt import backends, files

settings.register_profile("refvt", derandomize=True, deadline=None, max_examples=30, database=None)
settings.load_profile("refvt")
os.environ["REFVT_QUIET"] = "1"  # what a command says must not depend on whether kernels are compiled already


# the simulator is too slow for all cases and laws: tests/backends/cuda/test_simulated.py runs what it can bear
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


@pytest.fixture(params=[name for name in backends.available() if not (SIMULATED and name == "cuda")])
def backend(request):
    return backends.get(request.param)


@pytest.fixture
def impatient(monkeypatch):
    """A lock that another holds is refused almost at once."""
    monkeypatch.setattr(files, "PATIENCE", 0.2)


def pytest_terminal_summary(terminalreporter):
    """One line for each reason to skip, with the number of tests (a line for each file would fill the screen)."""
    reasons = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        reasons[re.sub(r"could not import '([\w.]+)'.*", r"\1 is not installed", reason)] += 1
    if reasons:
        terminalreporter.section("skipped")
        for reason, number in reasons.most_common():
            terminalreporter.line(f"{number:5d} {reason}")
