"""Commands on machines as they are: pipes, full disks, odd terminals, names, settings and interrupts. In processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
REFVT = [sys.executable, "-m", "refvt"]


def start(*arguments, **changes):
    """Run a command; returns the finished process, stdout and stderr as bytes."""
    environment = {**os.environ, **{k: v for k, v in changes.items() if k.isupper()}}
    more = {k: v for k, v in changes.items() if not k.isupper()}
    return subprocess.run([*REFVT, *arguments], env=environment, **{"capture_output": True, **more})


def said_in_one_line(done, code=2):
    """The sentence on stderr, after checking that it is all there is."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert text.startswith("refvt: ")
    assert text.count("\n") == 1
    return text


@posix
def test_a_reader_that_closes_stdout_ends_the_command_quietly():
    read, write = os.pipe()
    os.close(read)
    done = start("flops", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["flops"], ["info", "--json"]])
def test_a_full_disk_under_stdout_is_one_sentence(command):
    with open("/dev/full", "wb") as full:
        done = start(*command, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert "the disk is full" in said_in_one_line(done)


@posix
def test_closed_streams_do_not_disturb_a_command(tmp_path):
    """A file that is opened must not become stderr: libraries write there."""
    code = "import os, sys\nos.close(2)\nfrom refvt.cli import main\nrc = main(['flops'])\n"
    code += "file = open(sys.argv[1], 'w')\nassert file.fileno() > 2, file.fileno()\nsys.exit(rc)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "file"], stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *REFVT, "flops"])
    assert closed.returncode == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_stdout_that_cannot_encode_gets_what_it_can(changes):
    done = start("flops", **changes)
    assert done.returncode == 0, done.stderr
    assert b"multiply-adds" in done.stdout


@pytest.mark.parametrize("columns", ["1", "40"])
def test_narrow_terminals(columns):
    done = start("halt", "--help", COLUMNS=columns)
    assert done.returncode == 0
    assert b"--stride" in done.stdout


@posix
def test_a_name_that_is_no_text_cannot_steer_the_terminal():
    done = start("halt", b"caf\xe9\x1b[31m\n.mp4")
    assert "caf\\udce9\\x1b[31m .mp4" in said_in_one_line(done)


def test_matplotlib_of_a_notebook_or_of_nobody(tmp_path):
    code = "import sys\nfrom refvt.cli import main\nmain(['flops'])\nimport numpy as np\nfrom refvt import plots\n"
    code += "plots.contact_sheet(np.zeros((1, 1, 4, 32, 32)), ['a'], 'b', sys.argv[1])"
    environment = {**os.environ, "MPLBACKEND": "no such backend"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], env=environment, check=True, capture_output=True)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("number", ["0", "-1", "two", "\u00b2", "1e3", "99999999999"])
def test_odd_numbers_of_threads_are_refused(number):
    code = "from refvt.backends.jit import workspace; workspace.num_threads()"
    environment = {**os.environ, "REFVT_NUM_THREADS": number, "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert f"REFVT_NUM_THREADS: expected a whole number from 1 to 1024, got {number!r}" in done.stderr


def test_without_numbas_compiler_the_reference_backend_is_the_default():
    done = start("info", "--json", NUMBA_DISABLE_JIT="1")
    found = json.loads(done.stdout)
    assert (found["default_backend"], found["backends"]) == ("reference", ["reference"])
    assert "NUMBA_DISABLE_JIT" in said_in_one_line(start("warmup", NUMBA_DISABLE_JIT="1"))


def test_a_setting_that_numba_refuses_is_named():
    assert "settings NUMBA_" in said_in_one_line(start("info", NUMBA_NUM_THREADS="0"))


@posix
@pytest.mark.parametrize("seconds", [0.15, 0.4, 0.8, 1.5])
def test_an_interrupt_at_any_moment_is_one_line(seconds):
    """Also during imports. Before refvt is reached the interpreter itself may end with the signal."""
    code = "import sys\nprint('begun', flush=True)\nfrom refvt.__main__ import main\n"
    code += "sys.argv[1:] = ['golden', 'verify']\nsys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs with &
    )
    assert process.stdout.readline() == b"begun\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate()
    assert process.returncode == 130, text
    assert text == b"refvt: interrupted\n"
