"""Golden folders and exchange folders of others: not overwritten, not believed, never left through a name."""

import hashlib
import importlib.util
import json
import shutil

import numpy as np
import pytest

from refvt.cli import main
from refvt.conformance.exchange import ExchangeFolder, export
from refvt.conformance.golden import GoldenError, golden_directory, load_arrays, load_manifest

NAME = "tiny-gelu" if "tiny-gelu" in load_manifest() else next(n for n, c in load_manifest().items() if c.tiny)


@pytest.fixture
def golden(tmp_path):
    """A golden folder of one case; (folder, manifest)."""
    folder = tmp_path / "golden"
    folder.mkdir()
    whole = json.loads((golden_directory() / "manifest.json").read_text(encoding="utf-8"))
    entry = whole["cases"][NAME]
    shutil.copy(golden_directory() / entry["file"], folder)
    manifest = {**whole, "cases": {NAME: entry}}
    write(folder, manifest)
    assert list(load_manifest(folder)) == [NAME]
    return folder, manifest


def write(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["../outside", "..", "a/b", "/etc/passwd", "a\x1b[31mb", "", "a" * 1000, "a b", "a\\b", ".hidden", "a\n"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(golden, name):
    folder, manifest = golden
    manifest["cases"] = {name: manifest["cases"][NAME]}
    write(folder, manifest)
    with pytest.raises(GoldenError, match=r"manifest\.json: cases\..*: expected a name of letters") as caught:
        load_manifest(folder)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    (folder / "exchange.json").write_text(json.dumps({"format": 1, "dtype": "float32", "cases": [name]}))
    with pytest.raises(ValueError, match=r"exchange\.json: cases: expected a list of the names"):
        ExchangeFolder(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "other"),
        ("settings", []),
        ("margins", {"a": "x"}),
        ("tiny", 1),
        ("describes", None),
        ("sha256", "../x"),
        ("sha256", 5),
        ("tensors", []),
        ("tensors", {"../x": {"shape": [1], "dtype": "float64"}}),
        ("tensors", {"x": {"shape": [1 << 40], "dtype": "float64"}}),
        ("tensors", {"x": {"shape": [-1], "dtype": "float64"}}),
        ("tensors", {"x": {"shape": [1], "dtype": "object"}}),
        ("tensors", {"x": {"shape": [1], "dtype": "float64", "float32_error": "small"}}),
        ("tensors", {"x": {"shape": [1], "dtype": "float64", "float32_error": -1}}),
    ],
)
def test_an_entry_that_cannot_be_is_refused(golden, field, value):
    folder, manifest = golden
    manifest["cases"][NAME][field] = value
    write(folder, manifest)
    with pytest.raises(GoldenError, match=rf"manifest\.json: cases\.{NAME}\.{field}.*: expected"):
        load_manifest(folder)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "[]", '{"format": 1}', '{"format": 1, "cases": []}', "{", '{"a": NaN}']
)
def test_a_manifest_that_is_none_is_refused(golden, text, capsys):
    folder, _ = golden
    (folder / "manifest.json").write_text(text)
    with pytest.raises(GoldenError, match=r"manifest\.json: "):
        load_manifest(folder)
    assert main(["golden", "verify", "--golden", str(folder)]) == 2
    assert len(capsys.readouterr().err) < 1000


def test_a_golden_file_that_unpacks_to_gigabytes_is_refused(golden):
    folder, manifest = golden
    path = folder / manifest["cases"][NAME]["file"]
    np.savez_compressed(path, x=np.zeros(1 << 24))  # 128 MiB of zeros in 130 kB
    manifest["cases"][NAME]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write(folder, manifest)
    with pytest.raises(GoldenError, match="its members unpack to 134217856 bytes: expected at most"):
        load_arrays(load_manifest(folder)[NAME])


def test_results_that_declare_more_than_they_hold_are_an_error(tmp_path):
    folder = tmp_path / "exchange"
    export(folder, [load_manifest()[NAME]])
    results = folder / NAME / "results"
    for shape in ((1 << 40,), (1 << 20, 1 << 20), (7,)):
        with (results / "y.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            file.write(b"1234")
        assert main(["check", str(folder), "--json", "-"]) == 2


def test_export_and_check_overwrite_nothing_of_others(tmp_path, capsys):
    folder = tmp_path / "exchange"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    assert main(["golden", "export", str(folder)]) == 2
    for option, name in (("--json", "a.json"), ("--html", "a.html"), ("--junit", "a.xml")):
        (tmp_path / name).write_text("precious")
        assert main(["check", "reference", "--cases", NAME, option, str(tmp_path / name)]) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "precious"
        for extra in (["--overwrite"], []):  # then it is refvt's own
            assert main(["check", "reference", "--cases", NAME, option, str(tmp_path / name), *extra]) == 0
    assert (folder / "thesis.txt").read_text() == "precious"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_generate_deletes_nothing_of_others(tmp_path, monkeypatch):
    from golden import generate

    entry = {"file": "a.npz", "sha256": hashlib.sha256(b"new").hexdigest()}
    made = {"manifest.json": json.dumps({"cases": {"a": entry}}), "a.npz": "new"}
    monkeypatch.setattr(generate, "write", lambda folder, *_: [(folder / n).write_text(t) for n, t in made.items()])
    for strange in ("thesis.txt", "a.npz", "manifest.json", "b.npz"):
        target = tmp_path / strange.replace(".", "-")
        (target / "deep").mkdir(parents=True)
        (target / "deep" / "more.txt").write_text("precious")
        (target / strange).write_text("precious")
        with pytest.raises(FileExistsError, match="expected an empty folder or golden files alone"):
            generate.generate(target)
        assert (target / strange).read_text() == "precious"
        generate.generate(target, overwrite=True)
        assert (target / "deep" / "more.txt").read_text() == "precious"
        assert (target / strange).read_text() == made.get(strange, "precious")
    clean = tmp_path / "clean"
    for _ in range(2):
        generate.generate(clean)
    assert {p.name for p in clean.iterdir()} == set(made)
    (clean / "old.npz").write_text("old")
    manifest = json.loads((clean / "manifest.json").read_text())
    manifest["cases"]["old"] = {"file": "old.npz", "sha256": hashlib.sha256(b"old").hexdigest()}
    (clean / "manifest.json").write_text(json.dumps(manifest))
    generate.generate(clean)  # what it made earlier and makes no more goes
    assert {p.name for p in clean.iterdir()} == set(made)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
