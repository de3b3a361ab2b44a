"""The bench of a training step: who agrees, what is printed, what is refused. No look at how long anything took."""

import argparse
import json

import numpy as np
import pytest

import refvt
from refvt.bench import forward as bench
from refvt.bench import training_step as bench_training
from refvt.bench.training_step import RefvtStep, Workload

CONFIG = refvt.HaltingVTConfig(
    image_size=(32, 32), num_frames=2, width=32, num_heads=2, depth=5, keep_rates=(1.0, 0.5), num_classes=5
)
WORKLOADS = {"tiny": Workload("fresh weights", CONFIG, 2)}


def run(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    options = parser.parse_args(["--training-step", "--repeats", "2", *arguments])
    return bench_training.run(options, _workloads=WORKLOADS)


def test_backends_agree_and_the_report_can_be_read(capsys, tmp_path):
    file, page = tmp_path / "report.json", tmp_path / "report.md"
    where = ["--json", str(file), "--markdown", str(page)]
    assert run("--backend", "reference", "jit", "--no-torch", *where) == 0
    printed = capsys.readouterr().out
    assert f"```\n{printed}```" in page.read_text(encoding="utf-8")
    assert "tiny: fresh weights, 4 clips with their twins" in printed
    assert "refvt reference" in printed
    (result,) = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert result["agreement"]["holds"]
    assert [len(row["samples"]) for row in result["rows"]] == [2, 2]
    assert all(row["of_eager"] is None for row in result["rows"])


def test_a_step_moves_the_parameters_by_adamw():
    """The rate of the bench hides in float32; here it must show."""
    rng = np.random.default_rng(0)
    start = refvt.HaltingVT(CONFIG, dtype="float64").parameters
    clips = rng.standard_normal((2, 3, 2, 32, 32))
    step = RefvtStep(CONFIG, start, (clips, np.array([0, 1]), np.array([1, 0])), "reference")
    step()
    step()
    moved = step._model.parameters["head.weight"] - start["head.weight"]
    assert 0 < np.abs(moved).max() <= 2.1 * bench_training.RATE
    assert step.losses[1] < step.losses[0]


def test_contestants_that_disagree_get_no_ratio(capsys, monkeypatch):
    right = RefvtStep.__call__

    def wrong(self):
        right(self)
        self.losses[-1] *= 1.001 if self._model.backend == "jit" else 1

    monkeypatch.setattr(RefvtStep, "__call__", wrong)
    assert run("--backend", "reference", "jit", "--no-torch") == 1
    assert ": NO" in capsys.readouterr().out


@pytest.mark.torch
def test_pytorch_takes_the_same_steps(capsys):
    pytest.importorskip("torch")
    assert run("--dtype", "float64", "--json", "-") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert [row["name"] for row in result["rows"]] == ["refvt jit", "torch eager", "torch sdpa"]
    assert max(result["agreement"]["losses"].values()) < 1e-12
    assert result["rows"][0]["of_eager"] > 0
    assert result["rows"][0]["of_sdpa"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "huge"], "--workload: expected some of tiny, got 'huge'"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--json", "nowhere/report.json"], "--json: no such folder: nowhere"),
        (["--markdown", "nowhere/report.md"], "--markdown: no such folder: nowhere"),
        (["--growth", "growth.png"], "--training-step: takes no --growth"),
        (["--pass", "forward"], "--training-step: takes no --pass"),
        (["--clips", "4"], "--training-step: takes no --clips"),
        (["--quick"], "--training-step: takes no --quick"),
        (["--backend", "fast"], "--backend: expected some of reference, jit, cuda, got 'fast'"),
    ],
)
def test_requests_that_cannot_be_met(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)
