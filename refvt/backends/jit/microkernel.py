"""The tile: a matrix product of a few rows and columns that never leaves the registers, and the turning of a block.

Every matrix product of the jit column is made of one small product,

    c[i, j] = base[i, j] + gain[i] · (start[j] + Σ_k a[i, k] · b[k, j]),        i < ROWS,  j < 3 vectors

A processor multiplies and adds one vector (16 float32 with AVX-512, 8 with AVX, 4 with NEON) per cycle and arithmetic
unit, if it need not wait: a sum of its own in a register for each (i, vector of j) keeps all of them busy, since none
of these additions waits for another. Each step k loads three vectors of b and ROWS numbers of a, each spread over a
vector, for 3·ROWS multiply-adds. So it is arithmetic that takes the time as long as b comes from the first or second
cache. What a layer adds to its product (bias, gain, skip connection) is added while the sums are still in registers.
Sums run over k in order: what a number of c is never depends on where tiles are cut.

It is written in LLVM's own language, because whether a compiler keeps 24 sums in registers must not be left to luck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from refvt.array import Array
from refvt.backends.jit.compile import kernel

__all__ = [
    "ROWS",
    "VECTOR",
    "VECTORS",
    "add_rows",
    "copy_rows",
    "max_rows",
    "tile",
    "turn",
    "view",
]

_features = {name for name, there in llvm.get_host_cpu_features().items() if there}
VECTOR = 64 if "avx512f" in _features else 32 if "avx" in _features else 16  # bytes
VECTORS = 3  # of a row of c
# ROWS · VECTORS sums, VECTORS of b and one of a must fit in the registers: 32 of them, or 16 (x86 before AVX-512)
ROWS = 8 if VECTOR == 64 or "neon" in _features else 4

_WORD, _INDEX = ir.IntType(64), ir.IntType(32)


class _View:
    """An array as generated code sees it: addresses of its numbers, its shape."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.builder, self.real = builder, context.get_data_type(kind.dtype)
        self.data = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self.shape = cgutils.unpack_tuple(builder, array.shape)
        self.strides = cgutils.unpack_tuple(builder, array.strides)  # bytes

    def row(self, i: Any) -> Any:
        return self.builder.gep(self.data, [self.builder.mul(i, self.strides[0])])

    def number(self, row: Any, offset: Any = None) -> Any:
        """The address of what stands so many bytes behind the start of a row."""
        where = row if offset is None else self.builder.gep(row, [offset])
        return self.builder.bitcast(where, self.real.as_pointer())


def _load(builder: Any, address: Any, kind: Any, size: int) -> Any:
    loaded = builder.load(builder.bitcast(address, kind.as_pointer()))
    loaded.align = size  # of a number: nothing is promised about vectors
    return loaded


def _store(builder: Any, value: Any, address: Any, size: int) -> None:
    builder.store(value, builder.bitcast(address, value.type.as_pointer())).align = size


def _spread(builder: Any, number: Any, vector: Any) -> Any:
    """A vector that is this number everywhere."""
    nothing, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_INDEX, vector.count), None)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _INDEX(0)), nothing, first)


class _Epilogue:
    """What is done with the sums of a tile before they are stored: gain · (start + sum) + base, each if it is there.

    start [n], gain [m] and base [m, n]; an empty array, or None when the code is made, is not there.
    """

    def __init__(self, builder: Any, start: _View | None, gain: _View | None, base: _View | None, real: Any) -> None:
        self.builder, self.start, self.gain, self.base = builder, start, gain, base
        # the rows of an absent gain all read this
        self.one = cgutils.alloca_once_value(builder, ir.Constant(real, 1.0))

    def has(self, part: _View | None) -> Any:
        if part is None:
            return ir.IntType(1)(0)
        return self.builder.icmp_signed(">", part.shape[0], _WORD(0))

    def factor(self, i: Any) -> Any:
        """The gain of row i."""
        if self.gain is None:
            return self.builder.load(self.one)
        place = self.gain.number(self.gain.row(i))
        return self.builder.load(self.builder.select(self.has(self.gain), place, self.one))


