"""The processor's vectors in generated code: views of arrays, copies, transposition, sums and maxima over rows.

Each intrinsic here is a loop over whole vectors, built as LLVM IR where Numba's own loop would be slower: it would
check for every row that two arrays do not overlap, or not keep a row of sums in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.imputils import impl_ret_borrowed

from refvt.array import Array
from refvt.backends.jit.kernel import intrinsic, kernel

__all__ = [
    "FEATURES",
    "VECTOR",
    "VECTORS",
    "WORD",
    "View",
    "add_rows",
    "broadcast",
    "copy_rows",
    "fill_rows",
    "load",
    "max_rows",
    "store",
    "transpose",
    "view",
]

# of the processor, or those that NUMBA_CPU_FEATURES names: "+avx,+avx2,-avx512f"
_features = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
FEATURES = {feature[1:] for feature in _features.split(",") if feature.startswith("+")}
VECTOR = 64 if "avx512f" in FEATURES else 32 if "avx" in FEATURES else 16  # bytes of a register
VECTORS = 3  # vectors in a row of a tile

WORD = ir.IntType(64)  # of addresses, sizes and counters
_LANE = ir.IntType(32)  # of a number's place in a vector


class View:
    """An array as generated code sees it: address, shape and strides (in bytes), as values of the LLVM builder."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.builder, self.real = builder, context.get_data_type(kind.dtype)
        self.data = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self.shape = cgutils.unpack_tuple(builder, array.shape)
        self.strides = cgutils.unpack_tuple(builder, array.strides)  # bytes

    def row(self, i: Any) -> Any:
        """The address of row i."""
        return self.builder.gep(self.data, [self.builder.mul(i, self.strides[0])])

    def number(self, row: Any, offset: Any = None) -> Any:
        """The address of the number ``offset`` bytes after the start of a row."""
        where = row if offset is None else self.builder.gep(row, [offset])
        return self.builder.bitcast(where, self.real.as_pointer())


def load(builder: Any, address: Any, kind: Any, size: int) -> Any:
    """Load a vector or a number whose numbers take ``size`` bytes, from any address that is aligned for a number."""
    loaded = builder.load(builder.bitcast(address, kind.as_pointer()))
    loaded.align = size
    return loaded


def store(builder: Any, value: Any, address: Any, size: int) -> None:
    """Store a vector or a number, aligned as in ``load``."""
    builder.store(value, builder.bitcast(address, value.type.as_pointer())).align = size


def broadcast(builder: Any, number: Any, vector: Any) -> Any:
    """The vector that holds this number in every lane."""
    nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_LANE, vector.count), None)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _LANE(0)), nothing, first)


