"""Candidates for ``check``: one that is right, and ones that are wrong in one tensor."""

import refvt
from refvt import conformance


def check(candidate, *arguments, **options):
    """With a limit that a busy machine keeps."""
    return conformance.check(candidate, *arguments, **{"timeout": 600, **options})


def run(case):
    """A right candidate: every named tensor, by the reference in float32."""
    model = refvt.HaltingVT(case.config, case.parameters, backend="reference", dtype="float32")
    imposed = case.decisions if case.force_decisions else None
    labels = {"labels": case.labels, "motion_labels": case.motion_labels}
    trace = model.trace(case.clips, gradients=True, decisions=imposed, **labels, **case.settings)
    return dict(trace) | {"decisions.halting_layer": trace.output.decisions.halting_layer}


def changed(name, change):
    def candidate(case):
        found = run(case)
        found[name] = change(found[name].copy())
        return found

    return candidate


def only(report):
    (case,) = report.cases
    return case
