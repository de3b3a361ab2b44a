"""Ceilings of a GPU, for the tables of ``refvt bench --backend cuda``: matrix products and a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refvt import backends
from refvt.bench.timing import Ceilings
from refvt.bench.torch_model import make_product

__all__ = ["GpuCeilings", "device_description"]


def device_description() -> dict[str, Any]:
    """Name, compute capability, multiprocessors and memory of the GPU, and the CUDA version of its driver."""
    from refvt.backends.cuda.driver import driver

    found: dict[str, Any] = driver().describe()
    return found


class GpuCeilings(Ceilings):
    """Matrix products, by refvt's tiles and by PyTorch (cuBLAS, without TF32), and a copy.

    The faster product is the peak.
    """

    def __init__(self, dtype: str, with_torch: bool, gemm_size: int, copy_size: int) -> None:
        from refvt.backends.cuda.device_array import empty
        from refvt.backends.cuda.elementwise import copy_into, fill
        from refvt.backends.cuda.matmul import matmul_nn

        n, wait = 2 * gemm_size, backends.get("cuda").arrays.wait
        rng = np.random.default_rng(0)
        a, b = (backends.get("cuda").arrays.from_numpy(rng.standard_normal((n, n)), dtype) for _ in range(2))
        rows = copy_size // 4096, 4096 // np.dtype(dtype).itemsize
        source, target = fill(empty(rows, dtype), 1), empty(rows, dtype)

        def waited(work: Callable[[], object]) -> Callable[[], object]:
            def run() -> None:
                work()
                wait()

            return run

        self.ahead = lambda: matmul_nn(a, b)  # some milliseconds of work, without waiting for it
        self.runs = {
            "matrix product in tiles": waited(lambda: matmul_nn(a, b)),
            "copy": waited(lambda: copy_into(source, target)),
        }
        gflop = 2e-9 * n**3
        self._work = {
            "matrix product in tiles": (gflop, "GFLOP/s"),
            "copy": (2e-9 * copy_size, "GB/s"),  # read and written
        }
        if with_torch:
            ta, tb = (rng.standard_normal((n, n)) for _ in range(2))
            self.runs["PyTorch's matrix product"] = make_product(ta, tb, dtype, "cuda")
            self._work["PyTorch's matrix product"] = (gflop, "GFLOP/s")
