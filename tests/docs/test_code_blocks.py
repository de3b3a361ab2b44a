"""Every Python block of README and docs runs, or says above it why not: ``<!-- not run: reason -->``.

The blocks of a page run in one namespace, in order. What a page takes as given stands in ``SETUP``.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import refvt
from refvt.ops.linear import reference as linear
from tests.docs.pages import PAGES, blocks_of, name_of

WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]
WITH_TORCH = {"docs/checking.md"}


def linear_layer():
    """What the pages with the contract of an operation take as given."""
    rng = np.random.default_rng(0)
    x, weight, bias, residual, dy = (rng.standard_normal(shape) for shape in ((3, 4), (2, 4), 2, (3, 2), (3, 2)))
    functions = {"linear_forward": linear.linear_forward, "linear_backward": linear.linear_backward}
    return functions | {"x": x, "weight": weight, "bias": bias, "residual": residual, "gain": np.ones(3), "dy": dy}


def small_model():
    """A configuration with its parameters and two clips."""
    config = refvt.HaltingVTConfig(image_size=(16, 16), patch_size=8, width=16, num_heads=2, depth=5, num_classes=3)
    model = refvt.HaltingVT(config, seed=0, backend="reference")
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 16, 16)).astype("float32")
    return {"config": config, "parameters": model.parameters, "clips": clips, "refvt": refvt}


def candidates():
    """What docs/checking.md takes as given."""
    pytest.importorskip("torch")
    from refvt.conformance import adapters

    return {"adapters": adapters, "MyHaltingVT": None, "my_layernorm": lambda x, weight, bias: x}


SETUP = {
    "README.md": linear_layer,
    "docs/operations.md": linear_layer,
    "docs/porting.md": small_model,
    "docs/checking.md": candidates,
    "docs/data.md": lambda: {"rng": np.random.default_rng(0)},
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.torch] if name_of(page) in WITH_TORCH else [])
        for page in WITH_CODE
    ],
)
def test_the_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page", **SETUP.get(name_of(page), dict)()}
    for number, block in enumerate(blocks_of(page)):
        if block.language == "python" and block.reason is None:
            exec(compile(block.text, f"{name_of(page)}, block {number}", "exec"), namespace)


def test_every_setup_is_for_a_page_with_code():
    assert set(SETUP) <= {name_of(page) for page in WITH_CODE}


def test_every_reason_is_above_a_block():
    """A ``not run`` that stands elsewhere would mark nothing."""
    for page in PAGES:
        written = re.findall(r"^<!-- not run: .+ -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(written) == sum(block.reason is not None for block in blocks_of(page)), name_of(page)
