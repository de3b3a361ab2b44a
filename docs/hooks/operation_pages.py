"""One page for each folder of refvt/ops: formula, shapes, adjoint, code of the three backends, laws, golden cases."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from docstrings import to_markdown

from refvt.conformance.golden import load_manifest
from refvt.conformance.laws import laws_of
from refvt.ops import FAMILIES, Operation
from refvt.ops.laws import GENERIC_LAWS

TITLES = {
    "embedding": "Embedding",
    "layernorm": "LayerNorm",
    "linear": "Linear",
    "attention": "Attention",
    "mlp": "MLP and GELU",
    "tokens": "Gather and segment mean",
    "glimpser": "The Glimpser's choice",
    "halting": "Halting",
    "compaction": "Compaction",
    "losses": "Losses",
    "optimiser": "Optimiser",
}
BACKENDS = (("reference", "NumPy"), ("jit", "Numba"), ("cuda", "CUDA"))


def pages(root: Path) -> Iterator[tuple[str, str, str]]:
    """The page of every family, the file it comes from, and its Markdown."""
    for family in FAMILIES:
        yield f"operations/{family}.md", f"refvt/ops/{family}/__init__.py", _page(root, family)


def _page(root: Path, family: str) -> str:
    module = import_module(f"refvt.ops.{family}")
    lead, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    lead = lead.replace("\n", " ")
    formula = (root / f"docs/hooks/formulas/{family}.md").read_text(encoding="utf-8")
    return "\n\n".join(
        [
            f"---\ntitle: {TITLES[family]}\n---\n\n# {TITLES[family]}\n\n{to_markdown(lead)}",
            f"## In mathematics\n\n{formula}",
            f"## In words\n\n{to_markdown(rest)}",
            "## Arguments and results\n\n† has no gradient. ‡ is changed in place. *setting*: a number, not an array. "
            "[The contract](../../../docs/operations.md) is the same for all operations.",
            *(_arguments(family, operation) for operation in module.OPERATIONS),
            _code(root, family),
            _laws(family, module.OPERATIONS),
            _golden(module.OPERATIONS),
        ]
    )


def _arguments(family: str, operation: Operation) -> str:
    reference = import_module(f"refvt.ops.{family}.reference")
    function = getattr(reference, f"{operation.name}_forward" if operation.has_backward else operation.name)
    words = " ".join(inspect.getdoc(function).split())  # type: ignore[union-attr]
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "keep":
            continue
        default = "" if parameter.default is inspect.Parameter.empty else f" = `{parameter.default!r}`"
        if name not in operation.arguments:
            rows.append(f"| `{name}` | *setting*{default} |")
            continue
        mark = ("" if name in operation.gradients else " †") + (" ‡" if name in operation.in_place else "")
        rows.append(f"| `{name}`{mark} | {_shape(operation.arguments[name])}{default} |")
    rows += [f"| → `{name}` | {_shape(shape)} |" for name, shape in operation.results.items()]
    table = "\n".join(["| name | shape |", "| --- | --- |", *rows])
    call = (
        f"`{operation.name}_forward`, `{operation.name}_backward`" if operation.has_backward else f"`{operation.name}`"
    )
    return f"### {operation.name}\n\n{call}. {words}\n\n{table}"


def _shape(shape: str) -> str:
    return f"`[{shape}]`" if shape else "a number"


def _code(root: Path, family: str) -> str:
    folder = root / "refvt/ops" / family
    parts = ["## The code\n\nThe numbers of the passes are the same in all backends.\n"]
    for backend, title in BACKENDS:
        parts.append(f'=== "{title}"\n')
        for path in sorted(folder.glob(f"{backend}*.py")):
            text = path.read_text(encoding="utf-8").rstrip()
            block = f'```python title="{path.relative_to(root)}"\n{text}\n```\n'
            parts.append("\n".join(f"    {line}".rstrip() for line in block.splitlines()) + "\n")
    return "\n".join(parts)


def _laws(family: str, operations: tuple[Operation, ...]) -> str:
    generic = {law.__name__ for law in GENERIC_LAWS}
    rows = []
    for operation in operations:
        for law in laws_of(operation.name):
            if law.__name__ not in generic:
                first = " ".join(inspect.getdoc(law).split())  # type: ignore[union-attr]
                rows.append(f"| `{operation.name}` | `{law.__name__}` | {first.replace('|', chr(92) + '|')} |")
    table = "\n".join(["| operation | law | what holds |", "| --- | --- | --- |", *rows])
    own = f"{table}\n\n" if rows else ""
    return (
        "## Laws\n\nProperties of every correct implementation, on generated inputs "
        f"([the functions](laws.py)).\n\n{own}"
        "Besides, for every operation ([the generic laws](../laws.py)): "
        + "; ".join(_first_sentence(law) for law in GENERIC_LAWS)
        + "."
    )


def _first_sentence(law: object) -> str:
    text = " ".join(inspect.getdoc(law).split())  # type: ignore[union-attr]
    sentence = text.split(". ")[0].rstrip(".")
    return sentence[0].lower() + sentence[1:] if sentence[1].islower() or sentence[1] == " " else sentence


def _golden(operations: tuple[Operation, ...]) -> str:
    names = {operation.name for operation in operations}
    rows = [f"| `{case.name}` | {case.describes} |" for case in load_manifest().values() if case.operation in names]
    if not rows:
        return "## Golden cases\n\nNone: PyTorch has no such operation. Whole models and training runs cover it."
    table = "\n".join(["| case | what it holds |", "| --- | --- |", *rows])
    intro = "Inputs and results of PyTorch in float64. Run them with `refvt check CANDIDATE`."
    return f"## Golden cases\n\n{intro}\n\n{table}"
