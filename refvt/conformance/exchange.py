"""The exchange folder: golden cases as .npy files, for a program in any language.

``refvt golden export DIR`` writes, for every case, a folder:

    DIR/exchange.json                  format, dtype, and the names of the cases
    DIR/<case>/case.json               what the case is: configuration, settings, names and shapes of everything
    DIR/<case>/given/<name>.npy        inputs of a model: clips, labels, motion_labels; parameters/<name>;
                                       decisions/kept.<g> and decisions/halting_layer, those of the truth;
                                       drop_path/…, the scales of stochastic depth, in a few cases. Of an operation:
                                       its arguments; cotangent/<result>
    DIR/<case>/results/                empty: the other program writes its results here, <name>.npy

The names of results are those of the named tensors (``blocks.3.attn.q``, ``loss.total``, ``d(head.weight)``) or of the
operation's results and gradients (``y``, ``d(q)``); ``case.json`` lists all with their shapes, in the order of
computation. Any subset is right. Integers are int64 (int32 is read too); floats are float32, or float64 for dtype
"float64". Arrays are in C order; a Fortran order is read too. ``refvt check DIR`` judges what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.checks import brief
from refvt.conformance.cases import ModelCase, OperationCase, model_case, operation_case, truth_of
from refvt.conformance.golden import Case, is_name, load_arrays
from refvt.conformance.isolation import Answer, Request
from refvt.files import check_regular, read_json, scratch_folder
from refvt.model.checkpoints import from_npy

__all__ = ["FORMAT", "ExchangeFolder", "export"]

FORMAT = 1
INDEX = "exchange.json"
MAX_BYTES = 1 << 30  # of one result: nothing in a golden case is near this


def export(folder: Path, cases: list[Case], dtype: str = "float32") -> int:
    """Write cases into a folder that is empty or does not exist yet; returns the number of cases.

    The folder appears under its name when everything has been written. ValueError if something is there already.
    """
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ValueError(f"export: expected a folder that is empty or not there yet, got {str(folder)!r}")
    with scratch_folder(folder) as temporary:
        for case in cases:
            _export_case(temporary / case.name, case, dtype)
        index = {"format": FORMAT, "dtype": dtype, "cases": [case.name for case in cases]}
        _write_json(temporary / INDEX, index)
        if folder.exists():
            folder.rmdir()  # it is empty
        os.replace(temporary, folder)
    return len(cases)


def _export_case(folder: Path, case: Case, dtype: str) -> None:
    arrays = load_arrays(case)
    truth = truth_of(case, arrays)
    if case.kind == "op":
        given = _given_operation(operation_case(case, arrays, dtype))
        about: dict[str, Any] = {"operation": case.operation, "settings": case.settings}
    else:
        model = model_case(case, arrays, dtype)
        given = _given_model(model)
        about = {"config": asdict(model.config), "settings": model.settings}
    for name, value in given.items():
        path = folder / "given" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, value)
    (folder / "results").mkdir()
    results = {name: _describe(truth[name].value) for name in truth}
    listed = {name: _describe(value) for name, value in given.items()}
    described = {"case": case.name, "kind": case.kind, "describes": case.describes, "dtype": dtype}
    _write_json(folder / "case.json", {**described, **about, "given": listed, "results": results})


def _given_model(case: ModelCase) -> dict[str, Array]:
    found = {"clips": case.clips, "labels": case.labels, "motion_labels": case.motion_labels}
    found |= {f"parameters/{name}": value for name, value in case.parameters.items()}
    assert case.decisions.kept is not None
    assert case.decisions.halting_layer is not None
    found |= {f"decisions/kept.{g}": kept for g, kept in enumerate(case.decisions.kept)}
    found["decisions/halting_layer"] = case.decisions.halting_layer
    if case.drop_path is not None:
        for g, scales in enumerate(case.drop_path.glimpser):
            found |= {f"drop_path/glimpser.{g}.{name}": value for name, value in scales._asdict().items()}
        found["drop_path/joint"] = case.drop_path.joint
    return found


def _given_operation(case: OperationCase) -> dict[str, Array]:
    return {**case.arguments, **{f"cotangent/{name}": value for name, value in case.cotangents.items()}}


def _describe(value: Array) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype)}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- reading results


class ExchangeFolder:
    """A runner whose answers are the files that another program has written.

    ValueError if the folder is no exchange folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        try:
            index = read_json(path, "an exchange folder's index")
            version, self.dtype, cases = index["format"], index["dtype"], index["cases"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"candidate: expected an exchange folder (refvt golden export DIR), got {str(folder)!r} "
                f"without a readable {INDEX} ({type(error).__name__})"
            ) from None
        if version != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, got {brief(version)}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"{path}: dtype: expected float32 or float64, got {brief(self.dtype)}")
        if not isinstance(cases, list) or not all(isinstance(name, str) and is_name(name) for name in cases):
            raise ValueError(f"{path}: cases: expected a list of the names of cases, got {brief(cases)}")
        self.cases = frozenset(cases)

    def ask(self, request: Request) -> Answer:
        """The results of a case that the folder holds; an error for a file that cannot be read."""
        case = request.case
        folder = self.folder / case.name / "results"
        if isinstance(case, ModelCase) and case.force_decisions:
            return Answer("not given", sentence="results in a folder cannot be computed again")
        if case.name not in self.cases:
            return Answer("not given", sentence="the folder was exported without this case")
        found: dict[str, Array] = {}
        unknown = []
        for path in sorted(folder.glob("*.npy")) if folder.is_dir() else []:
            name = path.name.removesuffix(".npy")
            if name not in request.names:
                unknown.append(brief(name)[1:-1])
                continue
            try:
                found[name] = _load(path)
            except (OSError, ValueError, EOFError, MemoryError, RecursionError) as error:
                text = " ".join(str(error).split())[:200]
                return Answer(
                    "error", sentence=f"results/{brief(path.name)[1:-1]} cannot be read: {text or type(error).__name__}"
                )
        sentence = "" if found else "there are no results"
        return Answer("given" if found else "not given", found, sentence, tuple(unknown[:20]))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Nothing can be called: the other program has run already."""
        return Answer("not given", sentence="files cannot be called")

    def close(self) -> None:
        """Nothing was started."""


def _load(path: Path) -> Array:
    size = check_regular(path, "an array of numbers").st_size
    if size > MAX_BYTES:
        raise ValueError(f"expected less than {MAX_BYTES} bytes, got {size}")
    value = from_npy("its header", path.read_bytes())
    if isinstance(value, str):
        raise ValueError("expected an array of numbers")
    return np.ascontiguousarray(value)
