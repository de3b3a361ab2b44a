"""The two matrix products every layer is made of, in tiles: ``x Wᵀ`` with its epilogue, and a weight's gradient."""

from __future__ import annotations

from typing import Any

from refvt.backends.blas import gemm
from refvt.backends.jit import column_sums, finish, kernel
from refvt.backends.team import edges, take
from refvt.ops import Array

__all__ = ["product", "weight_gradient"]


@kernel
def product(
    share: Any,
    x: Array,
    weight: Array,
    bias: Array,
    residual: Array | None,
    gain: Array | None,
    cut: tuple[int, int],
    y: Array,
) -> None:
    """y ← residual + gain · (x Wᵀ + b), each tile finished while it is still in cache. x [n, E], weight [D, E]."""
    n, D = y.shape
    i = take(share)
    while i >= 0:
        a, b, c, d = edges(i, cut, n, D)
        gemm(x[a:b], weight[c:d].T, y[a:b, c:d], 0)
        finish(y, bias, residual, gain, a, b, c, d)
        i = take(share)


@kernel
def weight_gradient(i: int, cut: tuple[int, int], dy: Array, x: Array, dweight: Array, dbias: Array) -> None:
    """Tile i of dweight ← dyᵀ x and dbias ← Σ dy, sums over all rows. dy [n, D], x [n, E], dweight [D, E]."""
    a, b, c, d = edges(i, cut, *dweight.shape)
    gemm(dy[:, a:b].T, x[:, c:d], dweight[a:b, c:d], 0)
    if c == 0:
        column_sums(dy[:, a:b], dbias[a:b])
