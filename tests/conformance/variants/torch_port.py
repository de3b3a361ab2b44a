"""The PyTorch model that made the golden files, as a port in which a variant is planted.

Nothing here is computed as ``refvt.conformance.variants`` computes it: autograd differentiates, and each variant is
written anew, as a change of ``golden.torch_ops`` or ``golden.torch_model``.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch.nn import functional

from golden import runs, torch_model, torch_ops
from golden.model_cases import MODEL_CASES
from refvt.conformance.golden import load_arrays, load_manifest

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
