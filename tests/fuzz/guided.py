"""The same fuzzing guided by coverage: atheris (libFuzzer) keeps files that reach new branches, and changes them.

Atheris counts the branches of modules imported under its hook, so nothing of refvt may be imported before.
"""

import os
import random


def fuzz_guided(name, folder, seed, seconds, reached, done):
    """Fuzz the reader of that name, then call ``done(tally)`` and end the process: libFuzzer never returns.

    reached: folder of files that reach new branches; libFuzzer begins with them and adds to them.
    """
    import atheris

    with atheris.instrument_imports(include=["refvt"]):
        from tests.fuzz.engine import Fuzzing
        from tests.fuzz.targets import corpus_of, prepare, targets

        prepare(folder)
        target = targets(video=name in ("container", "video"))[name]
        fuzzing = Fuzzing(target, folder)
        for data in (*target.seeds, *corpus_of(name)):  # imports, too, what the reader imports when it is called
            fuzzing.run(data)

    def one(data):
        fuzzing.run(data)
        if fuzzing.tally.seconds > seconds:
            done(fuzzing.tally)
            os._exit(0)

    def change(data, largest, number):
        rng = random.Random(number)
        chosen = data if data and rng.random() < 0.7 else rng.choice(target.seeds)
        return target.change(chosen, rng)[:largest]

    reached.mkdir(parents=True, exist_ok=True)
    arguments = ["-max_len=65536", "-timeout=100000", "-rss_limit_mb=0", "-detect_leaks=0", f"-seed={seed + 1}"]
    arguments.append(f"-artifact_prefix={folder}/")  # not in the current folder
    atheris.Setup(["fuzz", *arguments, str(reached)], one, custom_mutator=change)
    atheris.Fuzz()
