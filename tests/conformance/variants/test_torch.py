"""Every variant, planted in the PyTorch model that made the golden files, is named rightly from what it returns.

Nothing here is computed as ``refvt.conformance.variants`` computes it: autograd differentiates, and each variant is
written anew, as a change of ``golden.torch_ops`` or ``golden.torch_model``.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from refvt.conformance.cases import model_case, operation_case, truth_of
from refvt.conformance.golden import load_arrays, load_manifest
from refvt.conformance.variants import evidence_of, find

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch.nn import functional  # noqa: E402

torch.set_num_threads(1)

from golden import runs, torch_model, torch_ops  # noqa: E402
from golden.model_cases import MODEL_CASES  # noqa: E402

GOLDEN = {case.stem: case for case in MODEL_CASES}
CASES = load_manifest()


class Port:
    """A PyTorch port of one case. A plant changes its fields, or PyTorch's functions through ``patch``."""

    def __init__(self, stem, patch):
        self.golden, self.patch = GOLDEN[stem], patch
        self.config = self.golden.config
        self.arrays = load_arrays(CASES[stem])
        self.inputs = {name: self.arrays[name].copy() for name in ("clips", "labels", "motion_labels")}

    def configure(self, **fields):
        self.config = replace(self.config, **fields)

    def given(self, dtype):
        """All that it returns, with the names of the truth."""
        model = torch_model.HaltingVT(self.config).to(dtype)
        parameters = {n.removeprefix("parameters/"): v for n, v in self.arrays.items() if n.startswith("parameters/")}
        model.load_state_dict({name: torch.from_numpy(value).to(dtype) for name, value in parameters.items()})
        found, output = runs._step(replace(self.golden, config=self.config), model, self.inputs, None)
        wrap = {"forward": "{}", "output": "{}", "backward": "d({})", "gradients": "d({})", "loss": "loss.{}"}
        given = {}
        for key, value in found.items():
            group, _, name = key.partition("/")
            given[wrap[group].format(name)] = value
        given |= {f"decisions.kept.{g}": kept.numpy() for g, kept in enumerate(output.kept)}
        alive = output.alive.numpy()
        given |= {"decisions.halting_layer": output.halting_layer.numpy(), "alive": alive}
        return given | {"tokens_per_layer": alive.sum(-1)}


def plant(**functions):
    """Other functions in ``golden.torch_ops``; each is given the original first."""

    def change(port):
        for name, function in functions.items():
            original = getattr(torch_ops, name)
            port.patch.setattr(torch_ops, name, lambda *a, f=function, o=original, **k: f(o, *a, **k))

    return change


def configure(**fields):
    return lambda port: port.configure(**fields)


def weigh(**settings):
    return lambda port: setattr(port, "golden", replace(port.golden, settings=port.golden.settings | settings))


# ---- halting


def halt(decide=None, score_of=None, remainder=None):
    """``halt`` written anew: states [B, N], CLS at [:, 0]."""

    def function(original, logit, used, scale, center, epsilon, last, forced=None):
        score = torch.ones_like(logit) if last else torch.sigmoid(scale * logit - center)
        if score_of is not None and not last:
            score = score_of(score)
        halted = used + score > 1 - epsilon
        if decide is not None and not last:
            halted = decide(halted)
        rest = (1 - used) if remainder is None else remainder(used, score)
        weight = torch.where(halted, rest, score)
        return weight.clone(), used + torch.where(halted, 1 - used, score), halted

    return plant(halt=function)


def ponder_apart(weigh, rest):
    """ρ adds ``rest(used, score)`` to N, whatever ``weigh(used, score)`` a token that halts weighs in y."""

    def change(port):
        layers = []

        def function(original, logit, used, scale, center, epsilon, last, forced=None):
            _, used_next, halted = original(logit, used, scale, center, epsilon, last, forced)
            score = torch.ones_like(logit) if last else torch.sigmoid(scale * logit - center)
            layers.append(torch.where(halted & (used < 1), len(layers) + 1 + rest(used, score), 0.0))
            return torch.where(halted, weigh(used, score), score).clone(), used_next, halted

        plant(halt=function)(port)
        replace_named("ponder", lambda ponder: sum(layers))(port)

    return change


