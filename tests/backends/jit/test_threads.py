"""The thread pool and its workspace: every tile is done once, with the same bits for any number of threads."""

import ctypes
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from refvt.backends.jit import matmul, workspace
from refvt.backends.jit.kernel import kernel
from refvt.backends.jit.threads import next_tile, run
from tests.support.models import small_batch, small_clips, small_model


@pytest.fixture
def set_threads():
    before = workspace.num_threads()
    yield workspace.set_num_threads
    workspace.set_num_threads(before)


@pytest.mark.parametrize(
    ("written", "processors"),
    [
        (["max 100000"], 8),
        (["250000 100000"], 3),
        (["10000 100000"], 1),
        (["1600000", "100000"], 8),
        (["200000\n", "100000\n"], 2),
        (["-1", "100000"], 8),
        (["", "100000"], 8),
    ],
)
def test_a_container_gets_threads_for_its_share_of_the_processors(monkeypatch, tmp_path, written, processors):
    files = [tmp_path / str(i) for i in range(len(written))]
    for file, text in zip(files, written, strict=True):
        file.write_text(text)
    monkeypatch.setattr(workspace, "CPU_SHARES", [("no such file",), files])
    assert workspace.share_of(8) == processors
    monkeypatch.delenv("REFVT_NUM_THREADS", raising=False)
    monkeypatch.setattr(workspace, "_threads", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    assert workspace.num_threads() == processors


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_process_bound_to_one_processor_uses_one_thread():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from refvt.backends.jit import workspace; print(workspace.num_threads())"
    environment = {key: value for key, value in os.environ.items() if key != "REFVT_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@kernel
def count_tiles(ticket, done):
    i = next_tile(ticket)
    while i >= 0:
        done[i] += 1
        i = next_tile(ticket)


def remember_thread(ticket, seen):
    """A kernel in Python: slow, so that every thread takes part."""
    while next_tile(ticket) >= 0:
        seen.add(threading.current_thread().name)
        time.sleep(0.03)


def fails_at_once(ticket):
    1 / (ticket.tiles - 4)


def fails_in_its_leader(ticket):
    next_tile(ticket)
    1 / (1 - min(ticket.number, 1))
    remember_thread(ticket, set())


def fails_in_workers(ticket):
    """A kernel that fails in every thread but its leader, whose number is not 0."""
    1 / ticket.number
    remember_thread(ticket, set())


@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_tile_is_done_once(set_threads, number):
    set_threads(number)
    done = np.zeros(1000, dtype=int)
    for round_ in range(1, 21):  # workers join some rounds early, some late, some not at all
        run(count_tiles, len(done), done)
        assert (done == round_).all()
    run(count_tiles, 0, done)
    assert (done == 20).all()


def test_tiles_run_on_several_threads(set_threads):
    set_threads(3)
    seen = set()
    run(remember_thread, 12, seen)
    assert len(seen) == 3


def test_an_error_in_a_kernel_reaches_the_caller_and_the_pool_survives(set_threads):
    set_threads(2)
    for number in (1, 2):
        set_threads(number)
        with pytest.raises(ZeroDivisionError):
            run(fails_at_once, 4)
        with pytest.raises(ZeroDivisionError):
            run(fails_in_its_leader, 20)
    done = np.zeros(100, dtype=int)
    run(count_tiles, len(done), done)
    assert (done == 1).all()


def test_an_error_in_a_worker_reaches_the_caller_too(set_threads):
    set_threads(2)
    with pytest.raises(ZeroDivisionError):
        run(fails_in_workers, 20)


def test_a_forked_child_has_a_pool_of_its_own(set_threads):
    set_threads(2)
    done = np.zeros(100, dtype=int)
    run(count_tiles, len(done), done)
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn about what is tested here
        child = os.fork()
    if child == 0:
        again = np.zeros(100, dtype=int)
        run(count_tiles, len(again), again)
        os._exit(0 if (again == 1).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_two_callers_at_once(set_threads):
    """Two threads of the caller, each with its own model, do not disturb each other."""
    set_threads(2)
    models = [small_model(seed=s, backend="jit") for s in (1, 2)]
    clips = [small_clips(model.config, 2, seed=s) for s, model in enumerate(models)]
    alone = [model(c).logits for model, c in zip(models, clips, strict=True)]
    found: dict[int, list] = {0: [], 1: []}

    def call(i):
        found[i] = [models[i](clips[i]).logits for _ in range(10)]

    callers = [threading.Thread(target=call, args=(i,)) for i in (0, 1)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for i in (0, 1):
        assert len(found[i]) == 10
        assert all(np.array_equal(logits, alone[i]) for logits in found[i])


def everything(model, batch):
    loss, gradients = model.loss_and_gradients(*batch, ponder_weight=0.3)
    return {"logits": loss.output.logits, "ponder": loss.output.ponder, **gradients}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_runs_are_the_same_to_the_bit(set_threads, number):
    set_threads(number)
    model = small_model(push=0.3, backend="jit", dtype="float32", width=208, num_heads=2)
    batch = small_batch(model.config, 3)
    first = everything(model, batch)
    for _ in range(3):
        again = everything(model, batch)
        assert all(np.array_equal(again[name], first[name]) for name in first)


def test_the_number_of_threads_changes_nothing(set_threads):
    """Tasks are cut for the number of threads; the numbers of a result do not depend on where it was cut."""
    model = small_model(push=0.3, backend="jit", dtype="float32", width=208, num_heads=2)
    batch = small_batch(model.config, 3)
    set_threads(1)
    alone = everything(model, batch)
    for number in (2, 3, 4):
        set_threads(number)
        for name, value in everything(model, batch).items():
            assert np.array_equal(value, alone[name]), name


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 1, 1), (0, 384, 7), (60, 384, 64), (473, 1152, 384), (1569, 384, 1536), (3000, 40, 9)],
)
def test_a_grid_covers_everything_once_and_gives_every_thread_work(set_threads, number, itemsize, rows, columns, depth):
    set_threads(number)
    for cut in (matmul.grid(rows, columns, depth, itemsize), matmul._weight_grid(rows, columns, itemsize)):
        covered = np.zeros((rows, columns), dtype=int)
        for i in range(cut.tasks):
            top, bottom, left, right = matmul.edges(i, cut, rows, columns)
            assert -(-(right - left) // cut.wide) * cut.wide * depth <= matmul.panel_size(cut, columns, depth)
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()
        if rows >= 400 and columns >= 8 * number * cut.wide:
            assert cut.tasks >= number


def test_workspace_is_used_again_and_belongs_to_its_thread():
    first = workspace.workspace("test", (4, 5), np.float32)
    assert workspace.workspace("test", (2, 3), np.float64).base is not None
    assert np.may_share_memory(first, workspace.workspace("test", (5, 4), np.float32))
    other = []
    thread = threading.Thread(target=lambda: other.append(workspace.workspace("test", (4, 5), np.float32)))
    thread.start()
    thread.join()
    assert not np.may_share_memory(first, other[0])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this system's memory is not handed out by glibc")
def test_what_was_freed_is_used_again():
    """In a process of its own, because glibc's settings cannot be undone."""
    code = """if True:
        import resource, sys
        import numpy as np
        from refvt.backends.jit import workspace

        def touch():
            results = [np.ones(500_000) for _ in range(30)]

        assert workspace.keep_freed_memory()
        touch()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        touch()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 * 500_000 * 8 / 4096 / 100  # of the pages that would be mapped again otherwise


def test_number_of_threads_must_be_positive(set_threads):
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        set_threads(0)


def test_fewer_threads_where_the_system_allows_no_more(monkeypatch, set_threads):
    """As with a container's limit on processes."""
    from refvt.backends.jit import threads as pool

    set_threads(4)
    fresh = pool._ThreadPool()

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pool, "_Worker", refuse)
    assert fresh.hire(3) == 0
    assert workspace.num_threads() == 1
