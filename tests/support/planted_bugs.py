"""Bugs planted one by one in candidates of every form, and what ``check`` says of each.

    python -m tests.support.planted_bugs [--out docs/results/check-planted-bugs.md]

A bug is a piece of source text and a plausible mistake in its place. ``first`` names the tensor that the mistake
changes first in the order of computation; where several are right, they are separated by "|". Three forms:

- "operation": an operation of the reference, as an object with a forward and a backward
- "torch": the PyTorch model of golden/, a function of the case with every named tensor and gradient
- "outputs": the same, giving outputs, losses and the parameters' gradients alone
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import time
import types
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from refvt.conformance.candidates import Candidate, wrap
from refvt.conformance.checking import check_case
from refvt.conformance.golden import load_manifest
from refvt.conformance.isolation import InProcess
from tests.support.planted_tables import OPERATION_BUGS, TORCH_BUGS

CASES = load_manifest()
LABELS = {
    "operation": "an operation of the reference, forward and backward",
    "torch": "a PyTorch model (golden's), every named tensor and gradient",
    "outputs": "the same model, outputs, losses and the parameters' gradients alone",
}
WHY = {"original = ranks": ": only `decisions.kept` is wrong, which this candidate does not give"}


@dataclass(frozen=True)
class Bug:
    """One planted bug: its form, the module (or family and operation), the two texts, and where it shows first."""

    form: str
    place: str
    right: str
    wrong: str
    cases: str
    first: str


@dataclass(frozen=True)
class Outcome:
    """What ``check`` said: the statuses of the cases, and the first divergence of the first case that differs."""

    bug: Bug
    caught: bool
    named: str
    variant: str | None
    seconds: float

    @property
    def right_first(self) -> bool:
        """Whether the tensor that the bug changes first was named."""
        return self.caught and any(fnmatchcase(self.named, first) for first in self.bug.first.split("|"))


def all_bugs() -> list[Bug]:
    """Every planted bug."""
    bugs = [
        Bug("operation", f"{f}.{op}", right, wrong, f"*op-{op}-*", first)
        for f, op, right, wrong, first in OPERATION_BUGS
    ]
    bugs += [Bug("torch", module, right, wrong, case, first) for module, right, wrong, case, first in TORCH_BUGS]
    # the outputs do not say which tensor is wrong first: any is right
    bugs += [Bug("outputs", module, right, wrong, case, "*") for module, right, wrong, case, _ in TORCH_BUGS]
    return bugs


def try_bug(bug: Bug) -> Outcome:
    """Check a candidate that has the bug against the cases where it shows."""
    start = time.perf_counter()
    candidate = operation_candidate(bug) if bug.form == "operation" else torch_candidate(bug)
    runner = InProcess(candidate, None)
    named, caught, variant = "", False, None
    wanted = {name: case for name, case in CASES.items() if fnmatchcase(name, bug.cases)}
    if bug.form == "outputs":  # what outputs show depends on the case: on when CLS halts, above all
        wanted |= {name: case for name, case in CASES.items() if case.kind == "model"}
    for case in wanted.values():
        if not caught:
            with np.errstate(all="ignore"):
                report = check_case(runner, case, "float32")
            caught = report.status in ("differs", "error")
            named = report.first.tensor if report.first else report.sentence if caught else ""
            variant = report.variant
    return Outcome(bug, caught, named, variant, time.perf_counter() - start)


def mutated(name: str, *changes: tuple[str, str], register: bool = False) -> types.ModuleType:
    """A module with pieces of its source text replaced."""
    original = importlib.import_module(name)
    source = inspect.getsource(original)
    for right, wrong in changes:
        assert right in source, f"{name}: expected the text {right!r}, which is gone: update this list"
        source = source.replace(right, wrong)
    broken = types.ModuleType(name)
    broken.__package__ = original.__package__
    if register:
        sys.modules[name] = broken  # dataclasses look up their module
    exec(compile(source, f"{name} with a bug", "exec"), broken.__dict__)
    return broken


def operation_candidate(bug: Bug) -> Candidate:
    """The operation of the reference with the bug, forward and backward."""
    family, operation = bug.place.split(".")
    broken = mutated(f"refvt.ops.{family}.reference", (bug.right, bug.wrong))
    names = [name for name in (operation, f"{operation}_forward", f"{operation}_backward") if hasattr(broken, name)]
    return wrap(SimpleNamespace(**{name: getattr(broken, name) for name in names}), bug.place)


def torch_candidate(bug: Bug) -> Candidate:
    """The PyTorch model with the bug, in torch_ops or in torch_model."""
    originals = {name: importlib.import_module(f"golden.{name}") for name in ("torch_ops", "torch_model")}
    try:
        change = (bug.right, bug.wrong)
        if bug.place == "torch_ops":
            ops = mutated("golden.torch_ops", change, register=True)
            model = mutated("golden.torch_model", register=True)
            model.ops = ops
        else:
            model = mutated("golden.torch_model", change, register=True)
    finally:
        for name, original in originals.items():
            sys.modules[f"golden.{name}"] = original
    run = torch_function(model)
    if bug.form == "torch":
        return Candidate("torch with a bug", run)
    return Candidate("torch with a bug", lambda case: _outputs_alone(run(case), case))


def _outputs_alone(found, case):
    kept = {"logits", "motion_logits", "ponder", "loss.total", "loss.recognition", "loss.ponder", "loss.motion"}
    kept |= {f"d({name})" for name in case.parameters}
    return {name: value for name, value in found.items() if name in kept}


def torch_function(model):
    """A candidate function: a module like golden.torch_model, run on a case in float32."""
    import torch

    def run(case):
        config = model.Config(**case.config.as_dict())
        net = model.HaltingVT(config)
        net.load_state_dict({name: torch.from_numpy(value) for name, value in case.parameters.items()})
        record, imposed = model.Record(True), {}
        if case.force_decisions:
            imposed = {
                "kept": [torch.from_numpy(kept) for kept in case.decisions.kept],
                "halting_layer": torch.from_numpy(case.decisions.halting_layer),
            }
        if case.drop_path is not None:  # the generator's draws, as the golden run makes them
            settings = CASES[case.name].settings
            imposed |= {"drop_path": settings["drop_path"], "rng": np.random.default_rng(settings["drop_path_seed"])}
        output = net(torch.from_numpy(case.clips), **imposed, record=record)
        labels = torch.from_numpy(case.labels)
        losses = model.total_loss(output, labels, torch.from_numpy(case.motion_labels), **case.settings)
        named = record.tensors | {name: p for name, p in net.named_parameters()}
        reached = {name: x for name, x in named.items() if x.requires_grad}
        gradients = torch.autograd.grad(losses["total"], list(reached.values()), allow_unused=True)
        found = {name: x.detach().numpy() for name, x in record.tensors.items()}
        for (name, x), gradient in zip(reached.items(), gradients, strict=True):
            found[f"d({name})"] = (torch.zeros_like(x) if gradient is None else gradient).numpy()
        found |= {f"loss.{name}": loss.detach().numpy() for name, loss in losses.items()}
        found["features"] = output.features.detach().numpy()
        found["decisions.halting_layer"] = output.halting_layer.numpy()
        found |= {f"decisions.kept.{g}": kept.numpy() for g, kept in enumerate(output.kept)}
        return found

    return run


# ---- the table


def main() -> None:
    """Try every bug and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--form", choices=LABELS)
    options = parser.parse_args()
    outcomes = []
    for bug in all_bugs():
        if options.form in (None, bug.form):
            outcomes.append(try_bug(bug))
            found = outcomes[-1]
            mark = "right" if found.right_first else "OTHER" if found.caught else "MISSED"
            print(f"{mark:7s}{bug.form:10s}{bug.place:24s}{found.named:32s}{bug.wrong[:60]!r}", flush=True)
    if options.out is not None:
        options.out.write_text(as_markdown(outcomes), encoding="utf-8")
    caught = sum(o.caught for o in outcomes)
    print(f"{len(outcomes)} bugs, {caught} caught, {sum(o.right_first for o in outcomes)} with the right tensor first")


