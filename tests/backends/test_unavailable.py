"""For a backend that this machine cannot run, one sentence says what is missing."""

import pytest

from refvt import HaltingVT, HaltingVTConfig, backends, cli


@pytest.fixture
def without(monkeypatch):
    """Act as a machine on which numba-cuda is not installed."""

    def forget():
        backends.get.cache_clear()
        backends._missing.cache_clear()

    found = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "numba_cuda" else found(name))
    forget()
    yield
    monkeypatch.undo()
    forget()


def test_missing_package_is_named(without):
    assert "cuda" not in backends.available()
    with pytest.raises(backends.Unavailable, match=r"backend 'cuda': .*pip install \"refvt\[cuda\]\""):
        HaltingVT(HaltingVTConfig.preset("minik-g03-b10"), backend="cuda")


def test_the_command_line_shows_it_in_one_line(without, capsys):
    assert cli.main(["golden", "verify", "--tiny", "--backend", "cuda"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("refvt: backend 'cuda': the cuda backend needs numba-cuda")
    assert len(said.err.strip().splitlines()) == 1


def test_the_ladder_needs_a_gpu(without, capsys):
    assert cli.main(["bench", "kernels", "--ladder"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("refvt: backend 'cuda': the cuda backend needs numba-cuda")
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize(("complaint", "said"), [("no driver", "needs an NVIDIA GPU"), (None, "libNVVM.*CUDA_HOME")])
def test_missing_device_is_named(monkeypatch, complaint, said):
    numba_cuda = pytest.importorskip("numba_cuda", reason="needs numba-cuda, without a device")
    assert numba_cuda
    from numba import cuda

    monkeypatch.setattr(cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda, "cuda_error", lambda: complaint, raising=False)
    backends._missing.cache_clear()
    try:
        with pytest.raises(backends.Unavailable, match=said):
            backends.get.__wrapped__("cuda")
    finally:
        backends._missing.cache_clear()


def test_the_default_backend_runs_on_the_cpu():
    assert backends.default() == "jit"


def test_without_numbas_compiler_the_default_is_the_reference(monkeypatch):
    from numba import config

    monkeypatch.setattr(config, "DISABLE_JIT", True)
    backends._missing.cache_clear()
    try:
        assert backends.default() == "reference"
        with pytest.raises(backends.Unavailable, match=r"backend 'jit': .*NUMBA_DISABLE_JIT"):
            backends.get.__wrapped__("jit")
    finally:
        backends._missing.cache_clear()
