"""The sentence and the exit code of every kind of error."""

import errno

import pytest

from refvt.cli import main, outcome


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("width: expected 3,\ngot \x1b[31m4"), 2, "width: expected 3, got \\x1b[31m4"),
        (MemoryError(), 2, "this machine has too little memory for that"),
        (RecursionError("maximum recursion depth"), 2, "something is nested too deeply: maximum recursion depth"),
        (OverflowError("too large"), 2, "too large"),
        (OSError(errno.ENOSPC, "No space left on device", "out.png"), 2, "out.png: the disk is full, or its quota"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), 2, "[Errno 13] Permission denied: 'out'"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 2, "set TMPDIR to a folder"),
        (KeyError("x"), 2, "unexpected KeyError: 'x' (REFVT_TRACEBACK=1 shows where)"),
        (ValueError("x" * 10_000_000), 2, "x …"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, code, said):
    def fail(options):
        raise error

    monkeypatch.setattr("refvt.cli.flops.run", fail)
    assert main(["flops"]) == code
    text = capsys.readouterr().err
    assert text.startswith("refvt: ")
    assert said in text
    assert text.count("\n") == 1
    assert len(text) < outcome.LONGEST + 20


def test_a_traceback_is_shown_on_request(monkeypatch, capsys):
    monkeypatch.setenv("REFVT_TRACEBACK", "1")
    assert main(["halt", "missing.mp4"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_silent(monkeypatch, capsys):
    def fail(options):
        raise BrokenPipeError

    monkeypatch.setattr("refvt.cli.flops.run", fail)
    assert main(["flops"]) == outcome.CLOSED_PIPE
    assert capsys.readouterr().err == ""
