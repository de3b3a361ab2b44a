"""Compaction in NumPy against plain loops; the columns of a GPU are held to the same in files of their own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refvt.backends.reference import arrays as host
from tests.support.compaction_checks import check_compaction, check_index_moves, check_silence


@given(
    seed=st.integers(0, 1 << 30), B=st.integers(1, 5), N=st.integers(1, 12), ghosts=st.booleans(), early=st.booleans()
)
def test_every_row_is_where_it_should_be(seed, B, N, ghosts, early):
    check_compaction(host, np.random.default_rng(seed), B, N, ghosts, early)


@pytest.mark.parametrize("masked", [False, True])
def test_silence(masked):
    check_silence(host, np.random.default_rng(0), 9, masked)


def test_index_moves():
    check_index_moves(host, np.random.default_rng(0))
