"""``refvt halt`` says what it looked at, warns where it is not reliable, and refuses what it would ignore."""

import json

import imageio.v3 as iio
import numpy as np
import pytest

import refvt
from refvt.cli import main
from refvt.cli.halt_report import lines_of_scene, name_frames
from refvt.data import normalise, read_frames, resize_and_crop
from refvt.training.recipe import Recipe

HEIGHT, WIDTH = 48, 80
SMALL = {"image_size": [32, 32], "num_frames": 4, "width": 24, "num_heads": 2, "depth": 4, "num_classes": 2}
OWN = refvt.HaltingVTConfig(**SMALL)
SETTINGS = {"stride": 2, "resize": "opencv", "multi_label": False}


def write_frames(folder, shift=0.0, noise=0.0, number=12, light=0.0):
    """Frames of a texture that shifts and becomes lighter, as a folder of pictures."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    for t in range(number):
        grey = (
            128
            + light * t
            + 60 * np.sin(0.2 * (x + shift * t) + 0.1 * y)
            + 30 * np.sin(0.5 * y - 0.15 * (x + shift * t))
        )
        image = (grey[..., None] + rng.normal(0, noise, (HEIGHT, WIDTH, 3))).clip(0, 255).astype(np.uint8)
        iio.imwrite(folder / f"{t:03d}.png", image)
    return folder


@pytest.fixture
def halt(tmp_path, capsys):
    """Call ``refvt halt``; returns what it printed, as text or from JSON."""

    def call(*words, code=0):
        assert main(["halt", *map(str, words), "--out", str(tmp_path / "out"), "--backend", "reference"]) == code
        printed = capsys.readouterr()
        if code:
            return printed.err
        return json.loads(printed.out) if "--json" in words else printed.out

    return call


@pytest.fixture
def words_only(monkeypatch):
    """Pictures take most of the time, and other tests look at them."""
    monkeypatch.setattr("refvt.plots.scene.draw_scene", lambda *_: [])
    monkeypatch.setattr("refvt.plots.halting.halting_gif", lambda *_: None)


@pytest.fixture
def own(tmp_path):
    """A small model for videos of two classes: its file, its configuration, its recipe and its classes' names."""
    model = refvt.HaltingVT(OWN, seed=2, backend="reference")
    rng = np.random.default_rng(0)
    model.parameters["head.weight"][:] = rng.normal(0, 1, model.parameters["head.weight"].shape)
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(OWN.as_dict()))
    recipe = Recipe(OWN, "videos", SETTINGS)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.as_dict()))
    (tmp_path / "names.txt").write_text("left\nright\n")
    return model


# ---- what it prints


