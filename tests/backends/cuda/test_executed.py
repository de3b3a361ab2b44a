"""The compiled cuda kernels, run without a GPU: their PTX on the machine of tests/support/ptx_machine.py.

The simulator runs the kernels' Python, with bodies of its own for shuffles and vector loads and with tiny tiles. Here
run the bodies and the tiles that a GPU runs, watched for addresses outside of arrays, unwritten memory and races.
"""

import os
from importlib.util import find_spec

import numpy as np
import pytest

from refvt import Decisions, backends
from refvt.backends.cuda.arguments import Vector, kinds_of
from refvt.conformance.golden import load_manifest
from refvt.conformance.verify import verify_case
from tests.ops.test_saturated import check_errors, check_one_key_with_all_the_weight
from tests.support.compaction_checks import check_compaction, check_index_functions, check_mask_halted
from tests.support.inference_checks import HALTING, check_inference
from tests.support.models import small_clips, small_model
from tests.support.ptx_machine import Fault, Machine

INSTALLED = find_spec("numba_cuda") is not None and find_spec("cuda") is not None
pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(not INSTALLED, reason="needs the extra cuda: numba-cuda and NVIDIA's compiler"),
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="the simulator compiles nothing"),
]
CASES = {name: case for name, case in load_manifest().items() if case.tiny}


@pytest.fixture(scope="module")
def machine():
    """The cuda backend on a machine that runs PTX."""
    from refvt.backends.cuda import driver as cuda_driver
    from refvt.backends.cuda.kernel import KERNELS
    from refvt.backends.cuda.upload import _COPIES

    def forget():
        """Drop arrays and kernels of another machine."""
        for kernel in KERNELS:
            kernel._loaded.clear()
        _COPIES.clear()
        cuda_driver.driver.cache_clear()
        backends.get.cache_clear()

    machine, patch = Machine(), pytest.MonkeyPatch()
    patch.setattr(cuda_driver, "Driver", lambda: machine)
    patch.setattr(backends, "_missing", lambda name: None)
    forget()
    yield machine
    patch.undo()
    forget()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kind == "op"])
def test_tiny_operation(name, machine):
    result = verify_case(CASES[name], "cuda", "float32")
    assert result.compared
    assert not [(t.name, t.error, t.allowed) for t in result.tensors if t.status != "agrees"]


@pytest.mark.parametrize(("B", "N"), [(1, 300), (5, 40), (33, 3)])
@pytest.mark.parametrize("early", [False, True])
def test_compaction(B, N, early, machine):
    ops, rng = backends.get("cuda"), np.random.default_rng(B + early)
    assert check_compaction(ops, rng, B, N, True, early)
    check_mask_halted(ops, rng, N, early)


@pytest.mark.parametrize("life", HALTING)
def test_inference_without_counts(life, machine):
    """From the second call on a captured graph is replayed: other clips, other halting layers."""
    model, lives = check_inference("cuda", life, "float32", 1e-4, calls=3 if life == "zero" else 2)
    assert len(lives) > 1 or life in ("none", "one joint block")
    assert all(captured.graph is not None for captured in model._graphs._passes.values())


@pytest.mark.parametrize("wrong", [False, True])
def test_what_the_report_says_of_captured_graphs(wrong, machine, monkeypatch):
    from refvt.backends.cuda import graphs
    from refvt.bench import contestants as bench_contestants
    from refvt.bench import gpu_report

    model = small_model(**HALTING["zero"])
    clips = small_clips(model.config, 2).astype("float32")
    material = bench_contestants.Material(
        model.config, "float32", model.parameters, clips, *[np.zeros(2, np.int64)] * 2, Decisions()
    )
    monkeypatch.setattr(bench_contestants, "make_material", lambda *given: material)
    first = []

    def stale(self, way, parameters, function, clips):
        """The clips of the first call, whatever is given."""
        first.append((self, clips))
        return function(next(clips for cache, clips in first if cache is self))

    if wrong:
        monkeypatch.setattr(graphs.GraphCache, "__call__", stale)
    found = gpu_report._graphs(3)
    assert found["holds"] is not wrong
    assert set(found["milliseconds"]) == {"launched", "replayed"}
    if wrong:
        assert "call 2, logits" in found["failed"]
    assert ("NOT the same numbers" in found["summary"]) is wrong


