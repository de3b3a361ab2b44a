"""The command line, called as a person would: exit codes, what is printed, what is written."""

import json
import shutil
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest

from refvt.cli import COMMANDS, main
from refvt.conformance.golden import golden_directory
from refvt.data import MovingDigits, find_sample_video


@pytest.fixture(scope="module")
def carphone():
    return str(find_sample_video("carphone_pristine.mp4"))


def test_demo_checks_recognises_and_draws(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert main(["demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    assert "float64" in printed
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.startswith("   ") and line.split()}
    assert set(MovingDigits.names) < set(rows)
    shares = [float(rows[name][1].rstrip("%")) for name in (*MovingDigits.names, "all")]
    assert shares[-1] == pytest.approx(np.mean(shares[:-1]), abs=0.1)  # as many of each; printed to 0.1 %
    assert "without halting" in printed
    assert "never a digit in it" in printed
    assert "97 tokens are CLS and the 96 of 128 patches" in printed  # three quarters of 8 frames of 16
    assert 0 < float(rows["Every"][3]) < float(rows["still"][2])  # hardly anything lives in a clip that stands still
    assert rows["all"][3] == "97.0"
    ready, checked = printed.index("The pictures are ready"), printed.index("4. Golden files")
    assert ready < checked
    said = " ".join(printed[:ready].split())
    assert "a patch whose pixels change gets a gradient that makes it halt later" in said
    assert "With the paper's ponder loss halting did not follow what moves" in said
    files = ["bikes.gif", "bikes.png", "digits.gif", "digits.png", "following.png", "halting.html"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert iio.imread(out / "digits.png").shape[0] > 1000
    assert len(iio.imread(out / "digits.gif", index=None)) == 8  # a step for every frame


def test_demo_fails_when_the_golden_files_do_not_hold(tmp_path, capsys, monkeypatch):
    from refvt.cli import demo

    copy = tmp_path / "golden"
    shutil.copytree(golden_directory(), copy)
    (copy / "tiny-op-gelu-basic.npz").write_bytes(b"nothing")
    monkeypatch.setattr(demo, "CHECK", (*demo.CHECK, "--tiny", "--golden", str(copy)))
    monkeypatch.setattr(demo, "show", lambda *_: print("the rest of the demo"))
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "FAILED tiny-op-gelu-basic" in printed
    assert "the rest of the demo" in printed


def test_halt_shows_what_changes_by_default(tmp_path, capsys, carphone):
    assert main(["halt", carphone, "--stride", "8", "--out", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["weights"] == "photographs"
    assert report["windows"] == [2, 2]
    assert 0 < report["patches_changing"] < report["patches"] == 8 * 8 * 8
    assert len(report["frames"]) == 8
    for name in ("alive_changing_per_layer", "alive_unchanging_per_layer"):
        assert report[name] == sorted(report[name], reverse=True)
        assert 0.5 < report[name][0] <= 1  # the Glimpser drops a quarter of all patches
    assert iio.imread(report["picture"]).std() > 1
    assert len(iio.imread(report["animation"], index=None)) == 8
    assert "page" not in report
    page = tmp_path / "page.html"
    assert main(["halt", carphone, "--stride", "8", "--out", str(tmp_path), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert f"AUC {report['auc_of_change']:.2f}" in printed
    assert printed.splitlines()[-1].split() == ["page:", str(page)]
    assert page.stat().st_size < 1e6
    clips = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])["clips"]
    assert len(clips) == 4
    # of the tokens with a patch, as many enter a layer as the report says
    entered = [sum(len(h) > layer for clip in clips for h in clip["scores"][1:]) for layer in range(4)]
    of_kinds = report["patches_changing"], report["patches"] - report["patches_changing"]
    shares = zip(report["alive_changing_per_layer"], report["alive_unchanging_per_layer"], strict=True)
    assert entered == [round(sum(np.multiply(of_kinds, of_layer))) for of_layer in shares]


def test_halt_with_the_handmade_weights_prints_json(tmp_path, capsys, carphone):
    command = ["halt", carphone, "--stride", "8", "--weights", "handmade", "--out", str(tmp_path), "--json"]
    page = tmp_path / "page.html"
    assert main([*command, "--html", str(page)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["page"] == str(page)
    assert page.stat().st_size < 3e6
    (clip,) = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])["clips"]
    assert clip["tokens_per_layer"] == report["tokens_per_layer"]
    assert clip["gflops_so_far"][-1] == report["gflops"]
    assert np.mean(clip["ponder"]) == pytest.approx(report["mean_ponder"], rel=1e-6)
    assert report["tokens_per_layer"][0] == 473
    assert report["tokens_per_layer"] == sorted(report["tokens_per_layer"], reverse=True)
    assert report["gflops"] < report["gflops_without_halting"]
    assert report["weights"] == "handmade"
    assert "classes" not in report
    assert len(report["frames"]) == 8
    assert sum(report["gflops_per_layer"]) < sum(report["gflops_per_layer_without_halting"])


def test_halt_with_weights_names_classes(tmp_path, capsys, carphone):
    import refvt

    model = refvt.HaltingVT(refvt.HaltingVTConfig(), seed=1)
    model.save(tmp_path / "model.safetensors")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"action {i}" for i in range(200)), encoding="utf-8")
    command = ["halt", carphone, "--stride", "8", "--out", str(tmp_path), "--json"]
    command += ["--weights", str(tmp_path / "model.safetensors")]
    assert main([*command, "--labels", str(labels)]) == 0
    report = json.loads(capsys.readouterr().out)
    clip, _ = refvt.data.read_clip(carphone, 8, 8)
    logits = model(clip[None]).logits[0]
    assert report["classes"][0]["class"] == f"action {logits.argmax()}"
    assert len(report["classes"]) == 5
    labels.write_text("one\ntwo\n", encoding="utf-8")
    assert main([*command, "--labels", str(labels)]) == 2
    assert "expected 200 class names, one per line, got 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["halt", "missing.mp4"], "missing.mp4"),
        (["halt", "{text}"], "note.txt"),
        (["halt", "{carphone}", "--stride", "32"], "8 frames 32 apart need 225 frames"),
        (["halt", "{carphone}", "--labels", "{text}"], "--labels: expected with a checkpoint only"),
        (["halt", "{carphone}", "--weights", "photos"], "photos"),
        (["golden", "verify", "--golden", "{folder}"], "manifest.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, carphone, arguments, message):
    (tmp_path / "note.txt").write_text("not a video", encoding="utf-8")
    places = {"text": tmp_path / "note.txt", "carphone": carphone, "folder": tmp_path}
    out = tmp_path / "out"
    arguments = [a.format(**places) for a in arguments] + (["--out", str(out)] if arguments[0] == "halt" else [])
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("refvt: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not out.exists()  # nothing was half-written


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["halt"], ["golden"], ["halt", "x.mp4", "--preset", "huge"]])
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: refvt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS), ["golden", "verify"], ["experiment", "table1"]]
)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: refvt" in capsys.readouterr().out


def test_golden_verify_reports_and_its_exit_code_says_so(tmp_path, capsys):
    assert main(["golden", "verify", "--tiny", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert all(row["holds"] and 0 <= row["share_of_budget"] <= 1 for row in table)
    assert len(table) > 20
    copy = tmp_path / "golden"
    shutil.copytree(golden_directory(), copy)
    (copy / "tiny-op-gelu-basic.npz").write_bytes(b"nothing")
    assert main(["golden", "verify", "--tiny", "--golden", str(copy)]) == 1
    assert "FAILED tiny-op-gelu-basic: " in capsys.readouterr().out


def test_info_as_text_and_json(capsys):
    assert main(["info"]) == 0
    assert "default_backend" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["golden_cases"] > 100


def test_importing_refvt_loads_no_optional_package():
    optional = {"torch", "av", "matplotlib", "hypothesis", "skvideo", "sklearn", "tqdm", "numba"}
    code = f"import sys, refvt, refvt.cli; print(sorted(set(sys.modules) & {optional}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_python_dash_m_is_the_command():
    found = subprocess.run([sys.executable, "-m", "refvt", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("refvt ")
