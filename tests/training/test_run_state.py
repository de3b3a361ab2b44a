"""Checkpoints: killed at any moment a run goes on to the same bits; a wrong or damaged one is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from refvt.files import write_whole
from refvt.model.checkpoints import CheckpointError
from refvt.model.checkpoints.checksum import CHECKSUM, checksum
from refvt.training.folder import CHECKPOINT, LOG
from refvt.training.run_state import KEY, read_progress
from tests.support.sliding_bars import small_recipe
from tests.training.test_loop import lines, parameters, run, same

ROOT = Path(__file__).parents[2]
RECIPE = small_recipe(epochs=3)

# a run that ends itself with SIGKILL when a function is called for the n-th time, before or after its work
CHILD = """
import importlib, os, signal, sys
from tests.training.test_run_state import RECIPE
from tests.training.test_loop import run

module, name, count, when, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
owner = importlib.import_module(module)
for part in name.split(".")[:-1]:
    owner = getattr(owner, part)
right, calls = getattr(owner, name.split(".")[-1]), 0

def wrong(*arguments, **named):
    global calls
    calls += 1
    if calls == count and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = right(*arguments, **named)
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name.split(".")[-1], wrong)
from pathlib import Path
run(RECIPE, Path(out), checkpoint_every=2)
"""


def start(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    run(RECIPE, folder, checkpoint_every=2)
    return folder


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize(
    ("module", "name", "count", "when"),
    [
        ("refvt.training.optimiser", "Adam.step", 1, "after"),  # before there is any checkpoint
        ("refvt.training.optimiser", "Adam.step", 7, "after"),  # between two checkpoints
        ("refvt.training.loop", "_Run._evaluate", 2, "after"),  # an epoch is over, its evaluation not yet written
        ("refvt.training.loop", "_Run._write", 5, "after"),  # an evaluation is written that no checkpoint knows
        ("refvt.files", "os.replace", 4, "before"),  # the new checkpoint has no name yet (1: the recipe)
        ("refvt.files", "os.replace", 4, "after"),
        ("refvt.files", "os.fsync", 5, "before"),
        ("refvt.model.haltingvt", "save_parameters", 1, "before"),  # all steps are done
    ],
)
def test_killed_at_any_moment_a_run_ends_as_an_unbroken_one(tmp_path, unbroken, module, name, count, when):
    child = start(CHILD, module, name, count, when, tmp_path)
    assert child.wait(60) == -signal.SIGKILL
    run(RECIPE, tmp_path, resume=True, checkpoint_every=2)
    assert lines(tmp_path) == lines(unbroken)
    assert same(parameters(tmp_path), parameters(unbroken))
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in unbroken.iterdir()}


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_again_and_again_from_outside(tmp_path, unbroken):
    code = (
        "import sys; from pathlib import Path; from tests.training.test_run_state import RECIPE;"
        "from tests.training.test_loop import run; run(RECIPE, Path(sys.argv[1]), resume=True, checkpoint_every=1)"
    )
    for length in (1, 4, 9):  # lines of the log
        child = start(code, tmp_path)
        log = tmp_path / LOG
        while child.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= length):
            time.sleep(0.001)
        child.kill()
        child.wait()
    run(RECIPE, tmp_path, resume=True)
    assert lines(tmp_path) == lines(unbroken)
    assert same(parameters(tmp_path), parameters(unbroken))


def test_the_log_is_on_the_disk_before_the_checkpoint_that_speaks_of_it(tmp_path, monkeypatch):
    synced, named = [], []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def recorded_replace(source, target):
        if Path(target).name == CHECKPOINT:
            named.append({(tmp_path / LOG).stat().st_ino, Path(source).stat().st_ino} <= set(synced))
            synced.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    run(small_recipe(epochs=2), tmp_path, checkpoint_every=2)
    assert named == [True] * 4


def signed(tensors, state):
    """The content of a checkpoint with another state or other tensors, its checksum made anew."""
    text = state if isinstance(state, str) else json.dumps(state)
    return safetensors.numpy.save(tensors, {KEY: text, CHECKSUM: checksum(tensors, text)})


def contents(file):
    """Tensors and state of a checkpoint."""
    whole = file.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    return safetensors.numpy.load(whole), json.loads(header["__metadata__"][KEY])


@pytest.fixture
def begun(tmp_path):
    """The folder of a run of one epoch, with a checkpoint."""
    run(small_recipe(epochs=1, warmup_epochs=0), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1.0}, "learning_rate: the checkpoint has 0.003, now 1.0"),
        ({"epochs": 2}, "epochs: the checkpoint has 1, now 2"),
        ({"config.depth": 5}, "config.depth: the checkpoint has 4, now 5"),
        ({"data_settings.noise": 3}, "data_settings.noise: the checkpoint has None, now 3"),
        ({"betas": [0.8, 0.9]}, r"betas: the checkpoint has \[0.9, 0.999\], now \[0.8, 0.9\]"),
    ],
)
def test_another_recipe_is_refused_by_field(begun, changes, message):
    before = {p.name: p.read_bytes() for p in begun.iterdir()}
    with pytest.raises(CheckpointError, match=f"the checkpoint of another recipe:\n  {message}"):
        run(small_recipe(epochs=1, warmup_epochs=0).changed(changes), begun, resume=True)
    assert {p.name: p.read_bytes() for p in begun.iterdir()} == before


def test_other_data_and_another_dtype_are_refused(begun):
    recipe = small_recipe(epochs=1, warmup_epochs=0)
    with pytest.raises(CheckpointError, match="clips of the training set: the checkpoint has 30, now 31"):
        run(recipe, begun, clips=31, resume=True)
    with pytest.raises(CheckpointError, match="dtype of the parameters: the checkpoint has float32, now float64"):
        run(recipe, begun, resume=True, dtype="float64")


def test_a_checkpoint_from_before_a_field_was_added_is_resumed(begun):
    recipe, file = small_recipe(epochs=1, warmup_epochs=0), begun / CHECKPOINT
    tensors, run_of = contents(file)
    for name in ("clip_epsilon", "lr_schedule", "twins_from", "divide_labels", "decay_embeddings"):
        del run_of["recipe"][name]
    file.write_bytes(signed(tensors, run_of))
    found = read_progress(file, recipe, 30, "float32")
    assert found.steps == run_of["progress"]["steps"]
    with pytest.raises(CheckpointError, match=r"another recipe:\n  clip_epsilon: the checkpoint has 0.0, now 1e-06$"):
        read_progress(file, recipe.changed({"clip_epsilon": 1e-6}), 30, "float32")


def test_a_damaged_checkpoint_or_log_is_refused(begun):
    recipe, file = small_recipe(epochs=1, warmup_epochs=0), begun / CHECKPOINT
    whole = file.read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="not the checkpoint of a training run, or damaged"):
            run(recipe, begun, resume=True)
    file.write_bytes(whole)
    tensors, state = contents(file)
    file.write_bytes(safetensors.numpy.save(tensors, {}))
    with pytest.raises(CheckpointError, match="not the checkpoint of a training run"):
        run(recipe, begun, resume=True)
    file.write_bytes(safetensors.numpy.save(tensors, {KEY: json.dumps({"format": 99})}))
    with pytest.raises(CheckpointError, match="expected format 2 of a training run, got 99"):
        run(recipe, begun, resume=True)
    file.write_bytes(signed({**tensors, "m/norm.bias": np.zeros(3, np.float32)}, state))
    with pytest.raises(CheckpointError, match=r"m/norm\.bias: expected float32 \[16\], got float32 \[3\]"):
        run(recipe, begun, resume=True)
    del tensors["v/norm.bias"]
    file.write_bytes(signed(tensors, state))
    with pytest.raises(CheckpointError, match=r"damaged .*v/norm\.bias"):
        run(recipe, begun, resume=True)
    file.write_bytes(whole)
    (begun / LOG).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"log\.jsonl: expected at least the \d+ bytes the checkpoint names"):
        run(recipe, begun, resume=True)


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_whole(file, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    monkeypatch.undo()
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 10**9, "steps: expected at most the 4 of the recipe, got 1000000000"),
        ("steps", -3, "progress.steps: expected a whole number of at least 0, got -3"),
        ("steps", 1.5, "progress.steps: expected a whole number of at least 0, got 1.5"),
        ("steps", True, "progress.steps: expected a whole number of at least 0, got True"),
        ("log_bytes", -5, "progress.log_bytes: expected a whole number of at least 0, got -5"),
        ("log_bytes", None, "progress.log_bytes: expected a whole number of at least 0, got None"),
        ("log_bytes", 10**12, "expected at least the 1000000000000 bytes"),
        ("log_sha256", "0" * 64, "expected the log that the checkpoint beside it knows"),
        ("seconds", "x", "progress.seconds: expected a number of at least 0, got 'x'"),
        ("seconds", -1, "progress.seconds: expected a number of at least 0, got -1"),
        ("seconds", 10**400, "progress.seconds: expected a number of at least 0, got 1000"),
        ("clips", [], r"progress.clips: expected a whole number of at least 1, got \[\]"),
        ("dtype", "float16", "progress.dtype: expected 'float32' or 'float64', got 'float16'"),
        ("more", 1, "progress: expected an object of steps, log_bytes"),
    ],
)
def test_a_value_out_of_its_range_is_refused_though_the_checksum_is_right(begun, field, value, message):
    recipe, file = small_recipe(epochs=1, warmup_epochs=0), begun / CHECKPOINT
    tensors, state = contents(file)
    state["progress"][field] = value
    file.write_bytes(signed(tensors, state))
    before = {p.name: p.read_bytes() for p in begun.iterdir()}
    with pytest.raises(CheckpointError, match=message) as caught:
        run(recipe, begun, resume=True)
    assert str(begun) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert {p.name: p.read_bytes() for p in begun.iterdir()} == before


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", "7", '{"format": NaN}', '{"format": 2, "format": 2}', "{", "x" * 10_000_000],
    ids=["nest", "list", "number", "nan", "twice", "cut", "long"],
)
def test_a_state_that_is_no_state_is_refused_in_one_short_line(begun, text):
    file = begun / CHECKPOINT
    file.write_bytes(signed(contents(file)[0], text))
    with pytest.raises(CheckpointError, match="not the checkpoint of a training run") as caught:
        run(small_recipe(epochs=1, warmup_epochs=0), begun, resume=True)
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value)) < 1000


def test_a_flipped_bit_anywhere_is_refused(begun):
    recipe, rng = small_recipe(epochs=1, warmup_epochs=0), np.random.default_rng(0)
    for name in (CHECKPOINT, LOG, "model.safetensors"):
        whole = (begun / name).read_bytes()
        for place in [*rng.integers(len(whole), size=12).tolist(), len(whole) - 2]:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            (begun / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                run(recipe, begun, resume=True)
        (begun / name).write_bytes(whole)
    run(recipe, begun, resume=True)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_moments_that_cannot_be_are_refused(begun, value):
    file = begun / CHECKPOINT
    tensors, state = contents(file)
    tensors["v/norm.bias"][3] = value
    file.write_bytes(signed(tensors, state))
    with pytest.raises(CheckpointError, match=r"v/norm\.bias: expected finite numbers of at least 0"):
        run(small_recipe(epochs=1, warmup_epochs=0), begun, resume=True)
