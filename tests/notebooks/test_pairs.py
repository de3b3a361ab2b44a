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


README = (FOLDER / "README.md").read_text(encoding="utf-8")


def answers():
    """What the table of questions points to: (number of a notebook, its file, beginning of a heading)."""
    for row in README.split("| --- | --- |\n")[1].split("\n\n")[0].splitlines():
        number = file = None
        for part in row.split("|")[2].split(";"):
            found = re.fullmatch(r"\s*(?:\[(\d+)\]\((.*?)\): )?(\S.*?)\s*", part)
            assert found, row
            number, file = (int(found[1]), found[2]) if found[1] else (number, file)
            yield number, file, found[3]


@pytest.mark.parametrize(("number", "file", "heading"), list(answers()))
def test_the_table_of_questions_points_to_a_section(number, file, heading):
    assert file == f"{NAMES[number]}.ipynb"
    text = (FOLDER / f"{NAMES[number]}.py").read_text(encoding="utf-8")
    assert any(line.startswith(f"# ## {heading}") for line in text.splitlines())


def title(name):
    return re.search(r"^# # \d+\. (.+)$", (FOLDER / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE)[1]


def test_the_list_has_every_notebook():
    links = [f"- [{number}. {title(name)}]({name}.ipynb)" for number, name in enumerate(NAMES)]
    assert "\n".join(links) in README


@pytest.mark.parametrize("number", range(len(NAMES) - 1))
def test_a_notebook_ends_with_a_link_to_the_next(number):
    last = (FOLDER / f"{NAMES[number]}.py").read_text(encoding="utf-8").splitlines()[-1]
    assert last == f"# Next: [{number + 1}, {title(NAMES[number + 1])}]({NAMES[number + 1]}.ipynb)"


def test_the_table_of_models_is_also_on_the_site():
    page = (FOLDER.parent / "docs" / "learn" / "index.md").read_text(encoding="utf-8")
    models = "## The models of the notebooks" + README.split("## The models of the notebooks")[1]
    assert page.endswith(models)
