"""What the processors can do at all, for the tables of ``refvt bench``: matrix products and a copy."""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.backends import team
from refvt.backends.blas import gemm
from refvt.backends.jit import kernel
from refvt.experiments.bench_timing import Ceilings
from refvt.ops import Array

__all__ = ["CpuCeilings"]


@kernel
def _tiles(share: Any, space: Array, x: Array, weight: Array) -> None:
    product = space.reshape(len(x), weight.shape[1])
    i = team.take(share)
    while i >= 0:
        gemm(x, weight, product, 0)
        i = team.take(share)


@kernel
def _copy(share: Any, source: Array, parts: int, target: Array) -> None:
    i = team.take(share)
    while i >= 0:
        top, bottom = team.span(i, parts, len(source))
        target[top:bottom] = source[top:bottom]
        i = team.take(share)


class CpuCeilings(Ceilings):
    """What the machine can do: matrix products by one call and by tiles on our own threads, PyTorch's, and a copy."""

    def __init__(self, dtype: str, threads: int, with_torch: bool, gemm_size: int, copy_size: int) -> None:
        n = gemm_size
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((n, n)).astype(dtype) for _ in range(2))
        c = np.empty((n, n), dtype)
        rows, depth, columns = 256, min(n, 384), min(n, 1536)
        x, weight = a[:rows, :depth].copy(), b[:depth, :columns].copy()
        count = max(threads, round(n**3 / (len(x) * depth * columns)))
        source = np.ones(copy_size // 8)
        target = np.zeros(copy_size // 8)
        parts, space = -(-copy_size // (1 << 20)), (len(x) * columns, x.dtype)

        self.runs = {
            "matrix product": lambda: np.matmul(a, b, out=c),
            "tiles, one thread each": lambda: team.run(_tiles, count, x, weight, space=space),
            "copy": lambda: team.run(_copy, parts, source, parts, target),
        }
        gflop = 2e-9 * n**3
        self._work = {
            "matrix product": (gflop, "GFLOP/s"),
            "tiles, one thread each": (2e-9 * count * len(x) * depth * columns, "GFLOP/s"),
            "copy": (2e-9 * copy_size, "GB/s"),  # read and written
        }
        if with_torch:
            import torch

            ta, tb, tc = (torch.from_numpy(array) for array in (a, b, c))
            self.runs["PyTorch's matrix product"] = lambda: torch.mm(ta, tb, out=tc)
            self._work["PyTorch's matrix product"] = (gflop, "GFLOP/s")
