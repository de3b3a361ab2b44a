"""Every backend has every array function of the interface, with the same arguments; the table has every operation."""

import ast
import inspect
from pathlib import Path

import pytest

import refvt
from refvt import backends
from refvt.backends.interface import ArrayFunctions
from refvt.ops import operations

ROOT = Path(refvt.__file__).parent
WRITTEN = {name: f for name, f in vars(ArrayFunctions).items() if inspect.isfunction(f) and not name.startswith("_")}


def defined(path):
    """The functions that a module defines, and the names that it imports or assigns, found without running it."""
    functions, names = {}, set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = [a.arg for a in (*node.args.args, *filter(None, [node.args.vararg]))]
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return functions, names


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_array_functions(backend):
    functions, names = defined(ROOT / "backends" / backend / "arrays.py")
    reference, _ = defined(ROOT / "backends" / "reference" / "arrays.py")
    for name, function in WRITTEN.items():
        expected = [argument for argument in inspect.signature(function).parameters if argument != "self"]
        if name in functions:
            assert functions[name] == expected, name
        else:  # imported: the loaded backends are checked below
            assert name in names, f"{backend} has no {name}"
            assert backend == "cuda" or name not in reference or reference[name] == expected, name
    for name in ("IN_MAIN_MEMORY", "GraphCache"):
        assert name in names or (backend == "reference" and name == "GraphCache")


@pytest.mark.parametrize("name", ["reference", "jit"])
def test_loaded_backends(name):
    arrays = backends.get(name).arrays
    for function, written in WRITTEN.items():
        expected = list(inspect.signature(written).parameters)[1:]
        assert list(inspect.signature(getattr(arrays, function)).parameters) == expected, function
    assert arrays.IN_MAIN_MEMORY is True
    assert callable(arrays.GraphCache())


def test_the_table_declares_every_operation():
    declared = {
        name for name, kind in backends.Backend.__annotations__.items() if kind in ("Implementation", "ForwardOnly")
    }
    assert declared == set(operations())
    with pytest.raises(KeyError, match="no operation of the table"):
        backends.get("reference")["conv"]