def test_a_clip_in_which_nothing_changes(tmp_path, halt, words_only):
    printed = halt(write_frames(tmp_path / "still"), "--html", tmp_path / "page.html")
    assert "still: frames 3 to 10 of 12, the middle of the video" in printed
    assert "The centre 48×48 of 80×48 pixels, in grey" not in printed  # 2 × 3 windows: more than the centre square
    assert "The centre 72×48 of 80×48 pixels, in grey" in printed
    assert "Nothing changes in this clip, so there is no AUC." in printed
    assert "Warning" not in printed
    assert " - " not in printed
    rows = [line.split() for line in printed.splitlines() if line.split()[0] in "1234"]
    assert [len(row) for row in rows] == [2, 2, 2, 2]
    page = (tmp_path / "page.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    spent = sum(clip["gflops_so_far"][-1] for clip in data["clips"])
    full = len(data["clips"]) * data["gflops_so_far_without_halting"][-1]
    assert f"whole clip: {spent:.3f} GFLOPs against {full:.3f} without halting" in printed
    assert data["indices"] == list(range(2, 10))
    assert "<title>still, frames 3 to 10 of 12 · which patches" in page


@pytest.mark.parametrize(("noise", "shift", "moves"), [(40, 0, False), (0, 2, True), (40, 2, True)])
def test_a_camera_that_moves_is_warned_of_and_noise_is_not(tmp_path, halt, words_only, noise, shift, moves):
    video = write_frames(tmp_path / "video", shift, noise)
    printed, report = halt(video), halt(video, "--json")
    assert report["whole_frame_changes"] == moves
    assert ("Warning: nearly the whole frame changes" in printed) == moves
    assert ("Does the camera move?" in printed) == moves
    if report["patches_changing"]:
        words = " ".join(printed.split())
        assert (
            f"by more than {report['change_threshold']:.1f} grey levels, which is the larger of 4 and 2 times" in words
        )
        assert "dropped count as not alive; the AUC leaves them out" in words


def test_why_there_is_no_auc(tmp_path, halt, words_only):
    lighter = write_frames(tmp_path / "lighter", light=3)  # below 4 between neighbours, 21 in all
    report = halt(lighter, "--json")
    assert (report["patches_changing"], report["auc_of_change"]) == (0, None)
    printed = "\n".join(lines_of_scene(report))
    assert "Warning: nearly the whole frame changes" in printed
    assert "No patch changes more than the others in this clip, so there is no AUC." in printed
    dropped = {**report, "patches_changing": 5, "alive_changing_per_layer": [0.0] * 4}
    printed = "\n".join(lines_of_scene(dropped))
    assert "The Glimpser dropped all patches that change, so there is no AUC." in printed


@pytest.mark.parametrize(("place", "first"), [("0", 0), ("0.5", 2), ("1", 4)])
def test_the_place_in_the_video(tmp_path, halt, words_only, place, first):
    video = write_frames(tmp_path / "video", 1)
    report = halt(video, "--place", place, "--json")
    assert report["frames"] == list(range(first, first + 8))
    assert report["place"] == float(place)
    assert f"frames {first + 1} to {first + 8} of 12, place {place} (0: the beginning" in halt(video, "--place", place)
    assert "--place: expected a number from 0 to 1, got 1.5" in halt(video, "--place", "1.5", code=2)
    assert "--place: expected a number from 0 to 1, got nan" in halt(video, "--place", "nan", code=2)


def test_frames_in_words():
    assert name_frames([16, 17, 18], 40) == "frames 17 to 19 of 40"
    assert name_frames([2, 6, 10], 12) == "frames 3 to 11 of 12, 4 apart"
    assert name_frames([19], 40) == "frame 20 of 40"


def test_a_video_that_is_too_short(tmp_path, halt):
    video = write_frames(tmp_path / "short", number=5)
    assert halt(video, code=2) == f"refvt: {video}: expected at least 8 frames, as many as the model needs, got 5\n"


# ---- a model of one's own


@pytest.mark.parametrize(
    ("config", "stride", "resize"), [("config.json", 3, "antialiased"), ("recipe.json", 2, "opencv")]
)
def test_a_model_of_ones_own_sees_frames_and_pixels_of_its_recipe(
    tmp_path, halt, words_only, own, config, stride, resize
):
    video = write_frames(tmp_path / "video", 1)
    line = [video, "--config", tmp_path / config, "--weights", tmp_path / "model.safetensors"]
    line += ["--labels", tmp_path / "names.txt"]
    report = halt(*line, "--json")
    frames = read_frames(video, 4, stride)
    logits = own(normalise(resize_and_crop(frames.images, (32, 32), resize=resize))[None]).logits[0].astype(float)
    best = report["classes"][0]
    assert best["class"] == ("left", "right")[logits.argmax()]
    assert best["probability"] == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), rel=1e-5)
    assert report["frames"] == frames.indices.tolist()
    assert report["config"] == str(tmp_path / config)
    assert halt(*line, "--stride", 1, "--place", 0, "--json")["frames"] == [0, 1, 2, 3]
    printed = halt(*line, "--html", tmp_path / "page.html")
    assert f"HaltingVT {tmp_path / config}, " in printed
    # the short side becomes 37 = 32 · 256/224, the long one 62: 32 · 80/62 × 32 · 48/37
    assert "The centre 41×42 of 80×48 pixels" in printed
    assert f"· which patches HaltingVT ({config}) computes</h1>" in (tmp_path / "page.html").read_text()


