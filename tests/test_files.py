"""A file is either the old one or the complete new one, whatever fails in between."""

import os

import pytest

from refvt.files import left_behind, write_whole, writing


def test_a_file_is_written_and_replaced(tmp_path):
    place = tmp_path / "page.md"
    for content in (b"old", b"", b"new"):
        write_whole(place, content)
        assert place.read_bytes() == content
    assert list(tmp_path.iterdir()) == [place]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
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


def test_two_writers_do_not_interfere(tmp_path):
    place = tmp_path / "page.md"
    with writing(place) as mine:
        mine.write_bytes(b"half of mi")
        write_whole(place, b"theirs")
        assert place.read_bytes() == b"theirs"
        mine.write_bytes(b"mine")
    assert place.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [place]


def test_files_that_killed_processes_leave_behind_can_be_found(tmp_path):
    write_whole(tmp_path / "page.md", b"new")
    assert left_behind(tmp_path) == []
    with writing(tmp_path / "page.md") as temporary:
        temporary.write_bytes(b"half")
        assert left_behind(tmp_path) == [temporary]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"said")
        assert os.read(reader, 10) == b"said"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "page.md", b"new")
