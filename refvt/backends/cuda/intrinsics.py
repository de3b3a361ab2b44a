"""Operations for inner loops that numba-cuda lacks: reads of four numbers at once, and addresses.

A multiply-add waits for its operands, so the speed of a tiled kernel depends on few and cheap reads.

- ``load4`` reads four neighbours from shared memory by one instruction instead of four;
- ``x[i]`` counts from the end if i is negative, so every index costs a comparison and a select. Here no index is
  negative;
- ``x[i, j]`` multiplies i by the length of a row every time. A loop that walks through a matrix keeps an ``address``
  and increments it, as one would in C.

In the simulator the same functions have simple bodies, and an address is a row and a column in one number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refvt.backends.cuda.kernel import device_function
from refvt.backends.cuda.sizes import SIMULATED

__all__ = ["address", "at", "distance", "load4", "number_at", "put", "store4"]

if SIMULATED:
    ROW = 1 << 20  # more columns than any matrix in the simulator has

    @device_function
    def load4(x: Any, i: int) -> Any:
        """x[i], x[i+1], x[i+2], x[i+3] of an array in shared memory; i is a multiple of 4, x aligned to 16 bytes."""
        return x[i], x[i + 1], x[i + 2], x[i + 3]

    @device_function
    def store4(x: Any, i: int, a: Any, b: Any, c: Any, d: Any) -> None:
        """x[i], x[i+1], x[i+2], x[i+3] = a, b, c, d; under the conditions of ``load4``."""
        x[i], x[i + 1], x[i + 2], x[i + 3] = a, b, c, d

    @device_function
    def put(x: Any, i: int, value: Any) -> None:
        """x[i] = value, in shared memory."""
        x[i] = value

    @device_function
    def address(x: Any, i: int, j: int) -> Any:
        """Address of x[i, j], in a matrix whose rows are contiguous."""
        return np.int64(i * ROW + j)

    @device_function
    def distance(x: Any, i: int, j: int) -> Any:
        """Distance of x[i, j] from x[0, 0]; less than 2³² bytes."""
        return np.uint32(i * ROW + j)

    @device_function
    def number_at(x: Any, where: Any) -> Any:
        """The number at an address inside the matrix x, which no thread writes while the kernel runs."""
        return x[where // ROW, where % ROW]

    @device_function
    def at(x: Any, top: int, bottom: int, left: int, i: int, c: int) -> Any:
        """x[top + i, left + c] of a matrix in device memory; rows from ``bottom`` on repeat the row before it."""
        assert min(top, left, i, c) >= 0
        return x[min(top + i, bottom - 1), left + c]

else:
    from llvmlite import ir
    from numba import types
    from numba.cuda.extending import intrinsic

    # the compiler's numbers for device memory and shared memory: naming one spares a check at run time
    GLOBAL, SHARED = 1, 3

    def _intrinsic(function: Callable[..., Any]) -> Any:
        """A typed wrapper of numba's decorator for functions that emit their own LLVM code."""
        return intrinsic(function)

    def _in_shared(context: Any, builder: Any, kind: Any, x: Any, i: Any, width: int) -> Any:
        """Pointer to x[i], as one number or as a vector of ``width`` numbers."""
        number = context.get_value_type(kind.dtype)
        start = builder.gep(context.make_array(kind)(context, builder, x).data, [i])
        element = number if width == 1 else ir.VectorType(number, width)
        start = builder.addrspacecast(start, ir.PointerType(number, SHARED))
        return builder.bitcast(start, ir.PointerType(element, SHARED))

    @_intrinsic
    def load4(typing: Any, x: Any, i: Any) -> Any:
        """x[i], x[i+1], x[i+2], x[i+3] of an array in shared memory; i is a multiple of 4, x aligned to 16 bytes."""
        four = types.UniTuple(x.dtype, 4)

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            array, at = given
            vector = builder.load(_in_shared(context, builder, x, array, at, 4), align=16)
            numbers = [builder.extract_element(vector, ir.IntType(32)(n)) for n in range(4)]
            return context.make_tuple(builder, four, numbers)

        return four(x, types.int64), generate

    @_intrinsic
    def store4(typing: Any, x: Any, i: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        """x[i], x[i+1], x[i+2], x[i+3] = a, b, c, d; under the conditions of ``load4``."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            to, at, *numbers = given
            vector = ir.VectorType(context.get_value_type(x.dtype), 4)(ir.Undefined)
            for n, number in enumerate(numbers):
                vector = builder.insert_element(vector, number, ir.IntType(32)(n))
            builder.store(vector, _in_shared(context, builder, x, to, at, 4), align=16)
            return context.get_dummy_value()

        return types.void(x, types.int64, *[x.dtype] * 4), generate

    @_intrinsic
    def put(typing: Any, x: Any, i: Any, value: Any) -> Any:
        """x[i] = value, in shared memory."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            to, at, number = given
            builder.store(number, _in_shared(context, builder, x, to, at, 1))
            return context.get_dummy_value()

        return types.void(x, types.int64, x.dtype), generate

    def _offset(context: Any, builder: Any, kind: Any, x: Any, i: Any, j: Any) -> Any:
        """Number of bytes from x[0, 0] to x[i, j], in integers as wide as i and j."""
        step = builder.extract_value(context.make_array(kind)(context, builder, x).strides, 0)
        step = step if step.type == i.type else builder.trunc(step, i.type)
        return builder.add(builder.mul(i, step), builder.mul(j, j.type(kind.dtype.bitwidth // 8)))

    @_intrinsic
    def address(typing: Any, x: Any, i: Any, j: Any) -> Any:
        """Address of x[i, j], in a matrix whose rows are contiguous."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            start = builder.ptrtoint(context.make_array(x)(context, builder, given[0]).data, ir.IntType(64))
            return builder.add(start, _offset(context, builder, x, *given))

        return types.int64(x, types.int64, types.int64), generate

    @_intrinsic
    def distance(typing: Any, x: Any, i: Any, j: Any) -> Any:
        """Distance of x[i, j] from x[0, 0]; less than 2³² bytes."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            return _offset(context, builder, x, *given)

        return types.uint32(x, types.uint32, types.uint32), generate

    @_intrinsic
    def number_at(typing: Any, x: Any, where: Any) -> Any:
        """The number at an address inside the matrix x, which no thread writes while the kernel runs."""

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            return builder.load(builder.inttoptr(given[1], ir.PointerType(context.get_value_type(x.dtype), GLOBAL)))

        return x.dtype(x, types.int64), generate

    @_intrinsic
    def at(typing: Any, x: Any, top: Any, bottom: Any, left: Any, i: Any, c: Any) -> Any:
        """x[top + i, left + c] of a matrix in device memory; rows from ``bottom`` on repeat the row before it."""

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            narrow, wide = ir.IntType(32), ir.IntType(64)
            matrix = context.make_array(signature.args[0])(context, builder, arguments[0])
            s0, s1 = (builder.extract_value(matrix.strides, axis) for axis in (0, 1))  # in bytes
            top, bottom, left, i, c = (
                context.cast(builder, *n, types.int64) for n in zip(arguments[1:], signature.args[1:], strict=True)
            )
            corner = builder.add(builder.ptrtoint(matrix.data, wide), builder.mul(top, s0))
            corner = builder.add(corner, builder.mul(left, s1))
            last = builder.trunc(builder.sub(builder.sub(bottom, top), ir.Constant(wide, 1)), narrow)
            i, c, s0, s1 = (builder.trunc(n, narrow) for n in (i, c, s0, s1))
            i = builder.select(builder.icmp_signed("<", i, last), i, last)
            # zext, as it is not negative: after sext the compiler no longer optimises loops of reads
            offset = builder.zext(builder.add(builder.mul(i, s0), builder.mul(c, s1)), wide)
            pointer = builder.inttoptr(corner, ir.PointerType(ir.IntType(8), GLOBAL))
            pointer = builder.gep(pointer, [offset], inbounds=True)
            element = context.get_data_type(signature.return_type)
            return builder.load(builder.bitcast(pointer, ir.PointerType(element, GLOBAL)))

        return x.dtype(x, top, bottom, left, i, c), code
