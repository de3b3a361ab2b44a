"""``refvt train`` as a person calls it."""

import json
import subprocess
import sys

import pytest

import refvt.data
from refvt.cli import main
from refvt.training.command import _settings
from tests.training.sliding_bars import SlidingBars, small_recipe


@pytest.fixture
def digits(monkeypatch):
    """Sliding bars in the place of moving digits; what they were asked for is kept."""
    asked = []

    def make(split, **settings):
        asked.append((split, settings))
        if set(settings) - {"clips", "frames", "size", "channels", "noise"}:
            raise TypeError("MovingDigits.__init__() got an unexpected keyword argument 'fog'")
        return SlidingBars(settings["clips"])

    monkeypatch.setattr(refvt.data, "MovingDigits", make, raising=False)
    return asked


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "small.json"
    settings = {"train_clips": 20, "test_clips": 7, "noise": 2}
    file.write_text(json.dumps(small_recipe(epochs=1, data_settings=settings).as_dict()), encoding="utf-8")
    return str(file)


def test_trains_prints_and_goes_on(tmp_path, capsys, digits, recipe):
    out = tmp_path / "new" / "folder"
    command = ["train", "--recipe", recipe, "--out", str(out), "--backend", "reference", "--set", "optimiser=adam"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "of 7 held-out clips right" in printed.out
    assert str(out / "model.safetensors") in printed.out
    assert "3/3" in printed.err
    assert digits == [
        ("train", {"clips": 20, "frames": 4, "size": 8, "channels": 1, "noise": 2}),
        ("test", {"clips": 7, "frames": 4, "size": 8, "channels": 1, "noise": 2}),
    ]
    assert json.loads((out / "recipe.json").read_text(encoding="utf-8"))["optimiser"] == "adam"
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*command, "--resume", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["clips"] == 7
    assert printed.err == ""
    assert main([*command, "--resume", "--set", "rate=0.5"]) == 2
    assert "rate: the checkpoint has 0.003, now 0.5" in capsys.readouterr().err


def test_a_recipe_that_was_written_is_a_recipe_to_read(tmp_path, digits, recipe):
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["--backend", "reference", "--json"]
    assert main(["train", "--recipe", recipe, "--out", str(first), "--set", "config.width=8", *common]) == 0
    assert main(["train", "--recipe", str(first / "recipe.json"), "--out", str(second), *common]) == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    # and the model is a start for another run
    weights = ["--weights", str(first / "model.safetensors"), "--set", "rate=0", "--set", "warmup_epochs=0"]
    assert main(["train", "--recipe", str(first / "recipe.json"), "--out", str(tmp_path / "c"), *weights, *common]) == 0
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nonsense"], "recipe: expected one of digits, "),
        (["--recipe", "digits", "--set", "epochs"], "--set: expected FIELD=VALUE, got 'epochs'"),
        (["--recipe", "digits", "--set", "epoch=3"], "recipe: unknown: epoch;"),
        (["--recipe", "digits", "--set", "data_settings.fog=3"], "data_settings: "),
        (["--recipe", "digits", "--root", "."], "--root: the recipe's data are moving digits"),
        (["--recipe", "digits", "--data", "videos"], "--annotations: needed where the recipe's data are videos"),
        (["--recipe", "paper-minik-g03-b10"], "--annotations: needed where the recipe's data are videos"),
        (["--recipe", "digits", "--set", "config.image_size=[32, 64]"], "config.image_size: expected a square"),
        (["--recipe", "digits", "--weights", "none.safetensors"], "none.safetensors"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path, capsys, digits, arguments, message):
    out = tmp_path / "out"
    assert main(["train", *arguments, "--out", str(out)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("refvt: ")
    assert message in errors
    assert not out.exists()


def test_values_are_json_or_words():
    assert _settings(["a=1", "b=adam", "c=[1, 2]", "d=null", "e=x=y"]) == {
        "a": 1,
        "b": "adam",
        "c": [1, 2],
        "d": None,
        "e": "x=y",
    }


def test_importing_the_command_line_loads_no_optional_package():
    code = "import sys, refvt.cli; print(sorted(set(sys.modules) & {'torch', 'sklearn', 'tqdm', 'mpi4py', 'av'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
