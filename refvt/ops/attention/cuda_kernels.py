"""The three tiled kernels of attention, compiled for one width of heads."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

from numba import cuda

from refvt.backends.cuda.arguments import Indices, Int, Matrix, Real, Vector
from refvt.backends.cuda.kernel import Kernel, device_function, kernel
from refvt.backends.cuda.sizes import ALIGNMENT, WARP
from refvt.ops.attention import LOG2_E
from refvt.ops.attention.cuda_tiles import (
    ACROSS,
    BACKWARD,
    FORWARD,
    HEIGHT,
    LINES,
    SHORT,
    Layout,
    add_mixture,
    add_products,
    clear,
    layout_for,
    place,
    row_max,
    row_sum,
    rows_of_block,
    sync_warp,
    tile_functions,
)

__all__ = ["AttentionKernels", "kernels_for"]


def _forward_kernel(layout: Layout, name: str) -> Kernel:
    d, groups, pitch, channels, queries, keys, warps, per_key, weight_pitch, _, K, V, W, _, size = layout
    load_tile, write_row = tile_functions(layout)

    @kernel(name=name, threads=warps * WARP)
    def forward(
        q: Matrix,
        k: Matrix,
        v: Matrix,
        query_offsets: Indices,
        key_offsets: Indices,
        scale: Real,
        key_bias: Vector,
        y: Matrix,
        lse: Matrix,
    ) -> None:
        """q [n, D], k, v [m, D], offsets [segments+1], key_bias [m] or empty → y [n, D], lse [n, 2A].

        A block owns some queries of a segment and a head, and walks along their keys.
        """
        top, bottom, first, last = rows_of_block(query_offsets, key_offsets, queries)
        if top >= bottom:
            return
        row, x = place()
        head = cuda.blockIdx.y
        column = head * d
        number = q.dtype.type
        zero, lowest, log2_e = number(0), number(-math.inf), number(LOG2_E)
        shared = cuda.shared.array(size, q.dtype, alignment=ALIGNMENT)
        highest = cuda.local.array(HEIGHT, q.dtype)  # the largest logit of each row so far
        totals = cuda.local.array(HEIGHT, q.dtype)  # Σ of the weights of this thread's keys
        sums = cuda.local.array((HEIGHT, channels), q.dtype)
        logits = cuda.local.array((HEIGHT, per_key), q.dtype)
        clear(sums)
        for r in range(HEIGHT):
            highest[r] = lowest
            totals[r] = zero
        load_tile(q, top, bottom, column, queries, shared, 0)
        for start in range(first, last, keys):
            cuda.syncthreads()  # no thread reads the previous tiles any more
            load_tile(k, start, last, column, keys, shared, K)
            load_tile(v, start, last, column, keys, shared, V)
            cuda.syncthreads()
            # 1. logits, times log₂ e, because GPUs have an instruction for powers of two
            clear(logits)
            add_products(shared, 0, K, pitch, groups, logits)
            for c in range(per_key):
                j = start + x + c * ACROSS
                bias = zero
                if key_bias.shape[0] > 0:
                    bias = key_bias[min(j, last - 1)] * log2_e
                if j >= last:
                    bias = lowest
                for r in range(HEIGHT):
                    logits[r, c] = logits[r, c] * (scale * log2_e) + bias
            # 2. softmax: if a logit exceeds the largest so far, earlier sums are corrected
            for r in range(HEIGHT):
                largest = highest[r]
                for c in range(per_key):
                    largest = max(largest, logits[r, c])
                largest = row_max(largest)
                shift = largest if largest > lowest else zero  # a row without keys so far
                correction = math.exp2(highest[r] - shift)
                highest[r] = largest
                totals[r] *= correction
                for c in range(channels):
                    sums[r, c] *= correction
                for c in range(per_key):
                    weight = math.exp2(logits[r, c] - shift)
                    totals[r] += weight
                    shared[W + (row + r * LINES) * weight_pitch + x + c * ACROSS] = weight
            sync_warp()
            # 3. the weighted mean of the values, not divided yet
            add_mixture(shared, W, weight_pitch, keys, V, pitch, groups, sums)
        for r in range(HEIGHT):
            i = top + row + r * LINES
            total = row_sum(totals[r])
            if i < bottom:
                write_row(sums, number(1) / total if total > zero else zero, r, x, i, column, y)
                if x == 0:
                    lse[i, head] = highest[r] if total > zero else zero
                    lse[i, cuda.gridDim.y + head] = math.log2(total) if total > zero else zero

    return forward


def _products_function(layout: Layout) -> Any:
    """A device function that both backward kernels begin a tile with."""
    pitch, groups, walked = layout.pitch, layout.groups, layout.walked
    SECOND, THIRD, FOURTH = layout.second, layout.third, layout.fourth
    load_tile, _ = tile_functions(layout)

    @device_function
    def multiply_tiles(
        a: Matrix, b: Matrix, start: Int, last: Int, left: Int, shared: Any, logits: Any, dweights: Any
    ) -> None:
        """Load the walked tiles of a and b; logits = q kᵀ, dweights = dy vᵀ or transposed [HEIGHT, per_thread]."""
        cuda.syncthreads()
        load_tile(a, start, last, left, walked, shared, THIRD)
        load_tile(b, start, last, left, walked, shared, FOURTH)
        cuda.syncthreads()
        clear(logits)
        add_products(shared, 0, THIRD, pitch, groups, logits)
        clear(dweights)
        add_products(shared, SECOND, FOURTH, pitch, groups, dweights)

    return multiply_tiles


def _backward_queries_kernel(layout: Layout, name: str) -> Kernel:
    d, groups, pitch, channels, queries, keys, warps, per_key, weight_pitch, SECOND, THIRD, _, _, DLOGITS, size = layout
    load_tile, write_row = tile_functions(layout)
    multiply_tiles = _products_function(layout)

    @kernel(name=name, threads=warps * WARP)
    def backward_queries(
        dy: Matrix,
        q: Matrix,
        k: Matrix,
        v: Matrix,
        lse: Matrix,
        mean: Matrix,
        query_offsets: Indices,
        key_offsets: Indices,
        scale: Real,
        key_bias: Vector,
        dq: Matrix,
    ) -> None:
        """dy, q [n, D], k, v [m, D], lse [n, 2A], mean [n, A], offsets, key_bias [m] or empty → dq [n, D].

        A block owns some queries and walks along their keys.
        """
        top, bottom, first, last = rows_of_block(query_offsets, key_offsets, queries)
        if top >= bottom:
            return
        row, x = place()
        head = cuda.blockIdx.y
        column = head * d
        number = q.dtype.type
        zero, lowest, log2_e = number(0), number(-math.inf), number(LOG2_E)
        shared = cuda.shared.array(size, q.dtype, alignment=ALIGNMENT)
        row_shift = cuda.local.array(HEIGHT, q.dtype)
        row_lse = cuda.local.array(HEIGHT, q.dtype)
        row_mean = cuda.local.array(HEIGHT, q.dtype)
        sums = cuda.local.array((HEIGHT, channels), q.dtype)
        logits = cuda.local.array((HEIGHT, per_key), q.dtype)
        dweights = cuda.local.array((HEIGHT, per_key), q.dtype)
        clear(sums)
        for r in range(HEIGHT):
            i = min(top + row + r * LINES, bottom - 1)
            row_shift[r], row_lse[r], row_mean[r] = lse[i, head], lse[i, cuda.gridDim.y + head], mean[i, head]
        load_tile(q, top, bottom, column, queries, shared, 0)
        load_tile(dy, top, bottom, column, queries, shared, SECOND)
        for start in range(first, last, keys):
            # passes 1–2 again; 3. the weighted mean: dweights = dy vᵀ
            multiply_tiles(k, v, start, last, column, shared, logits, dweights)
            for c in range(per_key):
                j = start + x + c * ACROSS
                bias = zero
                if key_bias.shape[0] > 0:
                    bias = key_bias[min(j, last - 1)] * log2_e
                if j >= last:
                    bias = lowest
                for r in range(HEIGHT):
                    weight = math.exp2((logits[r, c] * (scale * log2_e) + bias - row_shift[r]) - row_lse[r])
                    # 2. softmax: only deviations from the mean gradient count
                    dlogit = weight * (dweights[r, c] - row_mean[r])
                    shared[DLOGITS + (row + r * LINES) * weight_pitch + x + c * ACROSS] = dlogit
            sync_warp()
            # 1. logits; their scale follows at the end
            add_mixture(shared, DLOGITS, weight_pitch, keys, THIRD, pitch, groups, sums)
        for r in range(HEIGHT):
            i = top + row + r * LINES
            if i < bottom:
                write_row(sums, scale, r, x, i, column, dq)

    return backward_queries


def _backward_keys_kernel(layout: Layout, name: str) -> Kernel:
    d, groups, pitch, channels, keys, queries, warps, per_query, weight_pitch, SECOND, THIRD, FOURTH = layout[:12]
    WEIGHTS, DLOGITS, size = layout[12:]
    load_tile, write_row = tile_functions(layout)
    multiply_tiles = _products_function(layout)

    @kernel(name=name, threads=warps * WARP)
    def backward_keys(
        dy: Matrix,
        q: Matrix,
        k: Matrix,
        v: Matrix,
        lse: Matrix,
        mean: Matrix,
        query_offsets: Indices,
        key_offsets: Indices,
        scale: Real,
        key_bias: Vector,
        dk: Matrix,
        dv: Matrix,
    ) -> None:
        """dy, q [n, D], k, v [m, D], lse [n, 2A], mean [n, A], offsets, key_bias [m] or empty → dk, dv [m, D].

        A block owns some keys and walks along the queries that attend to them.
        """
        top, bottom, first, last = rows_of_block(key_offsets, query_offsets, keys)
        if top >= bottom:
            return
        row, x = place()
        head = cuda.blockIdx.y
        column = head * d
        number = q.dtype.type
        zero, one, log2_e = number(0), number(1), number(LOG2_E)
        shared = cuda.shared.array(size, q.dtype, alignment=ALIGNMENT)
        biases = cuda.local.array(HEIGHT, q.dtype)
        dk_sums = cuda.local.array((HEIGHT, channels), q.dtype)
        dv_sums = cuda.local.array((HEIGHT, channels), q.dtype)
        logits = cuda.local.array((HEIGHT, per_query), q.dtype)
        dweights = cuda.local.array((HEIGHT, per_query), q.dtype)
        clear(dk_sums)
        clear(dv_sums)
        for r in range(HEIGHT):
            biases[r] = zero
            if key_bias.shape[0] > 0:
                biases[r] = key_bias[min(top + row + r * LINES, bottom - 1)] * log2_e
        load_tile(k, top, bottom, column, keys, shared, 0)
        load_tile(v, top, bottom, column, keys, shared, SECOND)
        for start in range(first, last, queries):
            # passes 1–2 again; 3. the weighted mean: dweights = dy vᵀ. A row is a key here, a column a query
            multiply_tiles(q, dy, start, last, column, shared, logits, dweights)
            for c in range(per_query):
                i = start + x + c * ACROSS
                read = min(i, last - 1)
                column_shift, column_lse = lse[read, head], lse[read, cuda.gridDim.y + head]
                column_mean = mean[read, head]
                if i >= last:
                    column_lse = number(math.inf)  # weight zero
                for r in range(HEIGHT):
                    weight = math.exp2((logits[r, c] * (scale * log2_e) + biases[r] - column_shift) - column_lse)
                    # 2. softmax
                    dlogit = weight * (dweights[r, c] - column_mean)
                    shared[WEIGHTS + (row + r * LINES) * weight_pitch + x + c * ACROSS] = weight
                    shared[DLOGITS + (row + r * LINES) * weight_pitch + x + c * ACROSS] = dlogit
            sync_warp()
            # 3. the weighted mean: dv
            add_mixture(shared, WEIGHTS, weight_pitch, queries, FOURTH, pitch, groups, dv_sums)
            # 1. logits: dk
            add_mixture(shared, DLOGITS, weight_pitch, queries, THIRD, pitch, groups, dk_sums)
        for r in range(HEIGHT):
            j = top + row + r * LINES
            if j < bottom:
                write_row(dk_sums, scale, r, x, j, column, dk)
                write_row(dv_sums, one, r, x, j, column, dv)

    return backward_keys


class AttentionKernels(NamedTuple):
    """The three kernels for heads of one width."""

    forward_rows: int  # of a tile that a block owns
    backward_rows: int
    forward: Kernel
    backward_queries: Kernel
    backward_keys: Kernel


@cache
def kernels_for(d: int, itemsize: int, short: bool = False) -> AttentionKernels:
    """The kernels for heads of width d and numbers of ``itemsize`` bytes; register arrays need constant sizes.

    short: for segments that fit in the SHORT tiles.
    """
    forward = layout_for(d, itemsize, (SHORT,) if short else FORWARD, backward=False)
    backward = layout_for(d, itemsize, (SHORT,) if short else BACKWARD, backward=True)
    prefix = "attention.short_" if short else "attention."
    return AttentionKernels(
        forward.owned,
        backward.owned,
        _forward_kernel(forward, f"{prefix}forward_{d}"),
        _backward_queries_kernel(backward, f"{prefix}backward_queries_{d}"),
        _backward_keys_kernel(backward, f"{prefix}backward_keys_{d}"),
    )
