"""BLAS from inside kernels: ``gemm`` calls the matrix product that SciPy publishes for compiled code.

``scipy.linalg.cython_blas`` holds plain function pointers. They are given names that the code generator knows, so a
kernel that calls them can be cached on disk and is joined to them again when it is loaded.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

from refvt.backends.jit import kernel
from refvt.ops import Array

__all__ = ["gemm"]

NAMES = {types.float32: "refvt_sgemm", types.float64: "refvt_dgemm"}
llvm.add_symbol("refvt_sgemm", get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))
llvm.add_symbol("refvt_dgemm", get_cython_function_address("scipy.linalg.cython_blas", "dgemm"))
FEW = 3
AS_IT_IS, TRANSPOSED = ord("N"), ord("T")


@intrinsic  # type: ignore[untyped-decorator]
def _gemm(
    typing_context: Any,
    transa: Any,
    transb: Any,
    m: Any,
    n: Any,
    k: Any,
    alpha: Any,
    a: Any,
    lda: Any,
    b: Any,
    ldb: Any,
    beta: Any,
    c: Any,
    ldc: Any,
) -> Any:
    """?gemm of reference BLAS; a, b and c are addresses, and every other argument is handed over by reference."""
    number = ir.FloatType() if alpha == types.float32 else ir.DoubleType()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, integer = ir.IntType(8), ir.IntType(32)
        kinds = [byte, byte, integer, integer, integer, number, None, integer, None, integer, number, None, integer]
        references = []
        for kind, value in zip(kinds, arguments, strict=True):
            if kind is None:
                references.append(builder.inttoptr(value, number.as_pointer()))
            else:
                whole = isinstance(kind, ir.IntType)
                references.append(cgutils.alloca_once_value(builder, builder.trunc(value, kind) if whole else value))
        function = ir.FunctionType(ir.VoidType(), [reference.type for reference in references])
        builder.call(cgutils.get_or_insert_function(builder.module, function, NAMES[alpha]), references)
        return context.get_dummy_value()

    return types.void(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), generate


@kernel
def _few_rows(a: Array, b: Array, out: Array, beta: float) -> None:
    """The same for a handful of rows: to lay out all of b for them, as BLAS does, would cost more than the product."""
    for j in range(b.shape[1]):
        for i in range(a.shape[0]):
            total = a.dtype.type(0)
            for c in range(a.shape[1]):
                total += a[i, c] * b[c, j]
            out[i, j] = total if beta == 0 else total + a.dtype.type(beta) * out[i, j]


@kernel
def gemm(a: Array, b: Array, out: Array, beta: float) -> None:
    """out ← a b + beta · out. Rows or columns of a and of b must be contiguous, rows of out: slices and transposes are.

    BLAS counts columns first, so it is asked for outᵀ = bᵀ aᵀ, and what lies row by row is to it "as it is".
    """
    m, k = a.shape
    n = b.shape[1]
    size = a.itemsize
    a_by_rows, b_by_rows = a.strides[1] == size or k == 1, b.strides[1] == size or n == 1
    if m <= FEW and a_by_rows and not b_by_rows:
        _few_rows(a, b, out, beta)
        return
    # the distance of two rows (or columns); of a single one there is none, and BLAS wants it at least its length
    lda = max(a.strides[0] // size, k) if a_by_rows else max(a.strides[1] // size, m)
    ldb = max(b.strides[0] // size, n) if b_by_rows else max(b.strides[1] // size, k)
    real = a.dtype.type
    _gemm(
        AS_IT_IS if b_by_rows else TRANSPOSED,
        AS_IT_IS if a_by_rows else TRANSPOSED,
        np.int64(n),
        np.int64(m),
        np.int64(k),
        real(1),
        np.int64(b.ctypes.data),
        np.int64(max(ldb, 1)),
        np.int64(a.ctypes.data),
        np.int64(max(lda, 1)),
        real(beta),
        np.int64(out.ctypes.data),
        np.int64(max(out.strides[0] // size, n, 1)),
    )
