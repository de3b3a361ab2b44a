"""The index functions of the backends that live in main memory, and the life of a batch layer after layer."""

import numpy as np
import pytest

from refvt import backends
from tests.support.compaction_checks import check_compaction, check_index_functions


@pytest.mark.parametrize("backend", ["reference", "jit"])
@pytest.mark.parametrize("seed", range(20))
def test_every_layer_of_a_life_is_where_it_should_be(backend, seed):
    rng = np.random.default_rng(seed)
    B, N = int(rng.integers(1, 6)), int(rng.integers(1, 13))
    check_compaction(backends.get(backend), rng, B, N, bool(rng.integers(2)), bool(rng.integers(2)))


@pytest.mark.parametrize("backend", ["reference", "jit"])
def test_a_ghost_in_the_place_of_a_clip_that_stays_out_is_a_move(backend):
    """Clip 0 has lost its CLS, so one row leaves; clip 1 has a ghost, so one row comes: as many rows as before."""
    tokens, counts = np.array([1, 2, 3]), np.array([[1, 2], [0, 1]])  # N = 2: clip 0 has token 1, clip 1 both
    given = (np.array([False, False, True]), tokens, counts, np.zeros(4, np.int64), 3, 2)
    found = backends.get(backend).compact(*given, ghosts=True, leave_early=False, cls_only=True)
    assert found.tokens.tolist() == [1, 2]
    assert found.entering_rows.tolist() == [1, -1]
    tokens, counts = np.array([1, 3, 4]), np.array([[1, 2], [0, 1]])  # N = 3, nothing halts now
    given = (np.zeros(3, bool), tokens, counts, np.zeros(6, np.int64), 3, 3)
    found = backends.get(backend).compact(*given, ghosts=True, leave_early=False, cls_only=True)
    assert found.survivor_rows is None
    assert found.entering_rows.tolist() == [1, 2, -1]


def test_index_functions():
    check_index_functions(backends.get("reference").arrays, np.random.default_rng(0))
