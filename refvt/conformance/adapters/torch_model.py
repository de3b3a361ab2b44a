"""``torch_model``: a PyTorch module becomes a candidate for ``refvt check``.

What happens for each case:

1. ``build(config, parameters)`` makes the module. If it has not loaded the parameters itself, they are loaded by name.
2. One forward pass, in float32 or float64; float16 and bfloat16 run a float32 module under ``torch.autocast``. Every
   tensor that a PyTorch function returns on the way is recorded.
3. The losses come from the module, or from the specification's formulas; one backward pass gives the gradients of the
   parameters and of the recorded tensors that were recognised.

``discovery`` says how tensors are recognised. What the module itself names, its outputs, losses and parameters'
gradients, is always compared. What is only recognised is given where it agrees; where it does not, it is given only if
one of the module's own results is wrong too. So a right module is never called wrong because a tensor was taken for
another one, and a wrong one is told where it first went wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.conformance.adapters.discovery import Found, NamedTensors, discover
from refvt.conformance.adapters.parameters import load_parameters, match_parameters, stored_gradients
from refvt.conformance.adapters.recorder import Event, Record, recording, tensors_of, to_numpy
from refvt.conformance.arrangements import Geometry
from refvt.conformance.budgets import compare
from refvt.conformance.cases import ModelCase, Truth, truth_of
from refvt.conformance.golden import load_arrays, load_manifest

__all__ = ["torch_model"]

OUTPUTS = ("logits", "motion_logits", "ponder")
_EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

Names = Mapping[str, str | Sequence[str]]


def torch_model(build: Callable[..., Any], names: Names | None = None) -> Callable[[ModelCase], dict[str, Array]]:
    """A candidate that runs the PyTorch module ``build(config, parameters)``.

    build: gets the HaltingVTConfig and the parameters (a dict of NumPy arrays with the names of the state dict) and
    returns a ``torch.nn.Module``. If the module's state dict has these names and holds none of the values, they are
    loaded. ``forward(clips)`` returns (logits, motion_logits, ponder) or a dict with any of the names of the case; it
    may take ``decisions=`` (imposed where the case asks for it) and ``drop_path=``. A case with DropPath is not given
    if ``forward`` has no such argument.

    names: module path → named tensor, for the module's output, such as ``{"layers.0.ln": "blocks.0.norm1"}``; a tuple of
    names for an output that holds several side by side (q, k, v); ``"layers.0.ln:input"`` for its first input;
    ``{i}`` in both stands for every block. ValueError for a path or a name that does not exist.
    """
    import torch  # noqa: F401 - without PyTorch the error comes here, not in the first case

    def candidate(case: ModelCase) -> dict[str, Array]:
        return _Run(build, dict(names or {}), case).results()

    return candidate


class _Run:
    """One case: the module, what it computed, and what of it has a name."""

    def __init__(self, build: Callable[..., Any], names: dict[str, Any], case: ModelCase) -> None:
        import torch

        self.case = case
        self.dtype = torch.float64 if case.dtype == "float64" else torch.float32
        self.module = load_parameters(_built(build, case), case, self.dtype)
        self.parameters = match_parameters(self.module, case.parameters)
        self.wanted = _expanded(names, self.module, case)
        self.takes = inspect.signature(self.module.forward).parameters

    def results(self) -> dict[str, Array]:
        """Everything that the module gives for the case, by name."""
        if self.case.drop_path is not None and "drop_path" not in self.takes:
            return {}
        record = Record(self.parameters.names_by_id())
        mapped: dict[str, tuple[int, tuple[int, int]]] = {}
        outputs = self._forward(record, mapped)
        losses = self._losses(outputs)
        outputs |= losses
        given = {name: to_numpy(value) if hasattr(value, "detach") else np.asarray(value) for name, value in outputs.items()}
        truth = _truth(self.case)
        if truth is None:
            return given | stored_gradients(self.parameters, self._gradients(losses, self.parameters.tensors()))
        named = NamedTensors(
            Geometry(self.case.config, len(self.case.clips), np.asarray(self.case.decisions.halting_layer)),
            {n: t.value for n, t in truth.tensors.items() if t.direction == "forward" and n not in given},
            _allowed(truth, self.case.dtype),
        )
        return self._named(given, losses, record.events, mapped, named, truth)

    # ---- forward

    def _forward(self, record: Record, mapped: dict[str, tuple[int, tuple[int, int]]]) -> dict[str, Any]:
        import torch

        clips = torch.from_numpy(self.case.clips).to(self.dtype)
        more: dict[str, Any] = {}
        if self.case.drop_path is not None:
            more["drop_path"] = self.case.drop_path
        if "decisions" in self.takes and self.case.force_decisions:
            more["decisions"] = self.case.decisions
        hooks = self._hooks(record, mapped)
        watch = nullcontext() if hasattr(self.module, "_orig_mod") else recording(record)  # compiled: outputs alone
        try:
            with torch.enable_grad(), self._autocast(), watch:
                result = self.module(clips, **more)
        finally:
            for hook in hooks:
                hook.remove()
        return _as_outputs(result)

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        if self.case.dtype not in ("float16", "bfloat16"):
            return nullcontext()
        return torch.autocast("cpu", getattr(torch, self.case.dtype))

    def _hooks(self, record: Record, mapped: dict[str, tuple[int, tuple[int, int]]]) -> list[Any]:
        """Forward hooks for the names map: they note which recorded tensors the map means."""
        modules = dict(self.module.named_modules())

        def note(names: tuple[str, ...], value: Any) -> None:
            tensor = next(tensors_of(value), None)
            if tensor is None:
                return
            if id(tensor) not in record.last_event:
                record.note("hook", [], tensor)
            for i, name in enumerate(names):
                mapped[name] = record.last_event[id(tensor)], (i, len(names))

        def hook(names: tuple[str, ...], of_input: bool) -> Callable[..., None]:
            return lambda module, args, output: note(names, args if of_input else output)

        return [
            modules[path.removesuffix(":input")].register_forward_hook(hook(names, path.endswith(":input")))
            for path, names in self.wanted.items()
        ]

    # ---- losses and gradients

    def _losses(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """The losses that the module gives, and by the specification's formulas those that it does not."""
        import torch
        from torch.nn import functional

        settings, K = self.case.settings, self.case.config.num_classes
        labels, moving = torch.from_numpy(self.case.labels), torch.from_numpy(self.case.motion_labels).long()
        losses = {name: value for name, value in outputs.items() if name.startswith("loss.")}
        if "logits" in outputs and "loss.recognition" not in losses:
            target = labels.to(outputs["logits"].dtype) if labels.ndim == 2 else functional.one_hot(labels.long(), K)
            target = (1 - settings["label_smoothing"]) * target + settings["label_smoothing"] / K
            losses["loss.recognition"] = -(target * outputs["logits"].log_softmax(-1)).sum(-1).mean()
        if "ponder" in outputs and "loss.ponder" not in losses:
            losses["loss.ponder"] = outputs["ponder"].mean()
        if "motion_logits" in outputs and "loss.motion" not in losses:
            losses["loss.motion"] = functional.cross_entropy(outputs["motion_logits"].float() if self.case.dtype in (
                "float16", "bfloat16") else outputs["motion_logits"], moving)
        if "loss.total" not in losses and len(losses) == 3:
            losses["loss.total"] = (
                losses["loss.recognition"]
                + settings["ponder_weight"] * losses["loss.ponder"]
                + settings["motion_weight"] * losses["loss.motion"]
            )
        return losses

    def _gradients(self, losses: dict[str, Any], tensors: list[Any]) -> list[Any]:
        """The gradients of the total loss, zero where none reaches a tensor; an empty list without a total loss."""
        import torch

        total = losses.get("loss.total")
        if total is None or not getattr(total, "requires_grad", False):
            return []
        found = torch.autograd.grad(total, tensors, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, found, strict=True)]

    # ---- names

    def _named(
        self,
        given: dict[str, Array],
        losses: dict[str, Any],
        events: list[Event],
        mapped: dict[str, tuple[int, tuple[int, int]]],
        named: NamedTensors,
        truth: Truth,
    ) -> dict[str, Array]:
        """The results with the named tensors that were recognised and their gradients."""
        given |= stored_gradients(self.parameters, self._gradients(losses, self.parameters.tensors()))
        by_map = {n: named.best(n, e, events[e].value, part, "map") for n, (e, part) in mapped.items() if n in named.truth}
        agreeing, wrong = discover(events, named)
        right = all(_agrees(n, v, truth, self.case.dtype) for n, v in given.items() if n in truth)
        found: dict[str, list[Found]] = {n: [f] for n, f in by_map.items() if f is not None}
        found = {**agreeing, **found} if right else {**{n: [f] for n, f in wrong.items()}, **agreeing, **found}
        for name, places in found.items():
            given[name] = named.stored(places[0], events[places[0].event].value)
        gradients = self._tensor_gradients(found, losses, events, named, truth, right)
        return {**given, **_decisions(events, truth, given), **gradients}

    def _tensor_gradients(
        self,
        found: Mapping[str, list[Found]],
        losses: dict[str, Any],
        events: list[Event],
        named: NamedTensors,
        truth: Truth,
        right: bool,
    ) -> dict[str, Array]:
        """d(name) of recognised tensors: of several that have the same value, the one whose gradient agrees best."""
        usable = sorted({f.event for places in found.values() for f in places if _differentiable(events[f.event])})
        values = dict(zip(usable, self._gradients(losses, [events[e].tensor for e in usable]), strict=False))
        arrays = {event: to_numpy(value) for event, value in values.items()}
        gradients: dict[str, Array] = {}
        claimed: set[int] = set()
        for name, places in found.items():
            label = f"d({name})"
            if label not in truth:
                continue
            candidates = [(f.event, named.stored(f, arrays[f.event], truth[label].value)) for f in places if f.event in arrays]
            if not candidates:
                continue
            event, best = min(candidates, key=lambda c: _distance(label, c[1], truth))
            agrees = _agrees(label, best, truth, self.case.dtype)
            if agrees or (not right and event not in claimed):
                gradients[label] = best
            claimed.add(event)
        return gradients


