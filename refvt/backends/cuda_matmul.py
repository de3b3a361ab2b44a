"""A tiled matrix multiply for the ``cuda`` rooms: shared memory, register blocking, and an epilogue.

y[i, j] = finish(Σ_k A[i, k] B[k, j]). A block of threads computes one tile of y. For every slice of k it brings the
slice of A and of B into shared memory once, where all its threads read it (``linear_naive`` reads every number of x
D times from the device's memory; here that is D / 64 times). Each thread keeps a small rectangle of results in
registers: 8 + 4 numbers read from shared memory feed 32 multiply-adds. What happens to a finished sum (bias, gain, skip
connection, GELU) is the room's own device function ``finish``: the sum has not left the chip yet, so this costs no pass
over the device's memory.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from refvt.backends.cuda import SIMULATED, Kernel, absent, device_function, empty, kernel
from refvt.ops import Array

__all__ = ["Matmul", "plain", "products", "store"]

ACROSS, DOWN = (2, 2) if SIMULATED else (16, 8)  # threads of a block, along a row of y and down a column
WIDTH, HEIGHT = (2, 2) if SIMULATED else (4, 8)  # results of a thread
COLUMNS, ROWS = ACROSS * WIDTH, DOWN * HEIGHT  # of a tile of y
DEPTH = 3 if SIMULATED else 16  # of a slice of k
ROWS_APART, COLUMNS_APART = ROWS + 1, COLUMNS + 1  # a row of a slice starts in another memory bank than the next
SPACE = max(ROWS * COLUMNS_APART, DEPTH * (ROWS_APART + COLUMNS_APART))  # numbers in shared memory
B_STARTS = DEPTH * ROWS_APART  # where the slice of B begins there


@device_function
def store(value, i, j, bias, gain, residual, extra, y):  # type: ignore[no-untyped-def]
    """y = residual + gain · (value + bias): the epilogue of a linear layer; each of the three may be absent."""
    if bias.shape[0] > 0:
        value += bias[j]
    if gain.shape[0] > 0:
        value *= gain[i]
    if residual.shape[0] > 0:
        value += residual[i, j]
    y[i, j] = value


class Matmul:
    """A matrix multiply with an epilogue. turned_a: A is given as its transpose [K, M]; turned_b: B as [N, K]."""

    def __init__(self, name: str, turned_a: bool, turned_b: bool, finish: Any = store) -> None:
        self.turned_a, self.turned_b = turned_a, turned_b
        self.kernel = _matmul_kernel(name, turned_a, turned_b, finish)

    def __call__(
        self,
        a: Array,
        b: Array,
        bias: Array | None = None,
        gain: Array | None = None,
        residual: Array | None = None,
        extra: Array | None = None,
    ) -> Array:
        """A fresh y [M, N]. ``extra`` [M, N] is what the epilogue reads or writes beside y."""
        M, K = (a.shape[1], a.shape[0]) if self.turned_a else (a.shape[0], a.shape[1])
        N = b.shape[0] if self.turned_b else b.shape[1]
        y = empty((M, N), a.dtype)
        none, nothing = absent(a.dtype, 1), absent(a.dtype, 2)
        optional = (
            none if bias is None else bias,
            none if gain is None else gain,
            nothing if residual is None else residual,
            nothing if extra is None else extra,
        )
        self.kernel.blocks((-(-M // ROWS), -(-N // COLUMNS)), (ACROSS, DOWN), a, b, K, *optional, y)
        return y


def _matmul_kernel(name: str, turned_a: bool, turned_b: bool, finish: Any) -> Kernel:
    threads = ACROSS * DOWN

    @kernel("F F n f f F F F", name, threads)
    def matmul(a, b, K, bias, gain, residual, extra, y):  # type: ignore[no-untyped-def]
        M, N = y.shape
        x, z = cuda.threadIdx.x, cuda.threadIdx.y
        thread = z * ACROSS + x
        top, left = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * COLUMNS
        space = cuda.shared.array(SPACE, a.dtype)  # a slice of A and one of B; at the end the finished tile
        sums = cuda.local.array((HEIGHT, WIDTH), a.dtype)
        column = cuda.local.array(HEIGHT, a.dtype)
        zero = a.dtype.type(0)
        for r in range(HEIGHT):
            for c in range(WIDTH):
                sums[r, c] = zero
        for start in range(0, K, DEPTH):
            # both slices into shared memory, zeros beyond the edges; neighbouring threads read neighbouring numbers
            for e in range(thread, ROWS * DEPTH, threads):
                if turned_a:
                    k, i = e // ROWS, e % ROWS
                else:
                    k, i = e % DEPTH, e // DEPTH
                value = zero
                if start + k < K and top + i < M:
                    value = a[start + k, top + i] if turned_a else a[top + i, start + k]
                space[k * ROWS_APART + i] = value
            for e in range(thread, COLUMNS * DEPTH, threads):
                if turned_b:
                    k, j = e % DEPTH, e // DEPTH
                else:
                    k, j = e // COLUMNS, e % COLUMNS
                value = zero
                if start + k < K and left + j < N:
                    value = b[left + j, start + k] if turned_b else b[start + k, left + j]
                space[B_STARTS + k * COLUMNS_APART + j] = value
            cuda.syncthreads()
            for k in range(DEPTH):
                for r in range(HEIGHT):
                    column[r] = space[k * ROWS_APART + z + r * DOWN]
                for c in range(WIDTH):
                    value = space[B_STARTS + k * COLUMNS_APART + x + c * ACROSS]
                    for r in range(HEIGHT):
                        sums[r, c] += column[r] * value
            cuda.syncthreads()  # nobody may overwrite a slice that somebody still reads
        # the tile goes through shared memory: registers cannot be indexed by a number known only at run time, and the
        # epilogue is too long to be written out for each of them
        for r in range(HEIGHT):
            for c in range(WIDTH):
                space[(z + r * DOWN) * COLUMNS_APART + x + c * ACROSS] = sums[r, c]
        cuda.syncthreads()
        for e in range(thread, ROWS * COLUMNS, threads):
            i, j = e // COLUMNS, e % COLUMNS
            if top + i < M and left + j < N:
                finish(space[i * COLUMNS_APART + j], top + i, left + j, bias, gain, residual, extra, y)

    return matmul


plain = Matmul("matmul", turned_a=False, turned_b=False)  # A B
products = Matmul("matmul.turned", turned_a=True, turned_b=False)  # Aᵀ B, the sum over rows of a weight's gradient