def _product(builder: Any, a: _View, b: _View, c: _View, after: _Epilogue, vectors: int, size: int) -> None:
    """The code of one tile, so many vectors wide."""
    lanes = VECTOR // size
    vector = ir.VectorType(a.real, lanes)
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f{8 * size}"
    )
    rows, columns, depth = c.shape[0], c.shape[1], b.shape[0]
    last = builder.sub(rows, _WORD(1))
    # rows that are not there read the last one that is, and are not stored
    starts = []
    for i in range(ROWS):
        there = builder.icmp_signed("<", _WORD(i), rows)
        starts.append(a.row(builder.select(there, _WORD(i), last)))

    # where the sums begin: at ``start``, which at the right edge is filled up to whole vectors first
    zero = ir.Constant(vector, [0.0] * lanes)
    whole = builder.icmp_signed("==", columns, _WORD(vectors * lanes))
    first_sums = [zero] * vectors
    if after.start is not None:
        filled = cgutils.alloca_once(builder, vector, vectors)
        for j in range(vectors):
            builder.store(zero, builder.gep(filled, [_WORD(j)]))
        source = after.start.number(after.start.data)
        numbers = builder.bitcast(filled, source.type)
        at_the_edge = builder.and_(builder.not_(whole), after.has(after.start))
        with builder.if_then(at_the_edge), cgutils.for_range(builder, columns) as loop:
            builder.store(builder.load(builder.gep(source, [loop.index])), builder.gep(numbers, [loop.index]))
        begin = builder.select(builder.and_(whole, after.has(after.start)), source, numbers)
        begin = builder.bitcast(begin, ir.IntType(8).as_pointer())
        first_sums = [_load(builder, builder.gep(begin, [_WORD(j * VECTOR)]), vector, size) for j in range(vectors)]

    before, step, end = builder.block, builder.append_basic_block("step"), builder.append_basic_block("end")
    some = builder.icmp_signed(">", depth, _WORD(0))
    builder.cbranch(some, step, end)
    builder.position_at_end(step)
    k, a_offset = builder.phi(_WORD), builder.phi(_WORD)
    b_row = builder.phi(b.data.type)
    sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(ROWS)]
    right = [_load(builder, builder.gep(b_row, [_WORD(j * VECTOR)]), vector, size) for j in range(vectors)]
    added = []
    for i in range(ROWS):
        left = _spread(builder, builder.load(a.number(starts[i], a_offset)), vector)
        added.append([builder.call(multiply_add, [left, right[j], sums[i][j]]) for j in range(vectors)])
    following = builder.add(k, _WORD(1))
    for phi, first, then in (
        (k, _WORD(0), following),
        (a_offset, _WORD(0), builder.add(a_offset, a.strides[1])),
        (b_row, b.data, builder.gep(b_row, [b.strides[0]])),
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(then, step)
    for i in range(ROWS):
        for j in range(vectors):
            sums[i][j].add_incoming(first_sums[j], before)
            sums[i][j].add_incoming(added[i][j], step)
    builder.cbranch(builder.icmp_signed("<", following, depth), step, end)
    builder.position_at_end(end)
    totals = [[builder.phi(vector) for _ in range(vectors)] for _ in range(ROWS)]
    for i in range(ROWS):
        for j in range(vectors):
            totals[i][j].add_incoming(first_sums[j], before)
            totals[i][j].add_incoming(added[i][j], step)

    with builder.if_else(whole) as (straight, piecewise):
        with straight:
            based = after.has(after.base)
            for i in range(ROWS):
                with builder.if_then(builder.icmp_signed("<", _WORD(i), rows)):
                    row = c.row(_WORD(i))
                    places = [builder.gep(row, [_WORD(j * VECTOR)]) for j in range(vectors)]
                    gained = totals[i]
                    if after.gain is not None:
                        factor = _spread(builder, after.factor(_WORD(i)), vector)
                        gained = [builder.fmul(factor, total) for total in totals[i]]
                    if after.base is None:
                        for place, value in zip(places, gained, strict=True):
                            _store(builder, value, place, size)
                        continue
                    with builder.if_else(based) as (more, fresh):
                        with more:
                            below = after.base.row(_WORD(i))
                            olds = [
                                _load(builder, builder.gep(below, [_WORD(j * VECTOR)]), vector, size)
                                for j in range(vectors)
                            ]
                            for place, value, old in zip(places, gained, olds, strict=True):
                                _store(builder, builder.fadd(old, value), place, size)
                        with fresh:
                            for place, value in zip(places, gained, strict=True):
                                _store(builder, value, place, size)
        with piecewise:  # the right edge: by way of memory, number by number
            room = cgutils.alloca_once(builder, vector, ROWS * vectors)
            for i in range(ROWS):
                for j in range(vectors):
                    _store(builder, totals[i][j], builder.gep(room, [_WORD(i * vectors + j)]), size)
            numbers = builder.bitcast(room, a.real.as_pointer())
            naught = cgutils.alloca_once_value(builder, ir.Constant(a.real, 0.0))
            with cgutils.for_range(builder, rows) as outer, cgutils.for_range(builder, columns) as inner:
                offset = builder.add(builder.mul(outer.index, _WORD(vectors * lanes)), inner.index)
                value = builder.load(builder.gep(numbers, [offset]))
                across = builder.mul(inner.index, _WORD(size))
                value = builder.fmul(value, after.factor(outer.index))
                if after.base is not None:
                    place = after.base.number(after.base.row(outer.index), across)
                    value = builder.fadd(builder.load(builder.select(after.has(after.base), place, naught)), value)
                builder.store(value, c.number(c.row(outer.index), across))


@intrinsic  # type: ignore[untyped-decorator]
def tile(typing_context: Any, a: Any, b: Any, c: Any, start: Any, gain: Any, base: Any) -> Any:
    """c ← base + gain · (start + a b), row by row. a [m, k], b [k, …], c [m, n]; m ≤ ROWS, n ≤ VECTORS vectors.

    start [n], gain [m] and base [m, n], which may be c itself, are not there if they are empty, or None.
    a may lie as it likes. ``start``, and rows of b, c and base, must be contiguous, and rows of b filled up to whole
    vectors. All are of one dtype.
    """
    size = a.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, c = (_View(context, builder, k, x) for k, x in zip(signature.args[:3], arguments[:3], strict=True))
        start, gain, base = (
            None if kind == types.none else _View(context, builder, kind, value)
            for kind, value in zip(signature.args[3:], arguments[3:], strict=True)
        )
        after = _Epilogue(builder, start, gain, base, a.real)
        for vectors in range(1, VECTORS + 1):
            low, high = (_WORD((vectors - i) * VECTOR // size) for i in (1, 0))
            columns = c.shape[1]
            fits = builder.and_(builder.icmp_signed(">", columns, low), builder.icmp_signed("<=", columns, high))
            with builder.if_then(fits):
                _product(builder, a, b, c, after, vectors, size)
        return context.get_dummy_value()

    return types.void(a, b, c, start, gain, base), generate


def _fold(name: str, combine: Callable[[Any, Any, Any], Any], text: str) -> Any:
    """An intrinsic that goes down the rows of x [m, n] and folds them into a row out [n] of at most VECTORS vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, out = (_View(context, builder, k, v) for k, v in zip(signature.args, arguments, strict=True))
        size = signature.args[0].dtype.bitwidth // 8
        vector = ir.VectorType(x.real, VECTOR // size)
        for vectors in range(1, VECTORS + 1):
            fits = builder.icmp_signed("==", out.shape[0], _WORD(vectors * vector.count))
            with builder.if_then(fits):
                offsets = [_WORD(j * VECTOR) for j in range(vectors)]
                states = [cgutils.alloca_once(builder, vector) for _ in offsets]
                for offset, state in zip(offsets, states, strict=True):
                    builder.store(_load(builder, builder.gep(out.data, [offset]), vector, size), state)
                with cgutils.for_range(builder, x.shape[0]) as loop:
                    row = x.row(loop.index)
                    for offset, state in zip(offsets, states, strict=True):
                        new = _load(builder, builder.gep(row, [offset]), vector, size)
                        builder.store(combine(builder, builder.load(state), new), state)
                for offset, state in zip(offsets, states, strict=True):
                    _store(builder, builder.load(state), builder.gep(out.data, [offset]), size)
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


@intrinsic  # type: ignore[untyped-decorator]
def view(typing_context: Any, memory: Any, start: Any, rows: Any, columns: Any) -> Any:
    """The numbers from ``start`` on of a contiguous array, whatever its shape, as [rows, columns].

    What slicing and reshape do, without asking whether it can be done: that takes longer than a short attention.
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
            strides=[builder.mul(columns, _WORD(size)), _WORD(size)],
            itemsize=_WORD(size),
            meminfo=whole.meminfo,
            parent=whole.parent,
        )
        return impl_ret_borrowed(context, builder, array_type, array._getvalue())

    return array_type(memory, start, rows, columns), generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_rows(typing_context: Any, source: Any, target: Any) -> Any:
    """target[i, j] ← source[i, j] for all of source [m, n]; rows of both contiguous.

    What a compiler makes of such a loop first finds out, for every row anew, that the two do not overlap.
    """
    size = source.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (_View(context, builder, k, x) for k, x in zip(signature.args, arguments, strict=True))
        vector = ir.VectorType(source.real, VECTOR // size)
        length = builder.mul(source.shape[1], _WORD(size))
        whole = builder.and_(length, _WORD(-VECTOR))
        with cgutils.for_range(builder, source.shape[0]) as loop:
            here, there = source.row(loop.index), target.row(loop.index)
            for kind, first, last in ((vector, _WORD(0), whole), (source.real, whole, length)):
                step = _WORD(VECTOR if kind is vector else size)
                with cgutils.for_range_slice(builder, first, last, step, _WORD) as (offset, _):
                    _store(
                        builder,
                        _load(builder, builder.gep(here, [offset]), kind, size),
                        builder.gep(there, [offset]),
                        size,
                    )
        return context.get_dummy_value()

    return types.void(source, target), generate


@intrinsic  # type: ignore[untyped-decorator]
def _turn_block(typing_context: Any, source: Any, target: Any) -> Any:
    """target[j, i] ← source[i, j], as many rows and columns as a vector has numbers; rows of both contiguous.

    Rows that are s apart exchange their parts of s numbers, for s = half a vector, a quarter, …, 1.
    """
    size = source.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (_View(context, builder, k, x) for k, x in zip(signature.args, arguments, strict=True))
        lanes = VECTOR // size
        vector, indices = ir.VectorType(source.real, lanes), ir.VectorType(_INDEX, lanes)
        rows = [_load(builder, source.row(_WORD(i)), vector, size) for i in range(lanes)]
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
            _store(builder, rows[i], target.row(_WORD(i)), size)
        return context.get_dummy_value()

    return types.void(source, target), generate


@kernel
def turn(source: Array, target: Array) -> None:
    """target ← sourceᵀ. Rows of both must be contiguous."""
    lanes = VECTOR // source.itemsize
    m, n = source.shape
    rows, columns = m // lanes * lanes, n // lanes * lanes
    for i in range(0, rows, lanes):
        for j in range(0, columns, lanes):
            _turn_block(source[i : i + lanes, j : j + lanes], target[j : j + lanes, i : i + lanes])
        for j in range(columns, n):
            for r in range(i, i + lanes):
                target[j, r] = source[r, j]
    for i in range(rows, m):
        for j in range(n):
            target[j, i] = source[i, j]
