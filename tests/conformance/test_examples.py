"""The worked examples of the documentation: each agrees as it stands, and each planted bug is named."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from refvt.conformance.checking import check, select_cases
from refvt.conformance.exchange import export
from refvt.conformance.report import Report

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(autouse=True)
def _examples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    if importlib.util.find_spec("torch") is not None:
        importlib.import_module("torch")  # once, for the child processes of all checks


def firsts(report: Report) -> set[str | None]:
    """The first divergences of the cases that differ."""
    return {case.first.tensor if case.first else None for case in report.cases if case.status == "differs"}


def variants(report: Report) -> set[str | None]:
    """The variants that are named for the cases that differ."""
    return {case.variant for case in report.cases if case.status == "differs"}


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("candidate", ["torch_names:candidate", "torch_plain:candidate", "avit_halting:candidate"])
def test_pytorch_modules_agree(candidate: str) -> None:
    report = check(candidate, cases="tiny-model-*")
    assert report.agrees, report.sentence
    assert all(case.compared > 0.9 * case.total for case in report.cases)


@pytest.mark.torch
@needs_torch
def test_pytorch_module_with_names_and_a_wrong_eps() -> None:
    report = check("torch_names:broken", cases="*model-prune-one")
    assert report.exit_code == 1
    assert firsts(report) == {"blocks.0.temporal_norm1"}
    assert variants(report) == {"layernorm eps=1e-5"}
    assert report.cases[0].first.last_agreeing == "embed"  # type: ignore[union-attr]


@pytest.mark.torch
@needs_torch
def test_pytorch_module_without_names_and_another_gelu() -> None:
    report = check("torch_plain:broken", cases="*model-prune-one")
    assert report.exit_code == 1
    assert firsts(report) == {"blocks.0.mlp"}
    assert variants(report) == {"gelu=tanh"}
    assert report.cases[0].first.last_agreeing == "blocks.0.norm2"  # type: ignore[union-attr]


@pytest.mark.torch
@needs_torch
def test_the_rule_of_avit_is_told_from_ours() -> None:
    report = check("avit_halting:avit", cases="model-unequal")
    assert report.exit_code == 1
    assert firsts(report) == {"joint.1.weight"}
    assert variants(report) == {"A-ViT halting (γ=10, β=30, masked)"}


@needs_jax
def test_jax_function_agrees() -> None:
    report = check("jax_layernorm:Mine", cases="tiny-op-*", timeout=300)
    assert report.agrees, report.sentence
    assert {case.name for case in report.cases if case.status == "agrees"} == {
        "tiny-op-layernorm-basic",
        "tiny-op-mlp-basic",
    }


@needs_jax
def test_jax_function_with_a_stopped_gradient() -> None:
    report = check("jax_layernorm:Broken", cases="tiny-op-layernorm-*", timeout=300)
    assert firsts(report) == {"d(x)"}


@needs_gcc
@pytest.mark.parametrize(("flag", "first"), [("-DDETACHED=0", None), ("-DDETACHED=1", "d(states)")])
def test_c_program_through_an_exchange_folder(tmp_path: Path, flag: str, first: str | None) -> None:
    program, work = tmp_path / "halt_tokens", tmp_path / "work"
    source = str(EXAMPLES / "halt_tokens.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", flag, "-o", program, source, "-lm"], check=True)
    cases = select_cases("*op-halt_tokens-beta*")
    export(work, cases)
    for case in cases:
        subprocess.run([program, work / case.name], check=True)
    report = check(str(work))
    assert report.agrees == (first is None), report.sentence
    assert variants(report) == ({"remainder detached"} if first else set())
    assert firsts(report) == ({first} if first else set())
    assert all(case.compared == case.total for case in report.cases if case.name in {c.name for c in cases})
