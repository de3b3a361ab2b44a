"""Every notebook is the text beside it, was run, and ended without an error."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def test_the_numbers_are_without_gaps():
    assert [int(name.split("-")[0]) for name in NAMES] == list(range(len(NAMES)))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_text_and_was_run(name):
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed (the extra notebooks)")
    text = jupytext.read(FOLDER / f"{name}.py")
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert cells == [(cell.cell_type, cell.source) for cell in text.cells]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def answers():
    """What the table of questions points to: (number of a notebook, beginning of a heading)."""
    rows = (FOLDER / "README.md").read_text(encoding="utf-8").split("| --- | --- |\n")[1].splitlines()
    for row in rows:
        number = None
        for part in row.split("|")[2].split(";"):
            found = re.fullmatch(r"\s*(?:(\d+): )?(\S.*?)\s*", part)
            assert found, row
            number = int(found[1]) if found[1] else number
            yield number, found[2]


@pytest.mark.parametrize(("number", "heading"), list(answers()))
def test_the_table_of_questions_points_to_a_section(number, heading):
    text = (FOLDER / f"{NAMES[number]}.py").read_text(encoding="utf-8")
    assert any(line.startswith(f"# ## {heading}") for line in text.splitlines())
