"""The micro-kernel and the vector functions against NumPy, for all sizes; nothing else is written."""

import numpy as np
import pytest

from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.matmul import linear_tiles, pack, weight_gradients
from refvt.backends.jit.microkernel import ROWS, tile
from refvt.backends.jit.vectors import VECTOR, VECTORS, add_rows, copy_rows, max_rows, transpose, view

DTYPES = [np.float32, np.float64]


@kernel
def _tile(a, b, c, start, gain, base):
    tile(a, b, c, start, gain, base)


@kernel
def _bare_tile(a, b, c, base):
    tile(a, b, c, None, None, base)


@kernel
def _add_rows(x, out):
    add_rows(x, out)


@kernel
def _max_rows(x, out):
    max_rows(x, out)


@kernel
def _copy_rows(source, target):
    copy_rows(source, target)


@kernel
def _view(memory, start, rows, columns):
    return view(memory, start, rows, columns)


def whole(rng, *shape, dtype):
    """Whole numbers: sums of them are exact in any order."""
    return rng.integers(-8, 9, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [0, 1, 7])
def test_a_tile_is_a_matrix_product(dtype, depth):
    rng = np.random.default_rng(depth)
    lanes = VECTOR // np.dtype(dtype).itemsize
    for rows in range(1, ROWS + 1):
        for columns in {1, lanes - 1, lanes, lanes + 1, 2 * lanes, VECTORS * lanes - 3, VECTORS * lanes}:
            b = whole(rng, depth, VECTORS * lanes + 5, dtype=dtype)[:, : VECTORS * lanes]
            for a in (
                whole(rng, rows, depth, dtype=dtype),
                whole(rng, depth, rows + 2, dtype=dtype)[:, 1 : rows + 1].T,
            ):
                for add in (False, True):
                    block = whole(rng, ROWS + 1, VECTORS * lanes + 1, dtype=dtype)
                    before = block.copy()
                    c = block[:rows, :columns]
                    _bare_tile(a, b, c, c if add else c[:0])
                    expected = before.copy()
                    expected[:rows, :columns] = a @ b[:, :columns] + add * before[:rows, :columns]
                    assert np.array_equal(block, expected), (rows, columns, add)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_base", [False, True])
@pytest.mark.parametrize("has_gain", [False, True])
@pytest.mark.parametrize("has_start", [False, True])
def test_what_a_tile_adds_to_its_product(dtype, has_start, has_gain, has_base):
    rng = np.random.default_rng(0)
    lanes = VECTOR // np.dtype(dtype).itemsize
    for rows in (1, ROWS - 1, ROWS):
        for columns in (1, lanes, 2 * lanes - 1, 2 * lanes, VECTORS * lanes - 3, VECTORS * lanes):
            a, b = whole(rng, rows, 5, dtype=dtype), whole(rng, 5, VECTORS * lanes, dtype=dtype)
            start = whole(rng, columns * has_start, dtype=dtype)
            gain = whole(rng, rows * has_gain, dtype=dtype)
            base = whole(rng, rows * has_base, columns + 1, dtype=dtype)[:, :-1]
            block = whole(rng, ROWS + 1, VECTORS * lanes + 1, dtype=dtype)
            expected = block.copy()
            product = a @ b[:, :columns] + (start if has_start else 0)
            expected[:rows, :columns] = product * (gain[:, None] if has_gain else 1) + (base if has_base else 0)
            _tile(a, b, block[:rows, :columns], start, gain, base)
            assert np.array_equal(block, expected), (rows, columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (16, 16), (33, 40), (64, 7)])
def test_transposing_and_copying(dtype, shape):
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((shape[0], shape[1] + 3)).astype(dtype)
    source = wide[:, 1:-2]
    target, copy = np.zeros((shape[1], shape[0] + 2), dtype), np.zeros((shape[0] + 1, shape[1] + 1), dtype)
    transpose(source, target[:, :-2])
    assert np.array_equal(target[:, :-2], source.T)
    assert not target[:, -2:].any()
    _copy_rows(source, copy)
    assert np.array_equal(copy[:-1, :-1], source)
    assert not copy[-1].any()
    assert not copy[:, -1].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vectors", range(1, VECTORS + 1))
def test_sums_and_maxima_of_rows(dtype, vectors):
    rng = np.random.default_rng(vectors)
    n = vectors * VECTOR // np.dtype(dtype).itemsize
    x, out = whole(rng, 11, n + 2, dtype=dtype)[:, 1:-1], whole(rng, n, dtype=dtype)
    total, largest = out.copy(), out.copy()
    _add_rows(x, total)
    _max_rows(x, largest)
    assert np.array_equal(total, out + x.sum(axis=0))
    assert np.array_equal(largest, np.maximum(out, x.max(axis=0)))


def test_a_view_looks_at_the_same_numbers():
    memory = np.arange(20.0)
    seen = _view(memory, 3, 2, 4)
    assert np.array_equal(seen, memory[3:11].reshape(2, 4))
    assert np.may_share_memory(seen, memory)


@pytest.mark.parametrize("columns", [5, 48, 100])
def test_panels_hold_every_column_and_zeros(columns):
    rng = np.random.default_rng(0)
    b = rng.standard_normal((20, columns)).astype(np.float32)
    for layout in (b, np.asfortranarray(b)):
        panels = np.full((-(-columns // 48), 20, 48), 7, np.float32)
        pack(layout, panels)
        side_by_side = panels.transpose(1, 0, 2).reshape(20, -1)
        assert np.array_equal(side_by_side[:, :columns], b)
        assert not side_by_side[:, columns:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "D", "E"), [(0, 5, 7), (1, 3, 4), (2, 130, 300), (300, 70, 50), (700, 130, 300)])
def test_products_of_layers(dtype, n, D, E):
    rng = np.random.default_rng(n)
    x, weight, bias = whole(rng, n, E, dtype=dtype), whole(rng, D, E, dtype=dtype), whole(rng, D, dtype=dtype)
    dy, residual, gain = whole(rng, n, D, dtype=dtype), whole(rng, n, D, dtype=dtype), whole(rng, n, dtype=dtype)
    assert np.array_equal(linear_tiles(x, weight), x @ weight.T)
    assert np.array_equal(
        linear_tiles(x, weight, bias, residual, gain), residual + gain[:, None] * (x @ weight.T + bias)
    )
    assert np.array_equal(linear_tiles(dy, weight.T), dy @ weight)
    # the added operands may be of another dtype, and have any strides
    other = np.float64 if dtype == np.float32 else np.float32
    mixed = linear_tiles(
        x, weight, np.repeat(bias, 2)[::2].astype(other), residual.astype(other), gain.astype(other)[::-1]
    )
    assert mixed.dtype == dtype
    assert np.array_equal(mixed, residual + gain[::-1, None] * (x @ weight.T + bias))
    dweight, dbias = weight_gradients(dy, x)
    assert np.array_equal(dweight, dy.T @ x)
    assert np.array_equal(dbias, dy.sum(axis=0))


@pytest.mark.parametrize("n", [1, 5, 40])
def test_numbers_do_not_depend_on_where_tiles_are_cut(n):
    """To the bit: sums begin with the bias and run over k in order, at the right edge too."""
    rng = np.random.default_rng(n)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, 50), (130, 50), (130,)))
    whole_width = linear_tiles(x, weight, bias)
    for columns in (7, 16, 40, 48, 100):
        assert np.array_equal(linear_tiles(x, weight[:columns], bias[:columns]), whole_width[:, :columns]), columns
