"""The cuda backend in numba-cuda's simulator: tiny golden cases, a few examples of every law, one tiny model.

    NUMBA_ENABLE_CUDASIM=1 python -m pytest -m cudasim

The variable must be set before numba is imported, so this is a run of its own. Warps, blocks and tiles are tiny there
(see refvt/backends/cuda/sizes.py), so that even these arrays fill several and leave some half empty. The simulator
cannot show races in device memory, registers or speed: only a GPU can.
"""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refvt import HaltingVT, HaltingVTConfig, backends
from refvt.backends.reference import arrays as host
from refvt.bench.training_step import RefvtStep
from refvt.conformance.adapters import on_host
from refvt.conformance.golden import load_manifest
from refvt.conformance.laws import laws_of
from refvt.conformance.strategies import inputs_for
from refvt.conformance.verify import verify_case
from refvt.model.checkpoints import read_checkpoint
from refvt.ops import operations
from refvt.training import Recipe, TrainingError, train
from refvt.training.optimiser import Adam, global_norm
from refvt.training.vectors import Vector
from tests.support.compaction_checks import check_compaction, check_index_functions, check_mask_halted
from tests.support.cudasim import prepare

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
pytestmark = [
    pytest.mark.cudasim,
    pytest.mark.skipif(not SIMULATED, reason="a run of its own: NUMBA_ENABLE_CUDASIM=1 python -m pytest -m cudasim"),
]
CASES = {name: case for name, case in load_manifest().items() if case.tiny}
LAWS = [(name, law) for name in operations() for law in laws_of(name)]


@pytest.fixture(scope="module")
def cuda():
    prepare()
    return backends.get("cuda")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.kind == "op"])
def test_tiny_operation(name, dtype, cuda):
    result = verify_case(CASES[name], "cuda", dtype)
    assert result.compared
    assert not [(t.name, t.error, t.allowed) for t in result.tensors if t.status != "agrees"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("operation", "law"), LAWS, ids=[f"{name}-{law.__name__}" for name, law in LAWS])
def test_law(operation, law, dtype, cuda):
    if law.__name__ == "adjoint" and dtype == "float32":
        pytest.skip("a difference quotient needs float64")

    @settings(suppress_health_check=list(HealthCheck), max_examples=3)
    @given(data=st.data())
    def holds(data):
        law(on_host(cuda, operation), data.draw(inputs_for(operation, dtype=dtype)))

    holds()


def test_tiny_model_forward_and_backward(cuda):
    result = verify_case(CASES["tiny-model-zero"], "cuda", "float32")
    assert len(result.tensors) > 200
    assert not [(t.name, t.error, t.allowed) for t in result.tensors if t.status != "agrees"]
    assert not result.ambiguous


@pytest.fixture(scope="module")
def small():
    """A model of one block of each kind on both sides, and clips for it."""
    config = HaltingVTConfig(
        image_size=(4, 4),
        patch_size=2,
        channels=1,
        num_frames=2,
        width=4,
        num_heads=2,
        mlp_ratio=1.0,
        glimpser_depth=1,
        depth=3,
        keep_rates=(0.5,),
        num_classes=3,
    )
    prepare()
    model = HaltingVT(config, seed=1, backend="cuda", dtype="float64")
    return model, np.random.default_rng(0).standard_normal((1, 1, 2, 4, 4))


def test_what_is_on_the_device_stays_there(small):
    model, clips = small
    arrays = backends.get("cuda").arrays
    there = arrays.from_numpy(clips)
    out = model(there, arrays="device")
    loss, gradients = model.loss_and_gradients(there, np.array([1]), np.array([1]), arrays="device")
    plain = model(clips)
    for name in ("logits", "motion_logits", "features", "ponder"):
        assert not isinstance(getattr(out, name), np.ndarray)
        assert np.array_equal(arrays.to_numpy(getattr(out, name)), getattr(plain, name), equal_nan=True)
    assert not isinstance(loss.output.logits, np.ndarray)
    assert all(not isinstance(value, np.ndarray) for value in gradients.values())
    assert all(isinstance(value, np.ndarray) for value in (plain.logits, plain.alive, plain.ponder))


