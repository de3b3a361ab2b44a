"""The lines under "reproduce" run as they stand, for every kind of candidate."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refvt.conformance.checking import check, select_cases
from refvt.conformance.exchange import export
from refvt.conformance.reproduce import snippet

ROOT = Path(__file__).parents[2]

PORT = """
import numpy as np
import refvt

def model(case):
    trace = refvt.HaltingVT(case.config, case.parameters, backend="reference", dtype="float32").trace(case.clips)
    return {"embed": 2 * trace["embed"]}

class Port:
    @staticmethod
    def gelu_forward(x):
        return np.maximum(x, 0), None
"""


def run(text, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, timeout=300)


def shown(case, folder, monkeypatch):
    """What the lines print: it must be the divergence of the report."""
    assert case.status == "differs"
    ran = run(case.reproduce, folder, monkeypatch)
    assert ran.returncode == 0, ran.stderr
    assert f"name='{case.first.tensor}'" in ran.stdout
    assert "status='differs'" in ran.stdout
    assert f"got={case.first.got!r}"[:10] in ran.stdout


@pytest.mark.parametrize(
    ("candidate", "cases"),
    [
        ("port_of_mine:model", "tiny-model-zero"),
        ("port_of_mine:Port", "tiny-op-gelu-basic"),
        ("port_of_mine.py:Port", "tiny-op-gelu-basic"),
    ],
)
def test_a_candidate_in_python(candidate, cases, tmp_path, monkeypatch):
    (tmp_path / "port_of_mine.py").write_text(PORT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (case,) = check(candidate, cases=cases, timeout=600).cases
    shown(case, tmp_path, monkeypatch)


def test_an_exchange_folder(tmp_path, monkeypatch):
    folder = tmp_path / "exchange"
    export(folder, select_cases("tiny-op-gelu-basic"))
    x = np.load(folder / "tiny-op-gelu-basic" / "given" / "x.npy")
    np.save(folder / "tiny-op-gelu-basic" / "results" / "y.npy", np.maximum(x, 0))
    for candidate in (str(folder), folder):
        (case,) = check(candidate).cases
        shown(case, tmp_path, monkeypatch)


def test_a_backend(tmp_path, monkeypatch):
    (case,) = check(lambda case: {"embed": np.zeros((9, 8), np.float32)}, cases="tiny-model-zero").cases
    from refvt.conformance import load_truth

    text = snippet(load_truth("tiny-model-zero"), case.first, "reference", "float32")
    ran = run(text, tmp_path, monkeypatch)
    assert ran.returncode == 0, ran.stderr
    assert "name='embed'" in ran.stdout
    assert "status='agrees'" in ran.stdout
