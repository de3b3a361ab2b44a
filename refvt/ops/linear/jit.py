"""The linear layer in tiles of rows: multiply, and finish the tile while it is still in cache."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refvt.backends.jit import TILE, column_sums, finish, scaled
from refvt.backends.pool import row_tiles, run, tiles
from refvt.ops import Array


class LinearCache(NamedTuple):
    x: Array
    weight: Array
    gain: Array | None
    has_residual: bool


def linear_forward(
    x: Array,
    weight: Array,
    bias: Array,
    residual: Array | None = None,
    gain: Array | None = None,
    keep: bool = True,
) -> tuple[Array, LinearCache | None]:
    """y = residual + gain · (x Wᵀ + b). x [n, E], weight [D, E], bias [D], residual [n, D], gain [n] → y [n, D]."""
    y = np.empty((len(x), len(bias)), x.dtype)  # [tokens, D]
    parts = row_tiles(len(x))

    def tile(i: int) -> None:
        rows = parts[i]
        # 1. multiply
        np.matmul(x[rows], weight.T, out=y[rows])
        # passes 1–3: bias, gain, skip connection
        finish(y[rows], bias, None if residual is None else residual[rows], None if gain is None else gain[rows])

    run(tile, len(parts))
    return y, LinearCache(x, weight, gain, residual is not None) if keep else None


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, Array, Array, Array | None]:
    """Returns dx, dweight, dbias, dresidual (None if there was no residual)."""
    x, weight, gain, has_residual = cache
    # 3. the skip connection hands the gradient on as it is
    dresidual = dy.copy() if has_residual else None
    # 2. the gain
    dproduct = dy
    if gain is not None:
        dproduct = np.empty_like(dy)
        scaled(dy, gain, dproduct)
    # 1. the multiply: tiles of rows for dx, tiles of columns of dy for dweight and dbias
    dx, dweight, dbias = np.empty_like(x), np.empty_like(weight), np.empty(len(weight), x.dtype)
    row_parts, column_parts = row_tiles(len(x)), tiles(len(weight), TILE)

    def tile(i: int) -> None:
        if i < len(row_parts):
            rows = row_parts[i]
            np.matmul(dproduct[rows], weight, out=dx[rows])
        else:
            columns = column_parts[i - len(row_parts)]
            np.matmul(dproduct[:, columns].T, x, out=dweight[columns])
            column_sums(dproduct[:, columns], dbias[columns])

    run(tile, len(row_parts) + len(column_parts))
    return dx, dweight, dbias, dresidual
