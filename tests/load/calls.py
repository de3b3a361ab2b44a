"""Many calls: of mixed shapes with flat memory, from threads, in other processes, of two backends at once."""

import gc
import multiprocessing
import os
import threading

import numpy as np

from refvt import HaltingVT, HaltingVTConfig

SIZES = [(1, 2), (2, 2), (3, 4), (1, 4), (5, 2)]  # clips, frames
FEWEST_CALLS = 3 * len(SIZES) + 1  # each size with and without a backward, before memory is measured


def make(frames=2, backend="jit"):
    """A small model whose halting differs from token to token."""
    config = HaltingVTConfig(
        image_size=(16, 16),
        patch_size=8,
        num_frames=frames,
        width=16,
        num_heads=2,
        glimpser_depth=1,
        depth=3,
        keep_rates=(0.5,),
        num_classes=5,
        halting_center=3.0,
    )
    return HaltingVT(config, seed=0, backend=backend)


def clips_of(number, frames):
    return np.random.default_rng(number).standard_normal((number, 3, frames, 16, 16)).astype(np.float32)


def resident():
    """Bytes of this process in memory; Linux alone."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mixed_calls(calls, backend="jit"):
    """Forward and backward in turn; returns by what share memory grows after the first tenth, and wrong answers."""
    models = {frames: make(frames, backend) for frames in (2, 4)}
    right, wrong, before = {}, 0, 0
    for i in range(calls):
        number, frames = SIZES[i % len(SIZES)]
        clips, model = clips_of(number, frames), models[frames]
        if i % 3 == 0:
            _, gradients = model.loss_and_gradients(clips, np.zeros(number, int), np.zeros(number, int))
            answer = gradients["head.weight"]
        else:
            answer = model(clips).logits
        key = (number, frames, i % 3 == 0)
        wrong += not np.array_equal(right.setdefault(key, answer), answer)
        if i == max(FEWEST_CALLS - 1, calls // 10):
            gc.collect()
            before = resident()
    gc.collect()
    return resident() / before - 1, wrong


def in_threads(threads, calls):
    """The same calls from many threads on one model and on two backends; returns the wrong answers and errors."""
    models = [make(backend="jit"), make(backend="reference")]
    clips = clips_of(2, 2)
    right = [model(clips).logits for model in models]
    problems = []

    def work(number):
        try:
            for i in range(calls):
                which = (number + i) % 2
                if not np.array_equal(models[which](clips).logits, right[which]):
                    problems.append(f"thread {number}, call {i}")
        except Exception as error:
            problems.append(repr(error))

    started = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(300)
        if thread.is_alive():
            problems.append("a thread hangs")
    return problems


def answer_of(backend):
    """The logits of the model, as bytes; called in other processes."""
    return make(backend=backend)(clips_of(2, 2)).logits.tobytes()


def in_processes(method, processes, backend="jit"):
    """The same call in that many processes, while this one has a pool of threads; returns the wrong answers."""
    right = answer_of(backend)
    with multiprocessing.get_context(method).Pool(min(processes, 4), gc.freeze) as pool:  # see kills.py
        found = pool.map_async(answer_of, [backend] * processes).get(600)
    return sum(answer != right for answer in found)
