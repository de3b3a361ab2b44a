"""The examples of docs/strategies.md run, would find a mistake, and the table has every edge."""

import re
from pathlib import Path

import pytest

from refvt.conformance.strategies import EDGES

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["ties", "offsets"])
def test_the_example_runs(example):
    exec(compile(example, "example", "exec"), {})


MISTAKES = [
    ('np.argsort(-scores, axis=1, kind="stable")', "np.argsort(scores, axis=1)[:, ::-1]"),
    ("- total[offsets[:-1]]", ""),
]


@pytest.mark.parametrize(("right", "wrong"), MISTAKES, ids=["ties", "offsets"])
def test_the_example_finds_a_mistake(right, wrong):
    (example,) = [text for text in EXAMPLES if right in text]
    with pytest.raises(AssertionError):
        exec(compile(example.replace(right, wrong), "example", "exec"), {})


def test_the_table_has_every_edge():
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+?) \|$", PAGE, re.MULTILINE))
    assert rows == EDGES