def test_index_functions(machine):
    check_index_functions(backends.get("cuda").arrays, np.random.default_rng(0))


def test_copies_of_a_row_are_added_in_order(machine):
    """Whatever order the lists of copies come to have."""
    gather, rng = backends.get("cuda").gather, np.random.default_rng(0)
    index = rng.integers(-1, 6, 200)
    dy = (rng.standard_normal((200, 3)) * 10.0 ** rng.integers(-6, 6, (200, 1))).astype(np.float32)
    there = backends.get("cuda").arrays.from_numpy
    _, cache = gather.forward(there(np.zeros((6, 3), np.float32)), index)
    expected = np.zeros((6, 3), np.float32)
    for i, j in enumerate(index):
        if j >= 0:
            expected[j] += dy[i]
    assert np.array_equal(gather.backward(there(dy), cache).copy_to_host(), expected)


def test_tiny_model_forward_and_backward(machine):
    result = verify_case(CASES["tiny-model-zero"], "cuda", "float32")
    assert len(result.tensors) > 200
    assert not [(t.name, t.error, t.allowed) for t in result.tensors if t.status != "agrees"]


@pytest.mark.parametrize("size", ["LARGE", "SMALL"])
@pytest.mark.parametrize(("M", "N", "K"), [(150, 70, 21), (128, 64, 16), (3, 5, 1)])
def test_matrices_in_either_tile(machine, monkeypatch, size, M, N, K):
    """Whole numbers, whose sums are exact; columns of wider matrices, that a tile fits and does not fit."""
    from refvt.backends.cuda import matmul
    from refvt.ops.linear.cuda import _forward

    tile = getattr(matmul, size)
    monkeypatch.setattr(matmul, "LARGE", tile)
    monkeypatch.setattr(matmul, "SMALL", tile)
    monkeypatch.setattr(matmul, "LEAST", 8)  # so that sums over so few are cut too
    matmul.plan.cache_clear()
    arrays, rng = backends.get("cuda").arrays, np.random.default_rng(M)

    def matrix(rows, columns):
        wide = rng.integers(-9, 9, (rows, columns + 3)).astype(np.float32)
        return wide[:, 3:], arrays.from_numpy(wide).columns(3, columns + 3)

    (a, a_there), (b, b_there), (at, at_there), (bt, bt_there) = (
        matrix(*shape) for shape in ((M, K), (K, N), (K, M), (N, K))
    )
    assert np.array_equal(arrays.to_numpy(matmul.matmul_nn(a_there, b_there)), a @ b)
    assert np.array_equal(arrays.to_numpy(matmul.matmul_tn(at_there, b_there)), at.T @ b)
    bias, gain, residual = (rng.integers(-9, 9, n).astype(np.float32) for n in (N, M, (M, N)))
    given = (arrays.from_numpy(x) for x in (bias, gain, residual))
    expected = residual + gain[:, None] * (a @ bt.T + bias)
    assert np.array_equal(arrays.to_numpy(_forward(a_there, bt_there, *given)), expected)
    matmul.plan.cache_clear()


