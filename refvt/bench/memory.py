"""How much memory a run takes, each measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import refvt
from refvt.bench.contestants import Contestant, Material, Workload, limited_threads, material_of
from refvt.bench.report import say
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["add_memory", "probe_memory"]


def add_memory(
    result: dict[str, Any], material: Material, contestants: Sequence[Contestant], train: bool, threads: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "material.npz"
        arrays = {f"parameters/{name}": value for name, value in material.parameters.items()}
        arrays |= {"clips": material.clips, "labels": material.labels, "motion_labels": material.motion_labels}
        if material.forced.halting_layer is not None:
            arrays["halting_layer"] = material.forced.halting_layer
        np.savez(file, **arrays)  # type: ignore[arg-type]
        for row, contestant in zip(result["rows"], contestants, strict=True):
            request = {
                "file": str(file),
                "config": material.config.as_dict(),
                "dtype": material.dtype,
                "contestant": asdict(contestant),
                "train": train,
                "threads": threads,
            }
            row["extra_memory_mb"] = _ask_for_memory(request)


def _ask_for_memory(request: dict[str, Any]) -> float | None:
    """The megabytes, None if the process died (of too little memory, for one)."""
    package = str(Path(refvt.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    code = "import sys; from refvt.bench import memory; memory.probe_memory(sys.argv[1])"
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        say(f"memory of {request['contestant']['name']} not measured: exit {process.returncode}, {reason}")
        return None
    return float(process.stdout.split()[-1])


def probe_memory(request: str) -> None:
    """Print the megabytes one run needs above what the model, its clips and a tiny warm-up already hold."""
    asked = json.loads(request)
    config = HaltingVTConfig(**asked["config"])
    contestant = Contestant(**asked["contestant"])
    with np.load(asked["file"]) as file:
        arrays = dict(file)
    forced = Decisions(None, arrays.get("halting_layer"))
    parameters = {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith("parameters/")}
    given = (arrays["clips"], arrays["labels"], arrays["motion_labels"])
    material = Material(config, asked["dtype"], parameters, *given, forced)
    tiny = HaltingVTConfig(image_size=(32, 32), num_frames=2, width=48, num_heads=2, depth=4, keep_rates=(1.0, 0.5))
    chosen = [] if contestant.backend is None else [contestant.backend]
    with limited_threads(asked["threads"], chosen, contestant.backend is None):
        small = contestant.build(material_of(Workload("warm-up", tiny), 1, asked["dtype"]))
        for train in {False, asked["train"]}:
            small.run(train, Decisions())
        from refvt.bench.ceilings_cpu import CpuCeilings

        ceilings = CpuCeilings(asked["dtype"], asked["threads"], contestant.backend is None, 512, 1)
        for warm_up in ceilings.runs.values():
            warm_up()  # BLAS takes its buffers
        model = contestant.build(material)
        del arrays, parameters, given
        gc.collect()
        before = _memory(reset=True)[0]
        result = model.run(asked["train"], material.forced)
        after = _memory()[1]
        del result
    print((after - before) / 1e6)


def _memory(reset: bool = False) -> tuple[int, int]:
    """Bytes held now, and the most that were; with ``reset`` the maximum begins anew, where the system can do that.

    Linux's ru_maxrss starts at what the parent process held, so its own account of the process is read instead.
    """
    if Path("/proc/self/status").is_file():
        if reset:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed, and would hand it out unseen
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        status = {name: value for name, _, value in (line.partition(":") for line in lines)}
        if "VmHWM" in status and "VmRSS" in status:
            now, most = (1024 * int(status[name].split()[0]) for name in ("VmRSS", "VmHWM"))
            return now, most
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most
