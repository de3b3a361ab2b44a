"""The readers under test: for each a few small valid files, how to change them, and how to read one."""

import hashlib
import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from refvt.conformance.exchange import ExchangeFolder
from refvt.conformance.golden import Case, load_arrays, load_manifest
from refvt.conformance.isolation import Request
from refvt.data.containers import missing_bytes
from refvt.data.lists import read_annotations
from refvt.data.video import read_frames
from refvt.evaluation.journal import Journal
from refvt.model.checkpoints import read_checkpoint
from refvt.model.checkpoints.checksum import CHECKSUM, checksum
from refvt.training.recipe import RECIPES, find_recipe
from refvt.training.run_state import FORMAT, KEY, read_progress
from tests.fuzz.mutate import mutate_bytes, mutate_json, mutate_safetensors, mutate_text, mutate_zip
from tests.support.checkpoint_files import ORDERED_DICT, dict_of, storage, stored, tensor, text, zip_of

CORPUS = Path(__file__).parent / "corpus"
TENSORS = {"a.weight": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones(2, "f8")}
JOURNAL_HEADER = {"format": 1, "clips": 4, "classes": 3}
RECORD = {"index": 0, "labels": [1], "notes": [], "problem": None, "logits": [0.5, 1.0, -1.0], "gflops": 0.1}
RECORD["tokens_per_layer"] = [3, 2]


@dataclass(frozen=True)
class Target:
    """A reader: ``seeds`` are valid files, ``change(seed, rng)`` makes a hostile one, ``read(path)`` reads it.

    suffix: of the file's name. slow: it decodes video.
    """

    name: str
    seeds: tuple[bytes, ...]
    change: Any
    read: Any
    suffix: str
    slow: bool = False


def _members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _bytes_or(structured):
    """Mostly changes of the structure, else of the bytes."""

    def change(seed, rng):
        if rng.random() < 0.4:
            return mutate_bytes(seed, rng)
        try:
            return structured(seed, rng)
        except Exception:
            return mutate_bytes(seed, rng)  # the seed is broken already

    return change


json_change = _bytes_or(lambda seed, rng: mutate_json(json.loads(seed), rng))
zip_change = _bytes_or(lambda seed, rng: mutate_zip(_members(seed), rng))
text_change = _bytes_or(mutate_text)


def _lines_change(seed, rng):
    lines = seed.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = json_change(lines[at], rng).replace(b"\n", b" ") if lines[at] else b""
    return b"\n".join(lines)


def _torch_zip():
    opcodes = dict_of(**{"a.weight": tensor(), "b": tensor((3, 2), (1, 3))}) + b"."
    data = [stored("archive/data.pkl", b"\x80\x02" + opcodes), stored("archive/byteorder", b"little")]
    return zip_of([*data, stored("archive/data/0", TENSORS["a.weight"].tobytes()), stored("archive/version", b"3\n")])


def _torch_legacy():
    values = TENSORS["a.weight"]
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    of = storage()[:-2] + b"N" + b"tQ"  # the sixth field, a view, was there before 1.6
    content = b"\x80\x02" + ORDERED_DICT + b"(" + text("a.weight") + tensor(of=of) + b"u."
    return head + content + pickle.dumps(["0"], 2) + values.size.to_bytes(8, "little") + values.tobytes()


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# ---- golden files


def _manifest():
    from refvt.conformance.golden import golden_directory

    whole_one = json.loads((golden_directory() / "manifest.json").read_text(encoding="utf-8"))
    chosen = ("tiny-op-gelu-basic", "tiny-op-top_k-basic")
    return json.dumps({**whole_one, "cases": {name: whole_one["cases"][name] for name in chosen}}).encode()


def _read_golden(path):
    """Read a case's arrays whose checksum is right: that of the manifest is no secret."""
    tensors = {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in TENSORS.items()}
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    named = {"config": None, "settings": {}, "margins": {}, "tiny": True, "describes": "", "tensors": tensors}
    load_arrays(Case(path.stem, path.parent, "op", "gelu", sha256=found, **named))


# ---- exchange folders


class _AnyCase:
    name = "case"


def _read_exchange(path):
    ExchangeFolder(path.parent)


def _read_result(path):
    """Read a result of an exchange folder, whose errors are answers: they must name the file."""
    folder = path.parent
    index = {"format": 1, "dtype": "float32", "cases": ["case"]}
    (folder / "exchange.json").write_text(json.dumps(index), encoding="utf-8")
    results = folder / "case" / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "y.npy").write_bytes(path.read_bytes())
    answer = ExchangeFolder(folder).ask(Request(case=_AnyCase(), names=("y",)))
    assert answer.status == "given" or "y.npy" in answer.sentence, answer
    if answer.status != "given":
        raise ValueError(f"{path}: {answer.sentence}")


# ---- lists, journals, runs


def _read_list(path):
    videos, problems = read_annotations(path, path.parent, 20)
    assert all(str(path) in problem for problem in problems), problems
    assert all(video.path.exists() for video in videos)


