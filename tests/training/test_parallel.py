"""Two processes under mpiexec: the same loss curve as one, the same messages, and an end for all when one ends."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from refvt.backends.jit.workspace import share_of
from refvt.training import parallel
from refvt.training.folder import CHECKPOINT, MODEL
from tests.support.sliding_bars import small_recipe
from tests.training.test_loop import lines, parameters, run, same

ROOT = Path(__file__).parents[2]
# the one that came with this Python, else the system's
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
MISSING = None
if find_spec("mpi4py") is None:
    MISSING = 'mpi4py is not installed: pip install "refvt[mpi]"'
elif MPIEXEC is None:
    MISSING = 'there is no mpiexec: pip install "refvt[mpi]", or an MPI of the system'


def mpi(test):
    """A test that starts several processes."""
    return pytest.mark.mpi(pytest.mark.skipif(MISSING is not None, reason=str(MISSING))(test))


# every child runs `body` on each rank; `go` trains there
CHILD = """
import os, signal, sys
from pathlib import Path
from refvt.cli.progress import TrainingBar
from refvt.training import TrainingError, train
from refvt.training.parallel import open_communicator
from tests.support.sliding_bars import SlidingBars, small_recipe

OUT = Path(sys.argv[1])

class Failing(SlidingBars):
    left, end = 1000, staticmethod(lambda: None)
    def clip(self, index, rng=None):
        self.left -= 1
        if self.left < 0:
            self.end()
        return super().clip(index, rng)

def say(*words):  # in one piece: mpiexec mixes what the ranks print
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def go(comm, recipe=small_recipe(epochs=3), data=SlidingBars(30), **options):
    named = {"observer": TrainingBar(visible=False), "backend": "reference", "log_every": 1, **options}
    return train(recipe, data, SlidingBars(15), OUT, communicator=comm, **named)

with open_communicator() as comm:
"""


def together(body, out, processes=2):
    """Run a body on every rank; returns exit code, stdout and stderr."""
    code = CHILD + "\n".join(f"    {line}" for line in body.strip().splitlines())
    command = [MPIEXEC, "-n", str(processes), sys.executable, "-c", code, str(out)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return found.returncode, found.stdout, found.stderr


def curve(out):
    """Everything a log says in numbers, evaluations included: [lines, numbers]."""
    return [
        np.hstack(
            [value for name, value in sorted(line.items()) if name not in ("event", "epoch") and value is not None]
        )
        for line in lines(out)
    ]


@mpi
def test_two_ranks_give_the_loss_curve_of_one(tmp_path):
    recipe = small_recipe(epochs=3)
    alone, two = tmp_path / "alone", tmp_path / "two"
    run(recipe, alone, dtype="float64")
    code, printed, errors = together('say(comm.rank, comm.size, go(comm, dtype="float64").clips)', two)
    assert code == 0, errors
    assert sorted(printed.splitlines()) == ["0 2 15", "1 2 15"]
    # float64: the same numbers added in another order, a dozen steps long
    for a, b in zip(curve(alone), curve(two), strict=True):
        assert np.allclose(a, b, rtol=1e-9, atol=0)
    assert [p.name for p in sorted(two.iterdir())] == [p.name for p in sorted(alone.iterdir())]


@mpi
def test_two_ranks_go_on_where_they_stopped(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert together("go(comm)", whole)[0] == 0
    body = """
data = Failing()
data.left, data.end = 40, lambda: os.kill(os.getpid(), signal.SIGKILL)
go(comm, data=data, checkpoint_every=1)
"""
    assert together(body, broken)[0] != 0
    assert (broken / CHECKPOINT).exists()
    assert not (broken / MODEL).exists()
    assert together("go(comm, resume=True)", broken)[0] == 0
    assert lines(broken) == lines(whole)
    assert same(parameters(broken), parameters(whole))


@mpi
@pytest.mark.parametrize("guilty", [0, 1])
def test_a_rank_that_fails_ends_the_run_with_one_message(tmp_path, guilty):
    body = f"""
data = Failing()
def end(): raise OSError("the film is torn")
if comm.rank == {guilty}: data.left, data.end = 20, end
go(comm, data=data, checkpoint_every=1)
"""
    code, _, errors = together(body, tmp_path)
    assert code != 0
    (line,) = [line for line in errors.splitlines() if line.startswith("refvt:")]
    assert line.startswith(f"refvt: rank {guilty} of 2: ")
    assert "the film is torn; resume from" in line
    assert "Traceback" not in errors
    run(small_recipe(epochs=3), tmp_path, resume=True)
    assert lines(tmp_path)[-1]["epoch"] == 3


@mpi
def test_a_rank_that_dies_ends_the_run(tmp_path):
    body = """
data = Failing()
if comm.rank == 1: data.left, data.end = 20, lambda: os.kill(os.getpid(), signal.SIGKILL)
go(comm, data=data, checkpoint_every=1)
"""
    code, printed, errors = together(body, tmp_path)  # a hang would run into the time limit
    assert code != 0
    assert "9" in printed + errors  # mpiexec names the signal
    run(small_recipe(epochs=3), tmp_path, resume=True)
    assert lines(tmp_path)[-1]["epoch"] == 3


@mpi
@pytest.mark.parametrize("guilty", ["comm.rank == 0", "comm.rank == 1", "True"])
def test_what_is_wrong_before_the_start_is_wrong_on_every_rank(tmp_path, guilty):
    body = f"""
try:
    go(comm, data=SlidingBars(0 if {guilty} else 30))
except TrainingError as error:
    say(comm.rank, error)
"""
    code, printed, _ = together(body, tmp_path / "out")
    assert code == 0
    message = "training set: expected at least one clip, got none"
    assert sorted(printed.splitlines()) == [f"0 {message}", f"1 {message}"]
    assert not (tmp_path / "out").exists()


@mpi
def test_the_command_under_mpiexec(tmp_path):
    """One message though both ranks found the fault; processors are shared out."""
    command = [MPIEXEC, "-n", "2", sys.executable, "-m", "refvt", "train"]
    arguments = ["--recipe", "digits", "--set", "epochs=zero", "--out", str(tmp_path / "out")]
    found = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines()[0] == "refvt: epochs: expected a whole number, got 'zero'"
    assert found.stderr.count("refvt: ") == 1
    code, printed, _ = together("from refvt.backends.jit import workspace; say(workspace.num_threads())", tmp_path)
    assert code == 0
    share = max(1, share_of(len(os.sched_getaffinity(0))) // 2)
    assert printed.split() == [os.environ.get("REFVT_NUM_THREADS") or str(share)] * 2


def test_more_ranks_than_shares_are_refused(tmp_path):
    class Crowd(parallel.SingleProcess):
        size = 3

    with pytest.raises(ValueError, match="expected at least one micro-batch for each of 3 processes, got 2"):
        run(small_recipe(), tmp_path, communicator=Crowd())


def test_mpiexec_without_mpi4py_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(parallel, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'training with mpiexec needs mpi4py: pip install "refvt\[mpi\]"'):
        parallel.open_communicator().__enter__()


def test_a_process_on_its_own_is_alone(monkeypatch):
    for name in parallel.SIZES:
        monkeypatch.delenv(name, raising=False)
    with parallel.open_communicator() as comm:
        assert (comm.rank, comm.size, comm.broadcast("x"), comm.first_error("y")) == (
            0,
            1,
            "x",
            "y",
        )
        vector = np.arange(3.0)
        comm.allreduce(vector)
        assert vector.tolist() == [0, 1, 2]