def test_sums_are_not_split_beyond_a_grid(machine):
    """``column_sums`` adds the parts, a column per number of the result; a grid's second axis ends at 65535 blocks."""
    from refvt.backends.cuda.matmul import MOST_COLUMNS, plan

    assert plan(384, 384, 10**5, True)[1] < 10**5
    assert plan(1024, MOST_COLUMNS // 1024, 10**5, True)[1] < 10**5
    assert plan(1024, MOST_COLUMNS // 1024 + 1, 10**5, True)[1] == 10**5


@pytest.mark.parametrize("lengths", [[(70, 40), (3, 33), (0, 5), (2, 0)], [(8, 8), (8, 8), (1, 16)]])
def test_attention_in_real_tiles(machine, lengths):
    """Heads of 64 channels, in segments of several tiles and in short ones, against the reference in float64."""
    table, reference = backends.get("cuda"), backends.get("reference").attention
    up, down, rng, D = table.arrays.from_numpy, table.arrays.to_numpy, np.random.default_rng(1), 128
    offsets, keys = (np.concatenate([[0], np.cumsum([pair[side] for pair in lengths])]) for side in (0, 1))
    q, dy = (rng.standard_normal((offsets[-1], D)).astype(np.float32) for _ in range(2))
    kv = rng.standard_normal((keys[-1], 2 * D)).astype(np.float32)
    bias = np.log(rng.integers(1, 9, keys[-1])).astype(np.float32)
    there = up(kv)
    k, v = there.columns(0, D), there.columns(D, 2 * D)
    y, cache = table.attention.forward(up(q), k, v, offsets, keys, 2, bias)
    gradients = table.attention.backward(up(dy), cache)
    wide = [x.astype(np.float64) for x in (q, *np.split(kv, 2, axis=1))]
    expected, kept = reference.forward(*wide, offsets, keys, 2, bias.astype(np.float64))
    pairs = zip((y, *gradients), (expected, *reference.backward(dy.astype(np.float64), kept)), strict=True)
    for mine, theirs in pairs:  # some hundred roundings of numbers of order one to ten
        np.testing.assert_allclose(down(mine), theirs, rtol=0, atol=200 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("factor", [1, 30])
def test_large_logits_err_no_more_than_in_other_backends(machine, factor):
    check_errors("cuda", factor, 2, 1, True, (9, 5))  # two heads, a key for each query, with a bias


def test_where_one_key_has_all_the_weight_nothing_passes_the_softmax(machine):
    check_one_key_with_all_the_weight("cuda")


# ---- errors that the machine reports and a GPU does not


def run(machine, function, *given, threads=64):
    from refvt.backends.cuda.kernel import Kernel

    Kernel(function, kinds_of(function), function.__name__).blocks((1,), (threads,), *given)


def test_the_machine_sees_a_race_and_not_one_where_threads_wait(machine):
    from numba import cuda

    arrays = backends.get("cuda").arrays
    y = arrays.zeros(64, "float32")

    def racing(y: Vector):
        shared, i = cuda.shared.array(64, y.dtype), cuda.threadIdx.x
        shared[i] = i
        y[i] = shared[63 - i]

    def waiting(y: Vector):
        shared, i = cuda.shared.array(64, y.dtype), cuda.threadIdx.x
        shared[i] = i
        cuda.syncthreads()
        y[i] = shared[63 - i]

    def overwriting(y: Vector):
        shared, i = cuda.shared.array(64, y.dtype), cuda.threadIdx.x
        shared[i] = i
        cuda.syncthreads()
        y[i] = shared[63 - i]
        shared[i] = 0

    def within_a_warp(y: Vector):
        shared, i = cuda.shared.array(64, y.dtype), cuda.threadIdx.x
        shared[i] = i
        cuda.syncwarp()
        y[i] = shared[i ^ 31]

    run(machine, waiting, y)
    assert arrays.to_numpy(y).tolist() == list(range(63, -1, -1))
    run(machine, within_a_warp, y)
    assert arrays.to_numpy(y).tolist() == [i ^ 31 for i in range(64)]
    for function in (racing, overwriting):
        with pytest.raises(Fault, match="a race for shared memory"):
            run(machine, function, y)


def test_the_machine_sees_forbidden_reads_and_writes(machine):
    from numba import cuda

    from refvt.backends.cuda.device_array import empty

    arrays = backends.get("cuda").arrays
    x, y = arrays.zeros(64, "float32"), arrays.zeros(60, "float32")

    def copying(x: Vector, y: Vector):
        i = cuda.threadIdx.x
        y[i] = x[i]

    with pytest.raises(Fault, match="lies in no array"):
        run(machine, copying, x, y)
    with pytest.raises(Fault, match="was never written"):
        run(machine, copying, empty(64, "float32"), x)
    shifted = x[1:]
    shifted.words = (*shifted.words[:4], shifted.address - 2, *shifted.words[5:])
    with pytest.raises(Fault, match="no multiple of 4 bytes"):
        run(machine, copying, shifted, x, threads=32)


def test_the_machine_does_not_wait_for_ever(machine):
    from numba import cuda

    def parted(y: Vector):
        if cuda.threadIdx.x < 32:
            cuda.syncthreads()
            y[cuda.threadIdx.x] = 1
        else:
            cuda.syncthreads()
            y[cuda.threadIdx.x] = 2

    with pytest.raises(Fault, match="different barriers"):
        run(machine, parted, backends.get("cuda").arrays.zeros(64, "float32"))
