"""Reading of the golden files: a manifest and one .npz file per case, written by a PyTorch run (see ``golden/``).

The files are in ``refvt/_golden`` of an installed package and in ``golden/data`` of a checkout. ``golden/__init__.py``
describes their keys, layouts and conventions.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refvt.array import Array
from refvt.checks import brief, is_number, is_whole, words_of
from refvt.files import read_json, read_regular
from refvt.limits import GOLDEN_BYTES
from refvt.model.checkpoints import read_checkpoint
from refvt.model.config import HaltingVTConfig

__all__ = ["Case", "GoldenError", "golden_directory", "is_name", "load_arrays", "load_manifest"]


class GoldenError(ValueError):
    """Raised for a golden file that is missing, damaged or of another format."""


@dataclass(frozen=True)
class Case:
    """One case of the manifest.

    ``kind`` is "op", "model" or "training". ``margins`` are the smallest distances of its decisions from their
    thresholds. ``tensors`` gives for every array its shape, its dtype and the error of PyTorch's float32 run.
    """

    name: str
    directory: Path
    kind: str
    operation: str | None
    config: dict[str, Any] | None
    settings: dict[str, Any]
    margins: dict[str, float | None]
    tiny: bool
    describes: str
    sha256: str
    tensors: dict[str, dict[str, Any]] = field(repr=False)

    @property
    def path(self) -> Path:
        """The case's .npz file."""
        return self.directory / f"{self.name}.npz"


def golden_directory() -> Path:
    """The folder of the golden files of this installation. GoldenError if there are none."""
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "_golden", package.parent / "golden" / "data"):
        if (directory / "manifest.json").is_file():
            return directory
    raise GoldenError("golden files: expected refvt/_golden in the package or golden/data in a checkout, got neither")


def load_manifest(directory: Path | None = None) -> dict[str, Case]:
    """All cases by name. GoldenError if the manifest is missing or cannot be read."""
    directory = golden_directory() if directory is None else Path(directory)
    path = directory / "manifest.json"
    try:
        manifest = read_json(path, "a golden manifest")
        if manifest.get("format") != 1:
            raise ValueError(f"{path}: expected format 1, got {brief(manifest.get('format'))}")
        cases = manifest.get("cases")
        if not isinstance(cases, dict):
            raise ValueError(f"{path}: cases: expected an object with their names, got {brief(cases)}")
        return {name: _case(directory, name, entry) for name, entry in cases.items()}
    except OSError as error:
        raise GoldenError(f"{path}: {error.strerror or 'expected a golden manifest, got no file'}") from error
    except ValueError as error:
        message = str(error)
        raise GoldenError(message if message.startswith(str(path)) else f"{path}: {message}") from error


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a case: it becomes the name of a file and of a folder
_TENSOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._()/-]{0,199}")
_MOST = 1 << 24  # numbers of an array: nothing in a golden case is near this


def is_name(name: str) -> bool:
    """Whether a text can be the name of a case: letters, digits, dots and dashes, and never a way out of a folder."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def _case(directory: Path, name: str, entry: Any) -> Case:
    """Return a case from its entry in the manifest. ValueError that names a value that cannot be."""

    def check(right: bool, field: str, expected: str, got: Any) -> None:
        if not right:
            raise ValueError(f"cases.{brief(name)[1:-1]}{field}: expected {expected}, got {brief(got)}")

    check(is_name(name), "", "a name of letters, digits, dots and dashes", name)
    check(isinstance(entry, dict), "", "an object with the fields of a case", entry)
    kinds = {"settings": dict, "margins": dict, "tensors": dict, "tiny": bool, "describes": str, "sha256": str}
    for key, kind in kinds.items():
        check(isinstance(entry.get(key), kind), f".{key}", f"a value of type {kind.__name__}", entry.get(key))
    check(entry.get("kind") in ("op", "model", "training"), ".kind", "op, model or training", entry.get("kind"))
    is_op = entry["kind"] == "op"
    check(isinstance(entry.get("operation"), str) == is_op, ".operation", "one for an op alone", entry.get("operation"))
    check(isinstance(entry.get("config"), dict) != is_op, ".config", "one for a model alone", entry.get("config"))
    check(re.fullmatch("[0-9a-f]{64}", entry["sha256"]) is not None, ".sha256", "64 digits", entry["sha256"])
    for margin in entry["margins"].values():
        check(margin is None or is_number(margin), ".margins", "finite numbers or null", margin)
    if not is_op:
        try:
            HaltingVTConfig(**entry["config"])
        except (TypeError, ValueError) as error:
            check(False, ".config", "a configuration", str(error))
    for tensor, about in entry["tensors"].items():
        check(_TENSOR.fullmatch(tensor) is not None and ".." not in tensor, ".tensors", "names of tensors", tensor)
        check(isinstance(about, dict), f".tensors.{tensor}", "an object", about)
        shape, dtype = about.get("shape"), about.get("dtype")
        whole = isinstance(shape, list) and all(is_whole(side) for side in shape)
        check(whole and math.prod(shape) <= _MOST, f".tensors.{tensor}.shape", f"up to {_MOST} numbers", shape)
        check(dtype in ("float64", "int64", "bool"), f".tensors.{tensor}.dtype", "float64, int64 or bool", dtype)
        for key, value in about.items():
            if key.endswith(("error", "peak")) or key == "condition":
                check(value is None or is_number(value, 0), f".tensors.{tensor}.{key}", "a number or null", value)
    return Case(
        name=name,
        directory=directory,
        kind=entry["kind"],
        operation=entry.get("operation"),
        config=entry.get("config"),
        settings=entry["settings"],
        margins=entry["margins"],
        tiny=entry["tiny"],
        describes=entry["describes"],
        sha256=entry["sha256"],
        tensors=entry["tensors"],
    )


def load_arrays(case: Case) -> dict[str, Array]:
    """Load the arrays of a case by key.

    GoldenError if the file is missing, or if its checksum, names, shapes or dtypes differ from the manifest.
    """
    try:
        content = read_regular(case.path, GOLDEN_BYTES, "a golden file")
    except OSError as error:
        raise GoldenError(f"{case.path}: {error.strerror or 'expected a golden file, got no file'}") from error
    except ValueError as error:
        raise GoldenError(str(error)) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != case.sha256:
        raise GoldenError(f"{case.path}: damaged: expected SHA-256 {case.sha256[:12]}…, got {digest[:12]}…")
    try:
        tensors = read_checkpoint(case.path)  # which checks every size before it takes memory
    except ValueError as error:
        raise GoldenError(f"{case.path}: expected a readable .npz file ({words_of(error)})") from error
    arrays = dict(tensors)
    for name, entry in case.tensors.items():
        found = arrays.get(name)
        if found is None or list(found.shape) != entry["shape"] or str(found.dtype) != entry["dtype"]:
            seen = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise GoldenError(f"{case.path}: {name}: expected {entry['dtype']} {entry['shape']}, got {seen}")
    return arrays