def as_markdown(outcomes: list[Outcome]) -> str:
    """The page of results: counts for each form, then what was missed or named otherwise."""
    lines = [
        "# Planted bugs",
        "",
        "What `refvt check` finds in candidates with one bug each (`python -m tests.support.planted_bugs`; float32,",
        "golden cases). A bug is *caught* if a case differs or fails; *right first* if the first divergence is the",
        "tensor that the bug changes first; with outputs alone, any is right. The bugs are listed in",
        "[planted_tables.py](../../tests/support/planted_tables.py).",
        "",
        "| candidate | bugs | caught | right tensor first |",
        "| --- | --- | --- | --- |",
    ]
    for form, label in LABELS.items():
        group = [o for o in outcomes if o.bug.form == form]
        counts = len(group), sum(o.caught for o in group), sum(o.right_first for o in group)
        lines.append(f"| {label} | {' | '.join(map(str, counts))} |")
    total = len(outcomes), sum(o.caught for o in outcomes), sum(o.right_first for o in outcomes)
    lines.append(
        f"| all | {total[0]} | {total[1]} ({total[1] / total[0]:.1%}) | {total[2]} ({total[2] / total[0]:.1%}) |"
    )
    lines += ["", "## Missed, or another tensor named", "", "| candidate | the mistake | expected first | named |"]
    lines.append("| --- | --- | --- | --- |")
    for o in outcomes:
        if not o.right_first:
            wrong = " ".join(o.bug.wrong.split()).replace("|", "\\|") or "(removed)"
            named = o.named or f"missed{WHY.get(o.bug.wrong, '')}"
            lines.append(f"| {o.bug.form}, {o.bug.place} | `{wrong}` | {o.bug.first} | {named} |")
    lines += ["", "What is said of right candidates: [no false alarm](check-false-alarms.md)."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