def _read_journal(path):
    Journal(path, JOURNAL_HEADER, resume=True)


RUN_TENSORS = {"parameters/a": TENSORS["b"]}


def _run_state():
    recipe = RECIPES["digits"].as_dict()
    progress = {
        "steps": 3, "log_bytes": 100, "log_sha256": "0" * 64, "seconds": 1.5, "clips": 64, "dtype": "float32"
    }  # fmt: skip
    state = json.dumps({"format": FORMAT, "recipe": recipe, "progress": progress})
    metadata = {KEY: state, CHECKSUM: checksum(RUN_TENSORS, state)}
    return safetensors.numpy.save(RUN_TENSORS, metadata)


def _state_change(seed, rng):
    """Change the JSON text inside the metadata, too, mostly with the checksum that belongs to it."""
    size = int.from_bytes(seed[:8], "little")
    header = json.loads(seed[8 : 8 + size])
    inner = mutate_json(json.loads(header["__metadata__"][KEY]), rng)
    if rng.random() < 0.3:
        return mutate_safetensors(seed, rng)
    text = header["__metadata__"][KEY] = inner.decode("utf-8", "replace")
    if rng.random() < 0.8:
        header["__metadata__"][CHECKSUM] = checksum(RUN_TENSORS, text)
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + seed[8 + size :]


def _read_state(path):
    read_progress(path, RECIPES["digits"], 64, "float32")


# ---- video


def videos():
    """Short videos of 16 × 16 pixels in several containers."""
    import av

    found = []
    for kind, codec in (("mp4", "mpeg4"), ("avi", "mpeg4"), ("matroska", "mpeg4"), ("gif", "gif"), ("mpegts", "mpeg4")):
        file = io.BytesIO()
        with av.open(file, "w", format=kind) as out:
            stream = out.add_stream(codec, rate=10)
            stream.width = stream.height = 16
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for i in range(6):
                frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 40 * i, np.uint8), "rgb24")
                for packet in stream.encode(frame):
                    out.mux(packet)
            for packet in stream.encode():
                out.mux(packet)
        found.append(file.getvalue())
    return tuple(found)


def _read_length(path):
    missing = missing_bytes(path)
    if missing is not None:
        raise ValueError(f"{path}: {missing}")


def _read_video(path):
    frames = read_frames(path, 4, 1)
    assert frames.images.dtype == np.uint8


def targets(video=True):
    """All readers by name."""
    npz, tensors = _npz(**TENSORS), safetensors.numpy.save(TENSORS)
    recipe = json.dumps(RECIPES["digits"].as_dict()).encode()
    listed = b'a.mp4 3\nfolder 2 5\n# note\n"b 1.mp4" 7\nfolder 1 2 4\n'
    journal = "\n".join(json.dumps(line) for line in (JOURNAL_HEADER, RECORD, {**RECORD, "index": 2})).encode() + b"\n"
    exchange = json.dumps({"format": 1, "dtype": "float32", "cases": ["case"]}).encode()
    state = _run_state()
    found = [
        Target("torch zip", (_torch_zip(),), zip_change, read_checkpoint, ".pth"),
        Target("torch legacy", (_torch_legacy(),), mutate_bytes, read_checkpoint, ".pth"),
        Target("npz", (npz,), zip_change, read_checkpoint, ".npz"),
        Target("safetensors", (tensors,), _bytes_or(mutate_safetensors), read_checkpoint, ".safetensors"),
        Target("manifest", (_manifest(),), json_change, lambda path: load_manifest(path.parent), "manifest.json"),
        Target("golden npz", (npz,), zip_change, _read_golden, ".npz"),
        Target("exchange index", (exchange,), json_change, _read_exchange, "exchange.json"),
        Target("exchange result", (_npy(TENSORS["a.weight"]),), mutate_bytes, _read_result, ".npy"),
        Target("annotation list", (listed,), text_change, _read_list, ".txt"),
        Target("recipe", (recipe,), json_change, lambda path: find_recipe(str(path)), ".json"),
        Target("journal", (journal,), _bytes_or(_lines_change), _read_journal, ".jsonl"),
        Target("run state", (state,), _bytes_or(_state_change), _read_state, ".safetensors"),
    ]
    if video:
        seeds = videos()
        found.append(Target("container", seeds, mutate_bytes, _read_length, ".mp4"))
        found.append(Target("video", seeds, mutate_bytes, _read_video, ".mp4", slow=True))
    return {target.name: target for target in found}


def prepare(folder):
    """Make what the readers expect beside the file: videos and a folder that an annotation list names."""
    folder = Path(folder)
    for name in ("a.mp4", "b 1.mp4"):
        (folder / name).write_bytes(b"x")
    (folder / "folder").mkdir(exist_ok=True)


def corpus_of(name):
    """Files of that reader that reached a new branch, or once showed a fault, in the order of their names."""
    path = CORPUS / f"{name.replace(' ', '-')}.zip"
    if not path.exists():
        return []
    with zipfile.ZipFile(path) as archive:
        return [archive.read(member) for member in sorted(archive.namelist())]
