"""``refvt check`` as a person calls it: exit codes, what is printed, what is written."""

import io
import json
import os
import subprocess
import sys

import pytest

from refvt.cli import main
from refvt.cli.check_table import Printer
from refvt.conformance.report import CaseReport, Report

PORT = """
import numpy as np


def halt_tokens(states, scale, center, epsilon):
    scores = 1 / (1 + np.exp(center - scale * states[..., 0]))
    scores[-1] = 1
    before = np.cumsum(scores, axis=0) - scores
    halted = before + scores > 1 - epsilon
    layer = halted.argmax(axis=0)
    tokens = np.arange(states.shape[1])
    weights = np.where(np.arange(len(scores))[:, None] < layer, scores, 0)
    weights[layer, tokens] = 1 - before[layer, tokens]
    return (weights[..., None] * states).sum(0), layer + OFFSET + weights[layer, tokens], layer + 1
"""


@pytest.fixture
def port(tmp_path, monkeypatch):
    """Writes a port of halt_tokens into the current folder, right (1) or with another first layer."""
    monkeypatch.chdir(tmp_path)

    def write(name, offset):
        (tmp_path / f"{name}.py").write_text(PORT.replace("OFFSET", str(offset)), encoding="utf-8")
        return f"{name}:halt_tokens"

    return write


def test_a_module_of_the_current_folder_agrees(port, capsys):
    assert main(["check", port("right_port", 1), "--cases", "*halt_tokens*"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("agrees ") >= 7
    assert "3 of   4" in printed


def test_a_difference_is_explained_and_written_as_json(port, tmp_path, capsys):
    file = tmp_path / "report.json"
    assert main(["check", port("wrong_port", 0), "--cases", "tiny-op-halt_tokens-*", "--json", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "first difference ponder (forward)" in printed
    assert "last agreeing    y" in printed
    assert "ponder=N−1+r" in printed
    assert 'compare_tensor("tiny-op-halt_tokens-' in printed
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["exit_code"] == 1
    assert report["cases"][0]["first"]["tensor"] == "ponder"
    assert report["cases"][0]["tensors"][0]["status"] == "agrees"


def test_json_to_the_output_is_all_there_is_on_the_output(port, capsys):
    assert main(["check", port("other_port", 1), "--cases", "tiny-op-halt_tokens-*", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["agrees"]


def test_what_cannot_be_checked_is_one_sentence(port, capsys):
    assert main(["check", "right_port:nothing"]) == 2
    assert capsys.readouterr().err.startswith("refvt: candidate: ")
    (port("broken", 1), open("broken.py", "a").write("\n1 / 0\n"))  # noqa: SIM115
    assert main(["check", "broken:halt_tokens"]) == 2
    assert "ZeroDivisionError: division by zero (broken.py, line" in capsys.readouterr().err
    assert main(["check", port("again", 1), "--cases", "tiny-op-gelu-*"]) == 2
    assert "nothing could be compared" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "pipe"])
def test_the_law_that_runs_is_one_line_of_a_terminal_and_goes_away(stream):
    laws = ("law 1 of 2: gather, adjoint", "law 2 of 2: gather, linear")
    printer = Printer(stream)
    for text in laws:
        printer.law(text)
    shown = "".join(f"\r\x1b[K{text}" for text in laws) if stream.isatty() else ""
    assert stream.getvalue() == shown
    printer.summary(Report("mine", "float32"))
    assert stream.getvalue().startswith(shown + ("\r\x1b[K" if shown else "\n"))


def test_each_warning_is_printed_once():
    stream = io.StringIO()
    cases = [CaseReport(name, "model", "", "agrees", warnings=("names: odd",)) for name in "ab"]
    Printer(stream).summary(Report("mine", "float32", cases))
    assert stream.getvalue().count("warning: names: odd") == 1


def test_a_closed_pipe_ends_the_check_as_sigpipe_does():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "refvt", "check", "reference", "--cases", "tiny-op-gelu-basic"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert ended.returncode == 141
    assert ended.stderr == b""
