"""Every command that loads weights can be told the checkpoint's grid and which of its weights to read."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refvt import HaltingVT, HaltingVTConfig
from refvt.cli import main

SMALL = {"patch_size": 8, "num_frames": 2, "width": 16, "num_heads": 2, "depth": 3, "num_classes": 5}
SMALL |= {"glimpser_depth": 1, "keep_rates": (0.5,)}
OPTIONS = ("--checkpoint-grid", "--weights-key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of frames of 4×8 patches, a configuration of 6×6, and a list of one clip."""
    HaltingVT(HaltingVTConfig(image_size=(32, 64), **SMALL), backend="reference").save(tmp_path / "wide.safetensors")
    (tmp_path / "c.json").write_text(json.dumps(HaltingVTConfig(image_size=(48, 48), **SMALL).as_dict()))
    (tmp_path / "v").mkdir()
    for i in range(4):
        Image.new("RGB", (48, 48), (60 * i,) * 3).save(tmp_path / "v" / f"{i}.png")
    (tmp_path / "list.txt").write_text("v 4 1\n")
    return tmp_path


@pytest.mark.parametrize("command", [["evaluate"], ["halt"], ["train"], ["experiment", "figure3"]])
def test_every_command_that_loads_weights_has_the_options(command, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    usage = capsys.readouterr().out
    assert all(option in usage for option in OPTIONS)


def test_evaluate_takes_the_grid_and_the_key(folder, capsys):
    command = ["evaluate", "--config", str(folder / "c.json"), "--weights", str(folder / "wide.safetensors")]
    command += ["--annotations", str(folder / "list.txt"), "--stride", "1", "--backend", "reference", "--json"]
    assert main(command) == 2
    assert "--checkpoint-grid ROWS COLUMNS" in capsys.readouterr().err
    assert main([*command, "--checkpoint-grid", "4", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 1
    assert main([*command, "--checkpoint-grid", "5", "8"]) == 2
    assert "expected a grid 5×8 of patches, got 32 patches" in capsys.readouterr().err
    assert main([*command, "--checkpoint-grid", "4", "8", "--weights-key", "ema"]) == 2
    assert "weights_key: expected none for a file without dicts, got ema" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--data", "digits"],
        ["halt", "video.mp4"],
        ["halt", "video.mp4", "--weights", "handmade"],
        ["experiment", "figure3"],
        ["train", "--recipe", "digits", "--out", "run"],
    ],
)
@pytest.mark.parametrize(("option", "value"), [(OPTIONS[0], ["4", "8"]), (OPTIONS[1], ["ema"])])
def test_options_without_a_checkpoint_are_refused(command, option, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, option, *value]) == 2
    assert f"{option}: " in capsys.readouterr().err


def test_train_and_halt_read_the_weights_named(folder, capsys):
    torch = pytest.importorskip("torch")
    config = HaltingVTConfig.preset("minik-g03-b10")
    model = HaltingVT(config, backend="reference")
    zero = {name: torch.zeros(value.shape) for name, value in model.parameters.items()}
    path = folder / "two.pth"
    torch.save({"model": zero, "ema": {"norm.weight": np.zeros(1), "x": torch.ones(2)}}, path)
    command = ["halt", str(folder / "v"), "--weights", str(path), "--weights-key", "ema", "--backend", "reference"]
    assert main([*command, "--out", str(folder / "out")]) == 2
    assert "unexpected: x" in capsys.readouterr().err
    command = ["train", "--recipe", "digits", "--weights", str(path), "--weights-key", "none", "--backend", "reference"]
    assert main([*command, "--out", str(folder / "out")]) == 2
    assert "expected tensors under none, got them under model, ema" in capsys.readouterr().err
