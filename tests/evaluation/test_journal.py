"""The file of an evaluation is believed only if every line is as it was written and every number can be."""

import json
import os
import zlib

import pytest

from refvt.evaluation import evaluate
from refvt.files import locked
from tests.evaluation.test_evaluate import DIGITS, model


def signed(fields):
    """A line with another content, its checksum made anew."""
    text = json.dumps(fields).encode()
    return text[:-1] + b', "crc32": "%08x"}' % zlib.crc32(text)


@pytest.fixture
def file(tmp_path):
    out = tmp_path / "records.jsonl"
    evaluate(model(), DIGITS, 4, out=out)
    return out


def refused(file, message):
    before = file.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(model(), DIGITS, 4, out=file, resume=True)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("index", 99, "index: expected a clip from 0 to 10, got 99"),
        ("index", -1, "index: expected a clip from 0 to 10, got -1"),
        ("index", True, "index: expected a clip from 0 to 10, got True"),
        ("index", 2.0, r"index: expected a clip from 0 to 10, got 2\.0"),
        ("labels", [7], "labels: expected the labels of clip 2"),
        ("labels", 2, "labels: expected the labels of clip 2"),
        ("notes", "x", "notes: expected a list of texts"),
        ("problem", 3, "problem: expected a text or null"),
        ("problem", "gone", "logits: expected nothing"),
        ("logits", [1.0], r"logits: expected 8 numbers, got \[1\.0\]"),
        ("logits", ["a"] * 8, "logits: expected 8 numbers"),
        ("logits", None, "logits: expected 8 numbers, got None"),
        ("gflops", -1, "gflops: expected a number of at least 0, got -1"),
        ("gflops", 10**400, "gflops: expected a number of at least 0"),
        ("tokens_per_layer", [10**9] * 9, "tokens_per_layer: expected"),
        ("more", "x" * 10**6, "not a line of an evaluation"),
    ],
)
def test_a_value_that_cannot_be_is_refused_though_the_checksum_is_right(file, field, value, message):
    lines = file.read_bytes().splitlines()
    fields = json.loads(lines[3])
    del fields["crc32"]
    lines[3] = signed({**fields, field: value})
    file.write_bytes(b"\n".join(lines) + b"\n")
    refused(file, message)


def test_a_changed_digit_is_refused(file):
    whole = file.read_bytes()
    start = whole.index(b'"logits"', len(whole) // 2) + 12
    for place in range(start, start + 12):
        if whole[place : place + 1].isdigit():
            other = b"7" if whole[place : place + 1] != b"7" else b"3"
            file.write_bytes(whole[:place] + other + whole[place + 1 :])
            refused(file, "crc32: expected that of the line")


@pytest.mark.parametrize("line", [b"[" * 100_000, b"{}", b"7", b'{"index": NaN}', b"\xff", b"x" * 100_000])
def test_a_line_that_is_no_record_is_refused(file, line):
    file.write_bytes(file.read_bytes() + line + b"\n")
    refused(file, "not a line of an evaluation")


def test_two_evaluations_in_one_file_are_refused(file, impatient):
    with locked(file.with_name(f".{file.name}.lock"), "it"), pytest.raises(BlockingIOError, match="to be alone"):
        evaluate(model(), DIGITS, 4, out=file, resume=True)
    evaluate(model(), DIGITS, 4, out=file, resume=True)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="expected the file of an evaluation, got a device or pipe"):
        evaluate(model(), DIGITS, 4, out=tmp_path / "pipe", resume=True)
