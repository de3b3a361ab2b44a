"""The experiments themselves: which runs they plan, what they make of the numbers, and the command."""

import json

import imageio.v3 as iio
import numpy as np
import pytest

import refvt
from refvt.cli import experiment as command
from refvt.cli import main
from refvt.data import MovingDigits
from refvt.experiments import frontier, table1
from refvt.experiments.runs import without_halting
from refvt.training import RECIPES
from refvt.training.recipe import find_recipe
from tests.support.tiny_sweep import tiny_recipe

NAMES = ("table1", "frontier", "figure3", "variants")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Every experiment in its quick form, over one folder of runs: the folders, and the reports by name."""
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "tiny.json").write_text(json.dumps(tiny_recipe().as_dict()))
    shared = ["--quick", "--recipe", str(folder / "tiny.json"), "--out", str(folder / "runs"), "--backend", "reference"]
    for name in NAMES:
        seeds = ["--seeds", "2"] if name in ("table1", "variants") else []
        assert main(["experiment", name, *shared, *seeds, "--publish", str(folder / "docs" / "results"), "--json"]) == 0
    return folder, {
        name: json.loads((folder / "docs/results" / f"experiment-{name}.json").read_text()) for name in NAMES
    }


# ---- what is planned


def test_table1_crosses_keep_rates_and_the_motion_loss():
    recipe = RECIPES["digits"]
    planned = table1.plan(recipe, quick=False)
    assert list(planned) == [(R, motion) for R in (1.0, 0.7, 0.5, 0.3) for motion in (True, False)]
    assert len({run.name for run in planned.values()}) == 8
    for (R, motion), run in planned.items():
        made = recipe.changed(run.changes)
        assert made.config.keep_rates == (1.0, R)
        assert made.static_twins is motion
        assert made.motion_weight > 0
    assert len(table1.plan(recipe, quick=True)) == 4
    assert table1.plan(tiny_recipe(motion_weight=0.0), quick=True)[0.5, True].changes["motion_weight"] == 1.0


def test_frontier_varies_beta_and_the_ponder_weight():
    recipe = RECIPES["digits"]
    for quick, number in ((False, 5), (True, 3)):
        planned = frontier.halting_runs(recipe, quick)
        settings = {
            (c.config.halting_center, c.ponder_weight) for c in (recipe.changed(run.changes) for run in planned)
        }
        assert len(planned) == len(settings) == len({run.name for run in planned}) == number
        assert (recipe.config.halting_center, recipe.ponder_weight) in settings
    assert len(frontier.halting_runs(tiny_recipe(ponder_weight=0.0), quick=False)) == 3
    assert len(frontier.halting_runs(tiny_recipe(**{"config.halting_center": 0.0}), quick=False)) == 3


@pytest.mark.parametrize("side", [16, 28])  # 16 and 49 patches a frame
def test_static_dropping_keeps_just_so_many_patches(side):
    recipe = tiny_recipe(**{"config.image_size": (side, side)})
    S = (side // 4) ** 2
    costs = []
    for k in range(1, S + 1):
        config = recipe.changed(frontier.keep_run(recipe, k).changes).config
        assert config.patches_entering() == (S, S, k)
        costs.append(without_halting(config))
        assert frontier.matching_patches(recipe, costs[-1]) == k
    assert frontier.matching_patches(recipe, 0.4 * costs[4] + 0.6 * costs[5]) == 6
    assert frontier.matching_patches(recipe, 0.0) == 1
    assert frontier.matching_patches(recipe, 9.9) == S


def test_fewer_frames_are_planned_as_long_as_there_are_any():
    def frames(T, quick):
        recipe = tiny_recipe(**{"config.num_frames": T})
        return [recipe.changed(run.changes).config.num_frames for run in frontier.frame_runs(recipe, quick)]

    assert frames(8, quick=False) == [4, 2]
    assert frames(8, quick=True) == [4]
    assert frames(2, quick=False) == [1]
    assert frames(1, quick=False) == []


# ---- what comes out


def test_every_experiment_writes_page_numbers_and_pictures(done):
    folder, reports = done
    for name, report in reports.items():
        page = (folder / "docs/results" / f"experiment-{name}.md").read_text()
        assert report["command"] in page
        assert str(folder) not in page
        assert str(folder) not in json.dumps(report)
        for sentence in report["reading"]:
            assert f"- {sentence}\n" in page
        for picture in (folder / "docs/results").glob(f"experiment-{name}*.png"):
            assert f"({picture.name})" in page
            assert iio.imread(picture).std() > 1
        for run in report["runs"]:
            assert f"{100 * run['top1']:.1f} %" in page
        for kind in ("md", "json"):
            own = folder / "runs" / f"experiment-{name}.{kind}"
            assert own.read_bytes() == (folder / "docs/results" / own.name).read_bytes()
    assert "--seeds 2 --recipe tiny.json --backend reference" in reports["table1"]["command"]


def logged(folder, run, seed):
    lines = (folder / "runs" / run / f"seed{seed}" / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == "evaluation"][-1]


def test_table1_holds_what_was_measured(done):
    folder, reports = done
    report = reports["table1"]
    assert (report["seeds"], report["recipe"]["epochs"], report["quick"]) == ([0, 1], 2, True)
    names = {(1.0, True): "R1", (1.0, False): "R1-no-motion", (0.5, True): "recipe", (0.5, False): "R0.5-no-motion"}
    for row in report["figures"]["rows"]:
        found = [logged(folder, names[row["R"], row["motion_loss"]], seed) for seed in (0, 1)]
        assert row["top1"]["values"] == [f["top1"] for f in found]
        assert row["gflops"]["mean"] == pytest.approx(np.mean([f["gflops"] for f in found]))
        # of two values: t of one degree of freedom is 12.706, and s/√2 is half their difference
        half = abs(found[0]["gflops"] - found[1]["gflops"]) / 2
        assert row["gflops"]["interval"] == pytest.approx(12.7062 * half, rel=1e-4)
        assert 0 < row["saved_by_halting"]["mean"] < 1

    def figure(R, motion, seed, name):
        return logged(folder, names[R, motion], seed)[name]

    # per seed: the mean over R of with against without; over both, of R against R = 1
    changes = report["figures"]["changes"]
    motion = [
        np.mean([figure(R, True, k, "gflops") / figure(R, False, k, "gflops") - 1 for R in (1.0, 0.5)]) for k in (0, 1)
    ]
    assert changes["motion loss, GFLOPs"]["values"] == pytest.approx(motion)
    half = [np.mean([figure(0.5, on, k, "top1") - figure(1.0, on, k, "top1") for on in (True, False)]) for k in (0, 1)]
    assert changes["R = 0.5, top1"]["values"] == pytest.approx(half)
    assert f"{100 * np.mean(motion):+.1f} ± " in report["reading"][1]
    assert "5.4 %" in report["reading"][1]


def test_frontier_sets_halting_beside_dropping_of_the_same_cost(done):
    _, reports = done
    points = {p["run"]: p for p in reports["frontier"]["figures"]["points"]}
    pairs = reports["frontier"]["figures"]["equal_cost"]
    assert {p["kind"] for p in points.values()} == set(frontier.KINDS)
    assert {pair["halting"] for pair in pairs} == {p["run"] for p in points.values() if p["kind"] == "halting"}
    recipe = tiny_recipe()
    for pair in pairs:
        cost, static = (points[pair[kind]]["gflops"]["mean"] for kind in ("halting", "static"))
        step = [without_halting(recipe.changed(frontier.keep_run(recipe, k).changes).config) for k in range(1, 17)]
        assert static == pytest.approx(min(step, key=lambda c: abs(c - cost)))
    assert points["frames2"]["gflops"]["mean"] < points["keep8"]["gflops"]["mean"]
    assert len(reports["frontier"]["reading"]) == len(pairs) + 3


def test_figure3_follows_tokens_to_their_halt(done):
    folder, reports = done
    figures = reports["figure3"]["figures"]
    assert [clip["class"] for clip in figures["clips"]] == list(MovingDigits.names[:4])
    recipe = tiny_recipe()
    weights = folder / "runs/recipe/seed0/model.safetensors"
    clips, classes = MovingDigits("test", clips=10, frames=4, size=16, noise=4).arrays()
    out = refvt.load(weights, recipe.config, backend="reference")(clips, full_ponder=True)
    assert figures["top1"] == (out.logits.argmax(axis=1) == classes).mean()
    for clip, alive in zip(figures["clips"], out.alive, strict=False):
        assert clip["tokens_per_layer"] == alive.sum(axis=1).tolist()
        by_frame = np.array(clip["patches_by_layer_and_frame"])
        assert by_frame.shape == (3, 4)
        assert (by_frame.sum(axis=1) + alive[:, 0] == clip["tokens_per_layer"]).all()
    lived = out.alive[:, :, 1:].sum(axis=1)
    share, moving, still = (
        figures[name] for name in ("share_of_patches_moving", "layers_lived_moving", "layers_lived_still")
    )
    assert share * moving + (1 - share) * still == pytest.approx(lived.mean())
    assert 0 < share < 1


def test_figure3_takes_weights(done, tmp_path, capsys, monkeypatch):
    folder, reports = done
    monkeypatch.setitem(command.STEPS, "figure3", (1, 1))  # nothing is trained, so nothing of the recipe is shortened
    weights = folder / "runs/recipe/seed0/model.safetensors"
    shared = ["--quick", "--recipe", str(folder / "tiny.json"), "--backend", "reference"]
    assert main(["experiment", "figure3", *shared, "--weights", str(weights), "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["runs"] == []
    assert report["figures"] == reports["figure3"]["figures"]
    assert report["recipe"] == find_recipe(str(folder / "tiny.json")).as_dict()
    assert "--weights model.safetensors" in report["command"]


def test_variants_are_tested_with_the_other_switch(done):
    folder, reports = done
    cells = {
        (c["switch"], c["trained"], c["tested"]): c["gflops"]["values"] + c["top1"]["values"]
        for c in reports["variants"]["figures"]["cells"]
    }
    assert len(cells) == 8
    # the recipe's own run has two names, and is one
    assert {run["run"] for run in reports["variants"]["runs"]} == {"zero = cls_skip-on", "masked", "cls_skip-off"}
    assert len(reports["variants"]["runs"]) == reports["variants"]["trained"] == 6
    assert "6 runs, " in (folder / "docs/results/experiment-variants.md").read_text(encoding="utf-8")
    data = MovingDigits("test", clips=10, frames=4, size=16, noise=4)
    names = {
        ("halted_keys", "zero"): "recipe",
        ("halted_keys", "masked"): "masked",
        ("cls_skip", False): "cls_skip-off",
        ("cls_skip", True): "recipe",
    }
    for (switch, trained, tested), values in cells.items():
        expected = [[], []]
        for seed in (0, 1):
            weights = folder / "runs" / names[switch, trained] / f"seed{seed}" / "model.safetensors"
            config = tiny_recipe(**{f"config.{switch}": tested}).config
            found = refvt.training.evaluate(refvt.load(weights, config, backend="reference"), data)
            expected[0].append(found.gflops)
            expected[1].append(found.top1)
        assert values == pytest.approx(expected[0] + expected[1], rel=1e-12)
    header = (folder / "runs/recipe/seed1/test-masked.jsonl").read_text().splitlines()[0]
    assert json.loads(header)["config.halted_keys"] == "masked"


def test_runs_get_as_many_epochs_as_fit_in_their_steps():
    recipe = tiny_recipe(epochs=30)  # two steps an epoch
    assert [command._epochs(recipe, steps) for steps in (1, 2, 21, 60, 1000)] == [1, 1, 10, 30, 30]


def test_people_get_the_page(done, capsys):
    folder, _ = done
    arguments = ["--quick", "--recipe", str(folder / "tiny.json"), "--out", str(folder / "runs")]
    assert main(["experiment", "table1", *arguments, "--backend", "reference", "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| R   | motion loss |" in printed
    assert f"written: {folder / 'runs' / 'experiment-table1.md'}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["table1", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["frontier", "--epochs", "-3"], "--epochs: expected at least 1, got -3"),
        (["variants", "--recipe", "paper-minik-g03-b10"], "--recipe: expected one on moving digits, got one on videos"),
        (["table1", "--recipe", "nothing"], "recipe: expected one of digits"),
        (["figure3", "--weights", "nowhere.npz", "--recipe", "digits"], "--weights: expected a file, got nowhere.npz"),
        (["figure3", "--weights", "FILE"], "--recipe: needed with --weights"),
        (["table1", "--publish", "FILE"], "--publish: expected a folder, got the file"),
        (["table1", "--recipe", "NO_GLIMPSER"], "expected a model with Glimpser blocks, got config.glimpser_depth 0"),
        (["frontier", "--recipe", "NO_GLIMPSER"], "expected a model with Glimpser blocks, got config.glimpser_depth 0"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    bare = tiny_recipe(**{"config.glimpser_depth": 0, "config.keep_rates": ()})
    (tmp_path / "bare.json").write_text(json.dumps(bare.as_dict()))
    places = {"FILE": str(tmp_path / "file"), "NO_GLIMPSER": "bare.json"}
    assert main(["experiment", *(places.get(a, a) for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_the_experiments_are_listed(capsys):
    with pytest.raises(SystemExit) as left:
        main(["experiment", "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    with pytest.raises(SystemExit) as left:
        main(["experiment", "table9"])
    assert left.value.code == 2