@pytest.mark.parametrize("execution", ["compact", "dense"])
def test_nothing_is_copied_to_main_memory(execution, small, monkeypatch):
    """Between clip and logits, after the clips were found finite; how long each token lived comes behind them."""
    from refvt.backends.cuda.driver import driver

    model, clips = small
    model._graphs._passes.clear()
    there, copied = backends.get("cuda").arrays.from_numpy(clips), []
    download, heads = driver().download, []
    monkeypatch.setattr(driver(), "download", lambda host, address: copied.append(host) or download(host, address))
    motion_head, right = model.parameters["motion_head.weight"], model._ops["linear"]

    def linear(x, weight, *arguments, **settings):
        if weight is motion_head:
            heads.append(len(copied))
        return right.forward(x, weight, *arguments, **settings)

    monkeypatch.setattr(model._ops, "linear", type(right)(right.operation, linear, right.backward))
    model(there, execution=execution, arrays="device")
    (before_the_last_head,) = heads
    (finite,) = copied[:before_the_last_head]
    assert finite.shape == (1,)
    assert len(copied) > 1
    assert all(array.dtype.kind == "i" for array in copied)


@pytest.mark.parametrize(("B", "N"), [(1, 1), (1, 30), (3, 9), (6, 4)])
@pytest.mark.parametrize(("ghosts", "early"), [(True, False), (True, True), (False, False)])
def test_compaction(B, N, ghosts, early, cuda):
    rng = np.random.default_rng(B + N)
    moved = sum(check_compaction(cuda, rng, B, N, ghosts, early) for _ in range(3))
    assert moved or N == 1
    check_mask_halted(cuda, rng, N, ghosts)


def test_from_the_second_call_on_a_graph_is_replayed(small):
    model, clips = small
    model._graphs._passes.clear()
    right = HaltingVT(model.config, on_the_host(model), backend="reference", dtype="float64")
    for factor in (1.0, -1.0, 3.0):
        mine, expected = model(factor * clips), right(factor * clips)
        assert np.allclose(mine.logits, expected.logits, rtol=1e-10)
        assert np.allclose(mine.ponder, expected.ponder, rtol=1e-10, equal_nan=True)
        assert np.array_equal(mine.alive, expected.alive)
    (captured,) = model._graphs._passes.values()
    assert captured.graph is not None
    # other parameters are another pass
    model.parameters["head.bias"] = backends.get("cuda").arrays.from_numpy(np.ones(len(mine.logits[0])))
    right.parameters["head.bias"] = np.ones(len(mine.logits[0]))
    for _ in range(2):
        assert np.allclose(model(clips).logits, right(clips).logits, rtol=1e-10)
    assert len(model._graphs._passes) == 2


def on_the_host(model):
    return {name: value.copy_to_host() for name, value in model.parameters.items()}


def test_index_functions(cuda):
    check_index_functions(cuda.arrays, np.random.default_rng(0))


def test_clips_on_the_device_are_checked(small):
    model, clips = small
    arrays = backends.get("cuda").arrays
    with pytest.raises(TypeError, match="clips: expected float64 on the device"):
        model(arrays.from_numpy(clips, "float32"))
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = clips.copy()
        spoilt[0, 0, 1, 3, 3] = bad
        with pytest.raises(ValueError, match="clips: expected finite numbers"):
            model(arrays.from_numpy(spoilt))
    with pytest.raises(ValueError, match=r"clips: expected .* got shape"):
        model(arrays.from_numpy(clips[:, :, :1]))


