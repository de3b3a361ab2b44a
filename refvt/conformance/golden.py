"""Reading of the golden files: a manifest and one .npz file per case, written by a PyTorch run (see ``golden/``).

The files are in ``refvt/_golden`` of an installed package and in ``golden/data`` of a checkout. ``golden/__init__.py``
describes their keys, layouts and conventions.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refvt.array import Array

__all__ = ["Case", "GoldenError", "golden_directory", "load_arrays", "load_manifest"]


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
    tensors: dict[str, dict[str, Any]]

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
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != 1:
            raise GoldenError(f"{path}: expected format 1, got {manifest['format']}")
        return {
            name: Case(
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
            for name, entry in manifest["cases"].items()
        }
    except OSError as error:
        raise GoldenError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise GoldenError(f"{path}: expected a golden manifest ({error!r})") from error


def load_arrays(case: Case) -> dict[str, Array]:
    """Load the arrays of a case by key.

    GoldenError if the file is missing, or if its checksum, names, shapes or dtypes differ from the manifest.
    """
    try:
        content = case.path.read_bytes()
    except OSError as error:
        raise GoldenError(f"{case.path}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != case.sha256:
        raise GoldenError(f"{case.path}: damaged: expected SHA-256 {case.sha256[:12]}…, got {digest[:12]}…")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, KeyError) as error:
        raise GoldenError(f"{case.path}: expected a readable .npz file ({error})") from error
    for name, entry in case.tensors.items():
        found = arrays.get(name)
        if found is None or list(found.shape) != entry["shape"] or str(found.dtype) != entry["dtype"]:
            seen = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise GoldenError(f"{case.path}: {name}: expected {entry['dtype']} {entry['shape']}, got {seen}")
    return arrays
