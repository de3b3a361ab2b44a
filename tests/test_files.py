"""A file is the old one or the new one; nothing of others is touched; locks end with their process."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from refvt import files
from refvt.files import (
    MARK,
    locked,
    made_by_refvt,
    read_json,
    read_regular,
    refuse_strangers,
    scratch_folder,
    sweep,
    write_whole,
    writing,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL and named pipes")


def test_a_file_is_written_and_replaced(tmp_path):
    place = tmp_path / "page.md"
    for content in (b"old", b"", b"new"):
        write_whole(place, content)
        assert place.read_bytes() == content
    assert list(tmp_path.iterdir()) == [place]


def test_a_temporary_file_that_another_writer_sweeps_is_made_again(tmp_path, monkeypatch):
    """Between its creation and its lock another writer may have taken it for a dead writer's."""
    lock, answers = files._lock, [False]

    def slow(held):
        return answers.pop() if answers else lock(held)

    monkeypatch.setattr(files, "_lock", slow)
    with writing(tmp_path / "page.md") as temporary:
        left = [name for name in os.listdir(tmp_path) if tmp_path / name != temporary]
        os.unlink(tmp_path / left[0])  # what the other one does
        temporary.write_bytes(b"whole")
    assert not answers
    assert os.listdir(tmp_path) == ["page.md"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    place = tmp_path / "page.md"
    write_whole(place, b"old")

    def half():
        with writing(place) as temporary:
            temporary.write_bytes(b"half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


def test_two_writers_do_not_interfere(tmp_path):
    place = tmp_path / "page.md"
    with writing(place) as mine:
        mine.write_bytes(b"half of mi")
        write_whole(place, b"theirs")  # which looks for what is left behind: mine is not
        assert place.read_bytes() == b"theirs"
        mine.write_bytes(b"mine")
    assert place.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [place]


def start(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE)


@POSIX
def test_what_a_killed_writer_leaves_is_swept_by_the_next_writer_of_that_file_alone(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from refvt.files import writing, scratch_folder\n"
        "with writing(Path(sys.argv[1])) as t, scratch_folder(Path(sys.argv[2])) as f:\n"
        "    t.write_bytes(b'half'); (f / 'a').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    page, folder = tmp_path / "page.md", tmp_path / "export"
    strangers = [
        ".page.md.tmp",
        ".page.md.0123456789abcdef.tmp",
        ".page.mdx.0123456789abcdef.refvt",
        ".page.md.0123456789abcdeg.refvt",
        "page.md.0123456789abcdef.refvt",
        ".mydata.tmp",
    ]
    for name in strangers:
        (tmp_path / name).write_text("precious")
    assert start(code, page, folder).wait(60) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == len(strangers) + 3
    write_whole(tmp_path / "other.md", b"new")
    with scratch_folder(tmp_path / "elsewhere"):
        pass
    assert len(list(tmp_path.iterdir())) == len(strangers) + 4
    write_whole(page, b"new")
    with scratch_folder(folder):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*strangers, "page.md", "other.md"])
    assert all((tmp_path / name).read_text() == "precious" for name in strangers)


def test_a_folder_that_is_being_filled_is_not_swept(tmp_path):
    with scratch_folder(tmp_path / "export") as folder:
        (folder / "a").write_bytes(b"half")
        sweep(tmp_path / "export")
        assert (folder / "a").exists()
    assert list(tmp_path.iterdir()) == []


@POSIX
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


def test_a_missing_folder_and_a_folder_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "page.md", b"new")
    with pytest.raises(IsADirectoryError, match="expected a file, got a folder"):
        write_whole(tmp_path, b"new")
    assert list(tmp_path.iterdir()) == []


# ---- overwriting


@pytest.mark.parametrize("ending", [".png", ".gif", ".html", ".json", ".md", ".xml"])
def test_files_of_others_are_refused_and_own_ones_are_not(tmp_path, ending):
    file = tmp_path / f"page{ending}"
    refuse_strangers([file])
    for content in (b"precious", b"refvt", b"generator", b"x" * 100_000):
        file.write_bytes(content)
        with pytest.raises(FileExistsError, match=re.escape(str(file))):
            refuse_strangers([file])
        refuse_strangers([file], overwrite=True)
    for own in (
        MARK[ending].encode(),
        b"x" * 100_000 + MARK[ending].encode(),
        MARK[ending].encode() + b"x" * 100_000,
        b"",
    ):
        file.write_bytes(own)
        refuse_strangers([file])
    assert file.read_bytes() == b""


