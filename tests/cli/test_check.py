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


OTHERS = """
import os
from os.path import join
from right_port import halt_tokens
from refvt.conformance import adapters


def of_a_case(case):
    return {}


def _private(case):
    return {}


def of_two(a, b):
    return a


made = (lambda: lambda case: {})()


class Mine:
    halt_tokens = staticmethod(halt_tokens)


table = {"halt_tokens": halt_tokens}
"""


def test_a_file_without_an_object_is_told_what_it_has(port, tmp_path, capsys):
    port("right_port", 1)
    (tmp_path / "others.py").write_text(OTHERS, encoding="utf-8")
    listed = {"right_port.py": "halt_tokens: write right_port.py:halt_tokens"}
    listed |= {name: f"Mine, table, of_a_case, made: write {name}:Mine" for name in ("others.py", "others")}
    for name, said in listed.items():
        assert main(["check", name]) == 2
        assert capsys.readouterr().err.endswith(
            f"file.py:object or an exchange folder, got '{name}', which has {said}\n"
        )
    assert main(["check", "others.py:Yours"]) == 2
    assert (
        "others.py has no 'Yours'; it has Mine, table, of_a_case, made: write others.py:Mine" in capsys.readouterr().err
    )
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    assert main(["check", "empty.py"]) == 2
    assert "got 'empty.py', which has nothing that can be checked" in capsys.readouterr().err


def test_a_function_that_is_no_operation_and_takes_no_case_is_refused_once(port, tmp_path, capsys):
    port("right_port", 1)
    renamed = PORT.replace("halt_tokens", "halting").replace("states, scale, center, epsilon", "x, gamma, beta, eps")
    (tmp_path / "renamed.py").write_text(renamed, encoding="utf-8")
    assert main(["check", "renamed.py:halting"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("refvt: candidate: renamed.py:halting: expected a function of one argument, the case")
    assert "halt_tokens" in printed.err


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
