"""``python -m tests.fuzz --seconds 60``: fuzz every reader in turn, and print a table of what was run.

Each reader runs in a process of its own, so that a crash is counted as one. ``--round`` says for how long a process
lives; with more time than that there are more rounds, each with a seed of its own. Files that show a finding are
written to ``--out``. ``--guided DIR``: guided by coverage (``pip install atheris``); files that reach new branches of
refvt are kept in a folder of DIR for each reader, and the next round begins with them.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.fuzz.rounds import one_round


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all")
    parser.add_argument("--round", type=float, default=30, help="seconds of a process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", default=None, metavar="NAME")
    parser.add_argument("--guided", type=Path, default=None, metavar="DIR")
    parser.add_argument("--out", type=Path, default=None, help="folder for files that show a finding, and the figures")
    options = parser.parse_args()
    from tests.fuzz.targets import targets  # not in the children, which run this file, too: see guided.py

    names = options.targets or list(targets())
    if unknown := set(names) - set(targets()):
        parser.error(f"--targets: expected some of {', '.join(targets())}, got {', '.join(sorted(unknown))}")
    total = {name: {"runs": 0, "read": 0, "refused": 0, "seconds": 0.0, "grown": 0, "answers": 0} for name in names}
    findings: dict[tuple[str, str], int] = {}
    end, seed = time.monotonic() + options.seconds, options.seed
    while time.monotonic() < end:
        for name in names:
            reached = None if options.guided is None else options.guided / name.replace(" ", "-")
            figures, killer, said = one_round(name, seed, options.round, reached)
            if figures is None:
                found = {"the process died": (1, killer)}
                print(f"{name}, seed {seed}: the process died: …{said}", file=sys.stderr)
            else:
                row = total[name]
                for key, value in zip(("runs", "read", "refused", "seconds"), figures, strict=False):
                    row[key] += value
                row["grown"], row["answers"] = max(row["grown"], figures[4]), max(row["answers"], figures[5])
                found = figures[6]
            for what, (count, data) in found.items():
                if (name, what) not in findings and options.out is not None:
                    options.out.mkdir(parents=True, exist_ok=True)
                    kept = options.out / f"{name.replace(' ', '-')}-{len(findings)}"
                    kept.write_bytes(data)
                findings[name, what] = findings.get((name, what), 0) + count
        seed += 1
        counted = [[*key, count] for key, count in findings.items()]
        report = {"table": total, "findings": counted, "rounds": seed - options.seed}
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "figures.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"{'reader':18s}{'runs':>10s}{'read':>10s}{'refused':>10s}{'answers':>9s}{'runs/s':>9s}{'MiB grown':>11s}")
    for name, row in total.items():
        rate = row["runs"] / max(row["seconds"], 1e-9)
        counts = f"{row['runs']:10d}{row['read']:10d}{row['refused']:10d}{row['answers']:9d}"
        print(f"{name:18s}{counts}{rate:9.0f}{row['grown'] / 2**20:11.1f}")
    print(f"{sum(row['runs'] for row in total.values())} runs in all, {len(findings)} findings")
    for (name, what), count in findings.items():
        print(f"  {name}: {count} × {what}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