def _fold(name: str, combine: Callable[[Any, Any, Any], Any], text: str) -> Any:
    """Make an intrinsic that combines the rows of x [m, n] with a row out [n] of at most VECTORS vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, out = (View(context, builder, k, v) for k, v in zip(signature.args, arguments, strict=True))
        size = signature.args[0].dtype.bitwidth // 8
        vector = ir.VectorType(x.real, VECTOR // size)
        for vectors in range(1, VECTORS + 1):
            fits = builder.icmp_signed("==", out.shape[0], WORD(vectors * vector.count))
            with builder.if_then(fits):
                offsets = [WORD(j * VECTOR) for j in range(vectors)]
                states = [cgutils.alloca_once(builder, vector) for _ in offsets]
                for offset, state in zip(offsets, states, strict=True):
                    builder.store(load(builder, builder.gep(out.data, [offset]), vector, size), state)
                with cgutils.for_range(builder, x.shape[0]) as loop:
                    row = x.row(loop.index)
                    for offset, state in zip(offsets, states, strict=True):
                        new = load(builder, builder.gep(row, [offset]), vector, size)
                        builder.store(combine(builder, builder.load(state), new), state)
                for offset, state in zip(offsets, states, strict=True):
                    store(builder, builder.load(state), builder.gep(out.data, [offset]), size)
        return context.get_dummy_value()

    def typed(typing_context: Any, x: Any, out: Any) -> Any:
        return types.void(x, out), generate

    typed.__name__, typed.__doc__ = name, text
    return intrinsic(typed)


add_rows = _fold(
    "add_rows",
    lambda builder, a, b: builder.fadd(a, b),
    "out[j] ← out[j] + Σ_i x[i, j]; out is one to VECTORS whole vectors, rows of x are contiguous.",
)
max_rows = _fold(
    "max_rows",
    lambda builder, a, b: builder.select(builder.fcmp_ordered(">", b, a), b, a),
    "out[j] ← the largest of out[j] and x[i, j]; out is one to VECTORS whole vectors, rows of x are contiguous.",
)


@intrinsic
def view(typing_context: Any, memory: Any, start: Any, rows: Any, columns: Any) -> Any:
    """The numbers of a contiguous array of any shape, from number ``start`` on, as a view [rows, columns].

    Slicing and reshape would first check that it can be done: for short segments that takes longer than attention.
    """
    size = memory.dtype.bitwidth // 8
    array_type = types.Array(memory.dtype, 2, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(signature.args[0])(context, builder, arguments[0])
        start, rows, columns = (
            context.cast(builder, x, k, types.intp) for x, k in zip(arguments[1:], signature.args[1:], strict=True)
        )
        array = context.make_array(array_type)(context, builder)
        context.populate_array(
            array,
            data=builder.gep(whole.data, [start]),
            shape=[rows, columns],
            strides=[builder.mul(columns, WORD(size)), WORD(size)],
            itemsize=WORD(size),
            meminfo=whole.meminfo,
            parent=whole.parent,
        )
        return impl_ret_borrowed(context, builder, array_type, array._getvalue())

    return array_type(memory, start, rows, columns), generate


@intrinsic
def copy_rows(typing_context: Any, source: Any, target: Any) -> Any:
    """target[i, j] ← source[i, j] for all of source [m, n]; target [≥ m, ≥ n]; rows of both contiguous.

    A compiled loop would check again for every row that the two do not overlap.
    """
    size = source.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (View(context, builder, k, x) for k, x in zip(signature.args, arguments, strict=True))
        vector = ir.VectorType(source.real, VECTOR // size)
        length = builder.mul(source.shape[1], WORD(size))
        whole = builder.and_(length, WORD(-VECTOR))
        with cgutils.for_range(builder, source.shape[0]) as loop:
            source_row, target_row = source.row(loop.index), target.row(loop.index)
            for kind, first, last in ((vector, WORD(0), whole), (source.real, whole, length)):
                step = WORD(VECTOR if kind is vector else size)
                with cgutils.for_range_slice(builder, first, last, step, WORD) as (offset, _):
                    store(
                        builder,
                        load(builder, builder.gep(source_row, [offset]), kind, size),
                        builder.gep(target_row, [offset]),
                        size,
                    )
        return context.get_dummy_value()

    return types.void(source, target), generate


@kernel
def fill_rows(x: Array, number: Any) -> None:
    """x[i, j] ← number; x [m, n]. ``x[:] = number`` would take Numba half a second to compile, at every place."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[i, j] = number


@intrinsic
def _transpose_block(typing_context: Any, source: Any, target: Any) -> Any:
    """target[j, i] ← source[i, j], both [lanes, lanes] with lanes the numbers of a vector; rows of both contiguous.

    Rows that are s apart exchange pieces of s numbers, for s = half a vector, a quarter, …, 1.
    """
    size = source.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (View(context, builder, k, x) for k, x in zip(signature.args, arguments, strict=True))
        lanes = VECTOR // size
        vector, indices = ir.VectorType(source.real, lanes), ir.VectorType(_LANE, lanes)
        rows = [load(builder, source.row(WORD(i)), vector, size) for i in range(lanes)]
        s = lanes // 2
        while s:
            low = ir.Constant(indices, [lane if not lane & s else lanes + lane - s for lane in range(lanes)])
            high = ir.Constant(indices, [lane + s if not lane & s else lanes + lane for lane in range(lanes)])
            for i in range(lanes):
                if not i & s:
                    a, b = rows[i], rows[i + s]
                    rows[i], rows[i + s] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
            s //= 2
        for i in range(lanes):
            store(builder, rows[i], target.row(WORD(i)), size)
        return context.get_dummy_value()

    return types.void(source, target), generate


@kernel
def transpose(source: Array, target: Array) -> None:
    """target [n, m] ← sourceᵀ, source [m, n]. Rows of both must be contiguous."""
    lanes = VECTOR // source.itemsize
    m, n = source.shape
    rows, columns = m // lanes * lanes, n // lanes * lanes
    for i in range(0, rows, lanes):
        for j in range(0, columns, lanes):
            _transpose_block(source[i : i + lanes, j : j + lanes], target[j : j + lanes, i : i + lanes])
        for j in range(columns, n):
            for r in range(i, i + lanes):
                target[j, r] = source[r, j]
    for i in range(rows, m):
        for j in range(n):
            target[j, i] = source[i, j]
