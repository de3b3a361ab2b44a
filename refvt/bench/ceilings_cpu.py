"""Upper bounds of what the processors can do, for the tables of ``refvt bench``: matrix products and a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.array import Array
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.matmul import linear_tiles
from refvt.backends.jit.threads import next_tile, run, span
from refvt.bench.timing import Ceilings
from refvt.bench.torch_model import make_product

__all__ = ["CpuCeilings"]


@kernel
def _copy(ticket: Any, source: Array, parts: int, target: Array) -> None:
    """target ← source, both [numbers]; a tile is one of ``parts`` spans."""
    i = next_tile(ticket)
    while i >= 0:
        top, bottom = span(i, parts, len(source))
        target[top:bottom] = source[top:bottom]
        i = next_tile(ticket)


class CpuCeilings(Ceilings):
    """Ceilings of the CPU: the matrix products of NumPy (a BLAS), refvt and PyTorch, and a copy of memory."""

    def __init__(self, dtype: str, threads: int, with_torch: bool, gemm_size: int, copy_size: int) -> None:
        n = gemm_size
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((n, n)).astype(dtype) for _ in range(2))
        c = np.empty((n, n), dtype)
        source = np.ones(copy_size // 8)
        target = np.zeros(copy_size // 8)
        parts = -(-copy_size // (1 << 20))

        self.runs = {
            "matrix product": lambda: np.matmul(a, b, out=c),
            "refvt's matrix product": lambda: linear_tiles(a, b),
            "copy": lambda: run(_copy, parts, source, parts, target),
        }
        gflop = 2e-9 * n**3
        self._work = {
            "matrix product": (gflop, "GFLOP/s"),
            "refvt's matrix product": (gflop, "GFLOP/s"),
            "copy": (2e-9 * copy_size, "GB/s"),  # read and written
        }
        if with_torch:
            self.runs["PyTorch's matrix product"] = make_product(a, b, dtype, "cpu")
            self._work["PyTorch's matrix product"] = (gflop, "GFLOP/s")
