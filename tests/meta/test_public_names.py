"""Every public name has a docstring, and a place on the pages of the API."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_specification = importlib.util.spec_from_file_location("api_pages", ROOT / "docs/hooks/api_pages.py")
api_pages = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(api_pages)

NAMES = [(module, name) for module in api_pages.MODULES for name in api_pages.public_names(ROOT, module)]


def undocumented(found: object, path: str) -> list[str]:
    """A function or class without a docstring, and public methods of the class without one."""
    missing = [] if found.__doc__ and len(found.__doc__) > 15 else [path]
    if inspect.isclass(found):
        for name, member in vars(found).items():
            if isinstance(member, classmethod | staticmethod):
                member = member.__func__
            if (inspect.isfunction(member) or isinstance(member, property)) and not name.startswith("_"):
                missing += [] if member.__doc__ else [f"{path}.{name}"]
    return missing


def attribute_docstrings(module: str) -> set[str]:
    """The names in a module's file that have a string below their assignment."""
    body = ast.parse(Path(import_module(module).__file__).read_text(encoding="utf-8")).body
    documented = set()
    for node, following in itertools.pairwise(body):
        is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_text:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            documented.add(ast.unparse(target))
    return documented


def home(module: str, name: str) -> str:
    """The module whose file assigns a constant: where ``module`` imports it from, else ``module``."""
    for node in ast.parse(Path(import_module(module).__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return home(str(node.module), name)
    return module


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_is_documented(module, name):
    found = inspect.unwrap(getattr(import_module(module), name))
    if inspect.isclass(found) or inspect.isfunction(found):
        assert not undocumented(found, f"{module}.{name}")
    else:
        assert name in attribute_docstrings(home(module, name)), f"{module}.{name}: expected a docstring below it"


def test_every_package_with_public_names_is_on_the_pages():
    """A package directly below refvt that says what is public, but for those that only the command line uses."""
    found = {
        f"refvt.{path.parent.name}"
        for path in (ROOT / "refvt").glob("*/__init__.py")
        if "\n__all__ = [" in path.read_text(encoding="utf-8")
    }
    assert found - {"refvt.cli"} <= set(api_pages.MODULES)


def test_a_missing_docstring_is_found():
    class Silent:
        def method(self) -> None: ...

    assert undocumented(Silent, "Silent") == ["Silent", "Silent.method"]
