"""The pool of threads: every tile once, the caller's BLAS settings back, the same bits for any number of threads."""

import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from refvt.backends import pool
from tests.model.helpers import small_batch, small_clips, small_model


@pytest.fixture
def threads():
    before = pool.num_threads()
    yield pool.set_num_threads
    pool.set_num_threads(before)


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_tile_is_done_once(threads, number):
    threads(number)
    done = np.zeros(100, dtype=int)

    def task(i):
        done[i] += 1

    pool.run(task, 100)
    assert (done == 1).all()
    pool.run(task, 0)
    assert (done == 1).all()


def test_tiles_run_on_several_threads(threads):
    threads(3)
    seen = set()

    def task(i):
        seen.add(threading.current_thread().name)
        time.sleep(0.02)

    pool.run(task, 6)
    assert len(seen) == 3


def test_an_error_in_a_tile_reaches_the_caller_and_the_pool_survives(threads):
    threads(2)

    def task(i):
        if i == 3:
            raise ValueError("tile 3 is broken")
        time.sleep(0.001)

    with pytest.raises(ValueError, match="tile 3 is broken"):
        pool.run(task, 8)
    done = []
    pool.run(done.append, 8)
    assert sorted(done) == list(range(8))


def test_blas_has_one_thread_inside_and_the_callers_setting_after(threads):
    threads(2)
    inside = []
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        pool.run(lambda i: inside.append(blas_threads()), 2)
        with pool.session(), pool.session():
            inside.append(blas_threads())
        assert blas_threads() == before
    assert all(number == 1 for found in inside for number in found)
    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(ValueError, match="tile"):
            pool.run(lambda i: (_ for _ in ()).throw(ValueError("tile")), 2)
        assert blas_threads() == before


def test_two_callers_at_once(threads):
    """Two threads of the user's, each with a model of its own, do not disturb each other."""
    threads(2)
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


def test_results_do_not_depend_on_threads_or_runs(threads):
    model = small_model(push=0.3, backend="jit", dtype="float32", width=208, num_heads=2)
    batch = small_batch(model.config, 3)
    results = []
    for number in (1, 2, 3, 2):
        threads(number)
        loss, gradients = model.loss_and_gradients(*batch, ponder_weight=0.3)
        results.append({"logits": loss.output.logits, "ponder": loss.output.ponder, **gradients})
    for other in results[1:]:
        assert all(np.array_equal(other[name], results[0][name]) for name in results[0])


def test_tiles_cover_everything_in_order():
    for rows in (0, 1, 191, 192, 193, 1569):
        parts = pool.tiles(rows, 192)
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(rows))
        assert all(0 < part.stop - part.start <= 192 for part in parts)


def test_workspace_is_used_again_and_belongs_to_its_thread():
    first = pool.workspace("test", (4, 5), np.float32)
    assert pool.workspace("test", (2, 3), np.float64).base is not None
    assert np.may_share_memory(first, pool.workspace("test", (5, 4), np.float32))
    other = []
    thread = threading.Thread(target=lambda: other.append(pool.workspace("test", (4, 5), np.float32)))
    thread.start()
    thread.join()
    assert not np.may_share_memory(first, other[0])


def test_number_of_threads_must_be_positive(threads):
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        threads(0)
