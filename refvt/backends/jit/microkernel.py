"""The micro-kernel: a matrix product of a few rows and columns whose sums never leave the registers.

Every matrix product of the jit backend is built from one small product, a tile:

    c[i, j] = base[i, j] + gain[i] · (start[j] + Σ_k a[i, k] · b[k, j]),        i < ROWS,  j < VECTORS vectors

A processor multiplies and adds one vector (16 float32 with AVX-512, 8 with AVX, 4 with NEON) per cycle and arithmetic
unit, if it need not wait. A sum of its own in a register for each (i, vector of j) keeps all units busy, since none of
these additions waits for another. Each step k loads VECTORS vectors of b and ROWS numbers of a, each broadcast to a
vector, for VECTORS·ROWS multiply-adds. So arithmetic takes the time, as long as b comes from the L1 or L2 cache.
What a layer adds to its product (bias, DropPath scale, skip connection) is added while the sums are still in registers.
Sums run over k in order: a number of c does not depend on where tiles are cut.

The code is built as LLVM IR, because whether a compiler keeps 24 sums in registers must not be left to luck.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from refvt.backends.jit.kernel import intrinsic
from refvt.backends.jit.vectors import FEATURES, VECTOR, VECTORS, WORD, View, broadcast, load, store

__all__ = ["ROWS", "tile"]

# ROWS · VECTORS sums, VECTORS of b and one of a must fit in the registers: 32 of them, or 16 (x86 before AVX-512)
ROWS = 8 if VECTOR == 64 or "neon" in FEATURES else 4


class _Epilogue:
    """What is done with the sums of a tile before they are stored: base + gain · (start + sum), each part optional.

    start [n], gain [m] and base [m, n]; an empty array is an absent part, None removes the part at compile time.
    """

    def __init__(self, builder: Any, start: View | None, gain: View | None, base: View | None, real: Any) -> None:
        self.builder, self.start, self.gain, self.base = builder, start, gain, base
        # all rows of an absent gain read this
        self.one = cgutils.alloca_once_value(builder, ir.Constant(real, 1.0))

    def has(self, part: View | None) -> Any:
        """Whether a part is present, as a bit of the generated code."""
        if part is None:
            return ir.IntType(1)(0)
        return self.builder.icmp_signed(">", part.shape[0], WORD(0))

    def factor(self, i: Any) -> Any:
        """The gain of row i, 1 if there is none."""
        if self.gain is None:
            return self.builder.load(self.one)
        place = self.gain.number(self.gain.row(i))
        return self.builder.load(self.builder.select(self.has(self.gain), place, self.one))


Sums = list[list[Any]]  # [ROWS][vectors] of vectors


def _row_addresses(builder: Any, a: View, rows: Any) -> list[Any]:
    """Where the ROWS rows of a begin; a row beyond the last valid one reads that one, and is not stored."""
    last = builder.sub(rows, WORD(1))
    addresses = []
    for i in range(ROWS):
        valid = builder.icmp_signed("<", WORD(i), rows)
        addresses.append(a.row(builder.select(valid, WORD(i), last)))
    return addresses


def _first_sums(builder: Any, after: _Epilogue, whole: Any, columns: Any, vector: Any, vectors: int) -> list[Any]:
    """The value at which the sums of every row begin: ``start``, at the right edge padded to whole vectors; or zero."""
    size = VECTOR // vector.count
    zero = ir.Constant(vector, [0.0] * vector.count)
    if after.start is None:
        return [zero] * vectors
    padded = cgutils.alloca_once(builder, vector, vectors)
    for j in range(vectors):
        builder.store(zero, builder.gep(padded, [WORD(j)]))
    source = after.start.number(after.start.data)
    numbers = builder.bitcast(padded, source.type)
    at_the_edge = builder.and_(builder.not_(whole), after.has(after.start))
    with builder.if_then(at_the_edge), cgutils.for_range(builder, columns) as loop:
        builder.store(builder.load(builder.gep(source, [loop.index])), builder.gep(numbers, [loop.index]))
    begin = builder.select(builder.and_(whole, after.has(after.start)), source, numbers)
    begin = builder.bitcast(begin, ir.IntType(8).as_pointer())
    return [load(builder, builder.gep(begin, [WORD(j * VECTOR)]), vector, size) for j in range(vectors)]


def _accumulate(builder: Any, a: View, b: View, rows: list[Any], first_sums: list[Any], vector: Any) -> Sums:
    """The loop over k: sums[i][j] ← first_sums[j] + Σ_k a[i, k] · b[k, j]."""
    size, vectors, depth = VECTOR // vector.count, len(first_sums), b.shape[0]
    multiply_add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{vector.count}f{8 * size}"
    )
    before, step, end = builder.block, builder.append_basic_block("step"), builder.append_basic_block("end")
    builder.cbranch(builder.icmp_signed(">", depth, WORD(0)), step, end)
    builder.position_at_end(step)
    k, a_offset = builder.phi(WORD), builder.phi(WORD)
    b_row = builder.phi(b.data.type)
    sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(ROWS)]
    right = [load(builder, builder.gep(b_row, [WORD(j * VECTOR)]), vector, size) for j in range(vectors)]
    added = []
    for i in range(ROWS):
        left = broadcast(builder, builder.load(a.number(rows[i], a_offset)), vector)
        added.append([builder.call(multiply_add, [left, right[j], sums[i][j]]) for j in range(vectors)])
    following = builder.add(k, WORD(1))
    for phi, first, then in (
        (k, WORD(0), following),
        (a_offset, WORD(0), builder.add(a_offset, a.strides[1])),
        (b_row, b.data, builder.gep(b_row, [b.strides[0]])),
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(then, step)
    builder.cbranch(builder.icmp_signed("<", following, depth), step, end)
    builder.position_at_end(end)
    totals = [[builder.phi(vector) for _ in range(vectors)] for _ in range(ROWS)]
    for phis in (sums, totals):
        for i in range(ROWS):
            for j in range(vectors):
                phis[i][j].add_incoming(first_sums[j], before)
                phis[i][j].add_incoming(added[i][j], step)
    return totals


def _store_whole(builder: Any, c: View, after: _Epilogue, totals: Sums, vector: Any) -> None:
    """Whole vectors: finish and store the valid rows, a vector at a time."""
    size, vectors = VECTOR // vector.count, len(totals[0])
    has_base = after.has(after.base)
    for i in range(ROWS):
        with builder.if_then(builder.icmp_signed("<", WORD(i), c.shape[0])):
            row = c.row(WORD(i))
            places = [builder.gep(row, [WORD(j * VECTOR)]) for j in range(vectors)]
            values = totals[i]
            if after.gain is not None:
                factor = broadcast(builder, after.factor(WORD(i)), vector)
                values = [builder.fmul(factor, total) for total in totals[i]]
            if after.base is None:
                for place, value in zip(places, values, strict=True):
                    store(builder, value, place, size)
                continue
            with builder.if_else(has_base) as (based, bare):
                with based:
                    below = after.base.row(WORD(i))
                    olds = [load(builder, builder.gep(below, [WORD(j * VECTOR)]), vector, size) for j in range(vectors)]
                    for place, value, old in zip(places, values, olds, strict=True):
                        store(builder, builder.fadd(old, value), place, size)
                with bare:
                    for place, value in zip(places, values, strict=True):
                        store(builder, value, place, size)


def _store_edge(builder: Any, c: View, after: _Epilogue, totals: Sums, vector: Any) -> None:
    """The right edge: by way of memory, number by number."""
    vectors = len(totals[0])
    size = VECTOR // vector.count
    memory = cgutils.alloca_once(builder, vector, ROWS * vectors)
    for i in range(ROWS):
        for j in range(vectors):
            store(builder, totals[i][j], builder.gep(memory, [WORD(i * vectors + j)]), size)
    numbers = builder.bitcast(memory, c.real.as_pointer())
    zero = cgutils.alloca_once_value(builder, ir.Constant(c.real, 0.0))
    with cgutils.for_range(builder, c.shape[0]) as outer, cgutils.for_range(builder, c.shape[1]) as inner:
        offset = builder.add(builder.mul(outer.index, WORD(vectors * vector.count)), inner.index)
        value = builder.load(builder.gep(numbers, [offset]))
        across = builder.mul(inner.index, WORD(size))
        value = builder.fmul(value, after.factor(outer.index))
        if after.base is not None:
            place = after.base.number(after.base.row(outer.index), across)
            value = builder.fadd(builder.load(builder.select(after.has(after.base), place, zero)), value)
        builder.store(value, c.number(c.row(outer.index), across))


def _product(builder: Any, a: View, b: View, c: View, after: _Epilogue, vectors: int, size: int) -> None:
    """The code of one tile of the given number of vectors: c [m, n] ← epilogue(a [m, k] b [k, …])."""
    vector = ir.VectorType(a.real, VECTOR // size)
    rows, columns = c.shape
    row_addresses = _row_addresses(builder, a, rows)
    whole = builder.icmp_signed("==", columns, WORD(vectors * vector.count))
    first_sums = _first_sums(builder, after, whole, columns, vector, vectors)
    totals = _accumulate(builder, a, b, row_addresses, first_sums, vector)
    with builder.if_else(whole) as (straight, edge):
        with straight:
            _store_whole(builder, c, after, totals, vector)
        with edge:
            _store_edge(builder, c, after, totals, vector)


@intrinsic
def tile(typing_context: Any, a: Any, b: Any, c: Any, start: Any, gain: Any, base: Any) -> Any:
    """c ← base + gain · (start + a b), row by row. a [m, k], b [k, …], c [m, n]; m ≤ ROWS, n ≤ VECTORS vectors.

    start [n], gain [m] and base [m, n], which may be c itself, are absent if they are empty; None removes them at
    compile time. a may have any strides. ``start``, and rows of b, c and base, must be contiguous, and rows of b padded
    to whole vectors. All are of one dtype.
    """
    size = a.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, c = (View(context, builder, k, x) for k, x in zip(signature.args[:3], arguments[:3], strict=True))
        start, gain, base = (
            None if kind == types.none else View(context, builder, kind, value)
            for kind, value in zip(signature.args[3:], arguments[3:], strict=True)
        )
        after = _Epilogue(builder, start, gain, base, a.real)
        for vectors in range(1, VECTORS + 1):
            low, high = (WORD((vectors - i) * VECTOR // size) for i in (1, 0))
            columns = c.shape[1]
            fits = builder.and_(builder.icmp_signed(">", columns, low), builder.icmp_signed("<=", columns, high))
            with builder.if_then(fits):
                _product(builder, a, b, c, after, vectors, size)
        return context.get_dummy_value()

    return types.void(a, b, c, start, gain, base), generate
