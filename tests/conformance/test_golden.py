"""Every golden case holds in every backend and dtype, and a damaged golden file is found."""

import json
import shutil

import numpy as np
import pytest

from refvt import backends
from refvt.conformance.golden import GoldenError, golden_directory, load_arrays, load_manifest
from refvt.conformance.verify import verify, verify_case
from refvt.model.haltingvt import HaltingVT
from refvt.ops import operations

CASES = load_manifest()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_case_holds(name, dtype, backend):
    result = verify_case(CASES[name], backend.name, dtype)
    assert not [(t.name, t.error, t.allowed) for t in result.tensors if t.status != "agrees"]
    assert result.holds
    assert not result.ambiguous
    assert result.compared == result.total
    if dtype == "float64":  # a fixed bound for users, in addition to the derived budget
        assert all(t.error <= 1e-9 for t in result.tensors)


# PyTorch has no compaction: its laws are plain loops. The optimiser is checked by the case training-adamw
NOT_IN_PYTORCH = {"compact", "mask_halted", "squared_norm", "adam_step"}


def test_every_operation_has_a_case_and_a_tiny_one():
    for tiny in (True, False):
        covered = {case.operation for case in CASES.values() if case.kind == "op" and case.tiny == tiny}
        assert covered == set(operations()) - NOT_IN_PYTORCH


def test_every_tensor_of_a_model_case_is_compared():
    case = CASES["model-zero"]
    compared = {t.name for t in verify_case(case).tensors}
    for key in case.tensors:
        kind, _, name = key.partition("/")
        if kind == "forward":
            assert name in compared
        if kind == "backward":
            assert f"d({name})" in compared
        if kind == "gradients":
            assert {f"dense: d({name})", f"compact: d({name})"} <= compared


@pytest.mark.parametrize("name", ["training-sgd", "training-adamw"])
def test_a_gradient_that_is_a_little_wrong_shows_after_twenty_steps(name, monkeypatch):
    right = HaltingVT.loss_and_gradients

    def wrong(self, *arguments, **named):
        loss, gradients = right(self, *arguments, **named)
        gradients["blocks.1.mlp.fc1.weight"] = gradients["blocks.1.mlp.fc1.weight"] * (1 + 1e-9)
        return loss, gradients

    monkeypatch.setattr(HaltingVT, "loss_and_gradients", wrong)
    broken = {t.name for t in verify_case(CASES[name]).tensors if t.status == "differs"}
    assert "final blocks.1.mlp.fc1.weight" in broken


def test_training_cases_decide_otherwise_at_the_end_and_learn():
    for name in ("training-sgd", "training-adamw"):
        arrays = load_arrays(CASES[name])
        assert len(arrays["losses"]) == 20
        assert arrays["losses"][-1] < 0.8 * arrays["losses"][0]
        layers = arrays["decisions/halting_layer"]
        assert (layers[0] != layers[-1]).any()


@pytest.fixture
def copied(tmp_path):
    """A writable copy of three golden cases."""
    names = ["tiny-op-linear-basic", "tiny-op-halt-basic", "tiny-model-zero"]
    manifest = json.loads((golden_directory() / "manifest.json").read_text(encoding="utf-8"))
    manifest["cases"] = {name: manifest["cases"][name] for name in names}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for name in names:
        shutil.copy(golden_directory() / f"{name}.npz", tmp_path)
    return tmp_path


def test_flipped_byte_is_found(copied):
    path = copied / "tiny-op-linear-basic.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    results = {r.name: r for r in verify(load_manifest(copied).values())}
    assert not results["tiny-op-linear-basic"].holds
    assert "damaged: expected SHA-256" in results["tiny-op-linear-basic"].sentence
    assert results["tiny-model-zero"].holds  # the other cases still run


def test_truncated_and_missing_files_are_found(copied):
    path = copied / "tiny-op-linear-basic.npz"
    path.write_bytes(path.read_bytes()[:100])
    (copied / "tiny-op-halt-basic.npz").unlink()
    problems = {r.name: r.sentence for r in verify(load_manifest(copied).values()) if r.status == "error"}
    assert "damaged" in problems["tiny-op-linear-basic"]
    assert "expected a golden file, got no file" in problems["tiny-op-halt-basic"]
    assert "tiny-model-zero" not in problems


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2, "cases": {}}', '{"format": 1, "cases": {"a": {}}}'])
def test_bad_manifest_is_one_clear_error(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(GoldenError, match="manifest"):
        load_manifest(tmp_path)


def test_tensor_that_the_manifest_does_not_describe_is_found(copied):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["cases"]["tiny-op-halt-basic"]["tensors"]["result/weight"]["shape"] = [99]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(GoldenError, match=r"result/weight: expected float64 \[99\]"):
        load_arrays(load_manifest(copied)["tiny-op-halt-basic"])


def test_wrong_decision_is_an_error_unless_its_margin_is_rounding(monkeypatch):
    """A model that keeps other patches must fail; its decisions are not ambiguous."""
    case = CASES["model-prune-one"]
    table = backends.get("reference")
    right = table["top_k"]

    def wrong(scores, k):
        return np.ascontiguousarray(right.forward(-scores, k))

    monkeypatch.setattr(table, "top_k", type(right)(right.operation, wrong, None))
    result = verify_case(case)
    assert not result.holds
    assert any("decisions.kept" in t.name for t in result.tensors if t.status == "differs")