def layers_from_0(port):
    """The halting layers are counted from 0 once all else is computed."""
    original = runs._step

    def step(*arguments):
        found, output = original(*arguments)
        return found, replace(output, halting_layer=output.halting_layer - 1)

    port.patch.setattr(runs, "_step", step)


def score_before_block(port):
    """The logit of a layer is channel 0 of the state that entered its block."""
    original, entered = torch_model.Record.__call__, {}

    def record(self, name, x):
        is_logit = name.endswith(".logit") and name != f"joint.{port.config.depth - port.config.glimpser_depth}.logit"
        x = original(self, name, entered["state"][..., 0] if is_logit else x)
        if name.endswith(".entering"):
            entered["state"] = x
        return x

    port.patch.setattr(torch_model.Record, "__call__", record)


def halted_go_on(port):
    """Halted tokens enter the next block with the state that they left the last one with."""
    original, left = torch_model.Record.__call__, {}

    def record(self, name, x):
        x = original(self, name, left.get("state", x) + 0.0 if name.endswith(".entering") else x)
        if name.endswith(".mlp"):
            left["state"] = x
        return x

    port.patch.setattr(torch_model.Record, "__call__", record)


def ghost_without_log_m(port):
    """All m halted tokens of a clip, zero states, count as one key."""
    record_of, attend, entered = torch_model.Record.__call__, torch_ops.attend, {}

    def record(self, name, x):
        if name.endswith(".entering"):
            entered["halted"] = (x == 0).all(-1)
        return record_of(self, name, x)

    def attend_once(q, k, v, heads, bias=None, sdpa=False):
        halted = entered.pop("halted", None)
        if halted is not None:
            bias = torch.where(halted, -torch.log(halted.sum(-1, keepdim=True).clamp(min=1).to(q)), 0.0)
        return attend(q, k, v, heads, bias, sdpa)

    port.patch.setattr(torch_model.Record, "__call__", record)
    port.patch.setattr(torch_ops, "attend", attend_once)


def without_cls(value):
    def change(x):
        x = x.clone()
        x[:, 0] = value
        return x

    return change


def replace_named(name, function):
    """Another tensor under one name of the record."""

    def change(port):
        original = torch_model.Record.__call__
        port.patch.setattr(
            torch_model.Record, "__call__", lambda self, n, x: original(self, n, function(x) if n == name else x)
        )

    return change


def ponder_by(function):
    return plant(ponder_loss=lambda original, ponder: function(ponder))


# ---- Glimpser


def fuse(weights_of):
    def function(original, x, scores, kept):
        dropped = torch.ones_like(scores).scatter(-1, kept, 0.0)
        return (weights_of(scores, dropped)[..., None] * x).sum(-2)

    return plant(weighted_sum_of_dropped=function)


def scores_by(function):
    """function(logits [..., A, 1+S]) → scores [..., S]."""

    def scores(original, q, k, num_heads):
        first, keys = torch_ops.split_heads(q[..., :1, :], num_heads), torch_ops.split_heads(k, num_heads)
        logits = (first @ keys.transpose(-2, -1))[..., 0, :] / math.sqrt(first.shape[-1])
        return function(logits)

    return plant(cls_weights=scores)


def count_by(function):
    """k by another function of the product."""
    return lambda port: port.patch.setattr(torch_model, "math", SimpleNamespace(ceil=function, inf=math.inf))


# ---- operations


def scale_by(root):
    return lambda port: port.patch.setattr(torch_ops, "math", SimpleNamespace(sqrt=root, inf=math.inf))


