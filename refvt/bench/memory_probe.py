"""One run of one contestant, and the memory it took: a process that ``refvt.bench.memory`` starts.

The request is JSON on the command line; the number of megabytes is written to the file that it names.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from refvt.bench.contestants import Contestant, Material, Workload, limit_threads, make_material
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions

__all__ = ["main"]

TINY = HaltingVTConfig(image_size=(32, 32), num_frames=2, width=48, num_heads=2, depth=4, keep_rates=(1.0, 0.5))


def main(argument: str) -> None:
    """Write the megabytes that one run needs above what the model, its clips and a tiny warm-up already hold."""
    request = json.loads(argument)
    contestant, material = Contestant(**request["contestant"]), _read_material(request)
    with_torch = contestant.backend is None
    with limit_threads(request["threads"], [] if contestant.backend is None else [contestant.backend], with_torch):
        small = contestant.build(make_material(Workload("warm-up", TINY), 1, request["dtype"]))
        for train in {False, request["train"]}:
            small.run(train, Decisions())
        from refvt.bench.ceilings_cpu import CpuCeilings

        ceilings = CpuCeilings(request["dtype"], request["threads"], with_torch, 512, 1)
        for warm_up in ceilings.runs.values():
            warm_up()  # BLAS takes its buffers
        model = contestant.build(material)
        gc.collect()
        before = _memory(reset=True)[0]
        result = model.run(request["train"], material.forced)
        after = _memory()[1]
        del result
    Path(request["result"]).write_text(str((after - before) / 1e6), encoding="ascii")


def _read_material(request: dict[str, Any]) -> Material:
    with np.load(request["material"]) as file:
        arrays = dict(file)
    return Material(
        HaltingVTConfig(**request["config"]),
        request["dtype"],
        {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith("parameters/")},
        arrays["clips"],
        arrays["labels"],
        arrays["motion_labels"],
        Decisions(None, arrays.get("halting_layer")),
    )


def _memory(reset: bool = False) -> tuple[int, int]:
    """Bytes held now, and the most that were held; ``reset`` starts the maximum again, where the system can do that.

    Linux's ru_maxrss starts at what the parent process held, so its own account of the process is read instead.
    """
    if Path("/proc/self/status").is_file():
        if reset:
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory, and would hand it out unseen
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


if __name__ == "__main__":
    main(sys.argv[1])