# ---- small parts


def _built(build: Callable[..., Any], case: ModelCase) -> Any:
    """The module, built from NumPy arrays, or from tensors if ``build`` cannot take those."""
    import torch

    try:
        module = build(case.config, {name: value.copy() for name, value in case.parameters.items()})
    except Exception as error:
        tensors = {name: torch.from_numpy(value.copy()) for name, value in case.parameters.items()}
        try:
            module = build(case.config, tensors)
        except Exception:
            raise error from None
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"build: expected it to return a torch.nn.Module, got {type(module).__name__}")
    return module


def _expanded(names: dict[str, Any], module: Any, case: ModelCase) -> dict[str, tuple[str, ...]]:
    """The names map with ``{i}`` replaced by every block, and every value a tuple."""
    paths, expanded = dict(module.named_modules()), {}
    for path, value in names.items():
        listed = (value,) if isinstance(value, str) else tuple(value)
        blocks: Iterable[int | None] = range(case.config.depth) if "{i}" in path else (None,)
        hits = 0
        for i in blocks:
            at = path if i is None else path.replace("{i}", str(i))
            if at.removesuffix(":input") in paths:
                expanded[at] = tuple(name if i is None else name.replace("{i}", str(i)) for name in listed)
                hits += 1
        if not hits:
            raise ValueError(f"names: expected paths of modules, got {path!r}; there are {', '.join(p for p in paths if p)}")
    return expanded


