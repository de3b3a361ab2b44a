"""Recipes: there and back through JSON, and what is wrong with one is said by field."""

import json

import pytest

import refvt
from refvt.training.recipe import RECIPES, Recipe, difference, find_recipe, paper_recipe
from tests.support.sliding_bars import CONFIG, small_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name, tmp_path):
    recipe = RECIPES[name]
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe.as_dict()), encoding="utf-8")
    assert find_recipe(str(file)) == recipe
    assert find_recipe(name) is recipe


def test_the_papers_recipe():
    kinetics, activitynet = paper_recipe("minik-g03-b10"), paper_recipe("anet-g07-b20")
    assert (kinetics.optimiser, kinetics.weight_decay, kinetics.learning_rate) == ("adam", 1e-5, 1e-5)
    assert (kinetics.epochs, kinetics.warmup_epochs, kinetics.warmup_start) == (20, 5, 0.1)
    assert (kinetics.max_grad_norm, kinetics.batch, kinetics.lr_per, kinetics.drop_path) == (40, 16, "epoch", 0.1)
    assert (kinetics.ponder_weight, kinetics.motion_weight, kinetics.betas) == (5e-4, 1.0, (0.9, 0.999))
    assert kinetics.decay_norms_and_biases
    assert activitynet.epochs == 50
    released = {"sampling": "span", "resize": "opencv"}
    assert kinetics.data_settings == {"stride": 32, "multi_label": False, **released}
    assert activitynet.data_settings == {"stride": 64, "multi_label": True, **released}
    for recipe in (kinetics, activitynet):
        assert (recipe.lr_schedule, recipe.clip_epsilon, recipe.decay_embeddings) == ("consecutive", 1e-6, True)
        assert (recipe.divide_labels, recipe.twins_from, recipe.static_twins) == (False, "video", True)
    assert activitynet.config == refvt.HaltingVTConfig.preset("anet-g07-b20")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs: expected at least 1, got 0"),
        ({"epochs": 2.0}, TypeError, "epochs: expected a whole number, got 2.0"),
        ({"seed": True}, TypeError, "seed: expected a whole number, got True"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate: expected a finite number, got 'fast'"),
        ({"learning_rate": float("nan")}, TypeError, "learning_rate: expected a finite number, got nan"),
        ({"drop_path": 1}, ValueError, "drop_path: expected a number below 1, got 1"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing: expected a number below 1, got 1.0"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing: expected a number from 0 to 1, got 2"),
        ({"optimiser": "sgd"}, ValueError, "optimiser: expected one of adamw, adam, got 'sgd'"),
        ({"lr_schedule": "step"}, ValueError, "lr_schedule: expected one of product, consecutive, got 'step'"),
        ({"twins_from": "photo"}, ValueError, "twins_from: expected one of clip, video, got 'photo'"),
        ({"clip_epsilon": -1}, ValueError, "clip_epsilon: expected a number from 0 to inf, got -1"),
        ({"decay_embeddings": 0}, TypeError, "decay_embeddings: expected true or false, got 0"),
        ({"divide_labels": None}, TypeError, "divide_labels: expected true or false, got None"),
        ({"optimiser": ["adam"]}, ValueError, "optimiser: expected one of adamw, adam"),
        ({"betas": [0.9]}, TypeError, r"betas: expected two numbers, got \[0.9\]"),
        ({"betas": [0.9, 1.0]}, ValueError, "betas: expected two numbers from 0 to below 1"),
        ({"max_grad_norm": 0}, ValueError, "max_grad_norm: expected a number above 0, got 0"),
        ({"static_twins": 1}, TypeError, "static_twins: expected true or false, got 1"),
        ({"micro_batch": 3}, ValueError, "micro_batch: expected a divisor of batch 8, got 3"),
        ({"warmup_epochs": 3}, ValueError, "warmup_epochs: expected at most the 2 epochs, got 3"),
        ({"data_settings": []}, TypeError, r"data_settings: expected an object of settings by name, got \[\]"),
        ({"config": {"width": 17}}, ValueError, "config.width: expected a multiple of num_heads"),
        ({"config": {"breadth": 1}}, ValueError, "recipe: unknown: config.breadth; expected some of config.channels"),
        ({"config": 3}, TypeError, "config: expected an object of the model's fields, got 3"),
        ({"backbone": 3}, TypeError, "backbone: expected the fields of a recipe or null, got 3"),
        ({"backbone": {"epochs": 3}}, ValueError, "backbone: recipe: missing: config, data"),
        ({"backbone": small_recipe(epochs=4).as_dict() | {"data": "videos"}}, ValueError, "backbone.data: expected"),
        ({"epoch": 3, "lr": 1}, ValueError, "recipe: unknown: epoch, lr; expected some of"),
    ],
)
def test_a_wrong_field_is_named(changes, error, message, tmp_path):
    values = {**small_recipe().as_dict(), **changes}
    with pytest.raises(error, match=message):
        Recipe.from_dict(values)
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(error, match=f"wrong.json: {message}"):
        find_recipe(str(file))


