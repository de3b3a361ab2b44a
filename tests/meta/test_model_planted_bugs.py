"""Bugs planted one by one in the model (mutation tests): the golden files must find every one of them.

The laws check single operations; whole models check how they are combined: which tokens take part, where each gradient
flows, which residual CLS loses. Each entry is a piece of a module's source text and a plausible mistake in its place.
"""

import importlib
import inspect
import sys
import types

import pytest

from refvt import backends
from refvt.conformance.golden import load_manifest
from refvt.conformance.verify import verify

CASES = load_manifest()

BUGS = [
    # blocks
    ("model.blocks", "weight[:D], bias[:D], keep", "weight[D : 2 * D], bias[D : 2 * D], keep", "model-zero"),
    ("model.blocks", "dq, dk = arrays.add(dq, dq_dk[0]), arrays.add(dk, dq_dk[1])", "pass", "model-fuse"),
    ("model.blocks", "dnormed = arrays.add(dnormed_kv, ops.gather.backward(dnormed_q, cache.gather))", "dnormed = dnormed_kv", "model-zero"),
    ("model.blocks", "return out, MlpCache(", "return out - x + normed, MlpCache(", "tiny-model-zero"),
    ("model.blocks", "return ops.arrays.add(dx, dresidual)", "return dx", "tiny-model-zero"),
    ("model.blocks", "context.set_gradient(cache.norm_name, dweight, dbias)", "context.set_gradient(cache.norm_name, dbias, dweight)", "tiny-model-zero"),
    # a bug that drops the gradients of keys that are no queries: the ghost's must reach the parameters
    (
        "model.blocks",
        "    q_cache, kv_cache = cache.qkv\n",
        "    q_cache, kv_cache = cache.qkv\n    import numpy\n"
        "    silent = ~numpy.isin(numpy.arange(len(dk)), cache.gather.source)\n    dk[silent] = dv[silent] = 0\n",
        "model-zero",
    ),
    # Glimpser
    ("model.plan", "np.concatenate([np.full_like(cls, -1), by_frame]", "np.concatenate([cls, by_frame]", "model-prune-one"),
    ("model.plan", "cls_keeps_skip = not selects or config.cls_skip", "cls_keeps_skip = not selects", "model-prune-one-cls-skip"),
    ("model.plan", "lengths[:, 0] = T\n", "lengths[:, 0] = 1\n    by_patch = by_patch[T - 1 :]\n", "model-prune-one"),
    ("model.plan", "is_patch=(state_paths >= 0)", "is_patch=(state_paths >= -1)", "tiny-model-zero"),
    ("model.plan", "patches.transpose(0, 2, 1)  # [B, T, S]", "patches.reshape(B, T, S)", "model-zero"),
    ("model.plan", "np.arange(B * S + 1) * T", "np.arange(B * T + 1) * S", "model-zero"),
    ("model.plan", "take_patches(table, places, tail=int(plan.fuses))", "take_patches(table[::-1], places, tail=int(plan.fuses))", "model-fuse"),
    ("model.glimpser", "return dframes, ops.cls_scores.backward(dscores, cache.scores)", "return dframes, None", "model-fuse"),
    ("model.glimpser", "dpatches, dscores = ops.fuse", "dpatches, dscores = 0 * dframes[:0], None  # ops.fuse", "model-fuse"),
    ("model.decisions", "originals = np.take_along_axis(originals, ", "originals = (lambda o, p, axis: p)(originals, ", "model-prune-two-zero"),
    ("model.decisions", "return np.asarray(match.argmax(axis=-1))", "return np.sort(match.argmax(axis=-1))", "model-prune-two-zero"),
    ("model.glimpser", "scales_of(drop_path.temporal, T)", "scales_of(drop_path.temporal, T) ** 0", "model-drop-path"),
    ("model.glimpser", "scales_of(drop_path.spatial, 1 + plan", "scales_of(drop_path.spatial.T, 1 + plan", "model-drop-path-prune"),
    ("model.glimpser", "arrays.take(plan.residual_rows, rows)", "arrays.take(plan.frame_rows, rows)", "model-prune-one"),
    ("model.glimpser", "projected._replace(q=ops.gather.forward(q, plan.cls_of_row, keep=False)[0])", "projected._replace(q=projected.k)", "model-prune-one"),
    ("backends.reference.arrays", "np.take_along_axis(table, 1 + places, axis=1)", "np.take_along_axis(table, places, axis=1)", "model-prune-one"),
    ("backends.reference.arrays", "rows.reshape(-1, T, rows.shape[1]).transpose(0, 2, 1)", "rows.reshape(-1, T, rows.shape[1])", "model-prune-two-zero"),
    # which tokens take part
    ("ops.compaction", "np.log(N - tokens[ghost])", "0", "model-zero"),
    ("ops.compaction", "np.log(N - tokens[ghost])", "np.log(N - tokens[ghost] + 1)", "model-zero"),
    ("ops.compaction", "key_offsets[1:][ghost] - 1", "key_offsets[1:][ghost] - 2", "model-zero"),
    ("ops.compaction", "np.where(has_cls > 0, offsets_of(n)[:-1], -1) for", "offsets_of(n)[:-1] for", "model-zero"),
    ("model.plan", 'config.halted_keys == "zero", dtype', 'config.halted_keys == "none", dtype', "model-zero"),
    ("model.plan", 'config.halted_keys == "zero", dtype', "True, dtype", "model-masked"),
    ("ops.compaction.reference", "halting_layer[tokens[halted]] = layer", "halting_layer[tokens[halted]] = layer + 1", "tiny-model-zero"),
    ("ops.compaction.reference", "(tokens % N == 0) & ~halted", "(tokens % N == 1) & ~halted", "model-zero"),
    ("ops.compaction.reference", "rows = np.arange(len(tokens_next)) + shift[clip]", "rows = np.arange(len(tokens_next))", "model-zero"),
    ("ops.compaction.reference", "survivor_rows = np.flatnonzero(survives)", "survivor_rows = np.flatnonzero(survives)[::-1]", "tiny-model-zero"),
    ("ops.compaction.reference", "entering_rows[rows[enters]] = survivor_rows[enters]", "entering_rows[rows[enters]] = survivor_rows[enters] - 1", "model-zero"),
    ("ops.compaction.reference", "-np.inf, 0.0", "0.0, 0.0", "model-masked"),
    ("ops.compaction.reference", "np.where(halted, -1, np.arange(len(halted)))", "np.arange(len(halted))", "model-zero"),
    # joint blocks
    ("model.joint", "dx = arrays.add_to_column(dx, 0, dlogit)", "pass", "tiny-model-zero"),
    ("model.joint", "dx, dweight = arrays.add(dx_of_y, dx), arrays.add(dweight_of_y, dweight)", "dx, dweight = arrays.add(dx_of_y, dx), dweight_of_y", "tiny-model-zero"),
    ("model.joint", "dx, dweight = arrays.add(dx_of_y, dx), arrays.add(dweight_of_y, dweight)", "dx, dweight = dx_of_y, arrays.add(dweight_of_y, dweight)", "model-zero"),
    ("model.joint", "dused = ops.gather.backward(dused, saved.used)", "dused = 0 * ops.gather.backward(dused, saved.used)", "model-zero"),
    ("model.joint", "np.repeat(of_clips, plan.query_counts", "np.repeat(of_clips[::-1], plan.query_counts", "model-drop-path-prune"),
    ("model.joint", "np.where(place < 0, np.nan, layers.ravel())", "np.where(place < 0, np.nan, layers.ravel() - 1)", "tiny-model-zero"),
    ("model.joint", "place[tokens[halts]] = first", "place[tokens[halts]] = 0 * first", "model-zero"),
    ("model.plan", "self._imposed.ravel() <= layer", "self._imposed.ravel() == layer", "model-zero"),
    ("model.joint", "dresidual = ops.gather.backward(dresidual, cache.residual)",
     "dresidual = 0 * ops.gather.backward(dresidual, cache.residual)", "model-zero"),
    # network
    ("model.network", "dfeatures = arrays.add(dfeatures, dmotion_features)", "pass", "tiny-model-zero"),
    ("model.drop_path", "drop_path * i / max(config.depth - 1, 1)", "drop_path * i / config.depth", "model-drop-path"),
    ("model.drop_path", "np.where(rng.random(shape) >= rate, 1 / (1 - rate), 0.0)", "1.0 * (rng.random(shape) >= rate)", "model-drop-path"),
]  # fmt: skip


