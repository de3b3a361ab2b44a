"""Operations of the jit backend take arrays of any layout: the same numbers, and no kernel is compiled again."""

import subprocess
import sys

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from refvt import backends
from refvt.backends import ForwardOnly
from refvt.ops import operations

rng = np.random.default_rng(0)
OFFSETS = np.array([0, 13, 13, 40])
CASES = {
    "linear of a row": [rng.standard_normal(shape) for shape in ((1, 24), (36, 24), (36,), (1, 36), (1,))],
    "mlp of two rows": [
        rng.standard_normal(shape) for shape in ((2, 24), (70, 24), (70,), (24, 70), (24,), (2, 24), (2,))
    ],
    "linear": [rng.standard_normal(shape) for shape in ((40, 24), (36, 24), (36,), (40, 36), (40,))],
    "mlp": [rng.standard_normal(shape) for shape in ((40, 24), (70, 24), (70,), (24, 70), (24,), (40, 24), (40,))],
    "attention": [*(rng.standard_normal((40, 24)) for _ in range(3)), OFFSETS, OFFSETS, 2, rng.standard_normal(40)],
    "layernorm": [rng.standard_normal(shape) for shape in ((40, 24), (24,), (24,))],
    "embed": [
        rng.standard_normal(shape)
        for shape in ((2, 3, 2, 8, 12), (20, 3, 4, 4), (20,), (1, 1, 20), (1, 7, 20), (1, 2, 20))
    ],
    "gelu": [rng.standard_normal((40, 24))],
    "gather": [rng.standard_normal((40, 24)), np.array([3, 0, -1, 3, 39])],
    "segment_mean": [rng.standard_normal((40, 24)), np.array([0, 13, 14, 40])],
    "cls_scores": [*(rng.standard_normal((40, 24)) for _ in range(2)), np.array([0, 20, 40]), 2],
    "top_k": [rng.standard_normal((4, 10)), 3],
    "fuse_dropped": [rng.standard_normal((40, 24)), rng.random((4, 10)), np.array([[0, 3], [1, 2], [9, 0], [4, 5]])],
    "halt": [rng.standard_normal(40), rng.random(40), 5.0, 1.0, 0.01, False, rng.random(40) < 0.5],
    "accumulate": [*(rng.standard_normal((40, 24)) for _ in range(2)), rng.standard_normal(40)],
    "halt_tokens": [rng.standard_normal((3, 40, 24)), 5.0, 1.0, 0.01, rng.integers(1, 4, 40)],
    "cross_entropy": [rng.standard_normal((4, 10)), np.array([0, 9, 3, 3])],
    "squared_norm": [rng.standard_normal(40)],
}
LAYOUTS = {
    "columns": np.asfortranarray,
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "of something wider": lambda x: np.concatenate([x, x], axis=-1)[..., x.shape[-1] :],
    "of something wider and longer": lambda x: np.concatenate([np.concatenate([x, x], axis=-1)] * 2)[: len(x)][
        ..., -x.shape[-1] :
    ],
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "of something deeper": lambda x: np.stack([x, x], axis=-2)[..., 1, :],
}


def compiled():
    """How often each kernel of the jit backend is compiled in this process."""
    modules = [module for name, module in sys.modules.items() if name.startswith("refvt.") and "jit" in name]
    kernels = {id(x): x for module in modules for x in vars(module).values() if isinstance(x, Dispatcher)}
    return {kernel.py_func.__qualname__: len(kernel.signatures) for kernel in kernels.values()}


def tuple_of(results):
    return results if isinstance(results, tuple) else (results,)


def results_of(op, arguments, dtype, lay):
    """What the forward and the backward return; the backward gets cotangents of that layout, too."""
    if isinstance(op, ForwardOnly):
        return tuple_of(op(*arguments))
    y, cache = op.forward(*arguments)
    named = dict(zip(op.operation.results, tuple_of(y), strict=True))
    random = np.random.default_rng(1)
    cotangents = [random.standard_normal(named[name].shape).astype(dtype) for name in op.operation.differentiable]
    return *named.values(), *tuple_of(op.backward(*(lay(x) if x.ndim else x for x in cotangents), cache))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_layout_of_arrays_does_not_matter(name, dtype):
    """The same results, from the same kernels: compiling them again would take seconds."""
    op = backends.get("jit")[name.split()[0]]
    straight = [x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in CASES[name]]
    right, kernels = None, None
    for layout, lay in {"contiguous": np.ascontiguousarray, **LAYOUTS}.items():
        results = results_of(op, [lay(x) if isinstance(x, np.ndarray) else x for x in straight], dtype, lay)
        right, kernels = right or results, kernels or compiled()
        for one, other in zip(right, results, strict=True):
            # a transposed weight is multiplied in another order: at most 96 terms, each rounded once
            error = np.abs(one - other) if np.asarray(one).dtype.kind == "f" else one != other
            assert np.max(error) <= 96 * np.finfo(dtype).eps * np.abs(one).max(), layout
        assert compiled() == kernels, layout


def test_every_operation_that_takes_arrays_has_a_case():
    named = set(operations())
    without_kernels = {"ponder_loss", "motion_loss", "mask_halted"}
    in_place = {"compact", "adam_step"}  # what they write to is theirs, and has one layout
    assert named - without_kernels - in_place == {name.split()[0] for name in CASES}


def test_one_kernel_is_compiled_for_all_that_a_model_does():
    """Of those that take longest to compile; in a process of its own, because other tests compile more."""
    code = """if True:
        import numpy as np
        from refvt.backends.jit import matmul
        from refvt.model.warmup import warm_up
        from refvt.ops.attention import jit
        warm_up()
        print([len(kernel.signatures) for kernel in (matmul._linear_tiles, jit._attend, jit._attend_backward)])
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[1, 1, 1]"
