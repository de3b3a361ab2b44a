"""Reading the golden files: a manifest and one .npz per case, written by a PyTorch run (see ``golden/``).

They lie inside the installed package as ``refvt/_golden``, in a checkout in ``golden/data``. Keys, layouts and
conventions are described where they are made, in ``golden/__init__.py``.
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
    """A golden file is missing, damaged or of another format."""


@dataclass(frozen=True)
class Case:
    """One entry of the manifest. ``kind`` is "op", "model" or "training"; ``tensors`` says how far off float32 is."""

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
        return self.directory / f"{self.name}.npz"


def golden_directory() -> Path:
    """Where the golden files of this installation lie. GoldenError if there are none."""
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "_golden", package.parent / "golden" / "data"):
        if (directory / "manifest.json").is_file():
            return directory
    raise GoldenError("golden files: neither in the package (refvt/_golden) nor in a checkout (golden/data)")


def load_manifest(directory: Path | None = None) -> dict[str, Case]:
    """Every case by name. GoldenError if the manifest is missing or cannot be read."""
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
        raise GoldenError(f"{path}: not a golden manifest ({error!r})") from error


def load_arrays(case: Case) -> dict[str, Array]:
    """The arrays of a case, its checksum, names, shapes and dtypes compared with the manifest first."""
    try:
        content = case.path.read_bytes()
    except OSError as error:
        raise GoldenError(f"{case.path}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != case.sha256:
        raise GoldenError(f"{case.path}: damaged: its SHA-256 is {digest[:12]}…, the manifest says {case.sha256[:12]}…")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, KeyError) as error:
        raise GoldenError(f"{case.path}: not a readable .npz file ({error})") from error
    for name, entry in case.tensors.items():
        found = arrays.get(name)
        if found is None or list(found.shape) != entry["shape"] or str(found.dtype) != entry["dtype"]:
            seen = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise GoldenError(f"{case.path}: {name}: expected {entry['dtype']} {entry['shape']}, got {seen}")
    return arrays