def test_array_functions_match_those_of_the_host(cuda):
    arrays, rng = cuda.arrays, np.random.default_rng(3)
    wide = rng.standard_normal((5, 7))
    there = arrays.from_numpy(wide)
    cut = [(0, 2), (2, 3), (3, 7)]
    parts = [arrays.columns(there, a, b) for a, b in cut]
    assert np.array_equal(arrays.to_numpy(parts[1]), host.columns(wide, 2, 3))
    assert np.array_equal(arrays.to_numpy(arrays.join_columns(parts)), wide)
    assert arrays.columns(arrays.zeros((0, 7), "float64"), 2, 5).shape == (0, 3)
    for shape in ((4, 3), (4,)):
        a, b = rng.standard_normal(shape), rng.standard_normal(shape)
        mine, theirs = arrays.from_numpy(a), arrays.from_numpy(b)
        assert np.array_equal(arrays.to_numpy(arrays.join_rows([mine, theirs])), host.join_rows([a, b]))
        assert np.array_equal(arrays.to_numpy(arrays.add(mine, None, theirs, mine)), host.add(a, None, b, a))
        assert np.array_equal(arrays.to_numpy(mine), a)
    column = rng.standard_normal(5)
    added = arrays.add_to_column(there, 6, arrays.from_numpy(column))
    assert np.array_equal(arrays.to_numpy(added), host.add_to_column(wide, 6, column))
    assert np.array_equal(arrays.to_numpy(there), wide)
    assert not arrays.to_numpy(arrays.zeros((2, 3), "float32")).any()
    square, other = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    assert np.allclose(
        arrays.to_numpy(arrays.matmul(arrays.from_numpy(square), arrays.from_numpy(other))), square @ other
    )
    with pytest.raises(TypeError, match="expected a device array of float32"):
        arrays.from_numpy(there, "float32")


def test_all_ranks_are_distinct_even_among_nan(cuda):
    nan = np.nan
    scores = np.array([[nan, 2.0, nan, 3.0, 2.0], [nan] * 5, [1.0, 5.0, 5.0, -np.inf, nan]])
    kept = cuda.arrays.to_numpy(cuda.top_k(cuda.arrays.from_numpy(scores), 4))
    assert kept.tolist() == [[3, 1, 4, 0], [0, 1, 2, 3], [1, 2, 0, 3]]


def test_arrays_of_other_libraries(cuda, monkeypatch):
    """Their memory is the host's here, and the device they name is made up."""
    device, waited = cuda.arrays, []
    monkeypatch.setattr(device.driver(), "wait", lambda *stream: waited.append(stream))

    class Exporter:
        def __init__(self, array):
            self.array = array

        def __dlpack_device__(self):
            return 2, 0  # kDLCUDA

        def __dlpack__(self, **settings):
            return self.array.__dlpack__()

        @property
        def __cuda_array_interface__(self):
            pytest.fail("it names no stream: DLPack, which does, comes first")

    class Described:
        def __init__(self, array):
            self.__cuda_array_interface__ = {**array.__array_interface__, "stream": 7}

    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    for kind in (Exporter, Described):
        for array in (wide, wide[:, 1:3]):
            found = device.on_device(kind(array))
            assert found.address == array.ctypes.data
            assert found.dtype == array.dtype
            assert found.contiguous == array.flags.c_contiguous
            assert np.array_equal(device.to_numpy(found), array)
    assert waited == [(7,)] * 2
    elsewhere = Exporter(wide)
    elsewhere.__dlpack_device__ = lambda: (2, 1)
    with pytest.raises(ValueError, match="on the first GPU that this process sees, got one on GPU 1"):
        device.on_device(elsewhere)
    assert device.on_device(wide) is None  # in main memory
    mine = device.from_numpy(wide)
    assert device.on_device(mine) is mine


