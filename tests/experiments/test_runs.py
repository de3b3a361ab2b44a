"""Grids of runs: what is trained, what is not trained again, what is measured."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import refvt
from refvt.data import MovingDigits
from refvt.experiments import runs
from refvt.experiments.runs import NO_HALTING, Grid, Run, SampledFrames, saved_by_halting, without_halting
from refvt.model import flops
from refvt.training import TrainingError
from refvt.training.errors import DivergedError
from tests.support.tiny_sweep import tiny_recipe

RUNS = [Run("as-it-is", {}), Run("fast", {"learning_rate": 1e-3}), Run("frames2", {"config.num_frames": 2})]


def grid(out, seeds=1, **changes):
    return Grid(tiny_recipe(**changes), seeds, out, backend="reference")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return out, grid(out, seeds=2).measure(RUNS)


@pytest.fixture
def trained(monkeypatch):
    """The folders that were trained."""
    folders, train = [], runs.train

    def watched(recipe, train_set, test_set, out, **options):
        folders.append(f"{out.parent.name}/{out.name}")
        return train(recipe, train_set, test_set, out, **options)

    monkeypatch.setattr(runs, "train", watched)
    return folders


def test_every_run_is_measured_with_every_seed(unbroken):
    out, found = unbroken
    assert {name: [r.seed for r in results] for name, results in found.items()} == {run.name: [0, 1] for run in RUNS}
    folders = {str(path.parent.relative_to(out)) for path in out.glob("*/*/model.safetensors")}
    assert folders == {f"{name}/seed{k}" for name in ("recipe", "fast", "frames2") for k in (0, 1)}
    for results in found.values():
        for r in results:
            config = r.recipe.config
            stored = json.loads((r.folder / "recipe.json").read_text())
            assert (stored["seed"], stored["learning_rate"]) == (r.seed, r.recipe.learning_rate)
            # the figures are those of the model in the folder, on its own clips
            clips, classes = MovingDigits("test", clips=10, frames=4, size=16, noise=4).arrays()
            clips = clips[:, :, :: 4 // config.num_frames]
            output = refvt.load(r.folder / "model.safetensors", config, backend="reference")(clips)
            assert r.top1 == (output.logits.argmax(axis=1) == classes).mean()
            assert r.gflops == pytest.approx(output.gflops.mean(), rel=1e-12)
            assert r.tokens_per_layer == pytest.approx(output.tokens_per_layer.mean(axis=0), rel=1e-12)
            assert -1e-12 < r.saved < 1
    seeds = found["fast"]
    assert seeds[0].gflops != seeds[1].gflops


def test_what_is_finished_is_not_done_again(unbroken, trained):
    out, found = unbroken
    again = grid(out, seeds=2)
    assert again.measure(RUNS) == found
    assert trained == []
    assert again.results == [result for results in found.values() for result in results]


def test_killed_between_runs_and_within_one_it_goes_on_and_ends_the_same(unbroken, trained, tmp_path, monkeypatch):
    whole, found = unbroken
    clip, calls = MovingDigits.clip, []

    def killed(self, index, rng=None):
        if rng is not None:
            calls.append(index)
        # a run draws 2 × 16 training clips; so this is in the second epoch of the second run
        if len(calls) == 32 + 16 + 5:
            raise KeyboardInterrupt
        return clip(self, index, rng)

    with monkeypatch.context() as patch:
        patch.setattr(MovingDigits, "clip", killed)
        with pytest.raises(KeyboardInterrupt):
            grid(tmp_path).measure(RUNS)
    assert trained == ["recipe/seed0", "fast/seed0"]
    assert (tmp_path / "fast/seed0/checkpoint.safetensors").exists()
    assert not (tmp_path / "fast/seed0/model.safetensors").exists()
    results = grid(tmp_path).measure(RUNS)
    assert trained[2:] == ["fast/seed0", "frames2/seed0"]
    for name, (result,) in results.items():
        assert (result.top1, result.gflops) == (found[name][0].top1, found[name][0].gflops)
    for name in ("recipe", "fast", "frames2"):
        place = f"{name}/seed0/model.safetensors"
        assert (tmp_path / place).read_bytes() == (whole / place).read_bytes()


def test_several_at_once_end_like_one_after_another(unbroken, trained, tmp_path):
    whole, found = unbroken
    at_once = Grid(tiny_recipe(), 2, tmp_path, backend="reference", jobs=2).measure(RUNS)
    assert trained == []  # not by this process
    assert multiprocessing.active_children() == []
    for name, results in found.items():
        assert [(r.seed, r.top1, r.gflops) for r in at_once[name]] == [(r.seed, r.top1, r.gflops) for r in results]
    for model in whole.glob("*/*/model.safetensors"):
        assert (tmp_path / model.relative_to(whole)).read_bytes() == model.read_bytes()


def test_one_of_several_at_once_that_fails_ends_them_all(tmp_path):
    with pytest.raises(DivergedError, match=r"diverges.seed0: step 2: expected a finite loss"):
        Grid(tiny_recipe(), 1, tmp_path, backend="reference", jobs=2).measure(
            [Run("diverges", {"learning_rate": 1e30}), *RUNS]
        )
    assert multiprocessing.active_children() == []
    assert len(grid(tmp_path).measure(RUNS)) == 3  # the folders of the others are free


KILLED = """
import multiprocessing, sys
from pathlib import Path
from refvt.experiments.runs import Grid, Run
from tests.support.tiny_sweep import tiny_recipe

