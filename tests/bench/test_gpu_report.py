"""The GPU report on a machine without a GPU: its parts are replaced, its form is tested."""

import json
from pathlib import Path

import pytest

from refvt import backends
from refvt.bench import gpu_report


@pytest.fixture
def pretended(monkeypatch):
    """A machine that claims to have a GPU; no part of the report uses it."""
    monkeypatch.setattr(backends, "get", lambda name: None)
    described = {
        "gpu": "Imagined 100",
        "compute_capability": "9.0",
        "multiprocessors": 132,
        "memory_bytes": 80 << 30,
        "driver": "13.0",
    }
    monkeypatch.setattr(gpu_report, "device_description", lambda: described)
    golden = {
        "holds": True,
        "cases": 3,
        "comparisons": 40,
        "largest_share_of_budget": 0.25,
        "largest_share_in": "op-linear-plain: y",
        "ambiguous": {},
        "failed": {},
    }
    monkeypatch.setattr(gpu_report, "_golden", lambda dtype: golden)
    laws = {"holds": True, "laws": 5, "examples_each": 2, "failed": {}}
    monkeypatch.setattr(gpu_report, "_laws", lambda examples: laws)
    timed = {"holds": True, "bench": {"results": []}, "markdown": "# refvt bench\n\n## dense\n\n| | ms |\n"}
    monkeypatch.setattr(gpu_report, "_bench", lambda workload, repeats: timed)
    monkeypatch.setattr(gpu_report, "_training_step", lambda repeats: timed)
    monkeypatch.setattr(gpu_report, "_graphs", lambda repeats: {"holds": True, "summary": "the same numbers"})
    monkeypatch.setattr(gpu_report, "_kernels", lambda repeats: {**timed, "markdown": "# dense, forward pass\n"})
    return golden, laws


def test_report_is_written_as_text_and_as_data(pretended, tmp_path):
    assert gpu_report.main(["--out", str(tmp_path / "report")]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.md"]
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert all(part["holds"] and part["seconds"] >= 0 for part in data["parts"].values())
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Imagined 100 (compute capability 9.0, 132 multiprocessors, 80 GiB)" in page
    assert "at most 25.0% of the error budget (op-linear-plain: y)" in page
    assert "### refvt bench" in page
    assert "### dense, forward pass" in page
    assert "#### dense" in page


def test_parts_can_be_asked_for(pretended, tmp_path, capsys):
    assert gpu_report.main(["--out", str(tmp_path / "report"), "--only", "laws", "golden64"]) == 0
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(data["parts"]) == ["golden cases, float64", "laws"]
    with pytest.raises(SystemExit):
        gpu_report.main(["--out", str(tmp_path / "report"), "--only", "lore"])
    assert "invalid choice: 'lore'" in capsys.readouterr().err


def test_a_part_that_fails_does_not_take_the_others_along(pretended, tmp_path, monkeypatch):
    def lost(examples):
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(gpu_report, "_laws", lost)
    assert gpu_report.main(["--out", str(tmp_path / "report")]) == 1
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## laws: DOES NOT HOLD" in page
    assert "RuntimeError: the device is lost" in page
    assert page.count(": holds") == 9


def test_what_failed_is_named(pretended, tmp_path):
    golden, _ = pretended
    golden.update(
        holds=False, failed={"op-gelu": "y: 3.00 of its budget"}, ambiguous={"model-zero": ["kept: 1 differs"]}
    )
    assert gpu_report.main(["--out", str(tmp_path / "report")]) == 1
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- failed: op-gelu: y: 3.00 of its budget" in page
    assert "- ambiguous: model-zero:" in page


@pytest.mark.parametrize(("code", "errors"), [(0, 0), (9, 2)])
def test_what_the_sanitizer_says(pretended, tmp_path, monkeypatch, code, errors):
    """A stand-in for the sanitizer with given output."""
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho =========   COMPUTE-SANITIZER\necho "$@" >> {tmp_path}/asked\n'
        f"echo ========= ERROR SUMMARY: {errors} errors\nexit {code}\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    assert gpu_report.main(["--out", str(tmp_path / "report")]) == (1 if errors else 0)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.count(f"ERROR SUMMARY: {errors} errors.") == 2
    assert page.count("- failed: output: COMPUTE-SANITIZER") == (2 if errors else 0)
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert [line.split()[1] for line in asked] == ["memcheck", "racecheck"]
    assert all("golden verify --tiny --backend cuda" in line for line in asked)


def test_a_sanitizer_that_does_not_end_is_ended(pretended, tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path}/child\nwait\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu_report, "SANITIZER_SECONDS", 0.5)
    assert gpu_report.main(["--out", str(tmp_path / "report")]) == 0
    assert "Left out: it did not finish within 0.5 s" in (tmp_path / "report.md").read_text(encoding="utf-8")
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_the_sanitizer_is_left_out_where_it_is_not_installed(pretended, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_report.main(["--out", str(tmp_path / "report")]) == 0
    assert "Left out: compute-sanitizer" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_without_a_gpu_one_sentence(tmp_path, monkeypatch, capsys):
    def missing(name):
        raise backends.Unavailable(f"backend {name!r}: no device")

    monkeypatch.setattr(backends, "get", missing)
    assert gpu_report.main(["--out", str(tmp_path / "report")]) == 2
    assert capsys.readouterr().err == "refvt: backend 'cuda': no device\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_said_before_anything_runs(pretended, tmp_path, capsys):
    assert gpu_report.main(["--out", str(tmp_path / "nowhere" / "report")]) == 2
    assert "--out: no such folder" in capsys.readouterr().err


def test_laws_are_counted_and_broken_ones_named(monkeypatch):
    """On the reference backend, with one operation broken."""
    from refvt.ops.linear import reference

    table = backends.get("reference")
    monkeypatch.setattr(backends, "get", lambda name: table)
    right = table["linear"]

    def wrong(dy, cache):
        dx, dweight, dbias, dresidual = reference.linear_backward(dy, cache)
        return 2 * dx, dweight, dbias, dresidual

    monkeypatch.setattr(table, "linear", type(right)(right.operation, right.forward, wrong))
    found = gpu_report._laws(2)
    assert not found["holds"]
    assert found["laws"] > 100
    assert set(found["failed"]) >= {"linear, adjoint, float64"}
    assert all(name.startswith("linear, ") for name in found["failed"])
