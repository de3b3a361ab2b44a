"""``refvt bench``: what it prints and writes, and what it refuses. Nothing here looks at how long anything took."""

import argparse
import json
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from threadpoolctl import threadpool_info

import refvt
from refvt import backends
from refvt.backends.jit import workspace
from refvt.bench import forward, memory, torch_model
from refvt.bench.contestants import EAGER, SDPA, RefvtModel, Workload
from refvt.bench.forward import Sizes
from refvt.bench.training_step import RefvtStep, TrainingWorkload
from refvt.cli import bench

TINY = refvt.HaltingVTConfig(
    image_size=(96, 96), num_frames=2, width=32, num_heads=2, depth=6, keep_rates=(1.0, 0.5), num_classes=5
)
WORKLOADS = {
    "dense": Workload("nothing pruned", refvt.HaltingVTConfig(**{**TINY.as_dict(), "keep_rates": (1.0, 1.0)})),
    "halting": Workload("some halt", TINY, gflops=0.0060, dense=True),
}
SIZES = Sizes(gemm=64, copy=4096, growth=3, pause=0.0)
NO_TORCH = ("--backend", "reference", "--no-torch")


def run(*arguments, workloads=WORKLOADS):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return bench.run(parser.parse_args(arguments), _workloads=workloads, _sizes=SIZES)


@pytest.fixture
def without_memory(monkeypatch):
    """Measuring memory starts a process for each number."""
    monkeypatch.setattr(memory, "_measure", lambda request, observe: 12.0)


def test_json_markdown_and_table(tmp_path, capsys, without_memory):
    backends.get("reference")  # loads its BLAS, whose threads are looked at
    json_file, page = tmp_path / "bench.json", tmp_path / "bench.md"
    threads = [library["num_threads"] for library in threadpool_info()], workspace.num_threads()
    arguments = ("--repeats", "3", "--threads", "1", "--json", str(json_file), "--markdown", str(page))
    assert run(*NO_TORCH, *arguments) == 0
    assert ([library["num_threads"] for library in threadpool_info()], workspace.num_threads()) == threads
    assert sorted(tmp_path.iterdir()) == [json_file, page]  # nothing half-written is left
    written = json.loads(json_file.read_text(encoding="utf-8"))
    assert [(r["workload"], r["pass"]) for r in written["results"]] == [
        ("dense", "forward"),
        ("dense", "train"),
        ("halting", "forward"),
        ("halting", "train"),
    ]
    assert written["environment"]["threads"] == 1
    assert written["environment"]["cpu"]
    for result in written["results"]:
        assert result["agreement"]["holds"]
        assert result["rows"][0]["name"] == "refvt reference compact"
        assert all(len(row["samples"]) == 3 for row in [*result["rows"], *result["ceilings"]])
        assert all(row["extra_memory_mb"] == 12.0 for row in result["rows"])
    dense, halting = written["results"][0], written["results"][2]
    assert [row["execution"] for row in dense["rows"]] == ["compact"]
    assert [row["execution"] for row in halting["rows"]] == ["compact", "dense"]
    assert dense["tokens_per_layer"] == [[73] * 4]
    assert halting["gflops"] == pytest.approx([0.0060], rel=0.03)
    assert halting["rows"][0]["multiply_adds"] < halting["rows"][1]["multiply_adds"]

    printed = capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    for words in ("halting, training step, 1 clip", "refvt reference dense", "PyTorch left out: --no-torch was given"):
        assert words in printed
        assert words in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {7}  # six columns: no other program took part
    assert len(tables) == 4 * 2 + 6


def test_dash_prints_nothing_but_what_was_asked_for(capsys):
    arguments = (*NO_TORCH, "--quick", "--workload", "dense", "--repeats", "1")
    assert run(*arguments, "--json", "-") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["pass"] == "forward"
    assert result["rows"][0]["extra_memory_mb"] is None  # quick
    assert run(*arguments, "--markdown", "-") == 0
    assert capsys.readouterr().out.startswith("# refvt bench\n")