@pytest.fixture
def plant(monkeypatch):
    """Replace a piece of the source text of a module; all users of the module then get the broken functions and classes."""

    def replace(module, right, wrong):
        original = importlib.import_module(f"refvt.{module}")
        source = inspect.getsource(original)
        assert right in source, f"{original.__name__}: expected the text {right!r}, which is gone: update this list"
        broken = types.ModuleType(original.__name__)
        broken.__package__ = original.__package__
        monkeypatch.setitem(sys.modules, original.__name__, broken)  # dataclasses look up their module
        exec(compile(source.replace(right, wrong), f"{module} with a bug", "exec"), broken.__dict__)
        users = [
            m
            for name, m in sys.modules.items()
            if name.startswith(("refvt.model.", "refvt.backends.", "refvt.ops.", "refvt.conformance."))
        ]
        for user in (original, *(m for m in users if m is not broken)):
            for attribute, value in list(vars(user).items()):
                if getattr(value, "__module__", None) == original.__name__ and hasattr(broken, attribute):
                    monkeypatch.setattr(user, attribute, getattr(broken, attribute))
        backends.get.cache_clear()  # the table must load the broken operations

    yield replace
    backends.get.cache_clear()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("module", "right", "wrong", "case"), BUGS)
def test_planted_bug_is_caught(module, right, wrong, case, plant):
    assert verify([CASES[case]])[0].holds
    plant(module, right, wrong)
    assert not verify([CASES[case]])[0].holds
