"""Sizes of warps, blocks and tiles: those of a GPU, and tiny ones for numba-cuda's simulator.

Under ``NUMBA_ENABLE_CUDASIM=1`` kernels run in the simulator, one Python thread per GPU thread. Sizes are tiny there,
so that small arrays still fill several warps, blocks and tiles. Attention has a table of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from numba.cuda.core import config

__all__ = ["ALIGNMENT", "LANES", "ROWS_PER_PART", "SIMULATED", "SIZES", "THREADS", "WARP"]

SIMULATED = bool(config.ENABLE_CUDASIM)


class _Sizes(NamedTuple):
    warp: int  # threads that run in step
    threads: int  # of a block, unless a kernel declares more
    lanes: int  # neighbouring columns that a block of ``Kernel.cells`` covers
    rows_per_part: int  # rows of one partial sum of ``column_sums``
    multiprocessors: int  # of the GPU that tiles are chosen for
    least_part: int  # summands that are worth a part of their own in a matrix multiply
    large_tile: tuple[int, int, int, int, int]  # see ``matmul.Tile``
    small_tile: tuple[int, int, int, int, int]
    alignment: int | None  # bytes, of shared memory that is read four numbers at a time; the simulator cannot align


GPU = _Sizes(32, 128, 32, 128, 132, 256, (16, 8, 8, 8, 8), (16, 8, 4, 4, 16), 16)  # multiprocessors: an H100 or H200
SIMULATOR = _Sizes(4, 8, 4, 3, 1, 4, (2, 2, 8, 8, 4), (2, 2, 4, 4, 4), None)
SIZES = SIMULATOR if SIMULATED else GPU
WARP, THREADS, LANES, ROWS_PER_PART, ALIGNMENT = (
    SIZES.warp,
    SIZES.threads,
    SIZES.lanes,
    SIZES.rows_per_part,
    SIZES.alignment,
)