def test_evaluate_reads_a_recipe_too(tmp_path, capsys, own):
    write_frames(tmp_path / "video", 1)
    (tmp_path / "list.txt").write_text("video 12 1\n")
    line = ["evaluate", "--weights", str(tmp_path / "model.safetensors"), "--annotations", str(tmp_path / "list.txt")]
    line += ["--backend", "reference", "--json", "--config"]
    found = {}
    for name, more in (
        ("recipe", ["recipe.json"]),
        ("same", ["config.json", "--stride", "2", "--resize", "opencv"]),
        ("changed", ["recipe.json", "--stride", "3"]),
    ):
        assert main([*line, str(tmp_path / more[0]), *more[1:]]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert "stride=2" in found["recipe"]["data"]
    assert "resize='opencv'" in found["recipe"]["data"]
    assert found["recipe"] == found["same"]
    assert "stride=3" in found["changed"]["data"]
    assert "resize='opencv'" in found["changed"]["data"]


def test_evaluate_takes_the_digits_of_a_recipe(tmp_path, capsys):
    config = refvt.HaltingVTConfig(**{**SMALL, "channels": 1, "num_classes": 8})
    refvt.HaltingVT(config, backend="reference").save(tmp_path / "model.safetensors")
    recipe = Recipe(config, "digits", {"noise": 7, "clutter": 1})
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.as_dict()))
    line = ["evaluate", "--data", "digits", "--weights", str(tmp_path / "model.safetensors"), "--json"]
    line += ["--config", str(tmp_path / "recipe.json"), "--backend", "reference", "--set", "clips=8", "clutter=2"]
    assert main(line) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert "noise=7" in data
    assert "clutter=2" in data


@pytest.mark.parametrize("command", ["halt", "evaluate"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"widht": 3}', "unknown: widht; expected some of channels, "),
        ('{"width": 31}', "as JSON: "),
        ('{"config": {}}', "recipe: missing: data"),
        ('{"config": {"width": 31}, "data": "videos"}', "as JSON: config."),
        ("[]", "as JSON, an object with names, got list"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, capsys, own, command, text, message):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    line = ["halt", "x.mp4"] if command == "halt" else ["evaluate", "--data", "digits"]
    assert main([*line, "--config", str(path), "--weights", str(tmp_path / "model.safetensors")]) == 2
    error = capsys.readouterr().err
    assert f"{path}: expected a configuration or a recipe as JSON" in error
    assert message in error


def test_a_model_of_grey_clips_takes_no_videos(tmp_path, halt, own):
    (tmp_path / "grey.json").write_text(json.dumps({**OWN.as_dict(), "channels": 1}))
    line = ["x.mp4", "--config", tmp_path / "grey.json", "--weights", tmp_path / "model.safetensors"]
    assert "config.channels: expected 3 for videos, got 1" in halt(*line, code=2)


# ---- options that would be ignored


@pytest.mark.parametrize(
    ("line", "option"),
    [
        (["halt", "x.mp4", "--preset", "minik-g07-b20"], "--preset"),
        (["halt", "x.mp4", "--config", "c.json"], "--config"),
        (["halt", "x.mp4", "--labels", "names.txt"], "--labels"),
        (["halt", "x.mp4", "--weights", "handmade", "--labels", "names.txt"], "--labels"),
        *(
            (["evaluate", "--data", "digits", *words], words[0])
            for words in (
                ["--root", "x"], ["--stride", "2"], ["--stride", "0"], ["--multi-label"], ["--resize", "opencv"],
                ["--sampling", "span"], ["--with-offset"], ["--square-pixels"], ["--strict"],
            )
        ),
    ],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(line, option, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(line) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"refvt: {option}: ")
    assert "only" in error
    assert list(tmp_path.iterdir()) == []
