"""The exchange folder: what is written, what is judged, what is refused."""

import json

import numpy as np
import pytest

from refvt.cli import main
from refvt.conformance import check, load_case
from refvt.conformance.checking import select_cases
from refvt.conformance.exchange import export


@pytest.fixture
def folder(tmp_path):
    export(tmp_path / "exchange", select_cases("tiny-op-gelu-basic") + select_cases("tiny-model-zero"))
    return tmp_path / "exchange"


def gelu(folder, scale=1.0):
    """What a program in another language does: read, compute, write."""
    from scipy.special import erf

    case = folder / "tiny-op-gelu-basic"
    x = np.load(case / "given" / "x.npy")
    np.save(case / "results" / "y.npy", (scale * 0.5 * x * (1 + erf(x / np.sqrt(2)))).astype(x.dtype))
    return case


def test_laws_of_a_folder_are_refused(folder):
    with pytest.raises(ValueError, match="laws: expected a candidate that can be called, got an exchange folder"):
        check(folder, laws=True)


def test_the_folder_holds_everything_that_a_program_needs(folder):
    index = json.loads((folder / "exchange.json").read_text(encoding="utf-8"))
    assert index == {"format": 1, "dtype": "float32", "cases": ["tiny-op-gelu-basic", "tiny-model-zero"]}
    about = json.loads((folder / "tiny-model-zero" / "case.json").read_text(encoding="utf-8"))
    assert about["config"]["width"] == 8
    assert about["settings"] == {"ponder_weight": 0.3, "motion_weight": 0.7, "label_smoothing": 0.0}
    assert about["results"]["d(head.weight)"] == {"shape": [3, 8], "dtype": "float64"}
    case = load_case("tiny-model-zero")
    for name, value in {"clips": case.clips, "parameters/head.weight": case.parameters["head.weight"]}.items():
        stored = np.load(folder / "tiny-model-zero" / "given" / f"{name}.npy")
        assert np.array_equal(stored, value)
        assert about["given"][name] == {"shape": list(value.shape), "dtype": "float32"}
    cotangent = np.load(folder / "tiny-op-gelu-basic" / "given" / "cotangent" / "y.npy")
    assert cotangent.dtype == np.float32


def test_results_are_judged(folder, capsys):
    assert main(["check", str(folder)]) == 2
    assert "there are no results" in capsys.readouterr().err
    gelu(folder)
    assert main(["check", str(folder)]) == 0
    assert "1 agrees, 1 not given" in capsys.readouterr().out
    gelu(folder, 1.001)
    assert main(["check", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "first: y (forward)" in printed
    assert "the right tensor scaled by 1.001" in printed


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_a_result_that_cannot_be_read_is_an_error_of_its_case(folder, content):
    gelu(folder).joinpath("results", "d(x).npy").write_bytes(content)
    report = check(str(folder))
    assert [case.status for case in report.cases] == ["not given", "error"] or report.cases[0].status == "error"
    assert any("d(x).npy cannot be read" in case.sentence for case in report.cases)


def test_nothing_is_overwritten(folder):
    gelu(folder)
    with pytest.raises(ValueError, match="empty or not there yet"):
        export(folder, select_cases("tiny-op-gelu-basic"))
    assert (folder / "tiny-op-gelu-basic" / "results" / "y.npy").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["exchange"]  # and nothing half-written is left


def test_a_folder_that_is_no_exchange_folder_is_refused(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "expected an exchange folder" in capsys.readouterr().err


def test_float64_is_judged_as_float64(tmp_path):
    export(tmp_path / "exchange", select_cases("tiny-op-gelu-basic"), "float64")
    gelu(tmp_path / "exchange", 1 + 1e-9)
    assert check(str(tmp_path / "exchange")).exit_code == 1
    assert check(str(tmp_path / "exchange"), dtype="float32").exit_code == 0
