"""The model that comes with refvt is whole, small, and as good as its log says."""

import json
import math
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import refvt
from refvt.evaluation.selectivity import selectivity_of
from refvt.training import evaluate
from refvt.training.recipe import Recipe, find_recipe, make_moving_digits
from refvt.weights import shipped
from refvt.weights.shipped import SHIPPED, find_backbone, find_files


@pytest.mark.parametrize("name", SHIPPED)
def test_files(name: str) -> None:
    files = find_files(name)
    assert files.weights.stat().st_size <= 4_000_000
    assert files.log.stat().st_size <= 400_000
    with safe_open(files.weights, "numpy") as tensors:
        assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {np.dtype("float32")}  # noqa: SIM118
    recipe = json.loads(files.recipe.read_text(encoding="utf-8"))
    assert Recipe.from_dict(recipe).as_dict() == recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_is_as_good_as_its_log_says(name: str) -> None:
    model, recipe = shipped.load(name, "jit")
    logged = last_evaluation(name)
    data = make_moving_digits(recipe)[1]
    done = evaluate(model, data, 64)
    # The same clips, so the same answers but for those within rounding of another one; weights of another run would
    # be off by what chance allows between two samples of n clips.
    p, n = logged["top1"], logged["clips"]
    assert done.top1 == pytest.approx(p, abs=math.sqrt(p * (1 - p) / n))
    assert done.loss == pytest.approx(logged["loss"], rel=0.01)
    assert done.tokens_per_layer == pytest.approx(logged["tokens_per_layer"], rel=0.01)
    assert done.tokens_per_layer[-1] < done.tokens_per_layer[0]  # it does halt


def test_photographs_halts_what_does_not_move() -> None:
    """What it ships for: tokens of the digit outlive the background (docs/training.md has the definitions)."""
    model, recipe = shipped.load("photographs", "jit")
    logged = last_evaluation("photographs")
    found = selectivity_of(model, make_moving_digits(recipe)[1])
    assert found is not None
    assert found.auc == pytest.approx(logged["selectivity"]["auc"], abs=0.002)
    assert found.auc >= 0.85
    assert found.ratio >= 5
    assert found.layer > recipe.config.joint_depth // 2  # in the second half of the joint blocks
    assert logged["top1"] >= 0.97


def test_the_backbone_of_photographs_fits_its_recipe() -> None:
    recipe = find_recipe("photographs")
    start = find_backbone(recipe)
    assert start is not None
    assert recipe.backbone is not None
    model = refvt.HaltingVT(recipe.backbone.config, start, backend="jit")
    done = evaluate(model, make_moving_digits(recipe.backbone.changed({"data_settings.test_clips": 256}))[1], 64)
    assert done.top1 is not None
    assert done.top1 > 0.95
    assert done.tokens_per_layer == [model.config.joint_tokens] * model.config.joint_depth
    assert find_backbone(find_recipe("digits")) is None
    assert find_backbone(recipe.changed({"backbone.seed": 1})) is None


def last_evaluation(name: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in find_files(name).log.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = [line for line in lines if line["event"] == "evaluation"][-1]
    return found


def test_what_is_not_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="shipped model: expected one of digits, photographs, got 'cats'"):
        shipped.load("cats")
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "digits.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"'digits' is incomplete, install refvt again: missing .*digits\.safetensors"
    ):
        shipped.load("digits")
