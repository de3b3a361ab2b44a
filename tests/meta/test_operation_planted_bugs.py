"""Mutation test: bugs planted one by one in the reference; the laws must catch every one of them.

Each entry is a piece of ``reference.py`` and what a tired hand might have written instead: a term dropped, a transpose
forgotten, a wrong axis, a gradient let through a comparison.
"""

import importlib
import inspect
import types

import pytest
from hypothesis import HealthCheck, given, settings

from refvt.backends import ForwardOnly, Implementation
from refvt.conformance.laws import laws_of
from refvt.conformance.strategies import inputs_for
from refvt.ops import operations
from refvt.ops.laws import LawBroken

BUGS = [
    # embedding
    ("embedding", "embed", "dprojected.sum(axis=(0, 1))", "dprojected.sum(axis=(0, 2))[: dprojected.shape[2]]"),
    ("embedding", "embed", "np.concatenate([dcls[None], dpr", "np.concatenate([0 * dcls[None], dpr"),
    ("embedding", "embed", "dbias = flat.sum(axis=0)", "dbias = dtokens.reshape(-1, D).sum(axis=0)"),
    ("embedding", "embed", ".transpose(0, 3, 5, 2, 1, 4, 6)", ".transpose(0, 2, 3, 5, 1, 4, 6)"),
    ("embedding", "embed", "transpose(0, 3, 5, 2, 1, 4, 6)", "transpose(0, 5, 3, 2, 1, 4, 6)"),
    # layernorm
    ("layernorm", "layernorm", "dnormed - dnorm_mean - ", "dnormed - "),
    ("layernorm", "layernorm", " - normed * dnorm_norm_mean)", ")"),
    ("layernorm", "layernorm", "dx = inverse_std * (", "dx = ("),
    ("layernorm", "layernorm", "dweight = (dy * normed).sum(axis=0)", "dweight = dy.sum(axis=0)"),
    ("layernorm", "layernorm", "dnormed = dy * weight", "dnormed = dy * 1"),
    ("layernorm", "layernorm", ".mean(axis=-1, keepdims=True) + EPS", ".sum(axis=-1, keepdims=True) + EPS"),
    # linear
    ("linear", "linear", "dproduct = dy if gain is None else dy * gain[:, None]", "dproduct = dy"),
    ("linear", "linear", "dproduct.sum(axis=0), dresidual", "dy.sum(axis=0), dresidual"),
    ("linear", "linear", "dresidual = dy.copy()", "dresidual = 2 * dy"),
    ("linear", "linear", "dresidual = dy.copy()", "dresidual = dy"),
    ("linear", "linear", "dproduct.T @ x,", "(x.T @ dproduct).reshape(weight.shape),"),
    ("linear", "linear", "y = x @ weight.T", "y = (x @ weight.T)[::1] * 1.0000001"),
    # gelu, mlp
    ("mlp", "gelu", "_normal_cdf(x) + x * density", "_normal_cdf(x)"),
    ("mlp", "gelu", "-0.5 * np.square(x)", "-np.square(x)"),
    ("mlp", "gelu", "0.5 * erfc(x * -math.sqrt(0.5))", "0.5 * (2 - erfc(x * math.sqrt(0.5)))"),
    ("mlp", "mlp", "dhidden = dproduct @ fc2_weight", "dhidden = dy @ fc2_weight"),
    ("mlp", "mlp", "gelu_backward(dhidden, GeluCache(pre_activation))", "gelu_backward(dhidden, GeluCache(hidden))"),
    ("mlp", "mlp", "dproduct.T @ hidden", "dproduct.T @ pre_activation"),
    # attention
    ("attention", "attention", "dweights - (weights * dweights).sum(axis=-1, keepdims=True)", "dweights"),
    ("attention", "attention", "(weights * dweights).sum(axis=-1", "(weights * dweights).sum(axis=-2"),
    ("attention", "attention", "        dlogits *= scale\n", ""),
    ("attention", "attention", "dlogits.transpose(0, 2, 1) @ q_i", "dlogits.transpose(0, 2, 1) @ (q_i * 0 + 1)"),
    ("attention", "attention", "if bias is not None:", "if False:"),
    ("attention", "attention", "keys = slice(key_offsets[i], ", "keys = slice(0, "),
    ("attention", "attention", "np.where(total > 0, total, 1)", "1"),
    # tokens
    ("tokens", "gather", "np.add.reduceat(dy[copies], first, axis=0)", "dy[copies][first]"),
    ("tokens", "gather", "copies = np.flatnonzero(index >= 0)", "copies = np.arange(len(index))"),
    ("tokens", "gather", "present = index >= 0", "present = index >= -len(x)"),
    ("tokens", "segment_mean", "dsum = dy / lengths.astype(dy.dtype)[:, None]", "dsum = dy"),
    # glimpser
    ("glimpser", "cls_scores", "dscores / A", "dscores"),
    ("glimpser", "cls_scores", "dweights - (weights * dweights).sum(axis=-1, keepdims=True)", "dweights"),
    ("glimpser", "cls_scores", "weights /= weights.sum", "weights /= weights[:, :, 1:].sum"),
    ("glimpser", "top_k", "-scores, axis=1", "scores, axis=1"),
    ("glimpser", "top_k", 'kind="stable")[:, :k]', 'kind="stable")[:, :k][:, ::-1]'),
    ("glimpser", "fuse_dropped", "dfused) * dropped", "dfused)"),
    ("glimpser", "fuse_dropped", "(scores * dropped)[:, :, None] * dfused", "dropped[:, :, None] * dfused"),
    # halting
    ("halting", "halt", "np.where(halted, -dweight, dused_next)", "np.where(halted, dused_next, dused_next)"),
    ("halting", "halt", "np.where(halted, 0, dweight + dused_next)", "dweight + dused_next"),
    ("halting", "halt", "np.where(halted, 0, dweight + dused_next)", "np.where(halted, 0, dweight)"),
    ("halting", "halt", "scale * score * (1 - score) * dscore", "score * (1 - score) * dscore"),
    ("halting", "halt", "weight = np.where(halted, 1 - used, score)", "weight = score"),
    ("halting", "halt", "used + score > 1 - epsilon", "score > 1 - epsilon"),
    ("halting", "accumulate", "(dy_next * x).sum(axis=-1)", "dy_next.sum(axis=-1)"),
    ("halting", "accumulate", "weight[:, None] * dy_next, (dy", "dy_next.copy(), (dy"),
    ("halting", "halt_tokens", "        dx[:, 0] += dlogit\n", ""),
    ("halting", "halt_tokens", "dused_next[~halting.halted] = dused", "pass"),
    ("halting", "halt_tokens", "dweight += dremainder", "dweight -= dremainder"),
    ("halting", "halt_tokens", "layer + weight[halted]", "layer - 1 + weight[halted]"),
    # losses
    ("losses", "cross_entropy", "probability * target.sum(axis=1, keepdims=True) - target", "probability"),
    ("losses", "cross_entropy", "(dloss / len(target))", "dloss"),
    ("losses", "cross_entropy", "label_smoothing / K", "label_smoothing"),
    ("losses", "ponder_loss", "dloss / np.prod(cache.shape)", "dloss / cache.shape[0]"),
    ("losses", "motion_loss", "(logits, moving, 0.0, keep)", "(logits, 1 - moving)"),
    # compaction
    ("compaction", "compact", "halting_layer[tokens[halted]] = layer", "halting_layer[halted.nonzero()] = layer"),
    ("compaction", "compact", "& (has_cls[clip] > 0) if leave_early", "if leave_early"),
    ("compaction", "compact", "offsets[:-1] - offsets_of(counts_next[0])[:-1]", "0 * offsets[:-1]"),
    ("compaction", "compact", "offsets[:-1][in_block > 0] if cls_only", "offsets[:-1] if cls_only"),
    ("compaction", "compact", "and not ghost.any()", ""),
    ("compaction", "mask_halted", "halted & (halting_layer == 0)", "halted"),
    ("compaction", "mask_halted", "-np.inf, 0.0", "0.0, -np.inf"),
    # optimiser
    ("optimiser", "squared_norm", "np.square(x, dtype=np.float64).sum()", "np.square(x).max()"),
    ("optimiser", "adam_step", "g += real(f.l2) * w_run", "g += real(f.l2)"),
    ("optimiser", "adam_step", "w_run *= real(f.shrink)", "pass"),
    ("optimiser", "adam_step", "v_run * real(f.correction2)", "v_run"),
    ("optimiser", "adam_step", "real(f.one_minus_beta2) * g * g", "real(f.one_minus_beta2) * g"),
    ("optimiser", "adam_step", "real(f.clip) * gradient[start:stop]", "gradient[start:stop]"),
]  # fmt: skip


def planted(family, operation, right, wrong):
    module = importlib.import_module(f"refvt.ops.{family}.reference")
    source = inspect.getsource(module)
    assert right in source, f"{right!r} is no longer in {family}/reference.py: update this list"
    broken = types.ModuleType(module.__name__)
    exec(compile(source.replace(right, wrong), f"{family} with a bug", "exec"), broken.__dict__)
    signature = operations()[operation]
    if not signature.has_backward:
        return ForwardOnly(signature, getattr(broken, operation))
    forward, backward = getattr(broken, f"{operation}_forward"), getattr(broken, f"{operation}_backward")
    return Implementation(signature, forward, backward)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("family", "operation", "right", "wrong"), BUGS)
def test_planted_bug_is_caught(family, operation, right, wrong):
    broken = planted(family, operation, right, wrong)

    @settings(suppress_health_check=list(HealthCheck), max_examples=40)
    @given(inputs=inputs_for(operation))
    def all_laws(inputs):
        for law in laws_of(operation):
            law(broken, inputs)

    with pytest.raises((LawBroken, ValueError, IndexError, ExceptionGroup)):
        all_laws()