def test_views_are_those_of_numpy(cuda):
    x = np.arange(30, dtype=np.float32).reshape(5, 6)
    there, down = cuda.arrays.from_numpy(x), cuda.arrays.to_numpy
    assert np.array_equal(down(there[1:4]), x[1:4])
    assert np.array_equal(down(there[3:]), x[3:])
    assert down(there[4:2]).shape == (0, 6)
    part = there.columns(2, 5)
    assert np.array_equal(down(part), x[:, 2:5])
    assert np.array_equal(down(part[2:4]), x[2:4, 2:5])
    assert np.array_equal(down(part.columns(1, 2)[3:4]), x[3:4, 3:4])
    assert np.array_equal(down(there.reshape(-1)), x.ravel())
    assert np.array_equal(down(there.reshape(2, -1, 3)), x.reshape(2, -1, 3))
    assert np.array_equal(down(there[:1].reshape((6, 1))), x[:1].reshape(6, 1))
    assert np.array_equal(np.asarray(there, np.float64), x.astype(np.float64))
    assert (len(there), there.ndim, there.itemsize, there.nbytes) == (5, 2, 4, 120)
    described = there.columns(2, 5).__cuda_array_interface__
    assert (described["shape"], described["strides"], described["typestr"]) == ((5, 3), (24, 4), "<f4")
    for wrong in (lambda: part.reshape(-1), lambda: there.reshape(7, 4)):
        with pytest.raises(ValueError, match="cannot become"):
            wrong()
    for wrong in (lambda: there[0], lambda: there[::2], lambda: there[1:2, 0]):
        with pytest.raises(TypeError, match="along the first axis"):
            wrong()
    for values in (x[:4], x.astype(np.float64), x.reshape(6, 5).T):
        with pytest.raises(ValueError, match="values: expected contiguous numbers"):
            there.write(values)
    with pytest.raises(ValueError, match="values: expected contiguous numbers"):
        part.write(x[:, 2:5].copy())


def test_a_kernel_refuses_what_it_was_not_declared_for(cuda):
    from refvt.backends.cuda.arrays import _add_to_column, _place_block
    from refvt.backends.cuda.device_array import absent

    up = cuda.arrays.from_numpy
    x, single, column = up(np.ones((3, 2))), up(np.ones((3, 2), np.float32)), up(np.ones(3))
    wrong = [
        (x, 0, single),
        (x, column, 0),
        (x, 0, x),
        (x, 0, x.columns(0, 1)),
        (x, 0, None),
        (x, 0),
        (x, 0, column, 1),
    ]
    for arguments in wrong:
        with pytest.raises(TypeError, match=r"kernel cuda\.add_to_column: expected"):
            _add_to_column.each(3, *arguments)
    with pytest.raises(TypeError, match=r"kernel cuda\.place_block: expected"):
        _place_block.cells(3, 2, x, absent(np.int64, 1), absent(np.float32, 2), 0, 0)


def test_index_arrays_that_never_change_are_uploaded_once(cuda, monkeypatch):
    from refvt.backends.cuda.upload import _COPIES, SHORT, read_only

    frozen = np.arange(SHORT + 1)
    before = len(_COPIES)
    assert read_only(frozen, np.int64) is not read_only(frozen, np.int64)  # it may still change
    frozen.setflags(write=False)
    first = read_only(frozen, np.int64)
    assert read_only(frozen, np.int64) is first
    part = frozen.reshape(1, -1)
    assert read_only(part, np.int64) is not read_only(part, np.int64)  # what it is part of may change
    assert len(_COPIES) == before + 1
    del frozen, part
    assert len(_COPIES) == before


