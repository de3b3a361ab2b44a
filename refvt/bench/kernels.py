"""Which kernel takes how long, and how near each comes to what the GPU can do: a table for the GPU's report.

A pass is run once and every launch of a kernel is noted, its arrays kept. Then each launch is repeated by itself,
between two marks on the stream and behind some longer work, so that the GPU never waits for the host: the sum of these
times is what the kernels need, and what a pass takes longer than that is the host's. Repeated, a kernel finds more in
the GPU's caches than in a pass.

Bytes are those of all arrays of a launch, of the rows that there are, each counted once, also where a kernel reads only
some of them. A kernel near neither ceiling, of arithmetic or of memory, has something to gain. A kernel that cannot be
repeated (it exchanges what it finds for what it brings) is counted, but has no time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["as_markdown", "kernel_times"]

REPEATS = 5


def kernel_times(
    run: Callable[[], object], ahead: Callable[[], object], repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """One row per kernel of a pass, the one that takes longest first: launches, seconds, multiply_adds, bytes of it.

    ahead: gives the GPU work for longer than the host needs for a few launches.
    """
    from refvt.backends.cuda.driver import driver
    from refvt.backends.cuda.kernel import WATCHERS, Launch

    launches: list[Launch] = []
    note = launches.append
    run()  # whatever has to be compiled
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
        row["bytes"] = row.get("bytes", 0) + sum(map(_bytes_there, launch.arguments))
        if launch.again is None:
            continue
        ahead()
        launch.again()
        marks = [driver().stamp()]
        for _ in range(repeats):
            launch.again()
        marks.append(driver().stamp())
        row["seconds"] += driver().seconds(*marks) / repeats
    return sorted(rows.values(), key=lambda row: -float(row["seconds"]))


def _bytes_there(argument: Any) -> int:
    """Of an array, those of the rows that there are."""
    from refvt.backends.cuda.device_array import DeviceArray
    from refvt.backends.cuda.kernel import rows_told

    if not isinstance(argument, DeviceArray) or argument.size == 0:
        return 0
    return int(argument.nbytes * rows_told(argument) / argument.shape[0])


def as_markdown(rows: list[dict[str, Any]], wall: float, ceilings: dict[str, float]) -> str:
    """The table. wall: seconds of the whole pass; ceilings: GFLOP/s and GB/s measured on the same GPU."""
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
