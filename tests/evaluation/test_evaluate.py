"""Figures against known answers and scikit-learn; files that break off anywhere; videos that cannot be read."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import refvt
from refvt import weights
from refvt.cli import main
from refvt.data import MovingDigits, UnreadableClipError, find_sample_video, read_clip, read_frames
from refvt.evaluation import Record, average_precision, compute_records, summarise
from refvt.training import Evaluation, evaluate

TINY = refvt.HaltingVTConfig(
    image_size=(16, 16), patch_size=8, channels=1, num_frames=2, width=8, num_heads=2, depth=4, num_classes=8
)
DIGITS = MovingDigits("test", clips=11, frames=2, size=16, noise=30)


def model(config: refvt.HaltingVTConfig = TINY, seed: int = 0, **changes: Any) -> refvt.HaltingVT:
    """A model whose logits differ from clip to clip and whose tokens halt here and there."""
    drawn = refvt.HaltingVT(replace(config, halting_center=4.0, halting_scale=30.0, **changes), seed=seed)
    rng = np.random.default_rng(seed)
    parameters = {name: value + rng.normal(0, 0.1, value.shape) for name, value in drawn.parameters.items()}
    return refvt.HaltingVT(drawn.config, parameters, backend="reference")


class Patchy:
    """Moving digits of which some cannot be read, or make a note."""

    num_classes, multi_label = 8, False

    def __init__(self, broken: set[int], doubtful: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.broken, self.doubtful = broken, doubtful

    def __repr__(self) -> str:
        return "Patchy"

    def __len__(self) -> int:
        return len(DIGITS)

    def clip(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        if index in self.broken:
            raise UnreadableClipError(f"clip {index} is broken")
        if index in self.doubtful:
            warnings.warn(f"clip {index} is short", stacklevel=2)
            warnings.warn("of no interest here", DeprecationWarning, stacklevel=2)
        return DIGITS.clip(index, rng)

    def target(self, index: int) -> int:
        return DIGITS.target(index)


# ---- figures


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    scores = rng.integers(0, int(rng.integers(1, 30)), n) / 7  # with ties
    relevant = (rng.random(n) < rng.random()).astype(float)
    ours = average_precision(scores, relevant)
    if relevant.any():
        # Sums of at most 60 products of numbers up to one, each rounded a few times: 60 · 4 · 2⁻⁵³ < 1e-13.
        assert ours == pytest.approx(average_precision_score(relevant, scores), abs=1e-13)
    else:
        assert ours is None


def test_average_precision_by_hand() -> None:
    # Ranked: right, wrong, right. Precision 1 at recall 1/2, 2/3 at recall 1.
    assert average_precision(np.array([0.1, 0.9, 0.5]), np.array([1, 1, 0])) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(np.full(4, 0.3), np.array([1, 0, 0, 0])) == 0.25  # nothing to rank by


def record(index: int, labels: list[int], logits: list[float], gflops: float = 1.0) -> Record:
    return Record(index, labels, [], None, logits, gflops, [10, 4])


def test_figures_by_hand() -> None:
    found = [
        record(2, [0], [3, 1, 2, 0, -1, -2], 4.0),  # first
        record(0, [1], [3, 1, 2, 0, -1, -2], 1.0),  # third
        record(3, [5], [3, 1, 2, 0, -1, -2], 1.0),  # last of six: not among five
        record(1, [2], [1, 0, 1, 0, 0, 0], 2.0),  # equal to class 0, which has the lower number
        Record(5, [1], ["the second note"], "broken too"),
        Record(4, [1], ["a note"], "broken"),
    ]
    done = summarise(found, 6, False)
    assert (done.clips, done.top1, done.top5) == (4, 0.25, 0.75)
    assert done.gflops == 2.0
    assert done.tokens_per_layer == [10, 4]
    assert done.skipped == ["broken", "broken too"]
    assert done.notes == ["a note", "the second note"]
    assert done.mean_average_precision is None
    assert done.classes_without_clips is None
    exp = [math.exp(x) for x in (3, 1, 2, 0, -1, -2)]
    right = [exp[i] / sum(exp) for i in (0, 1, 5)] + [math.e / (2 * math.e + 4)]
    assert done.loss == pytest.approx(-sum(math.log(p) for p in right) / 4, abs=1e-14)
    assert summarise(reversed(found), 6, False) == done


def test_a_model_that_says_nan_is_never_right() -> None:
    found = [record(0, [0], [math.nan] * 6), record(1, [5], [math.nan, 0, 0, 0, 0, 1])]
    done = summarise(found, 6, False)
    assert (done.top1, done.top5) == (0, 0.5)
    assert math.isnan(done.loss or 0)
    few = summarise([record(0, [0], [math.nan] * 3)], 3, False)  # fewer than five classes
    assert (few.top1, few.top5) == (0, 0)


def test_map_is_scikit_learns_over_the_softmax() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (40, 6)).round(1)
    targets = rng.random((40, 6)) < [0.3, 0.2, 0.5, 0.0, 0.1, 0.9]  # nobody has class 3
    found = [
        record(i, np.flatnonzero(t).tolist(), z.tolist()) for i, (t, z) in enumerate(zip(targets, logits, strict=True))
    ]
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    theirs = [average_precision_score(targets[:, k], softmax[:, k]) for k in range(6) if k != 3]
    done = summarise(found, 6, True)
    assert done.mean_average_precision == pytest.approx(np.mean(theirs), abs=1e-12)
    assert done.classes_without_clips == 1
    assert done.top1 is None
    by_logits = [average_precision_score(targets[:, k], logits[:, k]) for k in range(6) if k != 3]
    assert abs(np.mean(by_logits) - np.mean(theirs)) > 1e-3  # it makes a difference


def test_evaluate_is_the_model_clip_by_clip() -> None:
    net = model()
    clips, classes = DIGITS.arrays()
    output = net(clips)
    done = evaluate(net, DIGITS, batch=4)
    assert done.clips == 11
    assert done.top1 == np.mean(output.logits.argmax(axis=1) == classes)
    assert done.gflops == pytest.approx(output.gflops.mean(), rel=1e-12)
    np.testing.assert_allclose(done.tokens_per_layer, output.tokens_per_layer.mean(axis=0), rtol=1e-12)
    assert output.tokens_per_layer[:, -1].min() < output.tokens_per_layer[:, 0].max()  # something did halt
    # The model's own training loss is computed in float32, with an error of a few times 6e-8 of its terms.
    loss, _ = net.loss_and_gradients(clips, classes, None)
    assert done.loss == pytest.approx(loss.recognition, rel=1e-5)


def test_shares_of_a_data_set_add_up() -> None:
    net = model()
    halves = [
        *compute_records(net, DIGITS, range(4)),
        *compute_records(net, DIGITS, range(4, 8)),
        *compute_records(net, DIGITS, range(8, 11)),
    ]
    assert summarise(halves[::-1], 8, False) == evaluate(net, DIGITS, batch=4)


def test_broken_clips_are_skipped_and_listed() -> None:
    net = model()
    broken = {0, 4, 5, 6, 7, 10}  # a whole batch among them
    done = evaluate(net, Patchy(broken, {1}), batch=4)
    assert done.clips == 5
    assert done.skipped == [f"clip {i} is broken" for i in sorted(broken)]
    assert done.notes == ["clip 1 is short"]
    read = [i for i in range(11) if i not in broken]
    clips, classes = DIGITS.arrays()
    assert done.top1 == np.mean(net(clips[read]).logits.argmax(axis=1) == classes[read])
    nothing = evaluate(net, Patchy(set(range(11))))
    assert nothing == Evaluation(*NOTHING[:8], nothing.skipped, [])
    assert len(nothing.skipped) == 11


def test_other_errors_are_not_swallowed() -> None:
    class Buggy(Patchy):
        def clip(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(model(), Buggy(set()))
    with pytest.raises(ValueError, match="dataset: expected the model's 5 classes, got 8"):
        evaluate(model(num_classes=5), DIGITS)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        evaluate(model(), DIGITS, 0)


# ---- breaking off and going on


def test_broken_off_at_any_byte(tmp_path: Path) -> None:
    net, data, out = model(), Patchy({3, 9}, {2}), tmp_path / "new" / "records.jsonl"
    unbroken = evaluate(net, data, 4, out=out)
    assert unbroken == evaluate(net, data, 4)
    whole = out.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["index"] for line in lines[1:]] == list(range(11))
    assert lines[4]["problem"] == "clip 3 is broken"
    for kept in {*range(0, len(whole), 23), *(i + 1 for i, byte in enumerate(whole) if byte == 10)}:
        out.write_bytes(whole[:kept])
        assert evaluate(net, data, 4, out=out, resume=True) == unbroken
        assert out.read_bytes() == whole


def test_killed_and_continued(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    net = model()
    net.save(tmp_path / "weights.npz")
    code = f"""
