"""The programs that refvt is timed against compute the same as the PyTorch model that made the golden files."""

from dataclasses import replace

import numpy as np
import pytest

import refvt
from refvt.bench.agreement import check_agreement
from refvt.bench.contestants import COMPACT, ENGINES, Workload, make_contestants, make_material
from refvt.bench.engines import missing_engines
from refvt.bench.torch_model import TorchModel
from refvt.model.decisions import Decisions
from tests.bench.test_forward import TINY

pytestmark = pytest.mark.torch
pytest.importorskip("torch")


def material(**changes):
    """Two clips whose patches halt in different layers; with ``early`` CLS halts before the last one."""
    early = changes.pop("early", False)
    m = make_material(
        Workload("", refvt.HaltingVTConfig(**{**TINY.as_dict(), "halting_center": 3.0, **changes})), 2, "float32"
    )
    logits = np.random.default_rng(0).uniform(-0.3, 0.5, m.parameters["pos_embed"].shape[:2])
    logits[:, 0] = 2.0 if early else -0.5  # that of CLS
    m.parameters["pos_embed"][..., 0] = logits
    return replace(m, forced=Decisions())


def agreement(m, names, engines=()):
    contestants = make_contestants(Workload("", m.config), ["reference"], 1, True, engines)
    models = {c.name: c.build(m) for c in contestants if c.backend or "eager" in c.name or c.name in names}
    return check_agreement(models, m, False)


@pytest.mark.parametrize(
    "changes",
    [{}, {"cls_skip": True}, {"halted_keys": "masked"}, {"cls_skip": True, "early": True}, {"keep_rates": (0.7, 0.5)}],
)
def test_pytorch_with_tokens_removed_gives_the_same_answers(changes):
    report, alive = agreement(material(**changes), [COMPACT])
    # the second layer has fewer tokens than the first, so ghosts and removal are at work
    assert (alive[:, 1].sum(1) < alive[:, 0].sum(1)).all()
    if changes.get("halted_keys") != "masked":  # the exported and the eager model compute the released semantics
        assert alive[:, -1, 0].all() != changes.get("early", False)
    assert report["holds"], report
    assert report["decisions_apart"][COMPACT] == 0


def test_what_it_cannot_compute_is_refused():
    with pytest.raises(ValueError, match="fuse_dropped: expected False"):
        agreement(material(fuse_dropped=True), [COMPACT])
    m = material()
    model = next(c for c in make_contestants(Workload("", m.config), [], 1, True) if c.name == COMPACT).build(m)
    with pytest.raises(ValueError, match="train: expected False"):
        model.run(True, Decisions())


@pytest.mark.skipif(missing_engines() is not None, reason="needs the extra bench")
@pytest.mark.filterwarnings("ignore")
def test_the_engines_give_the_same_answers():
    report, _ = agreement(material(), ENGINES, ENGINES)
    assert report["holds"], report
    assert set(ENGINES) <= set(report["logits"])
    m = material()
    forced = np.full((2, m.config.joint_tokens), m.config.joint_depth)
    forced[:, 3:] = 2
    report, alive = agreement(replace(m, forced=Decisions(None, forced)), ENGINES, ENGINES)
    assert (alive[:, 2].sum(1) == 3).all()
    assert report["holds"], report


@pytest.mark.parametrize("sdpa", [False, True])
def test_the_pytorch_model_runs_wholly_on_the_device_that_it_is_given(sdpa):
    """PyTorch's device "meta" computes nothing. It refuses operands of two devices, and a result read by the host."""
    import torch

    m = material()
    rival = TorchModel(m.config, m.parameters, m.clips, m.labels, m.motion_labels, "float32", sdpa)
    model = rival.module.to("meta")
    layers = torch.ones((2, m.config.joint_tokens), dtype=torch.int64, device="meta")
    for imposed in (None, layers):
        output = model(torch.empty(m.clips.shape, device="meta"), halting_layer=imposed)
        labels = torch.zeros(2, dtype=torch.int64, device="meta")
        rival._total_loss(output, labels, labels)["total"].backward()
        assert {x.device.type for x in (output.logits, output.ponder, output.halting_layer, *output.kept)} == {"meta"}
