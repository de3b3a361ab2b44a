"""Reading and writing of parameters: .npz, .safetensors and PyTorch checkpoints, without PyTorch.

``read_checkpoint`` reads the tensors of a file, ``parameters_from`` converts their names and shapes to those of a
configuration, and ``save_parameters`` writes parameters. Files are not trusted: nothing in a file is executed, and
every size is checked before memory is allocated.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import tokenize
import zipfile
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from refvt.array import Array
from refvt.checks import at_most, words_of
from refvt.files import writing
from refvt.limits import check_unpacked
from refvt.model.checkpoints.checksum import CHECKSUM, checksum
from refvt.model.checkpoints.choice import CheckpointWarning, Tensors
from refvt.model.checkpoints.names import own_names
from refvt.model.checkpoints.torch_legacy import MAGIC, read_torch_legacy
from refvt.model.checkpoints.torch_pickle import MAX_PICKLE, Inert, interpret, shown
from refvt.model.checkpoints.torch_zip import Archive, read_torch_zip
from refvt.model.config import HaltingVTConfig
from refvt.model.parameters import check_parameters, initial_parameters, parameter_shapes

__all__ = [
    "CheckpointError",
    "CheckpointWarning",
    "Tensors",
    "from_npy",
    "parameters_from",
    "read_checkpoint",
    "save_parameters",
]

_TRUSTED = "where you trust the file, which can run any code,"
_FOREIGN = {  # first bytes of what is often mistaken for a checkpoint
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
    b"<": "a web page or another text: download the file itself",
    b"\x89HDF": "an HDF5 file (Keras): convert it to .safetensors or .npz",
    b"\x1f\x8b": "a gzip file: unpack it first",
}
_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "u1",
}
_COUNTERS = {"steps", "n_averaged", "num_updates"}  # of a moving average, beside the averaged weights


class CheckpointError(ValueError):
    """Raised for a checkpoint that cannot be read, written or fitted to a configuration; the message says why."""


# ---- reading


def read_checkpoint(path: str | os.PathLike[str], weights_key: str | None = None) -> Tensors:
    """Read the tensors of a file by name, as new C-contiguous arrays: bfloat16 as float32, other types unchanged.

    The content decides which kind of file it is: .npz (stored or deflated, never with pickled objects), .safetensors,
    or a file by ``torch.save``, also from before PyTorch 1.6. Of the latter, the dict under ``weights_key`` is read
    ("ema.state_dict" for one in another); without it the first under state_dict, model or model_state_dict, or the only
    dict of tensors, or the whole file. What lies beside the tensors is passed over and never built.
    FileNotFoundError or IsADirectoryError if there is no such file. CheckpointError for any other kind of file, for a
    damaged file, for contents that are far larger than the file, if nothing is a tensor, and if several dicts hold
    tensors and none is usual. A CheckpointWarning lists other weights in the file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a checkpoint file, got a folder")
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a checkpoint file, got no file")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a regular file, got a device or pipe")
    try:
        return _read(path, weights_key)
    except MemoryError:
        raise MemoryError(f"{path}: its tensors need more memory than there is") from None
    except Exception as error:  # a hostile file may cause any error in a parser: for the caller it is a bad file
        raise CheckpointError(f"{path}: {words_of(error)}") from error


def _read(path: Path, weights_key: str | None) -> Tensors:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with Archive(path) as archive:
            if any(name.endswith("/data.pkl") for name in archive.members):
                return read_torch_zip(archive, weights_key)
            if archive.members and all(name.endswith(".npy") for name in archive.members):
                return _without_key(_read_npz(archive), weights_key)
        raise ValueError("expected an .npz or a checkpoint by torch.save, got another zip file")
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return _without_key(_read_safetensors(path), weights_key)
    if MAGIC in head[:32]:
        return read_torch_legacy(path, weights_key)
    if head[257:262] == b"ustar":
        raise ValueError(
            f"expected a zip file, got a tar file, as PyTorch before 0.2 wrote checkpoints: {_TRUSTED} save it again "
            "with a recent PyTorch: torch.save(torch.load(path, weights_only=False), path)"
        )
    for start, what in _FOREIGN.items():
        if head.startswith(start):
            raise ValueError(f"expected an .npz, a .safetensors or a checkpoint by torch.save, got {what}")
    with path.open("rb") as file:
        data = file.read(min(MAX_PICKLE, path.stat().st_size))
    if _is_pickle(data):
        content = interpret(data)
        if isinstance(content, Inert):
            raise ValueError(content.reason)
        raise ValueError(
            f"expected a zip file, got a bare pickle: {_TRUSTED} save it again with "
            "torch.save(pickle.load(open(path, 'rb')), path)"
        )
    raise ValueError("expected an .npz, a .safetensors or a checkpoint by torch.save, got another or a damaged file")


