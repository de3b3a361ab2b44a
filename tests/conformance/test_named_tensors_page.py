"""docs/named-tensors.md lists the names and shapes that ``model.trace`` returns, no more and no fewer."""

import re
from pathlib import Path

import pytest

from tests.support.models import small_clips, small_model

PAGE = (Path(__file__).parents[2] / "docs" / "named-tensors.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(.+?)` \| \[(.+?)\] \| (.+?) \| .+ \|$", PAGE, re.MULTILINE)


def shape_of(text, sizes):
    """[B·(1+S·T), D] with numbers for the letters."""
    return tuple(eval(part.replace("·", "*").replace("′", "_left"), {}, sizes) for part in text.split(", "))


def listed(config, B):
    """The names and shapes that the page promises for a model."""
    found, G, entering = {}, config.glimpser_depth, config.patches_entering()
    sizes = {"B": B, "T": config.num_frames, "D": config.width, "K": config.num_classes, "N_left": config.joint_tokens}
    places = {"{g}": range(G), "{b}": range(G, config.depth), "{l}": range(1, config.joint_depth + 1)}
    for name, shape, given in ROWS:
        key = next((key for key in places if key in name), None)
        for i in places.get(key, [0]):
            selects = key == "{g}" and config.keep_rates[i] < 1
            holds = {"always": True, "R_g < 1": selects, "R_g < 1, fuse_dropped": selects and config.fuse_dropped}
            block = {"S": entering[i], "S_left": entering[i + 1]} if key == "{g}" or key is None else {}
            if holds[given]:
                found[name.replace(key or "{}", str(i))] = shape_of(shape, sizes | block)
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"fuse_dropped": True, "keep_rates": (0.5, 0.5)}, {"cls_skip": True}, {"halted_keys": "masked", "depth": 3}],
)
def test_the_page_lists_what_trace_returns(changes):
    model = small_model(**changes)
    trace = model.trace(small_clips(model.config, 2), gradients=True)
    expected = listed(model.config, 2)
    fuses = model.config.fuse_dropped
    expected |= {f"d({name})": shape for name, shape in expected.items() if fuses or not name.endswith(".scores")}
    expected |= {f"d({name})": value.shape for name, value in model.parameters.items()}
    assert {name: value.shape for name, value in trace.items()} == expected
