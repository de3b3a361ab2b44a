"""Writes the golden files and their manifest, or checks that they can be generated again.

python -m golden.generate [--out DIR] [--check] [--add]
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden.model_cases import MODEL_CASES, ModelCase
from golden.op_cases import OP_CASES, OpCase
from golden.runs import one_thread, run_model, run_op
from golden.seeds import DATA, MANIFEST, known_seeds
from golden.training_cases import TRAINING_CASES, TrainingCase
from golden.training_runs import run_training
from refvt.files import scratch_folder

FORMAT = 1
GENERATOR = "golden 1.0"
TOLERANCE = 1e-12  # relative L2 difference that is allowed for the float64 rounding of another CPU


def write(folder: Path, search: bool = False, stored: dict[str, Any] | None = None) -> None:
    """Run all cases and write their files and the manifest into an existing folder.

    stored: entries of a manifest whose files lie in the folder already; these cases are left as they are.
    """
    cases: dict[str, Any] = dict(stored or {})
    seeds = {} if search else known_seeds()
    with one_thread():
        every_case: list[OpCase | ModelCase | TrainingCase] = [*OP_CASES, *MODEL_CASES, *TRAINING_CASES]
        for case in every_case:
            if stored and case.stem in stored:
                continue
            if isinstance(case, OpCase):
                arrays, entry = run_op(case)
            elif isinstance(case, ModelCase):
                arrays, entry = run_model(case, seeds.get(case.stem))
            else:
                arrays, entry = run_training(case, seeds.get(case.stem))
            path = folder / f"{case.stem}.npz"
            np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
            if case.stem in cases:
                raise RuntimeError(f"{case.stem}: expected one case of this name, got two")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            cases[case.stem] = {"file": path.name, "sha256": digest, **entry}
    manifest = {
        "format": FORMAT,
        "generator": GENERATOR,
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "cases": cases,
    }
    text = compact(json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def compact(text: str) -> str:
    """The JSON text with the entry of each tensor on one line."""
    return re.sub(
        r"\{\s*(\"(?:absolute|bfloat16_error|condition)\":[^{}]*?)\s*\}",
        lambda m: "{" + " ".join(m[1].split()) + "}",
        text,
    )


def own_files(target: Path) -> set[str]:
    """Names of the golden files in a folder: the manifest, and the files that have the checksum it gives."""
    try:
        cases = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["cases"].values()
        named = {str(entry["file"]): entry["sha256"] for entry in cases}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()
    here = {path.name: path for path in target.iterdir() if path.is_file()}
    return {MANIFEST} | {
        name for name in named.keys() & here if hashlib.sha256(here[name].read_bytes()).hexdigest() == named[name]
    }


def refuse_others(target: Path) -> None:
    """FileExistsError unless a folder is missing, empty, or holds golden files alone."""
    if target.is_dir():
        others = sorted({path.name for path in target.iterdir()} - own_files(target))
    else:
        others = [target.name] if target.exists() or target.is_symlink() else []
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise FileExistsError(
            f"{target}: expected an empty folder or golden files alone, got {others[0]!r}{more}: choose another --out, "
            "or add --overwrite, which replaces files of the same names and leaves the others"
        )


def generate(target: Path, search: bool = False, overwrite: bool = False, add: bool = False) -> None:
    """Write all files to a temporary folder next to the target, then move them there, the manifest last.

    Golden files of the target that are not made any more are removed. FileExistsError if it holds anything else, unless
    ``overwrite``: then files of the same names are replaced, and all others stay. add: copy what the target holds, and
    run only the cases that it lacks.
    """
    if not overwrite:
        refuse_others(target)
    if add and MANIFEST not in own_files(target):
        raise FileNotFoundError(f"{target}: expected golden files with their manifest, to which --add adds, got none")
    with scratch_folder(target) as fresh:
        stored = None
        if add:
            for name in own_files(target):
                shutil.copy(target / name, fresh)
            stored = json.loads((fresh / MANIFEST).read_text(encoding="utf-8"))["cases"]
        write(fresh, search, stored)
        target.mkdir(exist_ok=True)
        made = {path.name for path in fresh.iterdir()}
        old = own_files(target) - made
        for name in [*sorted(made - {MANIFEST}), MANIFEST]:
            os.replace(fresh / name, target / name)
        for name in old:
            (target / name).unlink()


def difference(stored: Path, again: Path) -> float:
    """Largest relative L2 difference of any tensor of two files; infinite if more than rounding differs.

    The difference of a tensor that is zero up to rounding is relative to the largest tensor of its file.
    """
    with np.load(stored) as first, np.load(again) as second:
        if set(first.files) != set(second.files):
            return np.inf
        pairs = [(first[name], second[name]) for name in first.files]
    scale = max(float(np.linalg.norm(a.ravel())) for a, _ in pairs)
    worst = 0.0
    for a, b in pairs:
        if a.shape != b.shape or a.dtype != b.dtype:
            return np.inf
        if np.array_equal(a, b):
            continue
        if a.dtype.kind != "f":
            return np.inf
        norm = float(np.linalg.norm(a.ravel()))
        # -inf occurs only in key biases; these are inputs and equal, so they do not get here
        worst = max(worst, float(np.linalg.norm((a - b).ravel())) / (norm if norm > 1e-13 * scale else scale))
    return worst


def check(target: Path) -> bool:
    """Generate the files again, compare them with the stored ones, and report each file that is not identical."""
    with tempfile.TemporaryDirectory() as name:
        again = Path(name)
        write(again)
        stored_files = {path.name for path in target.glob("*.npz")}
        fresh_files = {path.name for path in again.glob("*.npz")}
        good = stored_files == fresh_files
        for missing in sorted(stored_files ^ fresh_files):
            print(f"{missing}: only {'stored' if missing in stored_files else 'generated again'}")
        same = 0
        for file in sorted(stored_files & fresh_files):
            if (target / file).read_bytes() == (again / file).read_bytes():
                same += 1
                continue
            worst = difference(target / file, again / file)
            good = good and worst <= TOLERANCE
            print(f"{file}: relative difference {worst:.1e}{'' if worst <= TOLERANCE else '  FAILS'}")
        print(f"{same} of {len(stored_files)} files are identical")
        cases = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["cases"]
        for entry in cases.values():
            path = target / entry["file"]
            if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                print(f"{entry['file']}: its SHA-256 is not that of the manifest  FAILS")
                good = False
    return good


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 for success, 1 if the check fails."""
    parser = argparse.ArgumentParser(prog="golden.generate", description="Write or check the golden files.")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the golden files")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are no golden files")
    parser.add_argument("--check", action="store_true", help="compare with files generated again; write nothing")
    parser.add_argument("--add", action="store_true", help="write only the cases that the folder lacks")
    parser.add_argument("--search", action="store_true", help="search new seeds for the model cases")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    if options.check:
        good = check(options.out)
    else:
        generate(options.out, options.search, options.overwrite, options.add)
        good = True
        size = sum(path.stat().st_size for path in options.out.iterdir()) / 1e6
        numbers = f"{len(OP_CASES)} operation, {len(MODEL_CASES)} model and {len(TRAINING_CASES)} training cases"
        print(f"{numbers}, {size:.1f} MB in {options.out}")
    print(f"{time.perf_counter() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
