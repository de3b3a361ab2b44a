"""The index functions of the backends that live in main memory, and the life of a batch layer after layer."""

import numpy as np
import pytest

from refvt import backends
from tests.support.compaction_checks import check_compaction, check_index_functions


@pytest.mark.parametrize("seed", range(20))
def test_every_layer_of_a_life_is_where_it_should_be(seed):
    rng = np.random.default_rng(seed)
    B, N = int(rng.integers(1, 6)), int(rng.integers(1, 13))
    check_compaction(backends.get("reference"), rng, B, N, bool(rng.integers(2)), bool(rng.integers(2)))


def test_index_functions():
    check_index_functions(backends.get("reference").arrays, np.random.default_rng(0))
