"""``python -m tests.load --kills 100 --calls 10000``: faults and load, measured; prints the table.

Exit code 0 if nothing differs, memory is flat within 2 % and no process fails; else 1.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.load.calls import FEWEST_CALLS, in_processes, in_threads, mixed_calls
from tests.load.kills import WORK, kill_and_compare

FLAT = 0.02


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each kind of work")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--only", choices=["kills", "calls", "concurrent"], default=None)
    options = parser.parse_args()
    if options.calls < FEWEST_CALLS:
        parser.error(f"--calls: expected at least {FEWEST_CALLS}, got {options.calls}")
    bad = False

    def row(what, count, found, good):
        nonlocal bad, start
        bad |= not good
        print(f"{what:34s}{count:8d}  {found:58s}{time.perf_counter() - start:8.1f} s", flush=True)
        start = time.perf_counter()

    start = time.perf_counter()
    if options.only in (None, "kills"):
        for name in WORK:
            with tempfile.TemporaryDirectory() as folder:
                kills, wholes, different = kill_and_compare(name, options.kills, Path(folder))
                found = f"{wholes} came to their end, {different} of them not bit-identical"
                row(f"kill -9 in {name}", kills, found, different == 0)
    if options.only in (None, "calls"):
        grown, wrong = mixed_calls(options.calls)
        row("calls of mixed shapes", options.calls, f"{wrong} wrong, memory {grown:+.2%}", grown < FLAT and not wrong)
    if options.only in (None, "concurrent"):
        problems = in_threads(8, options.processes)
        row("8 threads, two backends at once", 8 * options.processes, f"{len(problems)} wrong", not problems)
        for method in ("fork", "spawn"):
            wrong = in_processes(method, options.processes)
            row(f"processes by {method}", options.processes, f"{wrong} wrong", wrong == 0)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