def test_short_lists_of_indices_are_uploaded_once(cuda, monkeypatch):
    from refvt.backends.cuda import upload

    monkeypatch.setattr(upload, "_COPIES", {})
    monkeypatch.setattr(upload, "MOST_COPIES", 2)
    first = upload.read_only(np.array([0, 7]))
    assert upload.read_only(np.array([0, 7])) is first
    assert upload.upload(np.array([0, 7])) is not upload.upload(np.array([0, 7]))  # may be written to
    others = [upload.read_only(np.array([0, n])) for n in (8, 9)]
    assert [cuda.arrays.to_numpy(x).tolist() for x in (first, *others)] == [[0, 7], [0, 8], [0, 9]]
    assert len(upload._COPIES) <= 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", "cuda: the GPU's memory is full.*: give fewer clips at once, or a smaller model"),
        ("CUDA_ERROR_LAUNCH_FAILED", r"cuda: the GPU stopped answering \(CUDA_ERROR_LAUNCH_FAILED\)"),
        ("CUDA_ERROR_DEVICE_UNAVAILABLE", "cuda: another process has the GPU for itself"),
        ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "cuda: the GPU's driver is older than the CUDA toolkit"),
    ],
)
def test_what_the_driver_complains_of_is_one_sentence(small, monkeypatch, tmp_path, name, said):
    model, clips = small
    batch = clips, np.array([1]), np.array([1])

    def broken(*_):
        raise RuntimeError(f"[2] Call to cuMemAlloc results in {name}")

    monkeypatch.setattr("refvt.ops.tokens.cuda.empty", broken)
    for run in (lambda: model(clips), lambda: model.loss_and_gradients(*batch), lambda: model.trace(clips)):
        with pytest.raises(backends.DeviceError, match=said):
            run()
    with pytest.raises(TrainingError, match=said + ".*no checkpoint had been written yet"):
        train(recipe_of(model.config), Blinks(), Blinks(), tmp_path / "run", backend="cuda")
    monkeypatch.setattr("refvt.backends.cuda.arrays.upload", broken)
    with pytest.raises(backends.DeviceError, match=said):
        HaltingVT(model.config, backend="cuda")
    monkeypatch.undo()
    monkeypatch.setattr("refvt.backends.cuda.arrays.zeros", broken)  # the optimiser's vectors
    with pytest.raises(backends.DeviceError, match=said):
        train(recipe_of(model.config), Blinks(), Blinks(), tmp_path / "other", backend="cuda")


@pytest.mark.parametrize("error", [IndexError("a mistake of ours"), RuntimeError("CUDA_ERROR_INVALID_VALUE")])
def test_other_errors_stay_what_they_are(small, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr("refvt.backends.cuda.arrays.upload", broken)
    with pytest.raises(type(error), match=str(error)) as found:
        HaltingVT(small[0].config, backend="cuda")
    assert found.type is type(error)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("decoupled", [True, False])
def test_the_optimiser_moves_as_on_the_host(cuda, decoupled, dtype):
    shapes, rng = {"cls_token": (1, 1, 3), "head.weight": (4, 3), "head.bias": (4,)}, np.random.default_rng(6)
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    sides = []
    for backend in ("cuda", "jit"):
        parameters = Vector(shapes, dtype, backend).set(start)
        sides.append((parameters, Vector(shapes, dtype, backend), Adam(parameters, {"cls_token"}, decoupled, 0.1)))
    for t in (1, 2, 3):
        values = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        for _, gradients, adam in sides:
            gradients.clear()
            gradients.add({name: gradients.ops.arrays.from_numpy(value) for name, value in values.items()}, 2)
            assert global_norm(gradients) == pytest.approx(
                2 * np.sqrt(sum(float((v.astype(float) ** 2).sum()) for v in values.values())),
                rel=float(20 * np.finfo(dtype).eps),
            )
            adam.step(gradients, 0.1 / t, 0.3)
    (mine, _, mine_adam), (theirs, _, theirs_adam) = sides
    allowed = 100 * np.finfo(dtype).eps  # three steps of a dozen roundings, of numbers of order one
    for a, b in ((mine, theirs), (mine_adam.m, theirs_adam.m), (mine_adam.v, theirs_adam.v)):
        assert not isinstance(a.vector, np.ndarray)
        assert np.abs(a.numpy() - b.numpy()).max() <= allowed
        assert np.array_equal(a.ops.arrays.to_numpy(a.arrays["head.weight"]).ravel(), a.numpy()[3:15])


def test_training_is_that_of_the_host(small, tmp_path):
    """Two steps, evaluations, and the checkpoint of one read by both."""
    model, _ = small
    recipe = recipe_of(model.config)
    lines = {}
    for backend in ("cuda", "jit"):
        out = tmp_path / backend
        data = Blinks(), Blinks()
        train(recipe, *data, out, backend=backend, dtype="float64", log_every=1)
        lines[backend] = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for mine, theirs in zip(lines["cuda"], lines["jit"], strict=True):
        assert {k for k in mine if k != "seconds"} == {k for k in theirs if k != "seconds"}
        for name in ("loss", "gradient_norm", "top1", "gflops"):
            if name in mine:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-9), name
    ends = [read_checkpoint(tmp_path / backend / "model.safetensors") for backend in ("cuda", "jit")]
    for name, value in ends[0].items():
        np.testing.assert_allclose(value, ends[1][name], rtol=0, atol=1e-9, err_msg=name)
    # either goes on from the other's checkpoint
    for backend in ("cuda", "jit"):
        again = tmp_path / f"again-{backend}"
        shutil.copytree(tmp_path / "cuda", again, ignore=shutil.ignore_patterns("model*"))
        train(recipe, Blinks(), Blinks(), again, resume=True, backend=backend, dtype="float64")
        found = read_checkpoint(again / "model.safetensors")
        assert all(np.array_equal(found[name], value) for name, value in ends[0].items())