ADDED = {  # fields that a recipe stored earlier lacks, and what was done then
    "decay_embeddings": False,
    "clip_epsilon": 0.0,
    "lr_schedule": "product",
    "divide_labels": True,
    "twins_from": "clip",
}


def test_a_recipe_that_was_stored_before_a_field_was_added_is_the_same_recipe():
    recipe = small_recipe(backbone=small_recipe(seed=3))
    stored = recipe.as_dict()
    for values in (stored, stored["backbone"]):
        for name, value in ADDED.items():
            assert values.pop(name) == value
    assert Recipe.from_dict(stored) == recipe


def test_missing_fields_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="recipe: missing: config, data"):
        Recipe.from_dict({"epochs": 3})
    with pytest.raises(ValueError, match=r"recipe: expected one of digits, photographs, .* or a .json file"):
        find_recipe("nonsense")
    with pytest.raises(FileNotFoundError):
        find_recipe(str(tmp_path / "none.json"))
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a recipe as JSON, an object with names, got list"):
        find_recipe(str(tmp_path / "list.json"))
    (tmp_path / "half.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"half\.json: expected a recipe as JSON, got another text"):
        find_recipe(str(tmp_path / "half.json"))


def test_single_fields_can_be_changed():
    recipe = small_recipe(data_settings={"noise": 1, "clutter": 2})
    changed = recipe.changed({"learning_rate": 0.5, "config.width": 32, "data_settings.noise": 9})
    assert (changed.learning_rate, changed.config.width, changed.config.depth) == (0.5, 32, CONFIG.depth)
    assert changed.data_settings == {"noise": 9, "clutter": 2}
    assert recipe.data_settings == {"noise": 1, "clutter": 2}
    with pytest.raises(ValueError, match=r"unknown: config\.breadth"):
        recipe.changed({"config.breadth": 1})
    with pytest.raises(ValueError, match=r"unknown: betas\.0"):
        recipe.changed({"betas.0": 1})


def test_differences_are_named():
    one, other = small_recipe().as_dict(), small_recipe(learning_rate=1.0).changed({"config.depth": 5}).as_dict()
    assert difference(one, one) == []
    assert difference(one, other) == ["config.depth", "learning_rate"]
    assert difference({"a": 1}, {}) == ["a"]


def test_a_backbone_is_a_recipe_of_its_own():
    first = small_recipe(epochs=5, seed=3)
    recipe = small_recipe().changed({"backbone": first})
    assert Recipe.from_dict(recipe.as_dict()) == recipe
    changed = recipe.changed({"backbone.epochs": 7, "backbone.config.halting_scale": 2.0, "epochs": 9})
    assert (changed.backbone.epochs, changed.backbone.seed, changed.epochs) == (7, 3, 9)
    assert changed.backbone.config.halting_scale == 2.0
    assert changed.config == recipe.config
    assert difference(recipe.as_dict(), changed.as_dict()) == [
        "backbone.config.halting_scale",
        "backbone.epochs",
        "epochs",
    ]
    assert recipe.changed({"backbone": None}).backbone is None
    with pytest.raises(ValueError, match="backbone: the recipe has none"):
        first.changed({"backbone.epochs": 1})
    with pytest.raises(ValueError, match=r"backbone.config: expected a model of the same shapes, got another blocks\."):
        recipe.changed({"backbone.config.mlp_ratio": 3.0})
    videos = recipe.changed({"backbone": None, "data": "videos"})
    with pytest.raises(ValueError, match=r"backbone\.data_settings: expected those of the recipe itself"):
        videos.changed({"backbone": {**videos.as_dict(), "data_settings": {"stride": 9}}})