def test_folders_and_links_are_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError):
        refuse_strangers([tmp_path])
    (tmp_path / "link.md").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError):
        refuse_strangers([tmp_path / "link.md"])
    (tmp_path / "mine.md").write_text("precious")
    (tmp_path / "to.md").symlink_to(tmp_path / "mine.md")
    with pytest.raises(FileExistsError):
        refuse_strangers([tmp_path / "to.md"])


def test_pictures_and_pages_carry_the_mark(tmp_path):
    from refvt.plots.charts import make_chart, save_chart
    from refvt.plots.page import Page, save_gif

    page = Page(40, 30)
    page.save(tmp_path / "a.png")
    save_gif(tmp_path / "b.gif", [page, page], 100)
    save_chart(make_chart()[0], tmp_path / "c.png")
    assert all(made_by_refvt(path) for path in tmp_path.iterdir())


# ---- locks


def test_a_second_holder_is_refused_in_this_process_and_another(tmp_path, impatient):
    lock = tmp_path / ".refvt.lock"
    code = (
        "import sys; from pathlib import Path; from refvt.files import locked\n"
        "with locked(Path(sys.argv[1]), 'run'): pass"
    )
    with locked(lock, "run"):
        with pytest.raises(BlockingIOError, match="run: expected to be alone there"), locked(lock, "run"):
            pass
        found = []

        def other():
            with pytest.raises(BlockingIOError), locked(lock, "run"):
                pass
            found.append(True)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert found
        assert start(code, lock).wait(60) == 1
    assert not lock.exists()
    assert start(code, lock).wait(60) == 0


@POSIX
def test_a_killed_holder_leaves_no_lock(tmp_path, impatient):
    lock = tmp_path / ".refvt.lock"
    code = (
        "import sys, time; from pathlib import Path; from refvt.files import locked\n"
        "with locked(Path(sys.argv[1]), 'run'): print('held', flush=True); time.sleep(60)"
    )
    child = start(code, lock)
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError), locked(lock, "run"):
        pass
    child.kill()
    child.wait()
    with locked(lock, "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_of_somebody_else_is_not_removed(tmp_path):
    lock = tmp_path / ".refvt.lock"
    lock.write_text("precious")
    with locked(lock, "run"):
        pass
    assert lock.read_text() == "precious"


# ---- reading


@POSIX
def test_a_pipe_or_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="expected a recipe, got a device or pipe"):
            read_json(path, "a recipe")
    with pytest.raises(IsADirectoryError, match="expected a recipe, got a folder"):
        read_json(tmp_path, "a recipe")
    with pytest.raises(FileNotFoundError, match="expected a recipe, got no file"):
        read_json(tmp_path / "gone", "a recipe")


def test_a_large_file_is_not_read(tmp_path):
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"large: expected a recipe of at most \d+ bytes, got 1099511627776"):
        read_json(file, "a recipe")
    file.write_bytes(b"12345")
    assert read_regular(file, 5) == b"12345"
    with pytest.raises(ValueError, match="at most 4 bytes, got 5"):
        read_regular(file, 4)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 100_000,
        "[]",
        "3",
        "null",
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": 1, "a": 2}',
        '{"a": ' + "9" * 10_000 + "}",
        "{",
        "",
        "\ufeff{}",
        '"' + "x" * 1_000_000,
    ],
    ids=range(13),
)
def test_what_is_no_object_is_refused_in_one_short_line(tmp_path, text):
    file = tmp_path / "recipe.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"recipe\.json: expected a recipe as JSON") as caught:
        read_json(file, "a recipe")
    assert len(str(caught.value)) < 500
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected a recipe as JSON"):
        read_json(file, "a recipe")
    file.write_text(json.dumps({"a": [1, 2.5, None]}))
    assert read_json(file, "a recipe") == {"a": [1, 2.5, None]}
