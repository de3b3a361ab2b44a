"""The golden cases as ``check`` uses them: what a candidate is given, and the truth its answer is compared with.

A candidate that is a function gets a ``ModelCase``. Its answer is compared with a ``Truth``: the named tensors in
float64, in the order of computation, forward and then backward. The names are those of ``model.trace``:

    embed, blocks.3.attn.q, joint.4.weight      named tensors, as the model's trace has them
    decisions.kept.1, decisions.halting_layer   the decisions
    logits, motion_logits, features, ponder, tokens_per_layer, alive, loss.total, loss.recognition, …
    d(blocks.3.attn.q), d(head.weight)          gradients of the total loss at a named tensor or a parameter

The truth of an operation's case has the operation's results by name, then ``d(argument)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.conformance.golden import Case
from refvt.model.config import HaltingVTConfig
from refvt.model.decisions import Decisions
from refvt.model.drop_path import DropPath, draw_drop_path
from refvt.ops import operations

__all__ = [
    "DECISIONS",
    "AnyCase",
    "ModelCase",
    "OperationCase",
    "TrainingCase",
    "Truth",
    "TruthTensor",
    "base_name",
    "layout_of",
    "model_case",
    "operation_case",
    "training_case",
    "truth_of",
]

DECISIONS = {"halt": "halted", "halt_tokens": "halting_layer"}  # operation: the result that ``forced`` imposes
LOSS_SETTINGS = ("ponder_weight", "motion_weight", "label_smoothing")


@dataclass(frozen=True)
class ModelCase:
    """What a candidate that is a function is given: one model, one batch, one training step.

    parameters: the state dict (names and shapes of the specification). clips [B, C, T, height, width]; labels [B] class
    numbers or [B, K] soft; motion_labels [B]. settings: ponder_weight, motion_weight, label_smoothing. decisions: those
    of the truth; they are to be imposed where ``force_decisions`` is true, by a candidate that can. drop_path: the
    scales of every residual branch, in ``.glimpser[i].temporal [B, S]``, ``.spatial [B, T]``, ``.mlp [B]`` and
    ``.joint [L, 2, B]``; None in a case without stochastic depth. Floats are float64 for a candidate in float64, else
    float32 (for float16 and bfloat16 too: the candidate rounds them itself). dtype: the one that is checked.
    """

    name: str
    config: HaltingVTConfig
    parameters: dict[str, Array]
    clips: Array
    labels: Array
    motion_labels: Array
    settings: dict[str, float]
    decisions: Decisions
    force_decisions: bool = False
    drop_path: DropPath | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class OperationCase:
    """What an operation of a candidate is given: arrays by the names of its arguments, plain settings, cotangents.

    Floats are float64, float32 or float16, as the candidate's dtype is; float32 for bfloat16, which NumPy lacks.
    """

    name: str
    operation: str
    arguments: dict[str, Array]
    settings: dict[str, Any]
    cotangents: dict[str, Array]


@dataclass(frozen=True)
class TrainingCase:
    """Some steps of training on one batch, for refvt's own backends: ``start`` are the parameters before the first."""

    name: str
    config: HaltingVTConfig
    start: dict[str, Array]
    batch: dict[str, Array]
    settings: dict[str, Any]
    steps: int


AnyCase = ModelCase | OperationCase | TrainingCase


@dataclass(frozen=True)
class TruthTensor:
    """One named tensor of the truth.

    value: float64, int64 or bool. direction: "forward" or "backward". entry: its entry in the manifest
    (``float32_error``, ``condition``, ``absolute``, …). rows: which of the leading rows count (bool [rows]); None: all.
    A token that has halted is no row that counts in a later block.

    layout says what the leading axes are:

    ==============  ================================================================================================
    "tokens"        rows [B·N, D], N = 1 + S·T: CLS, then patch s of frame t at 1 + s·T + t; S patches enter ``block``
    "paths"         rows [B·S·T, D] of temporal attention: (clip, patch, frame)
    "frames"        rows [B·T·(1+S), D] of spatial attention: (clip, frame, [CLS, patches])
    "scores"        [B·T, S]: a row for each (clip, frame), a column for each patch
    "fused"         rows [B·T, D], one for each (clip, frame)
    "halting"       [B·N']: one number for each token of the joint blocks
    "cls"           rows [B, D] or [B, K]: one for each clip
    "ponder"        [B, N']
    "parameter"     a gradient with the shape of its parameter
    "number"        a loss
    "decision"      integers: kept [B, T, S'], halting_layer [B, N'], tokens_per_layer [B, L], alive [B, L, N']
    "operation"     an argument's gradient or a result of an operation
    ==============  ================================================================================================

    patches: S, the patches of a frame that this tensor has, where its layout has an S (0 elsewhere).
    """

    name: str
    value: Array
    direction: str
    layout: str
    entry: Mapping[str, Any]
    rows: Array | None = None
    patches: int = 0


