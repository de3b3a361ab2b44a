"""The section "Train on your own videos" of docs/training.md: its commands train and look at a small model."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

import refvt
from refvt.cli import main
from refvt.data import find_sample_video
from refvt.model.parameters import parameter_shapes
from refvt.training.recipe import find_recipe
from tests.docs.pages import BLOCK, ROOT
from tests.docs.test_command_lines import shell_commands

PAGE = (ROOT / "docs/training.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Train on your own videos\n")[1].split("\n## ")[0]
TEXT = {match["language"]: match["text"] for match in BLOCK.finditer(SECTION)}
COMMAND, *LOOK = shell_commands(
    "".join(match["text"] for match in BLOCK.finditer(SECTION) if match["language"] == "sh")
)
SMALL = ["image_size=[32, 32]", "width=12", "num_heads=2", "depth=3"]
SHORT = ["epochs=1", "warmup_epochs=0", "batch=3", "micro_batch=1", "data_settings.augment=[0, 0]"]


def after(option):
    """The word that follows an option of the command."""
    return COMMAND[COMMAND.index(option) + 1]


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """The lists of the page with a video for each of their lines."""
    monkeypatch.chdir(tmp_path)
    for option in ("--annotations", "--test-annotations"):
        (tmp_path / after(option)).write_text(TEXT["text"], encoding="utf-8")
    for line in TEXT["text"].splitlines():
        path = tmp_path / after("--root") / line.split()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(find_sample_video("carphone_pristine.mp4"), path)
    return tmp_path


def small(command):
    """The command with a model and a run that take a second."""
    settings = [f"config.{setting}" for setting in SMALL] + SHORT
    return [*command, *(word for setting in settings for word in ("--set", setting)), "--backend", "reference"]


def image_model(config):
    """Parameters named and shaped as in DeiT's files, with 1000 classes."""
    shapes = parameter_shapes(config) | {"head.weight": (1000, config.width), "head.bias": (1000,)}
    rng = np.random.default_rng(1)
    video = re.compile(r"time_embed|motion_head\.|.*\.temporal_")
    return {n: rng.normal(0, 0.02, s).astype("f4") for n, s in shapes.items() if not video.match(n)}


def test_the_command_trains_on_the_lists(videos, capsys):
    recipe = find_recipe(after("--recipe"))
    config = recipe.changed({f"config.{k}": json.loads(v) for k, _, v in (s.partition("=") for s in SMALL)}).config
    np.savez(videos / "weights.npz", **image_model(config))
    (videos / "weights.npz").rename(videos / after("--weights"))
    assert main(small(COMMAND)) == 0
    printed = capsys.readouterr()
    assert "of 3 held-out clips" in printed.out
    assert "random numbers" not in printed.err
    done = find_recipe(str(videos / after("--out") / "recipe.json"))
    assert done.data_settings["stride"] == 4
    assert (
        refvt.load(videos / after("--out") / "model.safetensors", done.config).parameters["head.weight"].shape[0] == 2
    )
    (videos / LOOK[0][LOOK[0].index("--labels") + 1]).write_text("cats\ndogs\n", encoding="utf-8")
    assert [command[0] for command in LOOK] == ["halt", "evaluate"]
    for command in LOOK:
        assert main([*command, "--backend", "reference"]) == 0
    assert (videos / LOOK[0][LOOK[0].index("--html") + 1]).is_file()


def test_without_weights_it_says_so_at_the_start(videos, capsys):
    at = COMMAND.index("--weights")
    command = small([*COMMAND[:at], *COMMAND[at + 2 :]])
    assert main(command) == 0
    assert "refvt: no --weights: the model starts from random numbers" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0  # the run has parameters of its own
    assert "random numbers" not in capsys.readouterr().err


def test_what_the_page_says_of_the_recipe():
    recipe = find_recipe(after("--recipe"))
    assert f"({recipe.config.num_classes} if you do not set it)" in SECTION
    assert f"({recipe.data_settings['stride']} if you do not set it)" in SECTION
    assert f"recipe's {recipe.epochs} epochs" in SECTION
    assert recipe.config.num_frames == 8
    ponder = find_recipe("photographs").ponder_weight
    assert f"ponder_weight={ponder}" in SECTION
    assert f"changing_ponder={find_recipe('photographs').changing_ponder:g}" in SECTION
    assert "29 with stride 4, 225 with stride 32" in SECTION
    assert [(8 - 1) * stride + 1 for stride in (4, 32)] == [29, 225]
