"""Five of each fault, and short loads; ``python -m tests.load`` runs the long ones."""

import os
import sys

import pytest

from tests.load.calls import in_processes, in_threads, mixed_calls
from tests.load.kills import WORK, kill_and_compare

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


@posix
@pytest.mark.parametrize("name", WORK)
def test_killed_work_ends_as_if_unbroken(tmp_path, name):
    kills, wholes, different = kill_and_compare(name, 5, tmp_path)
    assert kills == 5
    assert wholes > 0
    assert different == 0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_flat_over_calls_of_mixed_shapes():
    grown, wrong = mixed_calls(300)
    assert wrong == 0
    assert grown < 0.02


def test_threads_on_one_model_and_on_two_backends():
    assert in_threads(5, 5) == []


@pytest.mark.parametrize("method", [pytest.param("fork", marks=posix), "spawn"])
def test_processes_beside_a_pool_of_threads(method):
    assert in_processes(method, 5) == 0