def recipe_of(config):
    steps = {
        "epochs": 1,
        "batch": 1,
        "micro_batch": 1,
        "learning_rate": 0.01,
        "max_grad_norm": 0.5,
        "static_twins": False,
    }
    return Recipe(config, "digits", **steps)


class Blinks:
    """Two clips of noise."""

    num_classes, multi_label = 3, False

    def __len__(self):
        return 2

    def clip(self, index, rng=None):
        return np.random.default_rng(index).standard_normal((1, 2, 4, 4)).astype(np.float32)

    def target(self, index):
        return index % 3


@pytest.mark.parametrize("size", ["LARGE", "SMALL"])
@pytest.mark.parametrize(("M", "N", "K"), [(20, 36, 12), (17, 9, 7), (4, 4, 8), (19, 18, 9), (3, 5, 0), (1, 1, 1)])
def test_matrices_of_every_shape_in_either_tile(cuda, monkeypatch, size, M, N, K):
    """Whole numbers, whose sums are exact; views of wider matrices, with rows that can be read by fours or cannot."""
    from refvt.backends.cuda import matmul
    from refvt.ops.linear.cuda import _forward

    tile = getattr(matmul, size)
    monkeypatch.setattr(matmul, "LARGE", tile)
    monkeypatch.setattr(matmul, "SMALL", tile)
    matmul.plan.cache_clear()
    rng, up, down = np.random.default_rng(M), cuda.arrays.from_numpy, cuda.arrays.to_numpy

    def matrix(rows, columns):
        wide = rng.integers(-9, 9, (rows, columns + 4)).astype(np.float32)
        return wide[:, 4:], up(wide).columns(4, columns + 4)

    (a, a_there), (b, b_there), (at, at_there), (bt, bt_there) = (
        matrix(*shape) for shape in ((M, K), (K, N), (K, M), (N, K))
    )
    assert np.array_equal(down(matmul.matmul_nn(a_there, b_there)), a @ b)
    assert np.array_equal(down(matmul.matmul_tn(at_there, b_there)), at.T @ b)
    bias, gain, residual = rng.integers(-9, 9, N), rng.integers(-9, 9, M), rng.integers(-9, 9, (M, N))
    given = (up(x.astype(np.float32)) for x in (bias, gain, residual))
    expected = residual + gain[:, None] * (a @ bt.T + bias)
    assert np.array_equal(down(_forward(a_there, bt_there, *given)), expected)
    matmul.plan.cache_clear()


def test_a_long_sum_is_cut_in_parts_and_a_short_one_is_not():
    from refvt.backends.cuda.matmul import LARGE, LEAST, plan

    K = 6 * LEAST + 1
    tile, part = plan(3, 5, K, True)
    assert part < K
    assert part % tile.depth == 0
    assert plan(3, 5, K, False)[1] == K
    assert plan(3, 5, LEAST - 1, True)[1] >= LEAST - 1
    assert plan(9 * LARGE.rows, LARGE.columns, 5, False)[0] is LARGE