def qkv_in(order):
    def change(port):
        def mix(self, x, heads, bias, sdpa, record, name):
            chunks = dict(zip(order, torch_ops.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1), strict=True))
            q, k, v = (record(f"{name}.{part}", chunks[part]) for part in "qkv")
            return q, k, record(f"{name}.y", torch_ops.attend(q, k, v, heads, bias, sdpa))

        port.patch.setattr(torch_model.Attention, "mix", mix)

    return change


def qkv_by_heads(port):
    def mix(self, x, heads, bias, sdpa, record, name):
        rows = torch_ops.linear(x, self.qkv.weight, self.qkv.bias).unflatten(-1, (heads, 3, -1))
        q, k, v = (record(f"{name}.{part}", rows[..., i, :].flatten(-2)) for i, part in enumerate("qkv"))
        return q, k, record(f"{name}.y", torch_ops.attend(q, k, v, heads, bias, sdpa))

    port.patch.setattr(torch_model.Attention, "mix", mix)


def embed_frame_major(original, clips, *parameters):
    tokens = original(clips, *parameters)
    frames = clips.shape[2]
    patches = tokens[:, 1:].unflatten(1, (-1, frames)).transpose(1, 2).flatten(1, 2)
    return torch.cat([tokens[:, :1], patches], dim=1)


def channels_last(original, clips, weight, *rest):
    D, C, P, _ = weight.shape
    return original(clips, weight.reshape(D, P, P, C).permute(0, 3, 1, 2), *rest)


def normalise(eps=1e-6, ddof=0, outside=False):
    def function(original, x, weight, bias):
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).sum(-1, keepdim=True) / (x.shape[-1] - ddof)
        # the root of exactly zero has no gradient: rows of zeros get that of the right form
        root = torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0) if outside else (variance + eps).sqrt()
        return centred / (root + eps if outside else root) * weight + bias

    return plant(layernorm=function)


# ---- losses


def recognise_by(function):
    """function(losses [B], motion_labels [B]) → recognition."""

    def change(port):
        original = runs.total_loss

        def total_loss(output, labels, motion_labels, ponder_weight, motion_weight, label_smoothing):
            found = original(output, labels, motion_labels, ponder_weight, motion_weight, label_smoothing)
            each = functional.cross_entropy(output.logits, labels, label_smoothing=label_smoothing, reduction="none")
            recognition = function(each, motion_labels)
            total = recognition + ponder_weight * found["ponder"] + motion_weight * found["motion"]
            return found | {"recognition": recognition, "total": total}

        port.patch.setattr(runs, "total_loss", total_loss)

    return change


def smooth_others(original, logits, targets, label_smoothing=0.0):
    K = logits.shape[-1]
    rows = targets if targets.is_floating_point() else functional.one_hot(targets, K).to(logits.dtype)
    rows = (1 - label_smoothing) * rows + label_smoothing / (K - 1) * (1 - rows)
    return -(rows * torch.log_softmax(logits, dim=-1)).sum() / len(logits)


def swap_motion_labels(port):
    port.inputs["motion_labels"] = 1 - port.inputs["motion_labels"]


def drop_path(function):
    def change(port):
        original = torch_model.DropPath.scale
        port.patch.setattr(torch_model.DropPath, "scale", lambda self, *a: function(original(self, *a)))

    return change


def cls_of_frames(combine):
    """combine(results [B, T, D] of CLS in each frame) → [B, D] in the place of their mean; the record stays."""

    def change(port):
        original = torch_model.Record.__call__

        def record(self, name, x):
            x = original(self, name, x)
            if not name.endswith(".attn.proj") or "temporal" in name or x.dim() < 4:
                return x
            same = combine(x[:, :, 0])[:, None, None].expand_as(x[:, :, :1])  # its mean over frames is itself
            return torch.cat([same, x[:, :, 1:]], dim=2)

        port.patch.setattr(torch_model.Record, "__call__", record)

    return change


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
