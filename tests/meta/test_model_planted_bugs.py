"""Bugs planted one by one in the model: the golden files must catch every one of them.

The laws guard single operations; what holds them together (who takes part, which gradient flows where, which residual
CLS loses) is guarded by whole models. Each entry is a piece of a module and what a tired hand might have written.
"""

import importlib
import inspect
import sys
import types

import pytest

from refvt.conformance.golden import load_manifest
from refvt.conformance.verify import verify

CASES = load_manifest()

BUGS = [
    # blocks
    ("blocks", "weight[:D], bias[:D], keep", "weight[D : 2 * D], bias[D : 2 * D], keep", "model-zero"),
    ("blocks", "dq, dk = arrays.add(dq, extra[0]), arrays.add(dk, extra[1])", "pass", "model-fuse"),
    ("blocks", "dnormed = arrays.add(dnormed, ops.gather.backward(dasking, cache.queries))", "pass", "model-zero"),
    ("blocks", "return out, MlpHalfCache(", "return out - x + normed, MlpHalfCache(", "tiny-model-zero"),
    ("blocks", "scope.ops.arrays.add(dx, dresidual)", "dx", "tiny-model-zero"),
    ("blocks", "scope.put(cache.norm_name, dweight, dbias)", "scope.put(cache.norm_name, dbias, dweight)", "tiny-model-zero"),
    # the ghost's gradients: those of keys that do not ask are dropped
    (
        "blocks",
        "        q_cache, kv_cache = cache.qkv\n",
        "        q_cache, kv_cache = cache.qkv\n        import numpy\n"
        "        silent = ~numpy.isin(numpy.arange(len(dk)), cache.queries.source)\n        dk[silent] = dv[silent] = 0\n",
        "model-zero",
    ),
    # glimpser
    ("glimpser", "np.concatenate([np.full_like(cls, -1), by_frame]", "np.concatenate([cls, by_frame]", "model-prune-one"),
    ("glimpser", "if selects and not config.cls_skip else", "if selects else", "model-prune-one-cls-skip"),
    ("glimpser", "lengths[:, 0] = T\n", "lengths[:, 0] = 1\n    index = index[T - 1 :]\n", "model-prune-one"),
    ("glimpser", "is_patch=(from_time >= 0)", "is_patch=(from_time >= -1)", "tiny-model-zero"),
    ("glimpser", "patches.transpose(0, 2, 1)  # [B, T, S]", "patches.reshape(B, T, S)", "model-zero"),
    ("glimpser", "np.arange(B * S + 1) * T", "np.arange(B * T + 1) * S", "model-zero"),
    ("glimpser", "extra = ops.cls_scores.backward(dscores, cache.scores)", "extra = None", "model-fuse"),
    ("glimpser", "dpatches, dscores = ops.fuse", "dpatches, dscores = 0 * dframes[:0], None  # ops.fuse", "model-fuse"),
    ("glimpser", "originals = np.take_along_axis(originals, ", "originals = (lambda o, p, axis: p)(originals, ", "model-prune-two-zero"),
    ("glimpser", "return np.asarray(match.argmax(axis=-1))", "return np.sort(match.argmax(axis=-1))", "model-prune-two-zero"),
    ("glimpser", "rows_of(gains.temporal, T)", "rows_of(gains.temporal, T) ** 0", "model-drop-path"),
    ("glimpser", "rows_of(gains.spatial, 1 + standing)", "rows_of(gains.spatial.T, 1 + standing)", "model-drop-path-prune"),
    ("glimpser", "arrays.take(residual_rows, rows)", "arrays.take(order.frame_rows, rows)", "model-prune-one"),
    ("glimpser", "select(ops.gather.forward(q, order.of_cls, keep=False)[0], k)", "select(k, k)", "model-prune-one"),
    ("glimpser", "arrays.take_patches(_with_fused(B, T, S), places, tail=1)", "arrays.take_patches(_with_fused(B, T, S)[::-1], places, tail=1)", "model-fuse"),
    ("backends.reference.arrays", "np.take_along_axis(table, 1 + places, axis=1)", "np.take_along_axis(table, places, axis=1)", "model-prune-one"),
    ("backends.reference.arrays", "rows.reshape(-1, T, rows.shape[1]).transpose(0, 2, 1)", "rows.reshape(-1, T, rows.shape[1])", "model-prune-two-zero"),
    # who takes part
    ("plan", "np.log(N - counts[ghosts])", "0", "model-zero"),
    ("plan", "np.log(N - counts[ghosts])", "np.log(N - counts[ghosts] + 1)", "model-zero"),
    ("plan", "key_offsets[1:][ghosts] - 1", "key_offsets[1:][ghosts] - 2", "model-zero"),
    ("joint", 'halted_keys == "zero", leave_early', 'halted_keys == "none", leave_early', "model-zero"),
    ("joint", 'halted_keys == "zero", leave_early', "True, leave_early", "model-masked"),
    ("plan", "np.where(counts[1] > 0, offsets_of(of_each)[:-1], -1) for", "offsets_of(of_each)[:-1] for", "model-zero"),
    ("ops.compaction.reference", "layers[tokens[halted]] = layer", "layers[tokens[halted]] = layer + 1", "tiny-model-zero"),
    ("ops.compaction.reference", "(tokens % N == 0) & ~halted", "(tokens % N == 1) & ~halted", "model-zero"),
    ("ops.compaction.reference", "rows = np.arange(len(tokens)) + shift[clip]", "rows = np.arange(len(tokens))", "model-zero"),
    ("ops.compaction.reference", "goes_on = np.flatnonzero(going)", "goes_on = np.flatnonzero(going)[::-1]", "tiny-model-zero"),
    ("ops.compaction.reference", "entering[rows[here]] = goes_on[here]", "entering[rows[here]] = goes_on[here] - 1", "model-zero"),
    ("ops.compaction.reference", "-np.inf, 0.0", "0.0, 0.0", "model-masked"),
    ("ops.compaction.reference", "np.where(halted, -1, np.arange(len(halted)))", "np.arange(len(halted))", "model-zero"),
    # joint blocks
    ("joint", "dx = arrays.add_to_column(dx, 0, dlogit)", "pass", "tiny-model-zero"),
    ("joint", "dx, dweight = arrays.add(dterm, dx), arrays.add(dshare, dweight)", "dx, dweight = arrays.add(dterm, dx), dshare", "tiny-model-zero"),
    ("joint", "dx, dweight = arrays.add(dterm, dx), arrays.add(dshare, dweight)", "dx, dweight = dterm, arrays.add(dshare, dweight)", "model-zero"),
    ("joint", "dused = ops.gather.backward(dused, step.used)", "dused = 0 * ops.gather.backward(dused, step.used)", "model-zero"),
    ("joint", "np.repeat(gains[layer - 1], step", "np.repeat(gains[layer - 1][::-1], step", "model-drop-path-prune"),
    ("joint", "np.where(final < 0, np.nan, layers.ravel())", "np.where(final < 0, np.nan, layers.ravel() - 1)", "tiny-model-zero"),
    ("joint", "final[tokens[halts]] = weighed", "final[tokens[halts]] = 0 * weighed", "model-zero"),
    ("joint", "forced.ravel() <= layer", "forced.ravel() == layer", "model-zero"),
    ("joint", "dresidual = ops.gather.backward(dresidual, step.asked)",
     "dresidual = 0 * ops.gather.backward(dresidual, step.asked)", "model-zero"),
    # network
    ("network", "dfeatures = arrays.add(dfeatures, dmoving)", "pass", "tiny-model-zero"),
    ("network", "drop_path * i / max(config.depth - 1, 1)", "drop_path * i / config.depth", "model-drop-path"),
    ("network", "np.where(rng.random(shape) >= rate, 1 / (1 - rate), 0.0)", "1.0 * (rng.random(shape) >= rate)", "model-drop-path"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("module", "right", "wrong", "case"), BUGS)
def test_planted_bug_is_caught(module, right, wrong, case, monkeypatch):
    original = importlib.import_module(f"refvt.{module}" if "." in module else f"refvt.model.{module}")
    source = inspect.getsource(original)
    assert right in source, f"{right!r} no longer stands in {original.__name__}: mend this list"
    assert verify([CASES[case]])[0].holds
    broken = types.ModuleType(original.__name__)
    monkeypatch.setitem(sys.modules, original.__name__, broken)  # dataclasses look their module up
    exec(compile(source.replace(right, wrong), f"{module} with a bug", "exec"), broken.__dict__)
    # every function of the module, wherever the model has imported it, becomes the broken one
    users = [m for name, m in sys.modules.items() if name.startswith(("refvt.model.", "refvt.backends."))]
    for user in (original, *(m for m in users if m is not broken)):
        for attribute, value in list(vars(user).items()):
            if isinstance(value, types.FunctionType) and value.__module__ == original.__name__:
                monkeypatch.setattr(user, attribute, getattr(broken, attribute))
    result = verify([CASES[case]])[0]
    assert not result.holds
