"""``refvt train`` as a person calls it."""

import json
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest

from refvt.cli import main
from refvt.cli.train import _settings
from refvt.training import recipe as recipes
from tests.support.sliding_bars import SlidingBars, small_recipe


@pytest.fixture
def digits(monkeypatch):
    """Sliding bars in the place of moving digits; what they were asked for is kept."""
    asked = []

    def make(split, **settings):
        asked.append((split, settings))
        if set(settings) - {"clips", "frames", "size", "channels", "noise"}:
            raise TypeError("MovingDigits.__init__() got an unexpected keyword argument 'fog'")
        return SlidingBars(settings["clips"])

    monkeypatch.setattr(recipes, "MovingDigits", make)
    return asked


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "small.json"
    settings = {"train_clips": 20, "test_clips": 7, "noise": 2}
    file.write_text(json.dumps(small_recipe(epochs=1, data_settings=settings).as_dict()), encoding="utf-8")
    return str(file)


def test_trains_prints_and_goes_on(tmp_path, capsys, digits, recipe):
    out = tmp_path / "new" / "folder"
    line = ["train", "--recipe", recipe, "--out", str(out), "--backend", "reference", "--set", "optimiser=adam"]
    assert main(line) == 0
    printed = capsys.readouterr()
    assert "% of 7 held-out clips" in printed.out
    assert str(out / "model.safetensors") in printed.out
    assert printed.err == ""  # a run of a second prints nothing into a pipe
    assert digits == [
        ("train", {"clips": 20, "frames": 4, "size": 8, "channels": 1, "noise": 2}),
        ("test", {"clips": 7, "frames": 4, "size": 8, "channels": 1, "noise": 2}),
    ]
    assert json.loads((out / "recipe.json").read_text(encoding="utf-8"))["optimiser"] == "adam"
    assert main(line) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*line, "--resume", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["clips"] == 7
    assert printed.err == ""
    assert main([*line, "--resume", "--set", "learning_rate=0.5"]) == 2
    assert "learning_rate: the checkpoint has 0.003, now 0.5" in capsys.readouterr().err


def test_a_recipe_that_was_written_is_a_recipe_to_read(tmp_path, digits, recipe):
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["--backend", "reference", "--json"]
    assert main(["train", "--recipe", recipe, "--out", str(first), "--set", "config.width=8", *common]) == 0
    assert main(["train", "--recipe", str(first / "recipe.json"), "--out", str(second), *common]) == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    # and the model is a start for another run
    weights = ["--weights", str(first / "model.safetensors"), "--set", "learning_rate=0", "--set", "warmup_epochs=0"]
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
        (["--recipe", "digits", "--data", "videos"], "--annotations: required if the recipe's data are videos"),
        (["--recipe", "paper-minik-g03-b10"], "--annotations: required if the recipe's data are videos"),
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


def test_moving_digits(tmp_path, capsys):
    settings = ["epochs=1", "warmup_epochs=0", "batch=4", "micro_batch=2", "config.width=12", "config.depth=3"]
    settings += ["data_settings.train_clips=8", "data_settings.test_clips=8", "data_settings.noise=5"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", "--recipe", "digits", "--out", str(tmp_path), "--backend", "reference", *arguments]) == 0
    assert "of 8 held-out clips" in capsys.readouterr().out


def test_videos_and_what_is_wrong_with_their_list(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for t in range(5):
            iio.imwrite(tmp_path / name / f"{t:03d}.png", rng.integers(0, 256, (20, 24, 3), np.uint8))
    (tmp_path / "b" / "002.png").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("a 5 0\nb 5 1\nc 5 2\ngone 5 1\na 5 7\n", encoding="utf-8")
    recipe = small_recipe(data="videos", epochs=1, data_settings={"stride": 1}).changed({"config.channels": 3})
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.as_dict()), encoding="utf-8")
    lists = ["--annotations", str(tmp_path / "list.txt"), "--test-annotations", str(tmp_path / "list.txt")]
    line = ["train", "--recipe", str(tmp_path / "recipe.json"), *lists, "--root", str(tmp_path), "--json"]
    assert main([*line, "--backend", "reference", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["clips"] == 2
    assert printed.err.count("refvt: left out: ") == 4  # two lines of each list
    assert "list.txt:4" in printed.err
    assert "list.txt:5" in printed.err
    assert "002.png" in printed.err or "list.txt:2" in printed.err  # what could not be read when it was wanted


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


def test_videos_need_a_model_of_three_channels(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("a 5 0\n", encoding="utf-8")
    (tmp_path / "recipe.json").write_text(json.dumps(small_recipe(data="videos").as_dict()), encoding="utf-8")
    lists = ["--annotations", str(tmp_path / "list.txt"), "--test-annotations", str(tmp_path / "list.txt")]
    line = ["train", "--recipe", str(tmp_path / "recipe.json"), *lists, "--root", str(tmp_path)]
    assert main([*line, "--out", str(tmp_path / "out")]) == 2
    assert "config.channels: expected 3 for videos, got 1" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_overwrite_and_failure(tmp_path, capsys, digits, recipe):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.json").write_text("precious", encoding="utf-8")
    line = ["train", "--recipe", recipe, "--out", str(out), "--backend", "reference", "--json"]
    for more in ([], ["--resume"]):
        assert main([*line, *more]) == 2
        assert "recipe.json" in capsys.readouterr().err
        assert (out / "recipe.json").read_text(encoding="utf-8") == "precious"
    assert main([*line, "--overwrite"]) == 0
    capsys.readouterr()
    assert main([*line, "--overwrite", "--set", "learning_rate=1e30"]) == 2
    printed = capsys.readouterr()
    assert "finite" in printed.err
    assert json.loads(printed.out)["model"] is None
    assert "finite" in json.loads(printed.out)["error"]
    assert not (out / "model.safetensors").exists()
