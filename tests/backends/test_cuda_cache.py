"""Compiled cuda kernels on disk: found again, made anew when anything is another, and never in the way."""

import os
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

INSTALLED = find_spec("numba_cuda") is not None and find_spec("cuda") is not None
pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(not INSTALLED, reason="needs the extra cuda: numba-cuda and NVIDIA's compiler"),
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="the simulator compiles nothing"),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from refvt.backends import cuda_cache

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    cuda_cache.folder.cache_clear()
    yield cuda_cache
    cuda_cache.folder.cache_clear()


def kernel(compiled):
    """One whose PTX says how many were compiled before it."""

    def ptx(dtype, capability):
        compiled.append((str(dtype), capability))
        return f"// Nr. {len(compiled)}"

    return SimpleNamespace(name="room.kernel", function=kernel, ptx=ptx)


def test_what_was_compiled_is_found_again(cache, tmp_path):
    compiled = []
    one = kernel(compiled)
    assert cache.kept_ptx(one, "float32", (9, 0)) == cache.kept_ptx(one, "float32", (9, 0)) == "// Nr. 1"
    assert cache.kept_ptx(one, "float64", (9, 0)) == "// Nr. 2"
    assert cache.kept_ptx(one, "float32", (8, 0)) == "// Nr. 3"
    assert compiled == [("float32", (9, 0)), ("float64", (9, 0)), ("float32", (8, 0))]
    assert len(list(tmp_path.iterdir())) == 3


def test_another_text_or_compiler_is_another_kernel(cache, tmp_path, monkeypatch):
    compiled = []
    cache.kept_ptx(kernel(compiled), "float32", (9, 0))
    before = cache._origin()
    cache._origin.cache_clear()
    monkeypatch.setattr(cache, "version", lambda package: "another")
    try:
        assert cache._origin() != before
        assert cache.kept_ptx(kernel(compiled), "float32", (9, 0)) == "// Nr. 2"
    finally:
        cache._origin.cache_clear()
    (path,) = tmp_path.iterdir()  # the older one is gone
    assert path.read_text() == "// Nr. 2"


def test_no_place_to_write_is_no_reason_to_fail(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "folder"))
    cache.folder.cache_clear()
    compiled = []
    for expected in ("// Nr. 1", "// Nr. 2"):
        assert cache.kept_ptx(kernel(compiled), "float32", (9, 0)) == expected
