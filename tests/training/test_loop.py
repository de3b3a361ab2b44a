"""The loop: it learns, adds up, evaluates, writes its log, goes on where it stopped, and says what is wrong."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import refvt
from refvt.data.dataset import UnreadableClipError
from refvt.evaluation.selectivity import selectivity_of
from refvt.training import Observer, TrainingError, UnreadableClipWarning, evaluate, train
from refvt.training.folder import BACKBONE, CHECKPOINT, LOG, MODEL, RECIPE
from refvt.training.recipe import make_moving_digits
from refvt.training.scratch import initialise
from tests.support.sliding_bars import CONFIG, SlidingBars, small_recipe
from tests.support.tiny_sweep import tiny_recipe

QUIET = {"backend": "reference"}


def run(recipe, out, clips=30, **options):
    return train(recipe, SlidingBars(clips), SlidingBars(15), out, **{**QUIET, "log_every": 1, **options})


def lines(out, event=None):
    """The log without its clock."""
    found = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("seconds") >= 0 for line in found)
    return [line for line in found if event in (None, line["event"])]


def parameters(out):
    return refvt.load(out / MODEL, CONFIG).parameters


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("backend", ["reference", "jit"])
def test_training_lowers_the_loss(tmp_path, backend):
    recipe = small_recipe(epochs=12, learning_rate=0.01, drop_path=0.0)
    found = train(recipe, SlidingBars(48), SlidingBars(15), tmp_path, log_every=1, backend=backend)
    loss = [line["loss"] for line in lines(tmp_path, "step")]
    assert len(loss) == 12 * 6
    assert np.mean(loss[-6:]) < np.mean(loss[:6]) - 0.2
    figures = {name: value for name, value in asdict(found).items() if name not in ("skipped", "notes")}
    last = {"event": "evaluation", "epoch": 12, "step": 72, **figures, "skipped": 0}
    assert lines(tmp_path, "evaluation")[-1] == last
    assert {p.name for p in tmp_path.iterdir()} == {CHECKPOINT, LOG, MODEL, RECIPE}
    model = refvt.load(tmp_path / MODEL, CONFIG, backend=backend)
    assert evaluate(model, SlidingBars(15), 4) == found


class BarsWithTwins(SlidingBars):
    def twin(self, index, rng):
        return np.repeat(self.clip(index, rng)[:, :1], 4, axis=1)


def test_a_run_follows_each_setting_of_the_released_pipeline(tmp_path):
    settings = {"lr_schedule": "consecutive", "lr_per": "epoch", "warmup_epochs": 2, "epochs": 3, "max_grad_norm": 0.1}
    released = {**settings, "twins_from": "video", "clip_epsilon": 0.5, "decay_embeddings": True}
    changes = [{}, {"twins_from": "clip"}, {"clip_epsilon": 0.0}, {"decay_embeddings": False}]
    found = []
    for number, change in enumerate(changes):
        out = tmp_path / str(number)
        recipe = small_recipe(**{**released, **change})
        train(recipe, BarsWithTwins(8), SlidingBars(3), out, log_every=1, **QUIET)
        rates = [line["learning_rate"] for line in lines(out, "step")]
        assert rates == pytest.approx([3e-4, 3e-3, 3e-3])
        found.append(parameters(out))
    for other in found[1:]:
        assert not same(found[0], other)
    with pytest.raises(TrainingError, match="twins_from: 'video' needs a training set that makes twins"):
        run(small_recipe(twins_from="video"), tmp_path / "none")


def test_micro_batches_add_up_to_the_batch(tmp_path):
    """Without what is drawn by micro-batch, cutting a batch otherwise changes rounding alone; also in a last, smaller
    batch, whose micro-batches are unequal."""
    found = []
    for size in (8, 4, 2):
        recipe = small_recipe(micro_batch=size, static_twins=False, drop_path=0.0)
        run(recipe, tmp_path / str(size), dtype="float64")
        found.append([[x["loss"], x["gradient_norm"], x["gflops"]] for x in lines(tmp_path / str(size), "step")])
    # eight steps from the same start: far below anything but rounding
    assert np.allclose(found[0], found[1], rtol=1e-10, atol=0)
    assert np.allclose(found[0], found[2], rtol=1e-10, atol=0)


def test_two_runs_are_the_same_to_the_bit_and_the_seed_matters(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(small_recipe(seed=seed), tmp_path / name)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert same(parameters(tmp_path / "a"), parameters(tmp_path / "b"))
    assert not same(parameters(tmp_path / "a"), parameters(tmp_path / "c"))


def test_the_first_step_is_loss_and_gradients_and_adam(tmp_path):
    """One step put together by hand from the public parts."""
    recipe = small_recipe(
        epochs=1, batch=4, micro_batch=4, drop_path=0.0, warmup_epochs=0, learning_rate=0.01, max_grad_norm=None
    )
    data = SlidingBars(4)
    train(recipe, data, SlidingBars(3), tmp_path, **QUIET)
    order = np.random.default_rng([0, 0, 0]).permutation(4)
    clips = np.stack([data.clip(i, np.random.default_rng([0, 1, 0, i])) for i in order])
    clips, moving = refvt.static_twins(clips, np.random.default_rng([0, 2, 0, 0]))
    start = initialise(recipe)
    model = refvt.HaltingVT(CONFIG, start, backend="reference")
    labels = np.tile(order % 3, 2)
    _, gradients = model.loss_and_gradients(clips, labels, moving, label_smoothing=0.1)
    for name, after in parameters(tmp_path).items():
        g, w = gradients[name].astype(np.float64), start[name].astype(np.float64)
        no_decay = name in ("cls_token", "pos_embed", "time_embed") or name.endswith("bias") or "norm" in name
        w = w * (1 - 0.01 * (0 if no_decay else recipe.weight_decay))
        # at the first step both corrected moments are g and g²
        big = np.abs(g) > 1e-4  # elsewhere ε and rounding show
        assert np.allclose(after[big], (w - 0.01 * g / (np.abs(g) + 1e-8))[big], rtol=0, atol=1e-5)
    assert start["pos_embed"][0, :, 0].mean() == pytest.approx(0.3, abs=0.05)


def test_drop_path_is_drawn_anew_for_every_micro_batch(tmp_path, monkeypatch):
    right, draws = refvt.HaltingVT.loss_and_gradients, []

    def recorded(self, *arguments, rng, **named):
        draws.append(rng.bit_generator.state["state"]["state"])
        return right(self, *arguments, rng=rng, **named)

    monkeypatch.setattr(refvt.HaltingVT, "loss_and_gradients", recorded)
    run(small_recipe(), tmp_path)
    assert len(set(draws)) == len(draws) == 16


def test_the_loss_is_weighed_by_the_recipe(tmp_path):
    run(small_recipe(ponder_weight=0.5, ponder_warmup_epochs=2, motion_weight=0.25), tmp_path)
    for i, line in enumerate(lines(tmp_path, "step")):  # two epochs of four steps
        parts = line["recognition"] + 0.5 * i / 8 * line["ponder"] + 0.25 * line["motion"]
        assert line["loss"] == pytest.approx(parts, rel=1e-6)


def test_labels_of_several_classes_train_and_count_alike(tmp_path):
    """One-hot targets are the class numbers in another form."""
    for name, several in (("one", False), ("several", True)):
        data = SlidingBars(24, several), SlidingBars(15, several)
        train(small_recipe(), *data, tmp_path / name, **QUIET, log_every=1)
    assert lines(tmp_path / "one", "step") == lines(tmp_path / "several", "step")
    one, several = (lines(tmp_path / name, "evaluation")[-1] for name in ("one", "several"))
    assert one["loss"] == several["loss"]
    assert (one["mean_average_precision"], several["top1"]) == (None, None)
    assert several["mean_average_precision"] > 0


class Interrupted(SlidingBars):
    """Stops at its n-th clip, as if somebody had pressed Ctrl-C."""

    def __init__(self, after, error):
        super().__init__()
        self.left, self.error = after, error

    def clip(self, index, rng=None):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().clip(index, rng)


@pytest.mark.parametrize("after", [15, 43, 58])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no room")])
def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path, after, error):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(small_recipe(), whole, checkpoint_every=3)
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else TrainingError
    with pytest.raises(kind):
        train(small_recipe(), Interrupted(after, error), SlidingBars(15), broken, **QUIET, log_every=1)
    run(small_recipe(), broken, resume=True, checkpoint_every=1)
    assert lines(broken) == lines(whole)
    assert same(parameters(broken), parameters(whole))
    before = lines(broken)
    assert run(small_recipe(), broken, resume=True).loss == before[-1]["loss"]  # a finished run only says so again
    assert lines(broken) == before


def test_a_failing_run_says_what_is_left(tmp_path):
    with pytest.raises(TrainingError, match="no film; no checkpoint had been written yet"):
        train(small_recipe(), Interrupted(1, OSError("no film")), SlidingBars(3), tmp_path / "a", **QUIET)
    data = Interrupted(41, OSError("no film"))
    with pytest.raises(TrainingError, match=r"no film; resume from .*checkpoint\.safetensors with --resume"):
        train(small_recipe(), data, SlidingBars(3), tmp_path / "b", **QUIET)


class Damaged(SlidingBars):
    """Some clips cannot be read."""

    def __init__(self, damaged, clips=30):
        super().__init__(clips)
        self.damaged = damaged

    def clip(self, index, rng=None):
        if index in self.damaged:
            raise UnreadableClipError(f"film {index} is cut")
        return super().clip(index, rng)


class Problems(Observer):
    """Keeps what it is told of clips that cannot be read."""

    def __init__(self):
        self.found = []

    def on_unreadable_clip(self, problem):
        self.found.append(problem)


def test_unreadable_clips_are_left_out_and_named(tmp_path):
    problems = Problems()
    data = Damaged({0, 4, 17}), Damaged({2, 3}, 15)
    train(small_recipe(), *data, tmp_path, **QUIET, log_every=1, observer=problems)
    assert sorted(problems.found) == sorted(2 * [f"film {i} is cut" for i in (0, 4, 17)])  # once an epoch
    assert [sum(line["clips"] for line in lines(tmp_path, "step")[e : e + 4]) for e in (0, 4)] == [27, 27]
    last = lines(tmp_path, "evaluation")[-1]
    assert (last["clips"], last["skipped"]) == (13, 2)


def test_without_an_observer_unreadable_clips_are_warnings(tmp_path, capsys):
    with pytest.warns(UnreadableClipWarning, match="film 4 is cut"):
        train(small_recipe(epochs=1, warmup_epochs=0), Damaged({4}), SlidingBars(3), tmp_path, **QUIET)
    assert capsys.readouterr() == ("", "")  # the library prints nothing


class Calls(Observer):
    """Keeps the order of calls."""

    def __init__(self):
        self.found = []

    def on_start(self, steps, done):
        self.found.append(("start", steps, done))

    def on_step(self, line, evaluation):
        self.found.append((line["step"], evaluation is not None))

    def on_end(self):
        self.found.append("end")


def test_an_observer_sees_every_step_and_evaluation(tmp_path):
    whole, rest, failed = Calls(), Calls(), Calls()
    run(small_recipe(), tmp_path / "a", observer=whole)
    assert whole.found == [("start", 8, 0), *((step, step >= 4) for step in range(1, 9)), "end"]
    with pytest.raises(TrainingError):
        train(
            small_recipe(),
            Interrupted(34, OSError("no film")),
            SlidingBars(3),
            tmp_path / "b",
            **QUIET,
            observer=failed,
        )
    assert failed.found[-1] == "end"
    run(small_recipe(), tmp_path / "a", resume=True, observer=rest)
    assert rest.found == [("start", 8, 8), "end"]


def test_a_step_or_a_set_without_any_readable_clip_ends_the_run(tmp_path):
    with pytest.raises(TrainingError, match="test set: none of its 15 clips can be read"):
        train(small_recipe(), SlidingBars(), Damaged(range(15), 15), tmp_path / "a", **QUIET)
    with pytest.raises(TrainingError, match="step 1: none of its clips can be read"):
        train(small_recipe(), Damaged(range(1, 400), 400), SlidingBars(3), tmp_path / "b", **QUIET, observer=Problems())


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    start = initialise(small_recipe())
    start["head.weight"][:] = 3e38
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingError, match=r"step 1: expected a finite loss, got (nan|inf); no checkpoint"),
    ):
        run(small_recipe(), tmp_path, parameters=start)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_start_can_be_given(tmp_path):
    start = initialise(small_recipe(seed=7))
    run(small_recipe(epochs=1, warmup_epochs=0, learning_rate=0.0), tmp_path, parameters=start)
    assert same(parameters(tmp_path), start)


class Odd(SlidingBars):
    num_classes = 4


@pytest.mark.parametrize(
    ("data", "recipe", "options", "message"),
    [
        (SlidingBars(0), {}, {}, "training set: expected at least one clip, got none"),
        (Odd(), {}, {}, r"training set: expected the 3 classes of config\.num_classes, got 4"),
        (SlidingBars(), {"config": refvt.HaltingVTConfig(num_classes=3)}, {}, r"expected clips \[3, 8, 224, 224\]"),
        (SlidingBars(), {}, {"checkpoint_every": 0}, "checkpoint_every: expected at least 1, got 0"),
        (SlidingBars(), {}, {"log_every": -1}, "log_every: expected at least 1, got -1"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, data, recipe, options, message):
    with pytest.raises(TrainingError, match=message):
        train(small_recipe(**recipe), data, SlidingBars(), tmp_path / "out", **QUIET, **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    run(small_recipe(epochs=1), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TrainingError, match=r"already holds a run; resume it \(--resume\)"):
        run(small_recipe(epochs=1), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_backbone_is_trained_first_and_once(tmp_path):
    recipe = small_recipe(drop_path=0.0)
    stages = recipe.changed({"backbone": recipe.changed({"seed": 5}).as_dict()})
    found = run(stages, tmp_path / "both")
    first = parameters(tmp_path / "both" / BACKBONE)
    run(recipe.changed({"seed": 5}), tmp_path / "first")
    assert same(first, parameters(tmp_path / "first"))
    # the same as starting from its parameters by hand
    assert run(stages, tmp_path / "second", parameters=first) == found
    assert same(parameters(tmp_path / "both"), parameters(tmp_path / "second"))
    assert not (tmp_path / "second" / BACKBONE).exists()
    with pytest.raises(TrainingError, match="both: already holds a run"):
        run(stages, tmp_path / "both")
    before = (tmp_path / "both" / BACKBONE / MODEL).stat().st_mtime_ns
    assert run(stages, tmp_path / "both", resume=True) == found
    assert (tmp_path / "both" / BACKBONE / MODEL).stat().st_mtime_ns == before


def test_killed_in_the_backbone_it_goes_on(tmp_path):
    recipe = small_recipe(drop_path=0.0)
    stages = recipe.changed({"backbone": recipe.changed({"seed": 5}).as_dict()})
    found = run(stages, tmp_path / "whole")

    class Killed(Observer):
        def on_step(self, line, evaluation):
            if line["step"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stages, tmp_path / "killed", observer=Killed(), checkpoint_every=2)
    assert not (tmp_path / "killed" / LOG).exists()
    assert run(stages, tmp_path / "killed", resume=True) == found
    assert same(parameters(tmp_path / "killed"), parameters(tmp_path / "whole"))
    again = recipe.changed({"backbone": recipe.changed({"seed": 6}).as_dict()})
    with pytest.raises(TrainingError, match=r"backbone: holds a finished run of another recipe \(seed differ\)"):
        run(again, tmp_path / "killed", resume=True)


def test_the_log_says_how_halting_follows_the_object(tmp_path):
    recipe = tiny_recipe(epochs=1)
    train_set, test_set = make_moving_digits(recipe)
    train(recipe, train_set, test_set, tmp_path, **QUIET)
    (line,) = lines(tmp_path, "evaluation")
    model = refvt.load(tmp_path / MODEL, recipe.config, backend="reference")
    assert line["selectivity"] == asdict(selectivity_of(model, test_set))
    run(small_recipe(epochs=1), tmp_path / "bars")
    assert "selectivity" not in lines(tmp_path / "bars", "evaluation")[0]
