"""Fair timing: contestants take turns, and the machine's ceilings are measured in the same rounds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Ceilings", "interleave", "quartiles"]


def interleave(runs: Mapping[str, Callable[[], object]], repeats: int, pause: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each run, ``repeats`` samples of each: one of every run per round, in rotating order.

    pause: seconds before each run.
    """
    names, samples = list(runs), {name: list[float]() for name in runs}
    collecting = gc.isenabled()
    try:
        for turn in range(repeats):
            gc.collect()
            gc.disable()
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                time.sleep(pause)
                start = time.perf_counter()
                result = runs[name]()
                samples[name].append(time.perf_counter() - start)
                del result
    finally:
        if collecting:
            gc.enable()
    return samples


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.quantile(np.asarray(samples), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


class Ceilings:
    """What the machine can do at best: ``runs`` to be timed, by name, and the work that each of them does."""

    runs: dict[str, Callable[[], object]]
    _work: dict[str, tuple[float, str]]  # amount and its unit per second

    def row(self, name: str, samples: Sequence[float]) -> dict[str, Any]:
        """Speed of one run, median and quartiles, from its seconds."""
        work, unit = self._work[name]
        low, median, high = quartiles(samples)
        speeds = {"lower_quartile": work / high, "median": work / median, "upper_quartile": work / low}
        return {"name": name, "unit": unit, "samples": list(samples), **speeds}
