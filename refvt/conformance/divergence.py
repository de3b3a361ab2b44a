"""The first divergence of a case, and where its worst element is in human terms."""

from __future__ import annotations

import numpy as np

from refvt.array import Array
from refvt.conformance.cases import Truth, TruthTensor, base_name
from refvt.conformance.report import CaseReport, Divergence, TensorReport

__all__ = ["first_divergence", "narrow_down", "neighbourhood", "place"]


def first_divergence(truth: Truth, tensors: list[TensorReport]) -> Divergence | None:
    """The first tensor that differs, in the order of computation; None if none does."""
    last_agreeing = None
    for tensor in tensors:
        if tensor.status == "differs":
            where = "" if tensor.index is None else place(truth, base_name(tensor.name), tensor.index)
            return Divergence(
                tensor=tensor.name,
                direction=tensor.direction,
                last_agreeing=last_agreeing,
                index=tensor.index,
                place=where,
                got=tensor.got,
                expected=tensor.expected,
                error=tensor.error,
                allowed=tensor.allowed,
                share=tensor.share,
                note=tensor.note,
            )
        if tensor.status == "agrees":
            last_agreeing = tensor.name
    return None


# ---- the place of an element


def place(truth: Truth, name: str, index: tuple[int, ...]) -> str:
    """Where an element of a named tensor is: clip, frame, patch row and column, layer, head, channel."""
    tensor = truth[name]
    if truth.kind == "op":
        return _axes(truth, tensor, index)
    if truth.kind == "training":
        return f"element {list(index)}"
    parts = _layer(truth, name)
    if tensor.layout == "parameter":
        parts.append(_parameter(truth, name, index))
    elif tensor.layout == "decision":
        parts += _decision(name, index)
    elif tensor.layout == "number":
        pass
    else:
        parts += _rows(truth, tensor, index)
    return ", ".join(filter(None, parts))


def _axes(truth: Truth, tensor: TruthTensor, index: tuple[int, ...]) -> str:
    """An element of an operation's array, with the names that its shape has in the table of operations."""
    from refvt.ops import operations

    assert truth.operation is not None
    operation = operations()[truth.operation]
    name = tensor.name.removeprefix("d(").removesuffix(")")
    described = operation.results.get(name) if tensor.direction == "forward" else operation.arguments.get(name)
    names = {"n": "row", "m": "row", "D": "channel", "F": "channel", "E": "channel", "K": "class", "B": "clip"}
    names |= {"N": "token", "L": "layer", "S": "patch", "segments": "segment", "k": "rank", "A": "head", "C": "colour"}
    axes = (described or "").strip("[]").split()
    if len(axes) != len(index):
        return f"element {list(index)}" if index else ""
    found = [f"{names.get(axis, 'row' if '*' in axis else axis)} {i}" for axis, i in zip(axes, index, strict=True)]
    return ", ".join(found)


def _layer(truth: Truth, name: str) -> list[str]:
    base = name.removeprefix("d(").removesuffix(")")
    assert truth.config is not None
    if base.startswith("joint."):
        return [f"joint layer {base.split('.')[1]}"]
    if base.startswith("blocks."):
        block, G = int(base.split(".")[1]), truth.config.glimpser_depth
        return [f"Glimpser block {block}" if block < G else f"block {block} (joint layer {block - G + 1})"]
    return []