def test_four_clips_halt_unequally_and_are_set_beside_the_same_alone(capsys):
    assert run(*NO_TORCH, "--quick", "--workload", "halting", "--clips", "4", "--repeats", "1", "--json", "-") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert len({tuple(counts) for counts in result["tokens_per_layer"]}) == 4
    batch, alone = result["rows"][:2]
    assert alone["singly"]
    assert batch["multiply_adds"] == alone["multiply_adds"]
    assert batch["of_one_by_one"] == batch["median"] / alone["median"]


@pytest.mark.parametrize("fault", ["logits", "gradients", "nan"])
def test_no_ratio_where_answers_differ(monkeypatch, capsys, without_memory, fault):
    name = "logits" if fault == "nan" else fault
    right = getattr(RefvtModel, name)

    def wrong(self, *arguments):
        answer = right(self, *arguments)
        if self._execution == "dense":
            if fault == "gradients":
                return {key: value * 1.01 for key, value in answer.items()}
            answer = answer * (1.01 if fault == "logits" else np.nan)
        return answer

    monkeypatch.setattr(RefvtModel, name, wrong)
    given = ("--workload", "halting", "--clips", "4", "--repeats", "1", "--pass", "train")
    assert run(*NO_TORCH, *given) == 1
    printed = capsys.readouterr().out
    assert "NO AGREEMENT, hence no ratios" in printed
    assert "of the time of its clips alone" not in printed


def test_decisions_that_differ_too_often_are_no_agreement(monkeypatch, capsys):
    right = RefvtModel.decisions

    def wrong(self, result):
        decisions = right(self, result)
        if self._execution == "dense":
            decisions.halting_layer[:, 1:5] += 1
        return decisions

    monkeypatch.setattr(RefvtModel, "decisions", wrong)
    assert run(*NO_TORCH, "--quick", "--workload", "halting", "--repeats", "1") == 1
    assert "4 of 72 patches differ in decisions" in capsys.readouterr().out


