"""What a kernel knows about its thread: its place in the grid, its valid rows, and sums across its warp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from refvt.backends.cuda.arguments import Indices, Int
from refvt.backends.cuda.kernel import device_function
from refvt.backends.cuda.sizes import SIMULATED, THREADS, WARP

__all__ = ["cell", "lane_and_row", "valid_rows", "warp_max", "warp_sum"]


@device_function
def cell() -> tuple[int, int]:
    """Row and column of this thread, in a kernel launched by ``Kernel.cells``."""
    return (
        cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y,
        cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x,
    )


@device_function
def valid_rows(num_valid: Indices, n: Int) -> Any:
    """Number of valid rows: ``num_valid[0]`` if the device counted them, else n."""
    return min(num_valid[0], n) if num_valid.shape[0] > 0 else n


@device_function
def lane_and_row() -> tuple[int, int]:
    """Lane of this thread in its warp, and the row of its warp, in a kernel launched by ``Kernel.warps``.

    The row may lie beyond the last one. Such a warp must not return early: warps wait for one another in the simulator.
    """
    return cuda.threadIdx.x % WARP, (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) // WARP


if SIMULATED:  # without shuffles: the lanes of all warps of the block meet in shared memory

    def _warp_values(value: Any) -> Any:
        values = cuda.shared.array(THREADS, np.float64)
        i = cuda.threadIdx.x
        cuda.syncthreads()
        values[i] = value
        cuda.syncthreads()
        first = i - i % WARP
        return values[first : first + WARP].copy()

    @device_function
    def warp_sum(value: Any) -> Any:
        """Sum of the value over the lanes of the warp, in every lane."""
        return type(value)(_warp_values(value).sum())

    @device_function
    def warp_max(value: Any) -> Any:
        """Largest value among the lanes of the warp, in every lane."""
        return type(value)(_warp_values(value).max())

else:

    @device_function
    def warp_sum(value: Any) -> Any:
        """Sum of the value over the lanes of the warp, in every lane: five exchanges, each at half the distance."""
        distance = WARP // 2
        while distance > 0:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, distance)
            distance //= 2
        return value

    @device_function
    def warp_max(value: Any) -> Any:
        """Largest value among the lanes of the warp, in every lane."""
        distance = WARP // 2
        while distance > 0:
            value = max(value, cuda.shfl_xor_sync(0xFFFFFFFF, value, distance))
            distance //= 2
        return value