def _rows(truth: Truth, tensor: TruthTensor, index: tuple[int, ...]) -> list[str]:
    config = truth.config
    assert config is not None
    T, S = config.num_frames, tensor.patches
    base = tensor.name.removeprefix("d(").removesuffix(")")
    if tensor.layout in ("tokens", "halting", "ponder"):
        N = 1 + S * T
        clip, token = (index[0], index[1]) if tensor.layout == "ponder" else divmod(index[0], N)
        channel = index[1:] if tensor.layout == "tokens" else ()
        s, t = (-1, -1) if token == 0 else divmod(token - 1, T)
    elif tensor.layout == "paths":
        clip, rest = divmod(index[0], S * T)
        s, t = divmod(rest, T)
        channel = index[1:]
    elif tensor.layout == "frames":
        clip, rest = divmod(index[0], T * (1 + S))
        t, row = divmod(rest, 1 + S)
        s, channel = row - 1, index[1:]
    elif tensor.layout == "scores":
        clip, t = divmod(index[0], T)
        s, channel = index[1], ()
    elif tensor.layout == "fused":
        clip, t = divmod(index[0], T)
        return [f"clip {clip}", f"frame {t}", "the fused token", f"channel {index[1]}"]
    else:
        last = {"logits": "class", "motion_logits": "class"}.get(base, "channel")
        return [f"clip {index[0]}", *(f"{last} {i}" for i in index[1:])]
    parts = [f"clip {clip}", *([f"frame {t}"] if t >= 0 else []), _patch(truth, base, clip, t, s)]
    return parts + [_channel(base, i, config.width // config.num_heads) for i in channel]


def _channel(base: str, i: int, d: int) -> str:
    if base.endswith((".q", ".k", ".v", "attn.y")):
        return f"head {i // d}, channel {i % d} of the head"
    return f"channel {i}"


def _patch(truth: Truth, base: str, clip: int, t: int, s: int) -> str:
    """A patch by its row and column in the grid of the frame, through the truth's selections."""
    if s < 0:
        return "CLS"
    assert truth.config is not None
    original, rank = s, ""
    block = int(base.split(".")[1]) if base.startswith("blocks.") else truth.config.depth
    after = block + (base.partition(".")[2].partition(".")[2] in ("selected", "norm2", "mlp"))
    before = min(after, truth.config.glimpser_depth) if base != "embed" else 0
    if before > 0 and f"decisions.kept.{before - 1}" in truth:
        original = int(truth[f"decisions.kept.{before - 1}"].value[clip, t, s])
        rank = f" (rank {s})" if original != s else ""
    if original < 0:
        return f"the fused token{rank}"
    row, column = divmod(original, truth.config.grid[1])
    return f"patch row {row} column {column}{rank}"


def _decision(name: str, index: tuple[int, ...]) -> list[str]:
    names = {"alive": ("clip", "joint layer", "token"), "tokens_per_layer": ("clip", "joint layer")}
    axes = names.get(name, ("clip", "token") if name.endswith("halting_layer") else ("clip", "frame", "rank"))
    shown = [i + (axis == "joint layer") for axis, i in zip(axes, index, strict=True)]
    found = [f"{axis} {i}" for axis, i in zip(axes, shown, strict=True)]
    return ["CLS" if part == "token 0" else part for part in found]


def _parameter(truth: Truth, name: str, index: tuple[int, ...]) -> str:
    base = name.removeprefix("d(").removesuffix(")")
    assert truth.config is not None
    D = truth.config.width
    if base == "pos_embed":
        row = "CLS" if index[1] == 0 else "patch row {} column {}".format(*divmod(index[1] - 1, truth.config.grid[1]))
        return f"{row}, channel {index[2]}"
    if base == "time_embed":
        return f"frame {index[1]}, channel {index[2]}"
    if ".qkv." in base:
        part, in_part = divmod(index[0], D)
        head, channel = divmod(in_part, D // truth.config.num_heads)
        column = f", input channel {index[1]}" if len(index) > 1 else ""
        return f"{'qkv'[part]} rows, head {head}, channel {channel} of the head{column}"
    if len(index) == 2:
        return f"output {index[0]}, input {index[1]}"
    return f"channel {index[-1]}" if len(index) in (1, 3) else f"element {list(index)}"


# ---- what else is known


def neighbourhood(
    got: Array, expected: Array, index: tuple[int, ...], side: int = 7
) -> tuple[list[list[float]], list[list[float]]]:
    """The values around an element, at most side × side, of both arrays: rows of the leading axes, last axis across."""
    columns = expected.shape[-1] if expected.ndim > 1 else expected.size
    flat = [np.asarray(a, dtype=np.float64).reshape(-1, max(columns, 1)) for a in (got, expected)]
    row, column = divmod(int(np.ravel_multi_index(index, expected.shape)) if index else 0, max(columns, 1))
    rows = slice(max(row - side // 2, 0), row + side // 2 + 1)
    cut = slice(max(column - side // 2, 0), column + side // 2 + 1)
    return flat[0][rows, cut].tolist(), flat[1][rows, cut].tolist()


def narrow_down(truth: Truth, case: CaseReport, given: dict[str, Array]) -> str:
    """What outputs, decisions and gradients say about a difference, in one sentence."""
    by_status: dict[str, list[str]] = {"agrees": [], "differs": []}
    for tensor in case.tensors:
        names = by_status.setdefault(tensor.status, [])
        if base_name(tensor.name) not in names:
            names.append(base_name(tensor.name))
    parts = []
    outputs = [name for name in ("logits", "motion_logits", "features", "ponder") if name in given]
    for status, word in (("agrees", "agree"), ("differs", "differ")):
        names = [name for name in outputs if name in by_status[status]]
        if names and len(outputs) > 1:
            parts.append(f"{' and '.join(names)} {word}{'s' if len(names) == 1 else ''}")
    decisions = [n for n in by_status["differs"] if truth[n].layout == "decision"]
    kept = [n for n in by_status["agrees"] if truth[n].layout == "decision" and n not in decisions]
    if decisions:
        parts.append(f"decisions that differ: {', '.join(decisions)}")
    elif kept:
        parts.append("all decisions agree")
    vanished = [
        n
        for n in by_status["differs"]
        if n.startswith("d(") and not np.any(given[n]) and np.linalg.norm(truth[n].value) > 0
    ]
    if vanished:
        more = f" and {len(vanished) - 3} more" if len(vanished) > 3 else ""
        parts.append(f"gradients that vanish (perhaps never used): {', '.join(vanished[:3])}{more}")
    return "; ".join(parts)