def track(jobs):
    for job in jobs:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        yield job

if __name__ == "__main__":
    runs = [Run("one", {"epochs": 2000}), Run("two", {"epochs": 2001})]
    Grid(tiny_recipe(), 1, Path(sys.argv[1]), backend="reference", jobs=2, track=track).measure(runs)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_grid_leaves_no_process_behind(tmp_path, how):
    (tmp_path / "script.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    until = time.monotonic() + 60
    while len(list((tmp_path / "runs").glob("*/*/log.jsonl"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(how)
    process.communicate(timeout=60)
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < until + 60
        time.sleep(0.05)


def test_a_finished_run_of_another_recipe_is_refused(unbroken, trained):
    out, _ = unbroken
    with pytest.raises(TrainingError, match=r"fast.seed0: .*another recipe \(label_smoothing differ\).*--out"):
        grid(out, label_smoothing=0.2).measure(RUNS[1:2])
    assert trained == []


def test_names_are_unique(tmp_path):
    with pytest.raises(ValueError, match="a name for each, got one, one"):
        grid(tmp_path).measure([Run("one", {}), Run("one", {"learning_rate": 1e-4})])


def test_a_trained_model_can_be_tested_under_another_configuration(unbroken, tmp_path):
    out, found = unbroken
    result = found["as-it-is"][0]
    made = grid(out)
    same = made.test(result, "same", {})
    assert (same.top1, same.gflops) == (result.top1, pytest.approx(result.gflops, rel=1e-12))
    other = made.test(result, "other", {"config.halting_center": -50.0})
    assert other.tokens_per_layer == [33.0, 0.0, 0.0]
    assert made.test(result, "other", {"config.halting_center": -50.0}) == other  # from its records
    with pytest.raises(ValueError, match=r"config.halting_center: expected -50.0 as in the file, got 1.0"):
        made.test(result, "other", {"config.halting_center": 1.0})


def test_sampled_frames_are_evenly_spaced_frames_of_the_same_clips():
    data = MovingDigits("test", clips=6, frames=8, size=16, noise=3)
    half, quarter = SampledFrames(data, 8, 4), SampledFrames(data, 8, 2)
    np.testing.assert_array_equal(half.clip(3), data.clip(3)[:, ::2])
    np.testing.assert_array_equal(quarter.clip(3), data.clip(3)[:, [0, 4]])
    drawn = half.clip(3, np.random.default_rng(5))
    np.testing.assert_array_equal(drawn, data.clip(3, np.random.default_rng(5))[:, ::2])
    assert (len(half), half.num_classes, half.multi_label, half.target(3)) == (6, 8, False, 3)
    assert repr(data) in repr(half)
    assert repr(half) != repr(quarter)


def test_without_halting_every_token_lives_whatever_its_state():
    recipe = tiny_recipe()
    loud = {name: 30 * value for name, value in refvt.HaltingVT(recipe.config, seed=1).parameters.items()}
    clips, _ = MovingDigits("test", clips=4, frames=4, size=16).arrays()
    halting = refvt.HaltingVT(recipe.config, loud, backend="reference")(clips)
    assert halting.tokens_per_layer[:, 1:].min() < 33
    config = recipe.changed(NO_HALTING).config
    out = refvt.HaltingVT(config, loud, backend="reference")(clips)
    assert (out.tokens_per_layer == 33).all()
    assert out.gflops == pytest.approx(without_halting(config), rel=1e-12)


def test_what_halting_saves_is_a_share_of_the_joint_blocks():
    config = tiny_recipe().config
    fixed = sum(flops.fixed_multiply_adds(config).values()) / 1e9
    assert saved_by_halting(config, without_halting(config)) == 0
    assert saved_by_halting(config, fixed) == pytest.approx(1)
    one_of_three = float(flops.clip_gflops(config, np.array([[33, 0, 0]]))[0])
    assert saved_by_halting(config, one_of_three) == pytest.approx(2 / 3)


def test_all_runs_start_from_one_backbone(tmp_path, trained):
    recipe = tiny_recipe(epochs=1)
    recipe = recipe.changed({"backbone": recipe.changed({"seed": 7}).as_dict(), "learning_rate": 0.0})
    made = Grid(recipe, 2, tmp_path, backend="reference")
    found = made.measure([Run("as-it-is", {}), Run("frames2", {"config.num_frames": 2})])
    assert (tmp_path / "backbone" / "model.safetensors").is_file()
    assert "come on top" in made.start_sentence
    start = refvt.load(tmp_path / "backbone" / "model.safetensors", recipe.config).parameters
    for result in found["as-it-is"]:  # rate 0: they end where they started
        for name, value in made.model(result).parameters.items():
            np.testing.assert_array_equal(value, start[name])
    fewer = made.model(found["frames2"][0]).parameters["time_embed"]
    np.testing.assert_array_equal(fewer, start["time_embed"][:, ::2])
    given = Grid(recipe, 1, tmp_path / "given", backend="reference", start=start)
    given.measure([Run("as-it-is", {})])
    assert not (tmp_path / "given" / "backbone").exists()
    assert "comes with refvt" in given.start_sentence
    assert [r.last_change for r in found["as-it-is"]] == [None, None]
