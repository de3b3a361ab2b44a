"""The page of the Python API: every name in ``__all__`` of the public modules, by mkdocstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# what a user calls, in the order in which it is met
MODULES = (
    "refvt",
    "refvt.data",
    "refvt.weights",
    "refvt.training",
    "refvt.evaluation",
    "refvt.conformance",
    "refvt.conformance.adapters",
    "refvt.backends",
    "refvt.ops",
    "refvt.ops.laws",
    "refvt.plots",
    "refvt.notebooks",
)


def public_names(root: Path, module: str) -> list[str]:
    """``__all__`` of a module, read from its text."""
    folder = root.joinpath(*module.split("."))
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("__")]
    raise ValueError(f"{path}: expected __all__")


def pages(root: Path) -> Iterator[tuple[str, str, str]]:
    """One page for each public module."""
    for module in MODULES:
        names = "\n\n".join(f"::: {module}.{name}" for name in public_names(root, module))
        path = module.replace(".", "/")
        place = f"{path}/__init__.py" if (root / path).is_dir() else f"{path}.py"
        yield f"api/{module}.md", f"api of {place}", f"---\ntitle: {module}\n---\n\n# `{module}`\n\n{names}\n"
