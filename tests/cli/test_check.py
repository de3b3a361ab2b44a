"""``refvt check`` as a person calls it: exit codes, what is printed, what is written."""

import io
import json
import os
import subprocess
import sys

import pytest

from refvt.cli import main
from refvt.cli.check_table import Printer
from refvt.conformance.report import CaseReport, Divergence, Report, TensorReport
from refvt.conformance.variants import VARIANTS

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
    assert '"ponder=N−1+r": ρ = N − 1 + r: layers are counted from 0.' in printed
    assert 'compare_tensor("tiny-op-halt_tokens-' in printed
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["exit_code"] == 1
    assert report["cases"][0]["first"]["tensor"] == "ponder"
    assert report["cases"][0]["operation"] == "halt_tokens"
    assert report["cases"][0]["variant"] == "ponder=N−1+r"
    assert list(report["cases"][0]["variant_means"]) == ["ponder=N−1+r"]
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


def different(name, variant=None, tensor="y", operation="halt_tokens"):
    first = Divergence(tensor, "forward", None, (0,), "token 0", 1.0, 2.0, 0.5, 1e-6, 5e5)
    tensors = [TensorReport(tensor, "forward", "differs", 0.5, 1e-6, 5e5)]
    case = CaseReport(name, "op", "describes", "differs", tensors=tensors, total=4, operation=operation, first=first)
    case.variant, case.reproduce = variant, f"program of {name}"
    return case


def summary(cases, stream=None):
    stream = stream or io.StringIO()
    Printer(stream).summary(Report("mine", "float32", cases))
    return stream.getvalue()


def test_cases_that_differ_alike_are_shown_once_the_smallest_at_length():
    alike = [different(name, "no remainder") for name in ("tiny", "b", "c")]
    others = [
        different("unexplained"),
        different("d", "no remainder", "ponder"),
        different("unexplained too"),
        different("e", operation="gelu"),
    ]
    printed = summary([*alike, *others])
    shown = ("tiny", "unexplained", "d", "e")
    assert [line for line in printed.splitlines() if line.endswith(": describes")] == [f"{n}: describes" for n in shown]
    assert [line.strip() for line in printed.splitlines() if "program of" in line] == [f"program of {n}" for n in shown]
    assert "   also             the same in 2 more cases\n   reproduce\n      program of tiny\n" in printed
    assert "   also             y differs first in 1 more case\n   reproduce\n      program of unexplained\n" in printed
    assert printed.count("also") == 2


def test_what_is_not_shown_is_counted():
    kinds = [different(f"{i} {j}", tensor=str(i)) for i in range(7) for j in range(2)]
    assert "\n4 more cases differ in other ways (--json, --html show them all)\n" in summary(kinds)
    assert "\n1 more case differs in other ways" in summary(kinds[::2][:6])
    assert "more case" not in summary(kinds[::2][:5])


def test_a_variant_is_named_in_quotes_and_explained():
    stream = io.StringIO()
    Printer(stream).case(different("tiny", "no remainder"))
    assert stream.getvalue().endswith('first: y (forward); agrees with variant "no remainder"\n')
    said = VARIANTS["no remainder"].differs
    assert f'\n   variant          "no remainder": {said}\n' in summary([different("tiny", "no remainder")])
    two = summary([different("tiny", "ponder=N or ponder=r; this case cannot tell them apart")])
    assert '\n   variant          "ponder=N" or "ponder=r"; this case cannot tell them apart\n' in two
    for name in ("ponder=N", "ponder=r"):
        assert f'\n                    "{name}": {VARIANTS[name].differs}\n' in two


def test_the_result_stands_above_what_is_longer_than_a_screen(monkeypatch):
    monkeypatch.setenv("LINES", "24")
    one, three = ([different(f"{i}", tensor=str(i)) for i in range(count)] for count in (1, 3))
    short, long = summary(one), summary(three)
    result = "mine differs: 3 cases, 3 differ; 3 of 12 tensors were compared"
    assert short.count("mine differs") == 1
    assert long.splitlines()[1] == long.splitlines()[-1] == result
    monkeypatch.setenv("LINES", "200")
    assert summary(three).count(result) == 1


def test_the_result_counts_in_english():
    def sentence(*statuses):
        cases = [CaseReport(str(i), "op", "", status, total=4) for i, status in enumerate(statuses)]
        return Report("mine", "float32", cases).sentence

    assert sentence("agrees", "error", "not given").endswith(
        "3 cases, 1 agrees, 1 not given, 1 error; in the cases that were given, 0 of 8 tensors were compared"
    )
    assert "6 cases, 2 agree, 2 differ, 2 errors; " in sentence(*(2 * ["agrees", "differs", "error"]))
    assert "1 case, 1 differs; " in sentence("differs")
    assert sentence().endswith("no case; nothing was compared")


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
