"""Times of single kernels: a table of every kernel of a pass, and the ladder from naive to fast kernels.

``kernel_times``: a pass is run once and every launch of a kernel is noted, its arrays kept. Then each launch is
repeated by itself, between two events on the stream and behind some longer work, so that the GPU never waits for the
host. The sum of these times is what the kernels need; the rest of a pass is the host's. A repeated kernel finds more
data in the GPU's caches than in a pass. Bytes are those of all arrays of a launch, valid rows only, each counted once,
also where a kernel reads only some of them. A kernel far from both ceilings, of arithmetic and of memory, can be
improved. A kernel that cannot be repeated (it exchanges numbers in place) is counted, but has no time.

``ladder``: the simplest kernel of LayerNorm, of the linear layer and of attention against the fast one, at the sizes of
HaltingVT-S. What the fast kernel changes is said in the docstrings of ``layernorm_naive``, ``linear_naive`` and
``attention_naive``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refvt import backends
from refvt.array import Array

__all__ = ["as_markdown", "kernel_times", "ladder", "ladder_as_markdown"]

REPEATS = 5


def kernel_times(
    run: Callable[[], object], ahead: Callable[[], object], repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """One row per kernel of a pass, slowest first: name, launches, seconds, multiply_adds, bytes.

    ahead: launches work that keeps the GPU busy for longer than the host needs for a few launches.
    """
    from refvt.backends.cuda.driver import driver
    from refvt.backends.cuda.kernel import WATCHERS, Launch

    launches: list[Launch] = []
    note = launches.append
    run()  # compiles
    WATCHERS.append(note)
    try:
        run()
    finally:
        WATCHERS.remove(note)
    rows: dict[str, dict[str, Any]] = {}
    for launch in launches:
        row = rows.setdefault(launch.name, {"name": launch.name, "launches": 0, "seconds": 0.0})
        row["launches"] += 1
        row["multiply_adds"] = row.get("multiply_adds", 0) + launch.multiply_adds
        row["bytes"] = row.get("bytes", 0) + sum(map(_valid_bytes, launch.arguments))
        if launch.again is None:
            continue
        ahead()
        launch.again()
        events = [driver().record_event()]
        for _ in range(repeats):
            launch.again()
        events.append(driver().record_event())
        row["seconds"] += driver().elapsed(*events) / repeats
    return sorted(rows.values(), key=lambda row: -float(row["seconds"]))


def _valid_bytes(argument: Any) -> int:
    """Number of bytes in the valid rows of an array; 0 for a number."""
    from refvt.backends.cuda.device_array import DeviceArray, read_num_valid

    if not isinstance(argument, DeviceArray) or argument.size == 0:
        return 0
    return int(argument.nbytes * read_num_valid(argument) / argument.shape[0])


def as_markdown(rows: list[dict[str, Any]], wall: float, ceilings: dict[str, float]) -> str:
    """The table in Markdown. wall: seconds of the whole pass; ceilings: GFLOP/s and GB/s measured on the same GPU."""
    busy, count = sum(row["seconds"] for row in rows), sum(row["launches"] for row in rows)
    lines = [
        f"{count} launches, {1e3 * busy:.2f} ms of kernels in a pass of {1e3 * wall:.2f} ms.",
        "",
        "| kernel | launches | ms | share | TFLOP/s | of peak | GB/s | of copy |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        seconds = row["seconds"] or math.nan
        speed, moved = 2e-9 * row["multiply_adds"] / seconds, 1e-9 * row["bytes"] / seconds
        arithmetic = f"{speed / 1e3:.1f}", f"{speed / ceilings['GFLOP/s']:.0%}"
        if not row["multiply_adds"]:
            arithmetic = "–", "–"
        memory = f"{moved:.0f}", f"{moved / ceilings['GB/s']:.0%}"
        if not row["seconds"]:
            memory = "–", "–"
        cells = row["name"], str(row["launches"]), f"{1e3 * row['seconds']:.3f}", f"{row['seconds'] / busy:.0%}"
        lines.append(f"| {' | '.join((*cells, *arithmetic, *memory))} |")
    return "\n".join(lines) + "\n"


def ladder(
    tokens: int = 1569, width: int = 384, num_heads: int = 6, dtype: str = "float32", repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """One row per operation with a naive kernel: name, seconds of both kernels, and their largest difference.

    Shapes are [tokens, width], one segment, heads of width / num_heads channels. Times are medians of single launches
    between two events, behind work that the GPU is still busy with: the host's time does not count.
    ``backends.Unavailable`` without a GPU.
    """
    from refvt.backends.cuda.driver import driver
    from refvt.backends.cuda.sizes import SIMULATED

    size = 4 if SIMULATED else 4096
    busy = backends.get("cuda").arrays.from_numpy(np.zeros((size, size)), dtype)
    rows = []
    for name, (naive, fast) in _pairs(tokens, width, num_heads, dtype).items():
        results = [backends.get("cuda").arrays.to_numpy(run()) for run in (naive, fast)]  # compiles, too
        seconds: dict[str, float] = {}
        for kind, run in (("naive", naive), ("fast", fast)):
            times = []
            for _ in range(repeats):
                backends.get("cuda").arrays.matmul(busy, busy)
                start = driver().record_event()
                run()
                times.append(driver().elapsed(start, driver().record_event()))
            seconds[kind] = float(np.median(times))
        rows.append({"name": name, **seconds, "largest_difference": float(np.abs(results[0] - results[1]).max())})
    return rows


def _pairs(
    tokens: int, width: int, num_heads: int, dtype: str
) -> dict[str, tuple[Callable[[], Array], Callable[[], Array]]]:
    """The naive and the fast kernel of each operation, on the same random numbers."""
    cuda = backends.get("cuda")
    from refvt.ops.attention.cuda import attention_naive
    from refvt.ops.layernorm.cuda import layernorm_naive
    from refvt.ops.linear.cuda import linear_naive

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Array:
        array: Array = cuda.arrays.from_numpy(rng.standard_normal(shape), dtype)
        return array

    x, q, k, v = (draw(tokens, width) for _ in range(4))
    weight, gain, bias = draw(width, width), draw(width), draw(width)
    offsets = np.array([0, tokens])
    attention = (q, k, v, offsets, offsets, num_heads)
    return {
        "layernorm": (
            lambda: layernorm_naive(x, gain, bias),
            lambda: cuda.layernorm.forward(x, gain, bias, keep=False)[0],
        ),
        "linear": (
            lambda: linear_naive(x, weight, bias),
            lambda: cuda.linear.forward(x, weight, bias, keep=False)[0],
        ),
        "attention": (
            lambda: attention_naive(*attention),
            lambda: cuda.attention.forward(*attention, keep=False)[0],
        ),
    }


def ladder_as_markdown(rows: list[dict[str, Any]]) -> str:
    """The ladder as a table in Markdown."""
    lines = [
        "| operation | naive, ms | fast, ms | speed-up | largest difference |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        naive, fast = 1e3 * row["naive"], 1e3 * row["fast"]
        lines.append(
            f"| {row['name']} | {naive:.3f} | {fast:.3f} | {naive / fast:.1f} | {row['largest_difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"
