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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.conformance.adapters.parameters import load_parameters, match_parameters, stored_gradients
from refvt.conformance.adapters.recognition import Mapped, recognise
from refvt.conformance.adapters.recorder import Record, recording, tensors_of, to_numpy
from refvt.conformance.candidates import warn
from refvt.conformance.cases import ModelCase

__all__ = ["torch_model"]

OUTPUTS = ("logits", "motion_logits", "ponder")

Names = Mapping[str, str | Sequence[str]]


def torch_model(build: Callable[..., Any], names: Names | None = None) -> Callable[[ModelCase], dict[str, Array]]:
    """A candidate that runs the PyTorch module ``build(config, parameters)``.

    build: gets the HaltingVTConfig and the parameters (a dict of NumPy arrays with the names of the state dict) and
    returns a ``torch.nn.Module``. If the module's state dict has these names and holds none of the values, they are
    loaded. ``forward(clips)`` returns (logits, motion_logits, ponder) or a dict with any of the names of the case; it
    may take ``decisions=`` (imposed where the case asks for it) and ``drop_path=`` (``ModelCase.drop_path``, default
    None). A case with DropPath is not given if ``forward`` has no such argument.

    names: module path → named tensor, for the module's output, such as ``{"layers.0.ln": "blocks.0.norm1"}``; a tuple
    of names for an output that holds several side by side (q, k, v); ``"layers.0.ln:input"`` for its first input;
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
        if self.case.drop_path is not None and not _takes_scales(self.takes):
            return {}
        record, mapped = Record(self.parameters.names_by_id()), Mapped()
        with _one_thread():
            outputs = self._forward(record, mapped)
            own_total = "loss.total" in outputs
            outputs |= self._losses(outputs)
            recognised = recognise(self.case, record.events, mapped, list(outputs))
            for text in () if recognised is None else recognised.warnings():
                warn(text)
            # one backward pass for all; a module with a loss of its own may use other tensors than it returns
            results = [] if own_total else [n for n in OUTPUTS if n in outputs and outputs[n].requires_grad]
            usable = [] if recognised is None else recognised.differentiable()
            groups = [
                self.parameters.tensors(),
                [outputs[name] for name in results],
                [record.events[number].tensor for number in usable],
            ]
            of_parameters, of_results, of_events = self._gradients(outputs.get("loss.total"), groups)
        given = {name: _as_array(value) for name, value in outputs.items()}
        given |= stored_gradients(self.parameters, of_parameters)
        given |= {f"d({name})": gradient for name, gradient in zip(results, of_results, strict=False)}
        return given if recognised is None else recognised.results(given, dict(zip(usable, of_events, strict=False)))

    # ---- forward

    def _forward(self, record: Record, mapped: Mapped) -> dict[str, Any]:
        import torch

        clips = torch.from_numpy(self.case.clips).to(self.dtype)
        more: dict[str, Any] = {} if self.case.drop_path is None else {"drop_path": self.case.drop_path}
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

    def _autocast(self) -> Any:
        import torch

        if self.case.dtype not in ("float16", "bfloat16"):
            return nullcontext()
        return torch.autocast("cpu", getattr(torch, self.case.dtype))

    def _hooks(self, record: Record, mapped: Mapped) -> list[Any]:
        """Forward hooks for the names map: they note which recorded tensors the map means."""
        modules = dict(self.module.named_modules())

        def note(path: str, names: tuple[str, ...], value: Any) -> None:
            tensor = next(tensors_of(value), None)
            if tensor is None:
                return
            if id(tensor) not in record.last_event:
                record.note("hook", [], tensor)
            for i, name in enumerate(names):
                if name in mapped:
                    warn(f"names: {path} is called more than once in a forward; its last call is compared as {name}")
                mapped[name] = record.last_event[id(tensor)], (i, len(names))

        def hook(path: str, names: tuple[str, ...]) -> Callable[..., None]:
            of_input = path.endswith(":input")
            return lambda module, args, output: note(path, names, args if of_input else output)

        return [
            modules[path.removesuffix(":input")].register_forward_hook(hook(path, names))
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
            logits = _wide(outputs["logits"])
            target = labels if labels.ndim == 2 else functional.one_hot(labels.long(), K)
            target = target.to(logits.dtype)
            target = (1 - settings["label_smoothing"]) * target + settings["label_smoothing"] / K
            losses["loss.recognition"] = -(target * logits.log_softmax(-1)).sum(-1).mean()
        if "ponder" in outputs and "loss.ponder" not in losses:
            losses["loss.ponder"] = _wide(outputs["ponder"]).mean()
        if "motion_logits" in outputs and "loss.motion" not in losses:
            losses["loss.motion"] = functional.cross_entropy(_wide(outputs["motion_logits"]), moving)
        if "loss.total" not in losses and len(losses) == 3:
            losses["loss.total"] = (
                losses["loss.recognition"]
                + settings["ponder_weight"] * losses["loss.ponder"]
                + settings["motion_weight"] * losses["loss.motion"]
            )
        return losses

    def _gradients(self, total: Any, groups: list[list[Any]]) -> list[list[Array]]:
        """The gradients of the total loss for each group of tensors, zero where none arrives; none without a loss."""
        import torch

        tensors = [tensor for group in groups for tensor in group]
        if not tensors or not getattr(total, "requires_grad", False):
            return [[] for _ in groups]
        found = torch.autograd.grad(total, tensors, allow_unused=True)
        arrays = iter([to_numpy(torch.zeros_like(x) if g is None else g) for x, g in zip(tensors, found, strict=True)])
        return [[next(arrays) for _ in group] for group in groups]


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
            raise ValueError(
                f"names: expected paths of modules, got {path!r}; there are {', '.join(p for p in paths if p)}"
            )
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


def _wide(tensor: Any) -> Any:
    """Losses are computed in at least float32."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def _takes_scales(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether ``forward`` has an argument for the scales of DropPath; one whose default is a number is a rate."""
    found = parameters.get("drop_path")
    return found is not None and not isinstance(found.default, int | float)


def _as_array(value: Any) -> Array:
    return to_numpy(value) if hasattr(value, "detach") else np.asarray(value)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: the tensors of a case are so small that threads only wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