@pytest.mark.parametrize("d", [4, 10, 17])
def test_wide_heads_and_segments_of_several_tiles(cuda, d):
    """Heads in which a thread has several groups of channels, the last of them not whole."""
    rng, up, down = np.random.default_rng(d), cuda.arrays.from_numpy, cuda.arrays.to_numpy
    offsets, keys, heads = np.array([0, 10, 11, 11, 13]), np.array([0, 9, 9, 12, 13]), 2
    q, dy = (rng.standard_normal((13, heads * d)) for _ in range(2))
    kv = rng.standard_normal((13, 2 * heads * d))
    bias = np.log(rng.integers(1, 9, 13))
    there = up(kv)
    k, v = there.columns(0, heads * d), there.columns(heads * d, 2 * heads * d)
    y, cache = cuda.attention.forward(up(q), k, v, offsets, keys, heads, bias)
    gradients = cuda.attention.backward(up(dy), cache)
    reference = backends.get("reference").attention
    expected, kept = reference.forward(q, *np.split(kv, 2, axis=1), offsets, keys, heads, bias)
    for mine, theirs in zip((y, *gradients), (expected, *reference.backward(dy, kept)), strict=True):
        np.testing.assert_allclose(down(mine), theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rows", [0, 1, 7, 20])
def test_column_sums(cuda, rows):
    """Beyond three parts of three rows the parts are summed in parts."""
    from refvt.backends.cuda.elementwise import column_sums

    x = np.random.default_rng(4).integers(-9, 9, (rows, 5)).astype(float)  # whole numbers: no rounding
    factor = x[::-1].copy()
    up, down = cuda.arrays.from_numpy, cuda.arrays.to_numpy
    assert np.array_equal(down(column_sums(up(x))), x.sum(axis=0))
    both = np.concatenate([x.sum(axis=0), (x * factor).sum(axis=0)])
    assert np.array_equal(down(column_sums(up(x), up(factor))), both)


NAIVE_CASES = [
    n for n, c in CASES.items() if c.kind == "op" and n.startswith(("op-layer", "op-linear", "op-attention"))
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAIVE_CASES)
def test_golden_cases_of_the_naive_kernels(name, dtype, cuda, monkeypatch):
    """The naive kernel computes y; caches, for the backward, are those of the fast one."""
    from refvt.ops.attention.cuda import attention_naive
    from refvt.ops.layernorm.cuda import layernorm_naive
    from refvt.ops.linear.cuda import linear_naive

    naive = {"attention": attention_naive, "layernorm": layernorm_naive, "linear": linear_naive}
    operation, calls = name.split("-")[1], []
    fast = cuda[operation]

    def forward(*arguments, keep=True, **settings):
        calls.append(arguments)
        return naive[operation](*arguments, **settings), fast.forward(*arguments, keep=True, **settings)[1]

    monkeypatch.setattr(cuda, operation, type(fast)(fast.operation, forward, fast.backward))
    result = verify_case(CASES[name], "cuda", dtype)
    assert calls
    assert result.compared
    assert not [(t.name, t.error, t.allowed) for t in result.tensors if t.status != "agrees"]


def test_the_ladder(cuda):
    from refvt.bench.kernels import ladder, ladder_as_markdown

    rows = ladder(tokens=6, width=8, num_heads=2, dtype="float64", repeats=1)
    assert [row["name"] for row in rows] == ["layernorm", "linear", "attention"]
    assert all(row["largest_difference"] < 1e-12 for row in rows)
    assert all(row["naive"] > 0 < row["fast"] for row in rows)
    assert ladder_as_markdown(rows).count("\n") == 2 + len(rows)


def test_naive_kernels_say_the_same(cuda):
    from refvt.ops.attention.cuda import attention_naive
    from refvt.ops.layernorm.cuda import layernorm_naive
    from refvt.ops.linear.cuda import linear_naive

    rng, up, down = np.random.default_rng(5), cuda.arrays.from_numpy, cuda.arrays.to_numpy
    x, weight, bias = rng.standard_normal((6, 5)), rng.standard_normal((7, 5)), rng.standard_normal(7)
    residual, gain = rng.standard_normal((6, 7)), rng.standard_normal(6)
    for extra in ((), (up(residual),), (up(residual), gain)):
        fast, _ = cuda.linear.forward(up(x), up(weight), up(bias), *extra)
        assert np.allclose(down(linear_naive(up(x), up(weight), up(bias), *extra)), down(fast), rtol=1e-12)
    gamma, beta = up(rng.standard_normal(5)), up(rng.standard_normal(5))
    fast, _ = cuda.layernorm.forward(up(x), gamma, beta)
    assert np.allclose(down(layernorm_naive(up(x), gamma, beta)), down(fast), rtol=1e-12)
    q, k, v = (up(rng.standard_normal((6, 6))) for _ in range(3))
    offsets, keys = np.array([0, 5, 6, 6]), np.array([0, 4, 4, 6])
    for key_bias in (None, np.array([0, -np.inf, 1, 2, 0, 0])):
        arguments = (q, k, v, offsets, keys, 2, key_bias)
        fast, _ = cuda.attention.forward(*arguments)
        assert np.allclose(down(attention_naive(*arguments)), down(fast), rtol=1e-12, atol=1e-15)


def test_heads_too_wide_are_refused(cuda):
    from refvt.ops.attention.cuda_kernels import kernels_for

    with pytest.raises(ValueError, match="heads of width 5000 do not fit"):
        kernels_for.__wrapped__(5000, 8)


def test_the_step_that_is_timed_is_that_of_the_host(cuda, small):
    model, clips = small
    start = {name: cuda.arrays.to_numpy(value) for name, value in model.parameters.items()}
    batch = clips, np.array([1]), np.array([1])
    steps = [RefvtStep(model.config, start, batch, backend) for backend in ("cuda", "jit")]
    for step in steps:
        step()
    assert steps[0].losses == pytest.approx(steps[1].losses, rel=1e-12)
    there, here = (step._model.parameters for step in steps)
    assert not isinstance(there["head.weight"], np.ndarray)
    for name, value in here.items():
        moved = cuda.arrays.to_numpy(there[name])
        assert np.abs(moved - value).max() < 1e-12, name
        assert not np.array_equal(moved, start[name]) or not np.any(value != start[name]), name


def test_what_must_not_be_done_twice_is_not_timed(cuda):
    """Launches are repeated after the pass: lists of copies that were linked twice would contain cycles without end."""
    from refvt.bench.kernels import kernel_times

    x = cuda.arrays.from_numpy(np.ones((4, 3)))

    def run():
        y, cache = cuda.gather.forward(x, cuda.arrays.from_numpy(np.array([1, 3, 1, -1])))
        return cuda.gather.backward(y, cache)

    rows = {row["name"]: row for row in kernel_times(run, lambda: None, repeats=2)}
    assert {name: row["launches"] for name, row in rows.items()} == dict.fromkeys(rows, 1)
    assert rows["tokens.link_copies"]["seconds"] == 0 < rows["tokens.sum_copies"]["seconds"]
    assert run().copy_to_host().tolist() == [[0] * 3, [2] * 3, [0] * 3, [1] * 3]


def test_every_launch_of_a_pass_is_in_the_table(small, monkeypatch):
    from refvt.bench.kernels import as_markdown, kernel_times

    model, clips = small
    x = backends.get("cuda").arrays.from_numpy(clips)
    before = model(x)
    rows = kernel_times(lambda: model(x), lambda: None, repeats=1)
    assert np.array_equal(model(x).logits, before.logits)
    names = {row["name"]: row for row in rows}
    assert names["layernorm.forward"]["launches"] == 2 + 2 + 2 + 1 + 1  # Glimpser three, joint blocks two, the end one
    assert names["embedding.cut"]["bytes"] == 2 * clips.nbytes
    # patch projection: 8 patches of 4 pixels to 4 channels
    assert names["embedding.project.small"]["multiply_adds"] == 8 * 4 * 4
    # temporal: 4 segments of 2 frames; spatial: 2 frames, CLS and 2 kept ask 5; joint: CLS and 4 patches; CLS alone
    assert names["attention.short_forward_2"]["multiply_adds"] > 0
    page = as_markdown(rows, 1.0, {"GFLOP/s": 1e3, "GB/s": 1e3})
    assert page.count("\n") == 4 + len(rows)
    assert "in a pass of 1000.00 ms" in page