@dataclass(frozen=True)
class Truth:
    """The truth of one case: a mapping from names to ``TruthTensor``, in the order of computation."""

    name: str
    kind: str  # "model", "op" or "training"
    describes: str
    tensors: dict[str, TruthTensor]
    margins: Mapping[str, float | None]
    config: HaltingVTConfig | None = None
    operation: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 0  # B, of a model's case

    def __getitem__(self, name: str) -> TruthTensor:
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def base_name(key: str) -> str:
    """The name of a tensor without the run that it comes from ("compact: logits")."""
    return key.rpartition(": ")[2]


# ---- what a candidate is given


def model_case(case: Case, arrays: Mapping[str, Array], dtype: str = "float32", force: bool = False) -> ModelCase:
    """The case of a whole model, from a golden case and its arrays; floats in the dtype that the candidate is given."""
    assert case.config is not None
    config = HaltingVTConfig(**case.config)
    given = np.float64 if dtype == "float64" else np.float32

    def cast(value: Array) -> Array:
        return np.array(value, dtype=given if value.dtype.kind == "f" else value.dtype)

    seed, clips = case.settings["drop_path_seed"], arrays["clips"]
    drop_path = None
    if seed is not None:
        drop_path = draw_drop_path(config, len(clips), case.settings["drop_path"], np.random.default_rng(seed))
    return ModelCase(
        name=case.name,
        config=config,
        parameters={n.removeprefix("parameters/"): cast(v) for n, v in arrays.items() if n.startswith("parameters/")},
        clips=cast(clips),
        labels=cast(arrays["labels"]),
        motion_labels=cast(arrays["motion_labels"]),
        settings={name: float(case.settings[name]) for name in LOSS_SETTINGS},
        decisions=Decisions(
            tuple(arrays[f"decisions/kept.{g}"].copy() for g in range(config.glimpser_depth)),
            arrays["decisions/halting_layer"].copy(),
        ),
        force_decisions=force,
        drop_path=drop_path,
        dtype=dtype,
    )


def operation_case(case: Case, arrays: Mapping[str, Array], dtype: str = "float32") -> OperationCase:
    """The case of one operation, from a golden case and its arrays."""
    assert case.operation is not None
    given = "float32" if dtype == "bfloat16" else dtype

    def part(prefix: str) -> dict[str, Array]:
        found = {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
        return {n: np.array(v, dtype=given if v.dtype.kind == "f" else v.dtype) for n, v in found.items()}

    return OperationCase(case.name, case.operation, part("argument/"), dict(case.settings), part("cotangent/"))


def training_case(case: Case, arrays: Mapping[str, Array], dtype: str = "float32") -> TrainingCase:
    """The case of a training run, from a golden case and its arrays."""
    assert case.config is not None

    def cast(value: Array) -> Array:
        return np.array(value, dtype=dtype if value.dtype.kind == "f" else value.dtype)

    start = {n.removeprefix("start/"): cast(v) for n, v in arrays.items() if n.startswith("start/")}
    batch = {name: cast(arrays[name]) for name in ("clips", "labels", "motion_labels")}
    config = HaltingVTConfig(**case.config)
    return TrainingCase(case.name, config, start, batch, dict(case.settings), len(arrays["losses"]))


# ---- the truth


def truth_of(case: Case, arrays: Mapping[str, Array]) -> Truth:
    """The truth of a golden case, its tensors in the order of computation."""
    kinds = {"op": _operation_truth, "model": _model_truth, "training": _training_truth}
    return kinds[case.kind](case, arrays)


def _training_truth(case: Case, arrays: Mapping[str, Array]) -> Truth:
    tensors = {}
    for key, value in arrays.items():
        if key == "losses" or key.startswith(("decisions/", "final/")):
            name = key.replace("decisions/", "decisions.").replace("final/", "final ")
            tensors[name] = TruthTensor(name, value, "forward", "operation", case.tensors[key])
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[0].startswith("final"), item[0] == "losses")))
    return Truth(case.name, "training", case.describes, ordered, case.margins, settings=case.settings)


