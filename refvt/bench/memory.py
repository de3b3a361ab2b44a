"""Memory that a run takes, each measured in a process of its own by ``refvt.bench.memory_probe``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt.bench.contestants import ENGINES, Contestant, Material

__all__ = ["add_memory"]


def add_memory(
    result: dict[str, Any],
    material: Material,
    contestants: Sequence[Contestant],
    train: bool,
    threads: int,
    observe: Callable[[str], None],
) -> None:
    """Fill in ``extra_memory_mb`` of the result's rows; ``observe`` gets a line about what could not be measured."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "material.npz"
        arrays = {f"parameters/{name}": value for name, value in material.parameters.items()}
        arrays |= {"clips": material.clips, "labels": material.labels, "motion_labels": material.motion_labels}
        if material.forced.halting_layer is not None:
            arrays["halting_layer"] = material.forced.halting_layer
        np.savez(file, **arrays)  # type: ignore[arg-type]
        for row, contestant in zip(result["rows"], contestants, strict=True):
            if contestant.name in ENGINES:  # what the export took would be counted as theirs
                continue
            request = {
                "material": str(file),
                "result": str(Path(folder) / "megabytes"),
                "config": material.config.as_dict(),
                "dtype": material.dtype,
                "contestant": asdict(contestant),
                "train": train,
                "threads": threads,
            }
            row["extra_memory_mb"] = _measure(request, observe)


def _measure(request: dict[str, Any], observe: Callable[[str], None]) -> float | None:
    """Megabytes of one contestant's run; None if its process died (of too little memory, for one)."""
    package = str(Path(refvt.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    process = subprocess.run(
        [sys.executable, "-m", "refvt.bench.memory_probe", json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        observe(f"memory of {request['contestant']['name']} not measured: exit {process.returncode}, {reason}")
        return None
    return float(Path(request["result"]).read_text(encoding="ascii"))
