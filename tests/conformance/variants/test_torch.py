"""Every variant, planted in the PyTorch model that made the golden files, is named rightly from what it returns."""

import math

import pytest

from refvt.conformance.cases import model_case, operation_case, truth_of
from refvt.conformance.golden import load_arrays
from refvt.conformance.variants import evidence_of, find

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch.nn import functional  # noqa: E402

from tests.conformance.variants.torch_port import (  # noqa: E402
    CASES,
    Port,
    channels_last,
    cls_of_frames,
    configure,
    count_by,
    drop_path,
    embed_frame_major,
    fuse,
    ghost_without_log_m,
    halt,
    halted_go_on,
    layers_from_0,
    normalise,
    plant,
    ponder_apart,
    ponder_by,
    qkv_by_heads,
    qkv_in,
    recognise_by,
    replace_named,
    scale_by,
    score_before_block,
    scores_by,
    smooth_others,
    swap_motion_labels,
    weigh,
    without_cls,
)

torch.set_num_threads(1)

ZERO, MASKED, FUSE, PRUNE = "tiny-model-zero", "tiny-model-masked", "tiny-model-fuse", "model-prune-one"

PLANTS = [
    ("halted_keys=masked", ZERO, configure(halted_keys="masked")),
    ("halted_keys=zero", MASKED, configure(halted_keys="zero")),
    ("halted keys go on", ZERO, halted_go_on),
    ("ghost without log m", ZERO, ghost_without_log_m),
    ("epsilon=0", ZERO, configure(epsilon=0.0)),
    ("epsilon=0.01", "model-epsilon", configure(epsilon=0.01)),
    ("halting score σ(γ(x − β))", ZERO, configure(halting_center=100.0)),
    ("halting score σ(γx + β)", ZERO, configure(halting_center=-10.0)),
    ("A-ViT halting (γ=10, β=30, masked)", ZERO, configure(halting_center=30.0, halted_keys="masked")),
    (
        "A-ViT halting (γ=5, β=10, masked)",
        "model-zero",
        configure(halting_scale=5.0, halting_center=10.0, halted_keys="masked"),
    ),
    ("remainder detached", ZERO, halt(remainder=lambda used, score: (1 - used).detach())),
    ("no remainder", ZERO, halt(remainder=lambda used, score: score)),
    ("no remainder in y", "model-zero", ponder_apart(lambda used, score: score, lambda used, score: 1 - used)),
    ("no remainder in ρ", "model-zero", ponder_apart(lambda used, score: 1 - used, lambda used, score: score)),
    ("halting layers from 0", ZERO, layers_from_0),
    ("CLS never halts", ZERO, halt(without_cls(False), without_cls(0.0))),
    ("CLS held to the last layer", "model-zero", halt(without_cls(False))),
    ("score before the block", ZERO, score_before_block),
    ("ponder=N", ZERO, replace_named("ponder", lambda ponder: torch.ceil(ponder - 1).detach())),
    ("ponder=N−1+r", ZERO, replace_named("ponder", lambda ponder: ponder - 1)),
    ("ponder=r", ZERO, replace_named("ponder", lambda ponder: ponder - torch.ceil(ponder - 1).detach())),
    ("ponder detached", ZERO, ponder_by(lambda ponder: ponder.detach().mean())),
    ("ponder loss per layer", ZERO, ponder_by(lambda ponder: ponder.mean() / 2)),
    ("ponder loss summed over tokens", MASKED, ponder_by(lambda ponder: ponder.sum(1).mean())),
    ("ponder loss without CLS", ZERO, ponder_by(lambda ponder: ponder[:, 1:].mean())),
    ("cls_skip=True", PRUNE, configure(cls_skip=True)),
    ("cls_skip=False", "model-prune-one-cls-skip", configure(cls_skip=False)),
    ("CLS summed over frames", ZERO, cls_of_frames(lambda results: results.sum(1))),
    ("CLS of the last frame", ZERO, cls_of_frames(lambda results: results[:, -1])),
    ("CLS of the first frame", PRUNE, cls_of_frames(lambda results: results[:, 0])),
    ("fuse=False", FUSE, configure(fuse_dropped=False)),
    ("fuse=True", PRUNE, configure(fuse_dropped=True)),
    ("fuse normalised", FUSE, fuse(lambda s, dropped: s * dropped / (s * dropped).sum(-1, keepdim=True))),
    ("fuse by plain mean", FUSE, fuse(lambda s, dropped: dropped / dropped.sum(-1, keepdim=True))),
    ("fuse with detached scores", FUSE, fuse(lambda s, dropped: s.detach() * dropped)),
    ("kept patches in index order", PRUNE, plant(top_k=lambda original, s, k: original(s, k).sort(-1).values)),
    ("lowest scores kept", PRUNE, plant(top_k=lambda original, s, k: original(-s, k))),
    (
        "same patches in all frames",
        PRUNE,
        plant(top_k=lambda original, s, k: original(s.mean(1, keepdim=True).expand_as(s), k)),
    ),
    ("scores from one head", PRUNE, scores_by(lambda logits: logits.softmax(-1)[..., 0, 1:])),
    ("scores from the highest head", PRUNE, scores_by(lambda logits: logits.softmax(-1).amax(-2)[..., 1:])),
    ("scores over patches alone", PRUNE, scores_by(lambda logits: logits[..., 1:].softmax(-1).mean(-2))),
    ("k by floor", "model-reorder", count_by(math.floor)),
    ("k by round", "model-reorder", count_by(round)),
    ("gelu=tanh", ZERO, plant(gelu=lambda original, x: functional.gelu(x, approximate="tanh"))),
    ("gelu=sigmoid", ZERO, plant(gelu=lambda original, x: x * torch.sigmoid(1.702 * x))),
    ("activation=silu", ZERO, plant(gelu=lambda original, x: functional.silu(x))),
    ("activation=relu", ZERO, plant(gelu=lambda original, x: functional.relu(x))),
    ("layernorm eps=1e-5", ZERO, normalise(1e-5)),
    ("layernorm eps=1e-12", ZERO, normalise(1e-12)),
    ("layernorm unbiased", ZERO, normalise(ddof=1)),
    ("layernorm eps outside the root", ZERO, normalise(outside=True)),
    ("no 1/√d", FUSE, scale_by(lambda d: 1.0)),
    ("1/√D for 1/√d", FUSE, scale_by(lambda d: math.sqrt(8))),
    ("1/d for 1/√d", FUSE, scale_by(lambda d: d)),
    *((f"qkv order {', '.join(order)}", FUSE, qkv_in(order)) for order in ("qvk", "kqv", "kvq", "vqk", "vkq")),
    ("qkv by heads", FUSE, qkv_by_heads),
    ("pixels channels last", PRUNE, plant(embed_tokens=channels_last)),
    ("frame-major tokens read as patch-major", "model-zero", plant(embed_tokens=embed_frame_major)),
    ("label smoothing over K−1", "model-smoothing", plant(cross_entropy=smooth_others)),
    ("no label smoothing", "model-smoothing", weigh(label_smoothing=0.0)),
    ("recognition summed over clips", MASKED, recognise_by(lambda each, moving: each.sum())),
    ("twins without class loss", "model-twins", recognise_by(lambda each, moving: each[moving == 1].mean())),
    (
        "twins without class loss, mean over all",
        "model-twins",
        recognise_by(lambda each, moving: (each * moving).mean()),
    ),
    ("motion labels swapped", ZERO, swap_motion_labels),
    ("motion weight 0.001", ZERO, weigh(motion_weight=0.001)),
    ("motion weight 1", ZERO, weigh(motion_weight=1.0)),
    ("no motion loss", ZERO, weigh(motion_weight=0.0)),
    ("ponder weight 0.0005", ZERO, weigh(ponder_weight=5e-4)),
    ("ponder weight 1", ZERO, weigh(ponder_weight=1.0)),
    ("no ponder loss", ZERO, weigh(ponder_weight=0.0)),
    ("no DropPath", "model-drop-path", drop_path(lambda scale: torch.ones_like(scale))),
    ("DropPath not rescaled", "model-drop-path", drop_path(lambda scale: (scale > 0).to(scale))),
]