import os, signal
from pathlib import Path
import refvt
from refvt.data import MovingDigits
from refvt.training import evaluate

class Deadly:
    num_classes, multi_label = 8, False
    data = MovingDigits("test", clips=11, frames=2, size=16, noise=30)
    __len__ = lambda self: 11
    __repr__ = lambda self: repr(self.data)
    target = lambda self, index: self.data.target(index)
    def clip(self, index, rng=None):
        if index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.data.clip(index)

config = refvt.HaltingVTConfig(**{net.config.as_dict()!r})
evaluate(refvt.load({str(tmp_path / "weights.npz")!r}, config, "reference"), Deadly(), 4, out=Path({str(out)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(out.read_bytes().splitlines()) == 1 + 8
    assert evaluate(net, DIGITS, 4, out=out, resume=True) == evaluate(net, DIGITS, 4)


def test_what_was_mended_is_read_when_continued(tmp_path: Path) -> None:
    net, out = model(), tmp_path / "records.jsonl"
    assert len(evaluate(net, Patchy({1, 2, 9}), 4, out=out).skipped) == 3
    before = out.read_bytes()
    again = evaluate(net, Patchy({2}), 4, out=out, resume=True)
    assert again == evaluate(net, Patchy({2}), 4)
    assert out.read_bytes().startswith(before)  # nothing is lost
    assert evaluate(net, Patchy({2}), 4, out=out, resume=True) == again


def test_another_evaluation_is_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    net = model()
    evaluate(net, DIGITS, 4, out=out)
    whole = out.read_bytes()
    with pytest.raises(FileExistsError, match=r"records\.jsonl: already exists"):
        evaluate(net, DIGITS, 4, out=out)
    others = {
        "parameters": (model(seed=1), DIGITS, 4),
        "config.epsilon": (model(epsilon=0.02), DIGITS, 4),
        "data": (net, replace(DIGITS, seed=1), 4),
        "batch": (net, DIGITS, 5),
    }
    for name, (other, data, batch) in others.items():
        with pytest.raises(ValueError, match=rf"records\.jsonl: {name}: expected .* as in the file"):
            evaluate(other, data, batch, out=out, resume=True)
    assert out.read_bytes() == whole
    for content in (b"my diary", b"my diary\n", b"[1, 2]\n", whole.replace(b'"index": 3', b'"place": 3')):
        out.write_bytes(content)
        with pytest.raises(ValueError, match=r"records\.jsonl:\d: not a line of an evaluation"):
            evaluate(net, DIGITS, 4, out=out, resume=True)
        assert out.read_bytes() == content


def test_an_observer_sees_every_record_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen: list[Record] = []
    done = evaluate(model(), Patchy({3}), 4, out=tmp_path / "records.jsonl", observer=seen.append)
    assert [record.index for record in seen] == list(range(11))
    assert summarise(seen, DIGITS.num_classes, multi_label=False) == done
    again: list[Record] = []
    evaluate(model(), Patchy({3}), 4, out=tmp_path / "records.jsonl", resume=True, observer=again.append)
    assert again == seen
    assert capsys.readouterr() == ("", "")


def test_the_command_shows_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFVT_QUIET")
    monkeypatch.setattr("refvt.cli.progress._is_terminal", lambda: True)
    assert main(["evaluate", "--data", "digits", "--set", "clips=11", "--backend", "reference"]) == 0
    bar = capsys.readouterr().err
    assert "11/11" in bar
    assert "right=" in bar


# ---- the command

NOTHING = (0, *[None] * 7, [], [])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real clips as frames and as mp4, a cut file, an empty folder; weights and their configuration."""
    root = tmp_path_factory.mktemp("videos")
    config = {"image_size": [32, 32], "patch_size": 8, "num_frames": 4, "width": 16, "num_heads": 2, "depth": 4}
    (root / "config.json").write_text(json.dumps({**config, "num_classes": 6}))
    net = model(refvt.HaltingVTConfig(**{**config, "num_classes": 6}))  # type: ignore[arg-type]
    (root / "config.json").write_text(json.dumps(net.config.as_dict()))
    net.save(root / "weights.safetensors")
    images = read_frames(find_sample_video("bikes.mp4"), 20, 2).images[:, ::4, ::4]
    (root / "bikes").mkdir()
    for number, image in enumerate(images, start=1):
        iio.imwrite(root / "bikes" / f"img_{number:05}.jpg", image)
    images = read_frames(find_sample_video("carphone_pristine.mp4"), 20, 2).images[:, ::4, ::4]
    with av.open(str(root / "phone.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream: Any = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 44, 36, "yuv420p"
        for image in images:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        out.mux(stream.encode(None))
    (root / "cut.mp4").write_bytes((root / "phone.mp4").read_bytes()[:-200])
    (root / "empty").mkdir()
    return root


def command(root: Path, *more: str) -> list[str]:
    given = ["--config", str(root / "config.json"), "--weights", str(root / "weights.safetensors"), "--stride", "3"]
    return ["evaluate", *given, "--annotations", str(root / "list.txt"), "--backend", "reference", *more]


def test_the_command_on_real_clips(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["bikes 20 3", "cut.mp4 1", "phone.mp4 2", "empty 20 1", "gone.mp4 1", "bikes 20 6", "bikes", "bikes 20 0"]
    (videos / "list.txt").write_text("\n".join(lines))
    out = tmp_path / "out.jsonl"
    assert main(command(videos, "--json", "--batch", "2", "--out", str(out))) == 0
    report = json.loads(capsys.readouterr().out)
    config = refvt.HaltingVTConfig(**json.loads((videos / "config.json").read_text()))
    net = refvt.load(videos / "weights.safetensors", config, "reference")
    clips = np.stack([read_clip(videos / name, 4, 3, (32, 32))[0] for name in ("bikes", "phone.mp4", "bikes")])
    output = net(clips)
    assert report["clips"] == 3
    assert report["top1"] == np.mean(output.logits.argmax(axis=1) == [3, 2, 0])
    assert report["gflops"] == pytest.approx(output.gflops.mean(), rel=1e-12)
    assert report["tokens_per_layer"] == pytest.approx(output.tokens_per_layer.mean(axis=0).tolist(), rel=1e-12)
    assert len(report["skipped"]) == 5
    for words in ("txt:2: ", "txt:4: ", "gone.mp4", "txt:6: label 6", "txt:7: expected a path"):
        assert any(words in line for line in report["skipped"])
    # Again, from the file: the same, and refused without --resume.
    assert main(command(videos, "--json", "--batch", "2", "--out", str(out))) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(command(videos, "--json", "--batch", "2", "--out", str(out), "--resume")) == 0
    assert json.loads(capsys.readouterr().out) == report
    # For people.
    assert main(command(videos)) == 0
    printed = capsys.readouterr().out
    assert "clips read        3" in printed
    assert f"top-1, top-5      {report['top1']:.2%}, {report['top5']:.2%}" in printed
    assert "skipped: 5" in printed
    assert main(command(videos, "--strict")) == 2
    assert "3 lines cannot be used" in capsys.readouterr().err


def test_the_command_with_several_labels(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "list.txt").write_text("bikes 20 3 1\nphone.mp4 2\nbikes 20 0 2\n")
    assert main(command(videos, "--json", "--multi-label")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["top1"] is None
    assert 0 < report["mean_average_precision"] <= 1
    assert report["classes_without_clips"] == 2
    assert main(command(videos, "--multi-label")) == 0
    assert "2 classes without clips left out" in capsys.readouterr().out


def test_the_command_when_nothing_can_be_read(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "list.txt").write_text("\n".join(f"gone{i}.mp4 1" for i in range(25)))
    assert main(command(videos)) == 1
    printed = capsys.readouterr().out
    assert "clips read        0" in printed
    assert "… and 5 more" in printed
    (videos / "list.txt").write_text("cut.mp4 1")
    assert main(command(videos, "--json")) == 1
    assert json.loads(capsys.readouterr().out)["clips"] == 0


@pytest.mark.parametrize(("preset", "stride"), [("minik-g07-b20", 32), ("anet-g05-b10", 64)])
def test_the_stride_is_the_papers(videos: Path, preset: str, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (videos / "list.txt").write_text("bikes 20 3")
    seen = []
    monkeypatch.setattr(refvt, "load", lambda *_, **__: None)
    monkeypatch.setattr(
        "refvt.cli.evaluate.evaluate", lambda _, data, *__, **___: seen.append(data) or Evaluation(*NOTHING)
    )
    assert main(["evaluate", "--preset", preset, "--weights", "x", "--annotations", str(videos / "list.txt")]) == 1
    data = seen[0]
    assert (data.stride, data.root, data.multi_label) == (stride, videos, preset.startswith("anet"))
    assert (data.resize, data.sampling) == ("opencv", "span")  # those of the released configurations


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--config",), ("antialiased", "span", False)),
        (("--config", "--resize", "opencv", "--sampling", "window"), ("opencv", "window", False)),
        (("--preset", "anet-g05-b10", "--no-multi-label", "--resize", "antialiased"), ("antialiased", "span", False)),
        (("--multi-label",), ("opencv", "span", True)),
    ],
)
def test_each_step_of_the_pipeline_can_be_set(
    videos: Path, given: tuple[str, ...], expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (videos / "list.txt").write_text("bikes 20 3")
    seen = []
    monkeypatch.setattr(refvt, "load", lambda *_, **__: None)
    monkeypatch.setattr(
        "refvt.cli.evaluate.evaluate", lambda _, data, *__, **___: seen.append(data) or Evaluation(*NOTHING)
    )
    given = tuple(word for g in given for word in ((g, str(videos / "config.json")) if g == "--config" else (g,)))
    assert main(["evaluate", *given, "--weights", "x", "--annotations", str(videos / "list.txt")]) == 1
    assert (seen[0].resize, seen[0].sampling, seen[0].multi_label) == expected


def test_short_videos_are_noted(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "list.txt").write_text("bikes 20 3")
    given = command(videos, "--json")
    given[given.index("--stride") + 1] = "32"
    assert main(given) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "list.txt:1: 4 frames 32 apart need 97 frames" in note


def test_the_command_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = model()
    net.save(tmp_path / "weights.npz")
    (tmp_path / "config.json").write_text(json.dumps(net.config.as_dict()))
    given = ["evaluate", "--config", str(tmp_path / "config.json"), "--weights", str(tmp_path / "weights.npz")]
    given += ["--backend", "reference", "--data", "digits", "--json", "--set"]
    assert main([*given, "clips=11", "noise=30"]) == 0
    report = json.loads(capsys.readouterr().out)
    done = evaluate(net, DIGITS)
    assert report["top1"] == done.top1
    assert report["loss"] == done.loss
    for wrong, words in (
        ("clips", "expected NAME=N"),
        ("size=3", "expected settings among background, clips"),
        ("clips=0", "least 1"),
    ):
        assert main([*given, wrong]) == 2
        assert words in capsys.readouterr().err


def test_the_command_without_weights_takes_the_model_that_comes_with_refvt(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--data", "digits", "--json", "--set", "clips=32", "seed=3"]) == 0
    report = json.loads(capsys.readouterr().out)
    net, recipe = weights.load("digits")
    data = MovingDigits("test", clips=32, frames=recipe.config.num_frames, size=recipe.config.image_size[0], seed=3)
    assert report["weights"] == str(weights.find_files("digits").weights)
    assert report["loss"] == evaluate(net, data).loss
    assert f"size={recipe.config.image_size[0]}" in report["data"]
    for more, words in (
        (["--data", "digits", "--preset", "minik-g03-b10"], "--preset: needs --weights"),
        (["--data", "digits", "--config", str(videos / "config.json")], "--config: needs --weights"),
        (["--annotations", str(videos / "list.txt")], "--weights: required with --annotations"),
    ):
        assert main(["evaluate", *more]) == 2
        assert words in capsys.readouterr().err


def test_requests_that_cannot_be_met(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "list.txt").write_text("bikes 20 3")
    assert main(command(videos, "--resume")) == 2
    assert "--resume: needs --out" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"depht": 3}')
    given = command(videos)
    given[given.index("--config") + 1] = str(tmp_path / "config.json")
    assert main(given) == 2
    assert (
        "config.json: expected a configuration or a recipe as JSON: unknown: depht; expected some of "
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--weights", "x.npz"])
    assert stop.value.code == 2