def _operation_truth(case: Case, arrays: Mapping[str, Array]) -> Truth:
    assert case.operation is not None
    operation, tensors = operations()[case.operation], {}
    for prefix, wrap, direction, names in (
        ("result/", "{}", "forward", operation.results),
        ("gradient/", "d({})", "backward", operation.gradients),
    ):
        for name in names:
            key = prefix + name
            if key in arrays:
                label = wrap.format(name)
                tensors[label] = TruthTensor(label, arrays[key], direction, "operation", case.tensors[key])
    return Truth(
        case.name, "op", case.describes, tensors, case.margins, operation=case.operation, settings=case.settings
    )


def _model_truth(case: Case, arrays: Mapping[str, Array]) -> Truth:
    assert case.config is not None
    config = HaltingVTConfig(**case.config)
    forward = [name.removeprefix("forward/") for name in arrays if name.startswith("forward/")]
    tensors: dict[str, TruthTensor] = {}

    def add(name: str, key: str, direction: str) -> None:
        if key in arrays and name not in tensors:
            base = name.removeprefix("d(").removesuffix(")")
            layout, patches, rows = ("parameter", 0, None)
            if not key.startswith("gradients/"):
                layout, patches = layout_of(base, config)
                rows = _living(base, layout, config, arrays["output/alive"])
            tensors[name] = TruthTensor(name, arrays[key], direction, layout, case.tensors[key], rows, patches)

    for name in [*forward, *_OUTPUTS]:
        if name.endswith(".selected") or not forward:
            _add_kept(add, config, name if forward else None)
        if name == "y" or (name == "ponder" and "y" not in forward):
            add("decisions.halting_layer", "decisions/halting_layer", "forward")
            add("alive", "output/alive", "forward")
            add("tokens_per_layer", "output/tokens_per_layer", "forward")
        if name == "logits":
            add("features", "output/features", "forward")
        add(name, f"forward/{name}", "forward")
        add(name, f"output/{name}", "forward")
        if name.endswith(".scores"):
            _add_kept(add, config, name)
    for name in ("recognition", "ponder", "motion", "total"):
        add(f"loss.{name}", f"loss/{name}", "forward")
    for name in _backward_order(forward, arrays):
        key = f"backward/{name}" if f"backward/{name}" in arrays else f"gradients/{name}"
        add(f"d({name})", key, "backward")
    for name, tensor in tensors.items():
        if tensor.entry.get("absolute") and name.endswith((".q)", ".k)")):
            condition = _size_of_cancelling_terms(tensors, name, config.width // config.num_heads)
            tensors[name] = replace(tensor, entry={**tensor.entry, "condition": condition})
    return Truth(
        case.name, "model", case.describes, tensors, case.margins, config, None, case.settings, len(arrays["clips"])
    )


def _size_of_cancelling_terms(tensors: Mapping[str, TruthTensor], name: str, d: int) -> float | None:
    """‖Σ|terms|‖ of a gradient of q or k that is zero because its terms cancel; None if it cannot be known.

    With one key, as in temporal attention over one frame, the gradient of the logit is dy·v − Σ w (dy·v) = 0. Many
    programs compute the second term as dy·y (Dao et al. 2022, FlashAttention), whose rounding differs. The bound:
    2 ‖dy‖ · max ‖v‖ · max ‖k‖ / √d for the gradient of q, with q in the place of k for that of k.
    """
    attention, other = name[2:-3], {"q": "k", "k": "q"}[name[-2]]
    needed = [f"d({attention}.y)", f"{attention}.v", f"{attention}.{other}"]
    if not all(n in tensors for n in needed):
        return None
    dy, v, o = (tensors[n].value for n in needed)
    largest_v, largest_o = (float(np.linalg.norm(x, axis=-1).max(initial=0)) for x in (v, o))
    return 2 * float(np.linalg.norm(dy)) * largest_v * largest_o / math.sqrt(d)


_OUTPUTS = ("ponder", "features", "logits", "motion_logits")


def _add_kept(add: Any, config: HaltingVTConfig, after: str | None) -> None:
    """The patches that a Glimpser block keeps come right after its scores; all at once without named tensors."""
    for g in range(config.glimpser_depth):
        if after is None or after in (f"blocks.{g}.scores", f"blocks.{g}.selected"):
            add(f"decisions.kept.{g}", f"decisions/kept.{g}", "forward")


def _backward_order(forward: list[str], arrays: Mapping[str, Array]) -> Iterator[str]:
    """The named tensors in reverse, each followed by the parameters whose gradients come from its own."""
    parameters = [name.removeprefix("gradients/") for name in arrays if name.startswith("gradients/")]
    named = forward or _tensors_of(parameters)
    for tensor in reversed(named):
        yield tensor
        yield from (name for name in parameters if _read_from(name) == tensor)


def _tensors_of(parameters: list[str]) -> list[str]:
    """The tensors that parameters produce, in the order of computation, for cases without named tensors."""
    found = {_read_from(name) for name in parameters}
    temporal = ("temporal_norm1", "temporal_attn.q", "temporal_attn.proj", "temporal_fc")
    places = (*temporal, "norm1", "attn.q", "attn.proj", "norm2", "mlp")
    depth = 1 + max((int(name.split(".")[1]) for name in found if name.startswith("blocks.")), default=-1)
    ordered = ["embed", *(f"blocks.{i}.{place}" for i in range(depth) for place in places)]
    return [name for name in (*ordered, "norm", "logits", "motion_logits") if name in found]


def _read_from(parameter: str) -> str:
    """The named tensor whose gradient gives the gradient of a parameter."""
    stem = parameter.rpartition(".")[0]
    if not stem or stem == "patch_embed.proj":
        return "embed"
    if stem in ("head", "motion_head"):
        return {"head": "logits", "motion_head": "motion_logits"}[stem]
    if stem.endswith(".qkv"):
        return stem.removesuffix("qkv") + "q"  # the last of v, k, q in reverse
    return stem.removesuffix(".fc1").removesuffix(".fc2")


def layout_of(name: str, config: HaltingVTConfig) -> tuple[str, int]:
    """Layout and S of a named tensor of the model (see ``TruthTensor``)."""
    entering, G = config.patches_entering(), config.glimpser_depth
    if name.startswith(("decisions.", "alive", "tokens_per_layer")):
        return "decision", 0
    if name.startswith("loss."):
        return "number", 0
    if name == "ponder":
        return "ponder", entering[-1]
    if name.startswith("joint."):
        return "halting", entering[-1]
    if name == "embed":
        return "tokens", entering[0]
    if not name.startswith("blocks."):
        return ("tokens", entering[-1]) if name == "y" else ("cls", 0)
    block, tensor = int(name.split(".")[1]), name.split(".", 2)[2]
    if block >= G:
        return "tokens", entering[-1]
    if tensor.startswith("temporal_") and tensor != "temporal_fc":
        return "paths", entering[block]
    if tensor == "scores":
        return "scores", entering[block]
    if tensor == "fused":
        return "fused", 0
    if tensor == "norm1" or tensor.startswith("attn."):
        return "frames", entering[block]
    return "tokens", entering[block + (tensor in ("selected", "norm2", "mlp"))]


def _living(name: str, layout: str, config: HaltingVTConfig, alive: Array) -> Array | None:
    """Which rows of a joint block's tensor count: those of the tokens that enter it. alive [B, L, N']."""
    if layout == "halting":
        layer = int(name.split(".")[1])
    elif layout == "tokens" and name.startswith("blocks.") and int(name.split(".")[1]) >= config.glimpser_depth:
        layer = int(name.split(".")[1]) - config.glimpser_depth + 1
    else:
        return None
    return np.asarray(alive[:, layer - 1]).reshape(-1)
