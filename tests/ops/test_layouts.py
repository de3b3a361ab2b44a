"""Operations of the jit backend take arrays of any layout, and give the same as for contiguous ones."""

import subprocess
import sys

import numpy as np
import pytest

from refvt import backends

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
}
LAYOUTS = {
    "columns": np.asfortranarray,
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "of something wider": lambda x: np.concatenate([x, x], axis=-1)[..., x.shape[-1] :],
    "of something wider and longer": lambda x: np.concatenate([np.concatenate([x, x], axis=-1)] * 2)[: len(x)][
        ..., -x.shape[-1] :
    ],
    "of something deeper": lambda x: np.stack([x, x], axis=-2)[..., 1, :],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_layout_of_arrays_does_not_matter(name, layout, dtype):
    operation, lay = backends.get("jit")[name.split()[0]], LAYOUTS[layout]
    straight = [x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in CASES[name]]
    other_layout = [lay(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in straight]
    results = []
    for arguments, cotangent in ((straight, np.ascontiguousarray), (other_layout, lay)):
        y, cache = operation.forward(*arguments)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        results.append([y, *operation.backward(cotangent(dy), cache)])
    for one, other in zip(*results, strict=True):
        # compiled for another layout a sum may run in another order: at most 96 terms, each rounded once
        assert np.abs(one - other).max() <= 96 * np.finfo(dtype).eps * np.abs(one).max()


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
