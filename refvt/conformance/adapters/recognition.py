"""What of the tensors that a PyTorch module computed is given for comparison, and under which name.

``discovery`` finds the names. What is found is given where it agrees with the truth. Where it does not, it is given
only if one of the module's own results (outputs, losses, parameters' gradients) is wrong too: so a right module is
never called wrong because a tensor was taken for another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from refvt.array import Array
from refvt.conformance.adapters.discovery import Found, NamedTensors, discover
from refvt.conformance.adapters.recorder import Event
from refvt.conformance.adapters.taken import halting_layers, kept_patches
from refvt.conformance.arrangements import Geometry
from refvt.conformance.budgets import DTYPES, budget_of
from refvt.conformance.cases import ModelCase, Truth, truth_of
from refvt.conformance.golden import Case, load_arrays, load_manifest
from refvt.conformance.judgement import judge

__all__ = ["Mapped", "Recognised", "recognise"]


class Mapped(dict[str, tuple[int, tuple[int, int]]]):
    """What a names map named: the event, and which part of how many of its last axis, by name."""


class Recognised:
    """The recognised tensors of one run of a module.

    discovery: what was found without a names map; mapped: the tensors that a names map named.
    """

    def __init__(self, case: ModelCase, truth: Truth, events: list[Event], mapped: Mapped, given: list[str]) -> None:
        self.truth, self.events, self.dtype = truth, events, case.dtype
        self.named = NamedTensors(
            Geometry(case.config, len(case.clips), np.asarray(case.decisions.halting_layer)),
            {n: t.value for n, t in truth.tensors.items() if t.direction == "forward" and n not in given},
            {n: budget_of(t.entry, case.dtype, t.value.size).tensor for n, t in truth.tensors.items()},
        )
        self.discovery = discover(events, self.named)
        self.mapped: dict[str, Found] = {}
        self.unfit: list[str] = []  # names of the map whose tensor has another size
        for name in self.named.truth.keys() & mapped.keys():
            number, part = mapped[name]
            best = self.named.best(name, number, events[number].value, part, "map")
            if best is None:
                self.unfit.append(name)
            else:
                self.mapped[name] = best

    def warnings(self) -> list[str]:
        """What the values say against the names map: a tensor of another size, or of another value."""
        said = [f"names: what is mapped to {name} has not its size, and is not compared" for name in sorted(self.unfit)]
        agreeing = self.discovery.agreeing
        for name, found in self.mapped.items():
            if found.error <= self.named.allowed[name]:
                continue
            other = next((n for n, places in agreeing.items() if any(p.event == found.event for p in places)), None)
            if other is not None and found.part == (0, 1):
                said.append(f"names: what is mapped to {name} has the value of {other}")
            elif name in agreeing:
                said.append(f"names: what is mapped to {name} has not its value, but another tensor of the module has")
        return said

    def differentiable(self) -> list[int]:
        """The events whose gradient can be asked for: those that were not overwritten later."""
        listed = (*self._places(right=False).values(), *self.discovery.agreeing.values())
        places = [place for found in listed for place in found]
        events = {f.event for f in places if self.events[f.event].tensor.requires_grad}
        return sorted(e for e in events if self.events[e].tensor._version == self.events[e].version)

    def results(self, given: dict[str, Array], gradients: Mapping[int, Array]) -> dict[str, Array]:
        """All that is given: the module's own results, recognised tensors, decisions, gradients (by event)."""
        right = all(self._agrees(name, value) for name, value in given.items() if name in self.truth)
        found = self._places(right)
        tensors = {n: self.named.stored(f[0], self.events[f[0].event].value) for n, f in found.items()}
        if right:
            tensors = {name: value for name, value in tensors.items() if self._agrees(name, value)}
            tensors |= self._decisions(given)
        else:
            tensors |= {n: self.events[e].value for n, e in self.discovery.misfits.items() if n not in tensors}
        if not right and DTYPES[self.dtype] > DTYPES["float32"]:
            tensors |= self._taken(given)
        return {**given, **tensors, **self._gradients(found, gradients, right)}

    def _places(self, right: bool) -> dict[str, list[Found]]:
        """For each name the tensors that it can be."""
        wrong = {} if right else {name: [found] for name, found in self.discovery.wrong.items()}
        mapped = {name: [found] for name, found in self.mapped.items()}
        agreeing = {n: f for n, f in self.discovery.agreeing.items() if right or not self._lacks_cls(f[0])}
        return {**wrong, **agreeing, **mapped}

    def _lacks_cls(self, found: Found) -> bool:
        """Whether a state holds the patches alone, although the class token too has changed since the last one."""
        rows = self.named.geometry.rows_of(found.name)
        assert rows is not None
        return found.covers < rows.count and found.name.endswith((".selected", ".mlp"))

    def _gradients(
        self, found: Mapping[str, list[Found]], gradients: Mapping[int, Array], right: bool
    ) -> dict[str, Array]:
        """d(name): of several tensors with the value of a name, the one whose gradient agrees best.

        A gradient that differs is given only where the tensor is surely the named one: it is what the layer reads or
        returns, or it is the first tensor that has the value, and no earlier name has the same. The weight and logit of
        halting may be used in several places: in a later layer the gradient must have agreed.
        """
        owners: dict[int, str] = {}
        for name in self.named.truth:
            for place in found.get(name, ()):
                owners.setdefault(place.event, name)
        chosen: dict[str, Array] = {}
        proven: set[str] = set()
        for name in reversed([name for name in self.named.truth if name in found and f"d({name})" in self.truth]):
            label, part = f"d({name})", name.rpartition(".")[2] if name.startswith("joint.") else ""
            read = {f.event: self.named.stored(f, gradients[f.event]) for f in found[name] if f.event in gradients}
            if not read:
                continue
            best = min(read, key=lambda event: self._distance(label, read[event]))
            if self._agrees(label, read[best]):
                proven.add(part)
                chosen[label] = read[best]
                continue
            surely = self.discovery.layers.get(name, min(read))
            if not right and surely in read and owners[surely] == name and (not part or part in proven):
                chosen[label] = read[surely]
        return chosen

    def _taken(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Decisions that the module took in a dtype whose rounding may change them."""
        config, batch = self.named.geometry.config, self.named.geometry.batch
        taken = kept_patches(self.events, config, batch)
        if "ponder" in given:
            expected = self.truth["decisions.halting_layer"].value
            layers = halting_layers(given["ponder"], expected, DTYPES[self.dtype])
            taken |= {} if layers is None else {"decisions.halting_layer": layers}
        return {name: value for name, value in taken.items() if name not in given}

    def _decisions(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Decisions that the module computed as integer tensors: those that are equal to the truth's."""
        found: dict[str, Array] = {}
        for name, tensor in self.truth.tensors.items():
            if name.startswith("decisions.") and name not in given and np.ptp(tensor.value):
                equal = next((e.value for e in self.events if np.array_equal(e.value, tensor.value)), None)
                if equal is not None:
                    found[name] = equal
        return found

    # ---- agreement with the truth

    def _agrees(self, name: str, value: Array) -> bool:
        return judge(self.truth, name, value, self.dtype).status == "agrees"

    def _distance(self, name: str, value: Array) -> float:
        """The error of a gradient; infinite if it cannot be compared."""
        error = judge(self.truth, name, value, self.dtype).error
        return error if np.isfinite(error) else float("inf")


def recognise(case: ModelCase, events: list[Event], mapped: Mapped, given: list[str]) -> Recognised | None:
    """The recognised tensors of a run; ``given`` are the names that the module itself gives. None: no golden case."""
    golden = _manifest().get(case.name)
    if golden is None or golden.kind != "model":
        return None
    arrays = load_arrays(golden)
    if not np.array_equal(np.asarray(arrays["clips"], case.clips.dtype), case.clips):  # fresh inputs
        from refvt.conformance.fresh import with_truth

        inputs = {"clips": case.clips, "labels": case.labels}
        golden, arrays = with_truth(golden, arrays | {n: np.asarray(v, arrays[n].dtype) for n, v in inputs.items()})
    return Recognised(case, truth_of(golden, arrays), events, mapped, given)


@lru_cache(maxsize=1)
def _manifest() -> dict[str, Case]:
    return load_manifest()
