"""The cache of compiled kernels: found again, compiled again when anything changed, and never an obstacle."""

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
    from refvt.backends.cuda import ptx_cache

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    ptx_cache.folder.cache_clear()
    yield ptx_cache
    ptx_cache.folder.cache_clear()


def nr(n):
    return f".visible .entry kernel( // Nr. {n}"


def kernel(compiled):
    """One whose PTX says how many were compiled before it."""

    def ptx(dtype, capability):
        compiled.append((str(dtype), capability))
        return nr(len(compiled))

    return SimpleNamespace(name="family.kernel", function=kernel, ptx=ptx)


def test_what_was_compiled_is_found_again(cache, tmp_path):
    compiled = []
    one = kernel(compiled)
    assert cache.kept_ptx(one, "float32", (9, 0)) == cache.kept_ptx(one, "float32", (9, 0)) == nr(1)
    assert cache.kept_ptx(one, "float64", (9, 0)) == nr(2)
    assert cache.kept_ptx(one, "float32", (8, 0)) == nr(3)
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
        assert cache.kept_ptx(kernel(compiled), "float32", (9, 0)) == nr(2)
    finally:
        cache._origin.cache_clear()
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == [nr(1), nr(2)]


def test_old_versions_are_removed(cache, tmp_path):
    for name in (
        "family.kernel-float32-90-0123.ptx",
        "family.other-float32-90-0123.ptx",
        "family.kernel-float64-90-0123.ptx",
    ):
        (tmp_path / name).write_text("of another version")
        os.utime(tmp_path / name, (0, 0))
    cache.kept_ptx(kernel([]), "float32", (9, 0))
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 3
    assert "family.kernel-float32-90-0123.ptx" not in names


def test_a_damaged_file_is_compiled_again(cache, tmp_path):
    compiled = []
    cache.kept_ptx(kernel(compiled), "float32", (9, 0))
    (path,) = tmp_path.iterdir()
    path.write_text("")
    assert cache.kept_ptx(kernel(compiled), "float32", (9, 0)) == nr(2)
    assert path.read_text() == nr(2)


def test_a_read_only_disk_is_no_error(cache, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "folder"))
    cache.folder.cache_clear()
    compiled = []
    for expected in (nr(1), nr(2)):
        assert cache.kept_ptx(kernel(compiled), "float32", (9, 0)) == expected
