"""A file is the old one or the whole new one, whatever happens in between."""

import pytest

from refvt.files import write_whole, writing


def test_a_file_is_written_and_replaced(tmp_path):
    place = tmp_path / "page.md"
    for content in (b"old", b"", b"new"):
        write_whole(place, content)
        assert place.read_bytes() == content
    assert list(tmp_path.iterdir()) == [place]


def test_what_goes_wrong_leaves_the_old_file_and_nothing_else(tmp_path):
    place = tmp_path / "page.md"
    write_whole(place, b"old")

    def half():
        with writing(place) as temporary:
            temporary.write_bytes(b"half of")
            raise KeyboardInterrupt

    def nothing():
        with writing(place):
            pass

    with pytest.raises(KeyboardInterrupt):
        half()
    with pytest.raises(FileNotFoundError):
        nothing()
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    with writing(tmp_path / "page.md") as temporary:
        temporary.write_bytes(b"")
    temporary.write_bytes(b"left behind, and longer than what follows")
    write_whole(tmp_path / "page.md", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["page.md"]
    assert (tmp_path / "page.md").read_bytes() == b"new"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "page.md", b"new")
