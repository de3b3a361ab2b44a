"""The model that comes with refvt is whole, small, and as good as its log says."""

import json
import math

import numpy as np
import pytest
from safetensors import safe_open

from refvt.data import MovingDigits
from refvt.training import evaluate
from refvt.training.recipe import Recipe
from refvt.weights import shipped
from refvt.weights.shipped import SHIPPED, find_files


@pytest.mark.parametrize("name", SHIPPED)
def test_files(name: str) -> None:
    files = find_files(name)
    assert files.weights.stat().st_size <= 4_000_000
    assert files.log.stat().st_size <= 400_000
    with safe_open(files.weights, "numpy") as tensors:
        assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {np.dtype("float32")}  # noqa: SIM118
    recipe = json.loads(files.recipe.read_text(encoding="utf-8"))
    assert Recipe.from_dict(recipe).as_dict() == recipe


def test_digits_is_as_good_as_its_log_says() -> None:
    model, recipe = shipped.load("digits", "jit")
    lines = [json.loads(line) for line in find_files("digits").log.read_text(encoding="utf-8").splitlines()]
    logged = [line for line in lines if line["event"] == "evaluation"][-1]
    c, n = recipe.config, logged["clips"]
    known = {name: value for name, value in recipe.data_settings.items() if not name.endswith("_clips")}
    data = MovingDigits("test", clips=n, frames=c.num_frames, size=c.image_size[0], channels=c.channels, **known)
    done = evaluate(model, data, 64)
    # The same clips, so the same answers but for those within rounding of another one; weights of another run would
    # be off by what chance allows between two samples of n clips.
    p = logged["top1"]
    assert done.top1 == pytest.approx(p, abs=math.sqrt(p * (1 - p) / n))
    assert done.loss == pytest.approx(logged["loss"], rel=0.01)
    assert done.tokens_per_layer == pytest.approx(logged["tokens_per_layer"], rel=0.01)
    assert done.tokens_per_layer[-1] < done.tokens_per_layer[0]  # it does halt


def test_what_is_not_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="shipped model: expected one of digits, got 'cats'"):
        shipped.load("cats")
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "digits.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"'digits' is incomplete, install refvt again: missing .*digits\.safetensors"
    ):
        shipped.load("digits")