@pytest.mark.parametrize("absent", ["torch", "checkout"])
def test_without_pytorch_it_says_so_and_goes_on(monkeypatch, capsys, tmp_path, absent):
    if absent == "torch":
        monkeypatch.setattr(torch_model, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(torch_model, "find_spec", lambda name: object())
        monkeypatch.setattr(torch_model, "CHECKOUT", tmp_path)
    assert run("--backend", "reference", "--quick", "--workload", "dense", "--repeats", "1") == 0
    printed = capsys.readouterr()
    reason = {"torch": "PyTorch is not installed", "checkout": "the PyTorch model is part of a checkout"}[absent]
    assert f"PyTorch left out: {reason}" in printed.out
    assert f"warning: PyTorch left out: {reason}" in printed.err
    assert "torch eager" not in printed.out


def test_bench_does_not_import_torch():
    if "torch" in sys.modules:
        pytest.skip("another test has imported it")
    assert run(*NO_TORCH, "--quick", "--workload", "dense", "--repeats", "1") == 0
    assert "torch" not in sys.modules


def test_a_borrowed_kernel_choice_is_pointed_out(monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert run(*NO_TORCH, "--quick", "--workload", "dense", "--repeats", "1") == 0
    assert "Warning: OPENBLAS_CORETYPE=Haswell is set: these are not the numbers" in capsys.readouterr().out


def test_growth_is_plotted_and_its_numbers_kept(tmp_path, capsys):
    picture = tmp_path / "growth.png"
    given = ("--quick", "--workload", "dense", "--repeats", "1", "--json", "-", "--growth", str(picture))
    assert run(*NO_TORCH, *given) == 0
    growth = json.loads(capsys.readouterr().out)["growth"]
    assert [point["tokens"] for point in growth["points"]] == [4, 38, 73]
    work = [point["multiply_adds"] for point in growth["points"]]
    assert work == sorted(set(work))
    assert set(growth["fit"]) == {"intercept_ms", "ms_per_gflop", "r2"}
    assert iio.imread(picture).shape[0] > 300
    assert list(tmp_path.iterdir()) == [picture]


def test_memory_is_measured_in_a_process_of_its_own(capsys):
    assert run(*NO_TORCH, "--workload", "dense", "--repeats", "1", "--pass", "forward", "--json", "-") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert 0 <= result["rows"][0]["extra_memory_mb"] < 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "paper10"], "--workload: expected some of dense, r07, r03, paper24, paper9, got 'paper10'"),
        (["--backend", "abacus"], "--backend: expected some of .*reference.*, got 'abacus'"),
        (["--backend", "cuda", "jit", "--training-step"], "--backend: cuda is timed alone"),
        (["--repeats", "0"], "--repeats: expected at least 1, got 0"),
        (["--threads", "-1"], "--threads: expected at least 1, got -1"),
        (["--json", "-", "--markdown", "-"], "only one of them can be printed"),
        (["--json", "nowhere/bench.json"], "--json: no such folder: nowhere"),
        (["--growth", "growth.pdf"], r"--growth: expected a name that ends in .png, got 'growth.pdf'"),
    ],
)
def test_wrong_requests_are_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments, workloads=forward.WORKLOADS)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pytorch_takes_part_and_agrees(capsys, without_memory, dtype):
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    given = ("--repeats", "1", "--threads", "1", "--clips", "4", "--dtype", dtype, "--json", "-")
    assert run("--backend", "reference", *given) == 0
    assert torch.get_num_threads() == threads
    for result in json.loads(capsys.readouterr().out)["results"]:
        assert result["agreement"]["with"] == EAGER
        assert {row["name"] for row in result["rows"]} >= {"refvt reference compact", EAGER, SDPA}
        ours = result["rows"][0]
        assert ours["of_eager"] > 0
        assert ours["of_sdpa"] > 0


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_pytorch_that_says_something_else_gets_no_ratio(monkeypatch, capsys):
    pytest.importorskip("torch")
    right = torch_model.TorchModel.logits
    monkeypatch.setattr(torch_model.TorchModel, "logits", lambda self, result: right(self, result) + 0.01)
    assert run("--backend", "reference", "--quick", "--workload", "dense", "--repeats", "1") == 1
    assert "NO AGREEMENT, hence no ratios" in capsys.readouterr().out


# ---- --training-step

STEP = refvt.HaltingVTConfig(
    image_size=(32, 32), num_frames=2, width=32, num_heads=2, depth=5, keep_rates=(1.0, 0.5), num_classes=5
)


def run_step(*arguments):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    options = parser.parse_args(["--training-step", "--repeats", "2", *arguments])
    return bench.run_training_step(options, _workloads={"tiny": TrainingWorkload("fresh weights", STEP, 2)})


def test_training_step_backends_agree_and_the_report_can_be_read(capsys, tmp_path):
    file, page = tmp_path / "report.json", tmp_path / "report.md"
    where = ["--json", str(file), "--markdown", str(page)]
    assert run_step("--backend", "reference", "jit", "--no-torch", *where) == 0
    printed = capsys.readouterr().out
    assert f"```\n{printed}```" in page.read_text(encoding="utf-8")
    assert "tiny: fresh weights, 4 clips with their twins" in printed
    assert "refvt reference" in printed
    (result,) = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert result["agreement"]["holds"]
    assert [len(row["samples"]) for row in result["rows"]] == [2, 2]
    assert all(row["of_eager"] is None for row in result["rows"])


def test_training_steps_that_disagree_get_no_ratio(capsys, monkeypatch):
    right = RefvtStep.__call__

    def wrong(self):
        right(self)
        self.losses[-1] *= 1.001 if self._model.backend == "jit" else 1

    monkeypatch.setattr(RefvtStep, "__call__", wrong)
    assert run_step("--backend", "reference", "jit", "--no-torch") == 1
    assert ": NO" in capsys.readouterr().out


@pytest.mark.torch
def test_pytorch_takes_the_same_training_steps(capsys):
    pytest.importorskip("torch")
    assert run_step("--dtype", "float64", "--json", "-") == 0
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
def test_training_steps_that_cannot_be_timed(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_step(*arguments)