def _without_key(tensors: Tensors, weights_key: str | None) -> Tensors:
    if weights_key is not None:
        raise ValueError(f"weights_key: expected none for a file without dicts, got {shown(weights_key)}")
    if not tensors and tensors.passed_over:
        raise ValueError(next(iter(tensors.passed_over.values())))
    return tensors


def _is_pickle(data: bytes) -> bool:
    if data[:1] == b"\x80":
        return True
    try:
        return any(opcode.name == "STOP" for opcode, *_ in islice(pickletools.genops(data), 100_000))
    except ValueError:
        return False


def _read_npz(archive: Archive) -> Tensors:
    unpacked = sum(member.size for member in archive.members.values())
    check_unpacked("its members", unpacked, archive.size)
    found = {name.removesuffix(".npy"): from_npy(name, archive.read(name)) for name in archive.members}
    others = {name: value for name, value in found.items() if isinstance(value, str)}
    return Tensors({name: value for name, value in found.items() if not isinstance(value, str)}, others)


def from_npy(name: str, data: bytes | bytearray) -> Array | str:
    """Return the array of an .npy file's bytes; the reason if it holds anything but numbers, such as pickled objects.

    ValueError for a header that is none, or that does not fit the bytes after it.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{shown(name)}: expected .npy version (1, 0) or (2, 0), got {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran_order, dtype = read_header(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        # NumPy reads the header as Python source
        raise ValueError(f"{shown(name)}: expected the header of an .npy file, got {type(error).__name__}") from error
    if dtype.kind not in "fiub":
        return f"{shown(name)}: expected an array of numbers, got {dtype}"
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"{shown(name)}: shape {list(shape)} of {dtype} does not match its {len(data)} bytes")
    flat = np.frombuffer(data, dtype, offset=stream.tell()) if math.prod(shape) else np.empty(0, dtype)
    return np.array(flat.reshape(shape, order="F" if fortran_order else "C"), dtype.newbyteorder("="), order="C")


def _read_safetensors(path: Path) -> Tensors:
    arrays: dict[str, Array] = {}
    others: dict[str, str] = {}
    deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize
    for name, entry in deserialize(path.read_bytes()):  # checks names, sizes and positions against the file
        kind, shape = entry["dtype"], entry["shape"]
        if kind not in _SAFETENSORS:
            others[name] = f"{shown(name)}: expected one of {', '.join(_SAFETENSORS)}, got {kind}"
            continue
        dtype = np.dtype(_SAFETENSORS[kind])
        flat = np.frombuffer(entry["data"], dtype) if math.prod(shape) else np.empty(0, dtype)
        if kind == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        elif kind == "BOOL":
            flat = flat != 0
        arrays[name] = np.array(flat.reshape(shape), flat.dtype.newbyteorder("="))
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    if set(metadata) == {CHECKSUM} and metadata[CHECKSUM] != (found := checksum(arrays)):
        raise ValueError(
            f"{CHECKSUM}: expected {shown(metadata[CHECKSUM][:12])} as in the file, got {found[:12]}: it is damaged, "
            "or was changed without its checksum"
        )
    return Tensors(arrays, others)


# ---- fitting


def parameters_from(
    tensors: Mapping[str, Array],
    config: HaltingVTConfig,
    rng_seed: int = 0,
    checkpoint_grid: tuple[int, int] | None = None,
) -> dict[str, Array]:
    """Convert the tensors of a checkpoint to the parameters of a configuration.

    Names are those of refvt or of the released HaltingVT (``backbone.model.``, ``cls_head.fc_cls.``,
    ``cls_head.fc_motion.``), with or without the prefixes of wrappers (see ``own_names``). The counter of a moving
    average is passed over.

    Tensors without time_embed, motion_head and temporal layers are those of an image model (DeiT-S). Its head is
    dropped, temporal_attn and temporal_norm1 start as copies of attn and norm1 of the same block, and temporal_fc,
    time_embed and both heads are drawn with ``rng_seed``. A distilled DeiT is refused.

    pos_embed for another number of patches and time_embed for another number of frames are resized by nearest
    neighbour: new index i comes from floor(i · old / new) on each axis; the position of CLS is kept. The grid of the
    checkpoint is ``checkpoint_grid`` (rows, columns), or else a square. Without ``checkpoint_grid``, pos_embed for the
    right number of patches is unchanged.

    One CheckpointError lists everything missing, unexpected, wrongly shaped or not finite. Source: the names
    of the published checkpoints; HaltingVT section 4.1.
    """
    problems: list[str] = []
    found: dict[str, Array] = {}
    tensors, passed_over = dict(tensors), getattr(tensors, "passed_over", {})
    for name in _COUNTERS & tensors.keys():
        if np.size(tensors[name]) == 1:
            del tensors[name]
    names = own_names([*tensors, *passed_over], parameter_shapes(config))
    for name, value in tensors.items():
        if names[name] in found:
            problems.append(f"{names[name]}: expected one tensor of this name, got two, one of them as {name}")
        found[names[name]] = np.asarray(value)
    for name, reason in passed_over.items():
        if names[name] in parameter_shapes(config):
            problems.append(f"{names[name]}: {reason}")

    if not any(name.startswith(("time_embed", "motion_head.")) or ".temporal_" in name for name in found):
        found = _convert_image_model(found, config, rng_seed, problems)
    if "pos_embed" in found:
        found["pos_embed"] = _resize_pos_embed(found["pos_embed"], config, checkpoint_grid, problems)
    if "time_embed" in found:
        found["time_embed"] = _resize_time_embed(found["time_embed"], config)
    try:
        check_parameters(found, config)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(at_most(problems)))
    return {name: np.array(found[name], order="C") for name in parameter_shapes(config)}


def _convert_image_model(
    found: dict[str, Array], config: HaltingVTConfig, rng_seed: int, problems: list[str]
) -> dict[str, Array]:
    if any(name == "dist_token" or name.startswith("head_dist.") for name in found):
        problems.append("expected a plain DeiT, got a distilled DeiT, which was trained with a second extra token")
    for name, value in initial_parameters(config, np.random.default_rng(rng_seed)).items():
        if name == "time_embed" or name.startswith(("head.", "motion_head.")) or ".temporal_fc." in name:
            found[name] = value
        elif ".temporal_" in name and (spatial := name.replace(".temporal_", ".")) in found:
            found[name] = found[spatial]
    return found


def _resize_pos_embed(
    value: Array, config: HaltingVTConfig, grid: tuple[int, int] | None, problems: list[str]
) -> Array:
    if value.ndim != 3 or value.shape[1] < 2 or (grid is None and value.shape[1] == 1 + config.patches_per_frame):
        return value
    patches = value.shape[1] - 1
    old_rows, old_columns = (math.isqrt(patches),) * 2 if grid is None else grid
    if min(old_rows, old_columns) < 1 or old_rows * old_columns != patches:
        shape = "a square" if grid is None else f"a grid {old_rows}×{old_columns}"
        problems.append(
            f"pos_embed: expected {shape} of patches, got {patches} patches: give checkpoint_grid=(rows, columns), on "
            "the command line --checkpoint-grid ROWS COLUMNS"
        )
        return value
    rows, columns = config.grid
    row = np.arange(rows) * old_rows // rows
    column = np.arange(columns) * old_columns // columns
    index = (row[:, None] * old_columns + column).ravel()
    return np.concatenate([value[:, :1], value[:, 1 + index]], axis=1)


def _resize_time_embed(value: Array, config: HaltingVTConfig) -> Array:
    if value.ndim != 3 or value.shape[1] in (0, config.num_frames):
        return value
    return value[:, np.arange(config.num_frames) * value.shape[1] // config.num_frames]


# ---- writing


def save_parameters(parameters: Mapping[str, Array], path: str | os.PathLike[str]) -> None:
    """Write parameters to a .safetensors or .npz file, bit for bit, completely or not at all.

    The file is written under a temporary name in the same folder, flushed to the disk and then renamed. If anything
    fails, an older file of that name is unchanged. CheckpointError for another suffix and for values that are not
    arrays of numbers; OSError if the folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise CheckpointError(f"{path}: expected a name that ends in .safetensors or .npz")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file, got a folder")
    arrays = {name: np.array(value, order="C") for name, value in parameters.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise CheckpointError(f"{path}: {name}: expected an array of numbers of up to 64 bits, got {array.dtype}")

    with writing(path) as temporary:
        if path.suffix == ".safetensors":
            temporary.write_bytes(safetensors.numpy.save(arrays, {CHECKSUM: checksum(arrays)}))
            return
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
