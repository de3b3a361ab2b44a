"""Training, evaluation and experiments under kill -9: killed at random moments, resumed, and compared bit by bit.

Every attempt is a forked process, so that no time goes into imports. All run on the reference backend, which computes
every number in the same order each time.
"""

import gc
import os
import random
import signal
import time
import traceback

from refvt.training import evaluate, train
from refvt.training.loop import LOG, MODEL
from tests.experiments.test_runs import RUNS, grid
from tests.support.sliding_bars import SlidingBars, small_recipe

RECIPE = small_recipe(epochs=3)


class Clips(SlidingBars):
    """Clips whose name is the same in every process."""

    def __repr__(self):
        return f"SlidingBars({self.clips})"


def _train(folder):
    train(
        RECIPE, SlidingBars(30), SlidingBars(15), folder / "run", backend="reference", resume=True, checkpoint_every=1
    )


def _trained(folder):
    lines = (folder / "run" / LOG).read_text(encoding="utf-8").splitlines()
    return (folder / "run" / MODEL).read_bytes(), [line.rpartition('"seconds"')[0] for line in lines]


def _evaluate(folder):
    from refvt.model.haltingvt import HaltingVT

    model = HaltingVT(RECIPE.config, seed=1, backend="reference")
    evaluate(model, Clips(400), 4, out=folder / "records.jsonl", resume=(folder / "records.jsonl").exists())


def _evaluated(folder):
    return (folder / "records.jsonl").read_bytes()


def _experiment(folder):
    grid(folder).measure(RUNS)


def _experimented(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.glob("*/*/model.safetensors"))}


WORK = {
    "training": (_train, _trained),
    "evaluation": (_evaluate, _evaluated),
    "experiments": (_experiment, _experimented),
}


def _fork(work, folder):
    """Start the work in a forked process; returns its number."""
    child = os.fork()
    if child:
        return child
    gc.freeze()  # the parent's garbage is not collected here: frames of PyAV would wait for threads of the parent
    code = 1
    try:
        work(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_and_compare(name, kills, folder, seed=0):
    """Kill the work that many times in all, resuming it each time.

    Returns (kills, wholes: how often it came to its end, different: how often that end was not the unbroken one's).
    AssertionError if a resumed run fails by itself.
    """
    work, result = WORK[name]
    rng, done, wholes, different = random.Random(seed), 0, 0, 0
    (folder / "unbroken").mkdir(parents=True)
    start = time.perf_counter()
    assert os.waitpid(_fork(work, folder / "unbroken"), 0)[1] == 0
    length = time.perf_counter() - start
    right = result(folder / "unbroken")
    while done < kills:
        here = folder / f"killed{wholes}"
        here.mkdir()
        while True:
            child = _fork(work, here)
            if done < kills:
                time.sleep(rng.uniform(0, 0.6) * length)
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if status == signal.SIGKILL:
                done += 1
                continue
            assert status == 0, f"{name}: a resumed run failed after {done} kills"
            break
        wholes += 1
        different += result(here) != right
    return done, wholes, different
