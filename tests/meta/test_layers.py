"""Imports run downward, operations do not import one another, and only ``refvt/cli`` prints.

The source is read with ``ast``, imports inside functions included, so nothing has to be installed. A file of ``refvt``
may import from its own layer and from the layers that come before it in ``LAYERS``.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import refvt

PACKAGE = Path(refvt.__file__).parent

LAYERS = (
    ("refvt.array", "refvt.checks", "refvt.packing"),
    ("refvt.limits",),
    ("refvt.files", "refvt.environment"),
    ("refvt.backends.reference", "refvt.backends.jit", "refvt.backends.cuda", "refvt.backends.progress"),
    ("refvt.ops",),
    ("refvt.backends",),  # the table of operations
    ("refvt.model",),
    ("refvt.data",),
    ("refvt",),  # the public names
    ("refvt.training", "refvt.evaluation"),
    ("refvt.weights",),
    ("refvt.conformance",),
    ("refvt.bench", "refvt.experiments", "refvt.plots", "refvt.notebooks"),
    ("refvt.cli", "refvt.__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Upward imports, each with its reason. Nothing else may be added: move the code instead.
UPWARD: dict[tuple[str, str], str] = {
    ("refvt.backends.cuda.errors", "refvt.backends.DeviceError"): "the error is declared where callers catch it",
}

# Files outside refvt/cli that print, each with its reason.
PRINTING = {
    "__main__.py": "one line, if Ctrl-C comes before refvt.cli is there",
    "backends/progress.py": "the line that shows compilation, which any call may start",
    "bench/gpu_report.py": "a command, python -m refvt.bench.gpu_report",
    "bench/registers.py": "a command, python -m refvt.bench.registers",
}

NUMBA_CUDA = ("backends/__init__.py", "bench/registers.py")  # inside functions, besides the cuda files
TORCH = (
    "bench/engines.py",
    "bench/torch_compact.py",
    "bench/torch_model.py",
    # inside functions: candidates in PyTorch
    "conformance/adapters/operations.py",
    "conformance/adapters/parameters.py",
    "conformance/adapters/recorder.py",
    "conformance/adapters/torch_candidate.py",
)


@cache
def sources() -> list[tuple[str, str, ast.Module]]:
    """Path inside the package, name of the module, and tree of every file."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        parts = ["refvt", *inside.with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append((inside.as_posix(), name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imported(tree: ast.AST) -> set[str]:
    """Full names of all that is imported: of ``from a import b`` it is a.b, be it a module or a name in one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "refvt imports by full names"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> str:
    """Entry of LAYERS that a module, or a name in one, belongs to: the longest that it starts with."""
    parts = name.split(".")
    if parts[0] == "refvt" and len(parts) > 1 and not is_module(".".join(parts[:2])):
        return "refvt"  # from refvt import HaltingVT
    return next(known for n in range(len(parts), 0, -1) if (known := ".".join(parts[:n])) in RANK)


def is_module(name: str) -> bool:
    """Whether a full name is that of a file or a folder of refvt."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_every_part_has_a_layer() -> None:
    parts = {f"refvt.{path.stem}" for path in PACKAGE.iterdir() if is_module(f"refvt.{path.stem}")}
    parts -= {"refvt.__init__", "refvt.__pycache__"}
    assert parts == {name for name in RANK if name.count(".") == 1}


def test_imports_run_downward() -> None:
    found = {
        (module, other)
        for _, module, tree in sources()
        for other in imported(tree)
        if other.split(".")[0] == "refvt" and RANK[layer(other)] > RANK[layer(module)]
    }
    assert sorted(found) == sorted(UPWARD)


def test_operations_do_not_import_one_another() -> None:
    found = {
        (path, other)
        for path, module, tree in sources()
        for other in imported(tree)
        if path.count("/") == 2 and path.startswith("ops/") and other.startswith("refvt.ops.")
        if is_module(family := ".".join(other.split(".")[:3])) and family != ".".join(module.split(".")[:3])
        if family != "refvt.ops.laws"  # what laws are made of
    }
    assert not found


def test_numba_cuda_is_imported_in_cuda_files_only() -> None:
    found = {path for path, _, tree in sources() if any(name.startswith("numba.cuda") for name in imported(tree))}
    assert {path for path in found if not is_cuda_file(path)} == set(NUMBA_CUDA)


def test_nothing_loads_numba_cuda_or_torch_by_itself() -> None:
    """Outside cuda files both are imported inside functions, when they are needed."""
    for path, _, tree in sources():
        if is_cuda_file(path):
            continue
        at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name for node in at_import for name in imported(node)}
        assert not {name for name in names if name.split(".")[0] == "torch" or name.startswith("numba.cuda")}, path


def test_torch_is_imported_in_the_bench_and_the_adapters_alone() -> None:
    found = {path for path, _, tree in sources() if any(name.split(".")[0] == "torch" for name in imported(tree))}
    assert found == set(TORCH)


def test_only_the_command_line_prints() -> None:
    found = {path for path, _, tree in sources() if not path.startswith("cli/") and prints(tree)}
    assert found == set(PRINTING)


def is_cuda_file(path: str) -> bool:
    """Whether a file belongs to the cuda backend: its own folder, and every ops/*/cuda*.py."""
    return path.startswith("backends/cuda/") or (path.startswith("ops/") and path.split("/")[-1].startswith("cuda"))


def prints(tree: ast.AST) -> bool:
    """Whether a file names ``print``, ``sys.stdout`` or ``sys.stderr``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "print":
            return True
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and ast.unparse(node.value) == "sys":
            return True
    return False
