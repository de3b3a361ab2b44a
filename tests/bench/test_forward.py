"""The bench: its arithmetic, what it writes, and what it refuses. Nothing here looks at how long anything took."""

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
from refvt.bench import agreement as bench_agreement
from refvt.bench import forward as bench
from refvt.bench import memory as bench_memory
from refvt.bench import report as bench_report
from refvt.bench import torch_model as bench_torch
from refvt.bench.contestants import EAGER, SDPA, Contestant, RefvtModel, Workload
from refvt.bench.forward import Sizes
from refvt.bench.timing import interleave, quartiles
from refvt.model.decisions import Decisions

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
    monkeypatch.setattr(bench_memory, "_ask_for_memory", lambda request: 12.0)


def test_everybody_runs_once_a_round_and_who_begins_goes_round():
    order = []
    samples = interleave({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_medians_quartiles_ratios_and_shares():
    assert quartiles([5, 1, 2, 4, 3]) == (2, 3, 4)
    contestants = [
        Contestant("ours", "reference", "compact"),
        Contestant("ours, one by one", "reference", "compact", singly=True),
        Contestant(EAGER, None),
        Contestant(SDPA, None, sdpa=True),
    ]
    seconds = ([3.0, 1.0, 2.0], [5.0, 5.0, 1.0], [4.0, 8.0, 2.0], [2.0, 2.0, 9.0])
    samples = {c.name: s for c, s in zip(contestants, seconds, strict=True)}
    work = {c.name: 10**9 for c in contestants}
    ours, alone, eager, sdpa = bench.rows(contestants, samples, work, peak=4.0, agree=True)
    assert (ours["lower_quartile"], ours["median"], ours["upper_quartile"]) == (1.5, 2.0, 2.5)
    assert (ours["of_eager"], ours["of_sdpa"], ours["of_one_by_one"]) == (0.5, 1.0, 0.4)
    assert (alone["of_eager"], alone["of_one_by_one"]) == (1.25, None)
    assert (eager["of_eager"], eager["of_sdpa"], sdpa["of_eager"]) == (None, 2.0, 0.5)
    assert (ours["gflop_per_second"], ours["share_of_peak"]) == (1.0, 0.25)
    for row in bench.rows(contestants, samples, work, peak=4.0, agree=False):
        assert row["of_eager"] is row["of_sdpa"] is row["of_one_by_one"] is None
        assert row["samples"] == samples[row["name"]]


def test_a_straight_line_is_found():
    line = bench.fit([1.0, 2.0, 4.0], [5.0, 8.0, 14.0])
    assert line == pytest.approx({"intercept_ms": 2.0, "ms_per_gflop": 3.0, "r2": 1.0})
    assert bench.fit([1.0, 2.0, 3.0], [1.0, 3.0, 1.0])["r2"] == pytest.approx(0)


def test_dense_execution_computes_every_token_in_every_layer():
    D, F, N, L = TINY.width, TINY.hidden_width, TINY.joint_tokens, TINY.joint_depth
    alive = np.ones((2, L, N), dtype=bool)
    compact = bench.multiply_adds(TINY, alive, compact=True, train=True, torch=False) // 3
    dense = bench.multiply_adds(TINY, alive, compact=False, train=False, torch=False)
    # all live: what compact execution saves is the patches' queries, projections and MLPs in the last block, and the
    # queries and projections of the patches that a Glimpser block drops, where CLS is asked twice
    last_block = (N - 1) * (2 * D * D + 2 * D * F + 2 * N * D)
    sizes, T = TINY.patches_entering(), TINY.num_frames
    selecting = [g for g, rate in enumerate(TINY.keep_rates) if rate < 1]
    assert selecting
    dropped = sum(T * (sizes[g] - sizes[g + 1]) * (2 * D * D + 2 * (1 + sizes[g]) * D) - T * D * D for g in selecting)
    assert dense - compact == 2 * (last_block + dropped)
    torch = bench.multiply_adds(TINY, alive, compact=False, train=False, torch=True)
    assert dense - torch == 2 * TINY.glimpser_depth * D * D
    assert bench.multiply_adds(TINY, alive, compact=False, train=True, torch=False) == 3 * dense
    # without a gradient two layers of a Glimpser block are one
    assert bench.multiply_adds(TINY, alive, compact=True, train=False, torch=False) < compact
    few = alive.copy()
    few[:, 1:, 1:] = False
    assert bench.multiply_adds(TINY, few, compact=False, train=False, torch=False) == dense
    assert bench.multiply_adds(TINY, few, compact=True, train=False, torch=False) < compact


def test_decisions_are_compared_by_patch_not_by_rank():
    config = refvt.HaltingVTConfig(image_size=(32, 32), num_frames=1, keep_rates=(1.0, 0.5))
    everything = np.arange(4)[None, None]
    one = Decisions((everything, np.array([[[3, 1]]])), np.array([[10, 4, 6]]))
    assert bench_agreement._decisions_apart(config, one, one) == 0
    turned = Decisions((everything, np.array([[[1, 3]]])), np.array([[10, 6, 4]]))
    assert bench_agreement._decisions_apart(config, one, turned) == 0
    later = Decisions((everything, np.array([[[1, 3]]])), np.array([[10, 6, 5]]))
    assert bench_agreement._decisions_apart(config, one, later) == 1
    left = Decisions((everything, np.array([[[3, 1]]])), np.array([[4, 4, 0]]))
    assert bench_agreement._decisions_apart(config, one, left) == 0  # nobody knows when patch 1 would have halted
    other = Decisions((everything, np.array([[[3, 0]]])), np.array([[10, 4, 6]]))
    assert bench_agreement._decisions_apart(config, one, other) == 2


def test_json_markdown_and_table(tmp_path, capsys, without_memory):
    backends.get("reference")  # loads its BLAS, whose threads are looked at
    json_file, page = tmp_path / "bench.json", tmp_path / "bench.md"
    threads = [library["num_threads"] for library in threadpool_info()], workspace.num_threads()
    arguments = ("--repeats", "3", "--threads", "1", "--json", str(json_file), "--markdown", str(page))
    assert run(*NO_TORCH, *arguments) == 0
    assert ([library["num_threads"] for library in threadpool_info()], workspace.num_threads()) == threads
    assert sorted(tmp_path.iterdir()) == [json_file, page]  # nothing half-written is left
    report = json.loads(json_file.read_text(encoding="utf-8"))
    assert [(r["workload"], r["pass"]) for r in report["results"]] == [
        ("dense", "forward"),
        ("dense", "train"),
        ("halting", "forward"),
        ("halting", "train"),
    ]
    assert report["environment"]["threads"] == 1
    assert report["environment"]["cpu"]
    for result in report["results"]:
        assert result["agreement"]["holds"]
        assert result["rows"][0]["name"] == "refvt reference compact"
        assert all(len(row["samples"]) == 3 for row in [*result["rows"], *result["ceilings"]])
        assert all(row["extra_memory_mb"] == 12.0 for row in result["rows"])
    dense, halting = report["results"][0], report["results"][2]
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
    assert {line.count("|") for line in tables} == {len(bench_report.HEADER) + 1}
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
    assert "4 of 72 patches decided otherwise" in capsys.readouterr().out


@pytest.mark.parametrize("absent", ["torch", "checkout"])
def test_without_pytorch_it_says_so_and_goes_on(monkeypatch, capsys, tmp_path, absent):
    if absent == "torch":
        monkeypatch.setattr(bench_torch, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(bench_torch, "find_spec", lambda name: object())
        monkeypatch.setattr(bench_torch, "CHECKOUT", tmp_path)
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
        (["--backend", "cuda", "jit", "--training-step"], "--backend: cuda is timed by itself"),
        (["--repeats", "0"], "--repeats: expected at least 1, got 0"),
        (["--threads", "-1"], "--threads: expected at least 1, got -1"),
        (["--json", "-", "--markdown", "-"], "only one of them can be printed"),
        (["--json", "nowhere/bench.json"], "--json: no such folder: nowhere"),
        (["--growth", "growth.pdf"], r"--growth: expected a name that ends in .png, got 'growth.pdf'"),
    ],
)
def test_wrong_requests_are_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments, workloads=bench.WORKLOADS)


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
    right = bench_torch.TorchModel.logits
    monkeypatch.setattr(bench_torch.TorchModel, "logits", lambda self, result: right(self, result) + 0.01)
    assert run("--backend", "reference", "--quick", "--workload", "dense", "--repeats", "1") == 1
    assert "NO AGREEMENT, hence no ratios" in capsys.readouterr().out
