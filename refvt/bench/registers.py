"""What every cuda kernel costs a thread, found without a GPU: compile to PTX, assemble, read the assembler's report.

``python -m refvt.bench.registers`` prints the table that stands in docs/cuda.md. It needs the packages of the extra
``cuda`` (the compiler and nvJitLink, which holds the assembler ptxas), no device and no driver.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace

from refvt.backends.cuda.kernel import KERNELS, Kernel
from refvt.ops import FAMILIES

__all__ = ["CAPABILITIES", "Cost", "assemble", "compiled", "every_kernel", "table"]

CAPABILITIES = ((7, 5), (8, 0), (9, 0))  # Turing, Ampere, Hopper
HEAD_WIDTH = 64  # attention is compiled for a head's width; all of the paper's configurations have this one


@dataclass(frozen=True)
class Cost:
    """What one kernel asks for: registers of a thread, bytes of shared memory of a block, bytes that went elsewhere.

    stack and spills are bytes of a thread that did not fit its registers and lie in the device's memory: 0 is wanted.
    """

    registers: int
    shared: int
    stack: int
    spills: int


def every_kernel(itemsize: int = 4) -> list[Kernel]:
    """All kernels of all rooms, attention's for heads of 64 channels and numbers of so many bytes; by name."""
    for room in FAMILIES:
        import_module(f"refvt.ops.{room}.cuda")
    import_module("refvt.backends.cuda.arrays")
    import_module("refvt.ops.optimiser.cuda")
    attention = import_module("refvt.ops.attention.cuda").kernels(HEAD_WIDTH, itemsize)
    own = (attention.forward, attention.backward_queries, attention.backward_keys)
    others = [k for k in KERNELS if not re.fullmatch(r"attention\..*_\d+", k.name)]
    return sorted([*others, *own], key=lambda k: k.name)


@contextmanager
def _device_of(capability: tuple[int, int]) -> Iterator[None]:
    """numba-cuda asks the device for its kind when a kernel calls a device function, even to compile for another."""
    from numba.cuda import dispatcher

    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def compiled(kernel: Kernel, dtype: str, capability: tuple[int, int]) -> str:
    """The PTX of a kernel, as it is loaded on a GPU, where there is none."""
    with _device_of(capability):
        return kernel.ptx(dtype, capability)


def assemble(ptx: str, capability: tuple[int, int]) -> Cost:
    """Assemble PTX of one kernel for a device and read what it costs. RuntimeError if the report cannot be read."""
    from cuda.bindings import nvjitlink

    major, minor = capability
    options = [f"-arch=sm_{major}{minor}", "-verbose", "-Xptxas=-v"]
    linker = nvjitlink.create(len(options), options)
    try:
        source = ptx.encode()
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, source, len(source), "kernel")
        nvjitlink.complete(linker)
        log = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, log)
    finally:
        nvjitlink.destroy(linker)
    report = log.decode(errors="replace")
    used = re.search(r"used (\d+) registers.*?(\d+) stack(?:, (\d+) bytes smem)?", report)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    if used is None or spills is None:
        raise RuntimeError(f"the assembler's report has another form than expected:\n{report}")
    return Cost(int(used[1]), int(used[3] or 0), int(used[2]), int(spills[1]) + int(spills[2]))


def table() -> str:
    """The Markdown table of docs/cuda.md: float32 on every capability, float64 on the last."""
    heads = [f"float32, {a}.{b}" for a, b in CAPABILITIES] + ["float64, {}.{}".format(*CAPABILITIES[-1])]
    lines = [f"| kernel | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for single, double in zip(every_kernel(4), every_kernel(8), strict=True):
        found = [assemble(compiled(single, "float32", c), c) for c in CAPABILITIES]
        found.append(assemble(compiled(double, "float64", CAPABILITIES[-1]), CAPABILITIES[-1]))
        cells = [
            f"{cost.registers}, {cost.shared}" + (f", {cost.stack + cost.spills}" * (cost.stack + cost.spills > 0))
            for cost in found
        ]
        lines.append(f"| {single.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