def evidence(stem, change, monkeypatch, dtype):
    with monkeypatch.context() as patch:
        port = Port(stem, patch)
        change(port)
        given = port.given(getattr(torch, dtype))
    arrays = load_arrays(CASES[stem])
    truth = truth_of(CASES[stem], arrays)
    case = model_case(CASES[stem], arrays, dtype)
    return evidence_of(case, truth, {name: given[name] for name in truth if name in given}, dtype)


@pytest.mark.parametrize(("name", "stem", "change"), PLANTS, ids=[name for name, *_ in PLANTS])
def test_a_variant_is_named_from_all_that_pytorch_returns(name, stem, change, monkeypatch):
    assert find(evidence(stem, change, monkeypatch, "float64"), seconds=0) == [(name,)]


@pytest.mark.parametrize("name", ["no remainder", "no remainder in y", "no remainder in ρ", "halting layers from 0"])
def test_a_variant_of_halt_tokens_is_named_forward_and_backward(name):
    golden = CASES["op-halt_tokens-beta5"]
    arrays = load_arrays(golden)
    case = operation_case(golden, arrays, "float64")
    states = torch.from_numpy(case.arguments["states"]).requires_grad_()
    scores = torch.sigmoid(case.settings["scale"] * states[..., 0] - case.settings["center"])
    scores = torch.cat([scores[:-1], torch.ones_like(scores[:1])])  # [L, N]
    layer = (scores.cumsum(0) > 1 - case.settings["epsilon"]).int().argmax(0)  # [N], from 0
    before, here = torch.arange(len(scores))[:, None] < layer, torch.arange(len(scores))[:, None] == layer
    rests = {True: scores, False: 1 - (scores * before).sum(0)}
    in_y = rests[name in ("no remainder", "no remainder in y")]
    in_ponder = (rests[name in ("no remainder", "no remainder in ρ")] * here).sum(0)
    y = ((scores * before + in_y * here)[..., None] * states).sum(0)
    ponder = layer + 1 + in_ponder
    cotangents = [torch.from_numpy(case.cotangents[result]) for result in ("y", "ponder")]
    (dstates,) = torch.autograd.grad([y, ponder], states, cotangents)
    given = {"y": y, "ponder": ponder, "halting_layer": layer + (name != "halting layers from 0"), "d(states)": dstates}
    given = {key: value.detach().numpy() for key, value in given.items()}
    assert find(evidence_of(case, truth_of(golden, arrays), given, "float64"), seconds=0) == [(name,)]


def test_counts_that_are_equal_in_a_case_are_all_named(monkeypatch):
    exact = count_by(lambda product: math.ceil(product - 1e-9))
    found = find(evidence("model-keep-rate-product", exact, monkeypatch, "float64"), seconds=0)
    assert found == [("k by floor",), ("k by round",), ("k without rounding error",)]


@pytest.mark.parametrize("name", ["halted_keys=masked", "gelu=tanh", "remainder detached", "no 1/√d", "cls_skip=True"])
def test_a_variant_is_named_in_float32(name, monkeypatch):
    stem, change = next((stem, change) for known, stem, change in PLANTS if known == name)
    assert find(evidence(stem, change, monkeypatch, "float32"), seconds=0) == [(name,)]


@pytest.mark.parametrize("stem", [ZERO, MASKED, FUSE])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_is_claimed_for_the_truth(stem, dtype, monkeypatch):
    assert find(evidence(stem, lambda port: None, monkeypatch, dtype)) == []
