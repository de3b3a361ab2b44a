"""Numbers and install lines that the pages state agree with the repository."""

from __future__ import annotations

import json
import re
import tomllib

from tests.docs.pages import PAGES, ROOT, name_of


def golden_kinds():
    """How many golden cases there are of operations, of models and of trainings, and of all."""
    cases = json.loads((ROOT / "golden/data/manifest.json").read_text(encoding="utf-8"))["cases"]
    kinds = [case["kind"] for case in cases.values()]
    return {kind: kinds.count(kind) for kind in set(kinds)} | {"all": len(kinds)}


def test_readme_counts_the_golden_cases():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found = re.search(
        r"\*Golden files\*: (?P<all>\d+) cases .*?(?P<op>\d+) of single operations.*?"
        r"(?P<model>\d+) of whole models.*?(?P<training>\d+) of twenty steps of training",
        text,
    )
    assert found is not None
    assert {kind: int(number) for kind, number in found.groupdict().items()} == golden_kinds()


def test_install_lines_have_one_form():
    """``python -m pip install ".[extra]"`` in the checkout, with extras that exist; ``-e`` only to run its tests."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    for page in PAGES:
        for line in re.findall(r"(?:python -m )?pip install [^`\n]*\[[^`\n]*", page.read_text(encoding="utf-8")):
            found = re.match(r'python -m pip install (-e )?"\.\[([\w,]+)\]"', line)
            assert found is not None, f"{name_of(page)}: {line}"
            assert set(found[2].split(",")) <= extras, f"{name_of(page)}: {line}"
            assert found[1] is None or "test" in found[2], f"{name_of(page)}: {line}"
