"""Every CUDA kernel compiled to PTX and assembled, without a GPU: registers as documented, and no spills.

Needs the packages of the extra ``cuda``, and another interpreter than the simulator's.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

INSTALLED = all(find_spec(name) is not None for name in ("numba_cuda", "cuda")) and find_spec("cuda.bindings")
pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(not INSTALLED, reason="needs the extra cuda: numba-cuda and NVIDIA's compiler"),
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="the simulator compiles nothing"),
]
KINDS = [("float32", (7, 5)), ("float32", (8, 0)), ("float32", (9, 0)), ("float64", (9, 0))]
PAGE = Path(__file__).parents[3] / "docs" / "results" / "cuda-registers.md"


def documented():
    """The table of docs/results/cuda-registers.md: kernel → (registers, shared memory) of every kind."""
    rows = [line.strip("| \n").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows if len(row) == 1 + len(KINDS)]
    return {row[0]: row[1:] for row in cells if row[1][:1].isdigit()}


def check_words(kernel, dtype, ptx):
    """The parameters that the PTX declares match the packed arguments in number and width."""
    wide = {"q": (".u64", ".b64", ".s64"), "f": (".f32", ".b32"), "d": (".f64", ".b64")}
    declared = re.findall(r"\.param (?:\.align \d+ )?(\.\w+) ", ptx.split(")", 1)[0])
    layout = kernel.layout(dtype)
    words = re.findall(r"(\d*)([qfd])", layout.format.replace("4x", ""))
    letters = "".join(letter * int(count or 1) for count, letter in words)
    assert len(declared) == len(letters), kernel.name
    assert all(given in wide[letter] for given, letter in zip(declared, letters, strict=True)), kernel.name
    assert layout.size == 8 * len(letters)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[f"{d}-{a}.{b}" for d, (a, b) in KINDS])
def test_kernels_assemble_and_cost_what_the_page_says(kind):
    from refvt.bench.registers import assemble, compiled, every_kernel

    dtype, capability = KINDS[kind]
    page, found = documented(), {}
    for kernel in every_kernel(4 if dtype == "float32" else 8):
        ptx = compiled(kernel, dtype, capability)
        cost = assemble(ptx, capability)
        found[kernel.name] = f"{cost.registers}, {cost.shared}"
        check_words(kernel, dtype, ptx)
        assert cost.stack == cost.spills == 0, f"{kernel.name} does not fit its registers"
        assert cost.shared <= 48 * 1024
        assert cost.registers * kernel.threads <= 65536, f"{kernel.name}: not even one block fits a multiprocessor"
        if dtype == "float32":  # a number without a dtype would make it a kernel of double precision
            assert not [line for line in ptx.splitlines() if ".f64" in line], kernel.name
    assert found == {name: row[kind] for name, row in page.items()}


def test_every_operation_has_its_kernels_in_the_table():
    from refvt.ops import FAMILIES

    families = {name.split(".")[0] for name in documented()}
    assert set(FAMILIES) <= families