def _as_outputs(result: Any) -> dict[str, Any]:
    """What forward returned, by name."""
    if hasattr(result, "_asdict"):
        result = result._asdict()
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items() if value is not None}
    if isinstance(result, tuple | list) and len(result) == len(OUTPUTS):
        return {name: value for name, value in zip(OUTPUTS, result, strict=True) if value is not None}
    if not isinstance(result, tuple | list) and all(hasattr(result, name) for name in OUTPUTS):
        return {name: getattr(result, name) for name in OUTPUTS}
    got = f"{type(result).__name__} of {len(result)}" if isinstance(result, tuple | list) else type(result).__name__
    raise TypeError(f"forward: expected (logits, motion_logits, ponder) or a dict of names, got {got}")


def _truth(case: ModelCase) -> Truth | None:
    """The truth of a golden case; None for a case of another origin."""
    golden = load_manifest().get(case.name)
    return None if golden is None or golden.kind != "model" else truth_of(golden, load_arrays(golden))


def _allowed(truth: Truth, dtype: str) -> dict[str, float]:
    return {
        name: compare(name, tensor.value, tensor.value, dict(tensor.entry), _EPS[dtype]).allowed
        for name, tensor in truth.tensors.items()
    }


def _agrees(name: str, value: Array, truth: Truth, dtype: str) -> bool:
    tensor = truth[name]
    if value.shape != tensor.value.shape:
        return False
    expected = tensor.value
    if tensor.rows is not None:
        value, expected = value.reshape(len(tensor.rows), -1)[tensor.rows], expected.reshape(len(tensor.rows), -1)[tensor.rows]
    return compare(name, value, expected, dict(tensor.entry), _EPS[dtype]).holds


def _distance(name: str, value: Array, truth: Truth) -> float:
    tensor = truth[name]
    rows = slice(None) if tensor.rows is None else tensor.rows
    distance = float(np.linalg.norm(value.reshape(len(value), -1)[rows] - tensor.value.reshape(len(value), -1)[rows]))
    return distance if np.isfinite(distance) else float("inf")


def _differentiable(event: Event) -> bool:
    return bool(event.tensor.requires_grad) and event.tensor._version == event.version


def _decisions(events: list[Event], truth: Truth, given: Mapping[str, Array]) -> dict[str, Array]:
    """Decisions that the module computed as integer tensors: those that are equal to the truth's."""
    found = {}
    for name, tensor in truth.tensors.items():
        if name.startswith("decisions.") and name not in given and np.ptp(tensor.value):
            for event in events:
                if event.value.shape == tensor.value.shape and np.array_equal(event.value, tensor.value):
                    found[name] = event.value
                    break
    return found
