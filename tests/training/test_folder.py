"""The folder of a run: files of others stay, two runs are not in it at once, and what became NaN is no success."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from refvt.checks import NotFiniteError
from refvt.evaluation import evaluate
from refvt.files import locked
from refvt.model.haltingvt import HaltingVT
from refvt.training import Observer, TrainingError
from refvt.training.folder import BACKBONE, CHECKPOINT, LOCK, LOG, MODEL, RECIPE, is_finished, read_evaluations
from tests.support.sliding_bars import CONFIG, SlidingBars, small_recipe
from tests.training.test_loop import run

ONE = small_recipe(epochs=1, warmup_epochs=0)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", [CHECKPOINT, LOG, RECIPE, MODEL])
@pytest.mark.parametrize("how", [{}, {"resume": True}])
def test_a_file_of_somebody_else_is_not_touched(tmp_path, name, how):
    (tmp_path / name).write_text("precious")
    (tmp_path / ".mydata.tmp").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=re.escape(name)):
        run(ONE, tmp_path, **how)
    assert contents(tmp_path) == before


def test_other_files_stay_in_a_folder_of_a_run(tmp_path):
    strangers = [".mydata.tmp", ".model.safetensors.tmp", "notes.txt", ".recipe.json.0123.tmp", "log.jsonl.bak"]
    for name in strangers:
        (tmp_path / name).write_text("precious")
    run(ONE, tmp_path)
    run(ONE, tmp_path, resume=True)
    run(ONE, tmp_path, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {*strangers, CHECKPOINT, LOG, RECIPE, MODEL}
    assert all((tmp_path / name).read_text() == "precious" for name in strangers)


def test_overwrite_begins_again(tmp_path):
    run(ONE, tmp_path)
    first = contents(tmp_path)
    other = ONE.changed({"seed": 1})
    with pytest.raises(TrainingError, match="expected without resume"):
        run(other, tmp_path, overwrite=True, resume=True)
    run(other, tmp_path, overwrite=True)
    assert contents(tmp_path)[MODEL] != first[MODEL]
    assert is_finished(tmp_path, other)
    (tmp_path / MODEL).unlink()
    (tmp_path / MODEL).mkdir()
    with pytest.raises(TrainingError, match="expected a file of a run, got a folder"):
        run(other, tmp_path, overwrite=True)


def test_overwrite_begins_again_in_every_backbone(tmp_path):
    """Also in the backbone of the backbone: its old run would be resumed, and is that of another recipe here."""

    def stages(seed):
        return ONE.changed({"backbone": ONE.changed({"backbone": ONE.changed({"seed": seed}).as_dict()}).as_dict()})

    run(stages(5), tmp_path)
    first = contents(tmp_path)
    run(stages(6), tmp_path, overwrite=True)
    again = contents(tmp_path)
    assert set(again) == set(first)
    inner = f"{BACKBONE}/{BACKBONE}/{MODEL}"
    assert again[inner] != first[inner]


@pytest.mark.parametrize("name", [RECIPE, MODEL])
def test_a_file_of_somebody_else_beside_a_checkpoint_is_not_touched(tmp_path, name):
    class Killed(Observer):
        def on_step(self, line, evaluation):
            if line["step"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ONE, tmp_path, observer=Killed(), checkpoint_every=2)
    (tmp_path / name).write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=re.escape(name)):
        run(ONE, tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_a_backbone_of_somebody_else_is_not_touched(tmp_path):
    stages = ONE.changed({"backbone": ONE.changed({"seed": 5}).as_dict()})
    (tmp_path / BACKBONE).mkdir()
    (tmp_path / BACKBONE / MODEL).write_text("precious")
    before = contents(tmp_path)
    for how in ({}, {"resume": True}):
        with pytest.raises(TrainingError):
            run(stages, tmp_path, **how)
        assert contents(tmp_path) == before


def test_two_runs_in_one_folder_are_refused(tmp_path, impatient):
    with locked(tmp_path / LOCK, "a run"):
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(BlockingIOError, match="expected to be alone there"):
                run(ONE, tmp_path, **how)
    assert list(tmp_path.iterdir()) == []

    class Second(Observer):
        def on_step(self, line, evaluation):
            with pytest.raises(BlockingIOError):
                run(ONE, tmp_path, resume=True)

    run(ONE, tmp_path, observer=Second())
    run(ONE, tmp_path, resume=True)
    assert not (tmp_path / LOCK).exists()


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_leaves_no_lock(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from refvt.training import Observer\n"
        "from tests.training.test_folder import ONE, run\n"
        "class Killed(Observer):\n"
        "    def on_step(self, line, evaluation): os.kill(os.getpid(), signal.SIGKILL)\n"
        "run(ONE, Path(sys.argv[1]), observer=Killed())"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    assert (tmp_path / LOCK).exists()
    run(ONE, tmp_path, resume=True)
    assert {p.name for p in tmp_path.iterdir()} == {CHECKPOINT, LOG, RECIPE, MODEL}


# ---- a finished run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top1": 7}, r"log\.jsonl:2: top1: expected a share or null, got 7"),
        ({"gflops": -1}, r"log\.jsonl:2: gflops: expected a number"),
        ({"seconds": "x"}, r"log\.jsonl:2: seconds: expected a number"),
        ({"tokens_per_layer": [1]}, r"log\.jsonl:2: tokens_per_layer: expected 3 numbers"),
        ({"tokens_per_layer": [1, 2, 10**9]}, r"log\.jsonl:2: tokens_per_layer: expected 3 numbers"),
        ({"epoch": 5}, r"log\.jsonl:2: epoch: expected 1, the next one, got 5"),
        ({"step": True}, r"log\.jsonl:2: step: expected a whole number"),
    ],
)
def test_a_log_is_believed_only_in_its_ranges(tmp_path, change, message):
    line = {"event": "evaluation", "epoch": 1, "step": 4, "top1": 0.5, "gflops": 1, "seconds": 2}
    line |= {"tokens_per_layer": [3, 2, 1]}
    (tmp_path / LOG).write_text('{"event": "step"}\n' + json.dumps(line) + "\n", encoding="utf-8")
    assert read_evaluations(tmp_path, ONE)[0]["top1"] == 0.5
    (tmp_path / LOG).write_text('{"event": "step"}\n' + json.dumps({**line, **change}) + "\n", encoding="utf-8")
    with pytest.raises(TrainingError, match=message):
        read_evaluations(tmp_path, ONE)
    (tmp_path / LOG).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"log\.jsonl:1: expected a line of a log"):
        read_evaluations(tmp_path, ONE)


# ---- not a number


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e38, "max_grad_norm": None},
        {"learning_rate": 1e30},
        {"learning_rate": 1e20, "weight_decay": 1e20},
        {"ponder_weight": 1e38, "max_grad_norm": None},
        {"halting_start": 1e38},
    ],
)
def test_a_run_that_ends_in_nan_is_no_success(tmp_path, changes):
    with pytest.raises((NotFiniteError, TrainingError), match=r"finite|overflow|can hold"), np.errstate(all="ignore"):
        run(ONE.changed(changes), tmp_path)
    assert not (tmp_path / MODEL).exists()
    if (tmp_path / CHECKPOINT).exists():
        assert all(np.isfinite(v).all() for v in safetensors.numpy.load_file(tmp_path / CHECKPOINT).values())
    if (tmp_path / LOG).exists():
        assert "NaN" not in (tmp_path / LOG).read_text(encoding="utf-8")


def test_the_last_good_checkpoint_is_kept(tmp_path, monkeypatch):
    from refvt.training import loop

    right = loop.Adam.step

    def wrong(self, gradients, learning_rate, clip=1.0):
        right(self, gradients, learning_rate, clip)
        if self.steps == 7:
            self.parameters.vector[3] = np.nan

    monkeypatch.setattr(loop.Adam, "step", wrong)
    with pytest.raises(NotFiniteError, match=r"the last good checkpoint is .*checkpoint\.safetensors"):
        run(small_recipe(epochs=2), tmp_path, checkpoint_every=1)
    assert not (tmp_path / MODEL).exists()
    assert all(np.isfinite(v).all() for v in safetensors.numpy.load_file(tmp_path / CHECKPOINT).values())
    monkeypatch.undo()
    run(small_recipe(epochs=2), tmp_path, resume=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_evaluation_that_overflows_is_no_success(tmp_path):
    model = HaltingVT(CONFIG, backend="reference")
    for name in ("norm.weight", "head.weight"):
        model.parameters[name] *= 1e30
    with pytest.raises(NotFiniteError, match="clip 0: expected finite logits"):
        evaluate(model, SlidingBars(6), 2, out=tmp_path / "records.jsonl")
    assert "NaN" not in (tmp_path / "records.jsonl").read_text(encoding="utf-8")
