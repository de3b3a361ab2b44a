"""Multiply-adds: computed by hand, counted from the arguments of the operations, and as the docs state them."""

import json
from pathlib import Path

import numpy as np
import pytest

import refvt
from refvt import backends
from refvt.backends import Implementation
from refvt.cli import main
from refvt.model import flops
from tests.support.models import small_clips, small_model


def counting(monkeypatch):
    """Count the multiply-adds of every matrix product from the shapes of the arguments of the operations."""
    table = backends.get("reference")
    total = [0]

    def attention(q, k, v, query_offsets, key_offsets, num_heads, key_bias=None, **_):
        return 2 * q.shape[1] * int((np.diff(query_offsets) * np.diff(key_offsets)).sum())

    costs = {
        "embed": lambda clips, weight, *_, **__: clips[:, 0].size // weight[0, 0].size * weight.size,
        "linear": lambda x, weight, *_, **__: len(x) * weight.size,
        "mlp": lambda x, fc1_weight, *_, **__: 2 * len(x) * fc1_weight.size,
        "attention": attention,
        "cls_scores": lambda q, k, *_, **__: k.size,
        "fuse_dropped": lambda x, *_, **__: x.size,
    }
    for name, cost in costs.items():
        right = table[name]

        def forward(*arguments, right=right, cost=cost, **settings):
            total[0] += cost(*arguments, **settings)
            return right.forward(*arguments, **settings)

        monkeypatch.setattr(table, name, Implementation(right.operation, forward, right.backward))

    def product(a, b, right=table.arrays.matmul):
        total[0] += a.size * b.shape[1]
        return right(a, b)

    monkeypatch.setattr(table.arrays, "matmul", product)
    return total


@pytest.mark.parametrize("halted_keys", ["zero", "masked"])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("push", [-5.0, 0.3, 5.0])
def test_executed_is_what_the_operations_are_given(monkeypatch, halted_keys, fuse, push):
    model = small_model(push=push, halted_keys=halted_keys, fuse_dropped=fuse, keep_rates=(0.7, 0.5), seed=3)
    clips = small_clips(model.config, 3)
    total = counting(monkeypatch)
    out = model(clips)
    assert flops.executed_multiply_adds(model.config, out.alive).sum() == total[0]
    total[0] = 0
    out = model(clips, full_ponder=True)
    assert flops.executed_multiply_adds(model.config, out.alive).sum() == total[0]
    # only forward passes are counted
    total[0] = 0
    loss, _ = model.loss_and_gradients(clips, np.zeros(3, np.int64), None)
    assert flops.executed_multiply_adds(model.config, loss.output.alive, training=True).sum() == total[0]


def test_convention_counts_living_tokens_only():
    model = small_model(push=0.3, seed=3)
    out = model(small_clips(model.config, 2))
    D, F = model.config.width, model.config.hidden_width
    fixed = sum(flops.fixed_multiply_adds(model.config).values())
    for b in range(2):
        joint = sum(int(n) * (4 * D * D + 2 * D * F) + 2 * int(n) ** 2 * D for n in out.tokens_per_layer[b])
        assert out.gflops[b] == (fixed + joint) / 1e9


def test_implied_share_is_reached_at_both_ends():
    config = refvt.HaltingVTConfig()
    N, L = config.joint_tokens, config.joint_depth
    equal = np.array([N] + [130] * (L - 1))
    low, high = flops.implied_share(config, float(flops.clip_gflops(config, equal)))
    assert high == pytest.approx(equal.mean() / N, rel=1e-12)
    steep = np.array([N] * 4 + [0] * (L - 4))
    low, high = flops.implied_share(config, float(flops.clip_gflops(config, steep)))
    assert low == pytest.approx(steep.mean() / N, rel=1e-12)
    assert low < high
    full = float(flops.clip_gflops(config, np.full(L, N)))
    assert flops.implied_share(config, full) == pytest.approx((1, 1))
    with pytest.raises(ValueError, match=r"gflops: expected 8.55 to 17.63 for this configuration, got 30"):
        flops.implied_share(config, 30)


def test_docs_state_what_is_computed():
    page = (Path(__file__).parents[2] / "docs" / "multiply-adds.md").read_text(encoding="utf-8")
    for preset, total in (("minik-g03-b10", 9.9), ("minik-g07-b20", 24.2)):
        config = refvt.HaltingVTConfig.preset(preset)
        fixed = sum(flops.fixed_multiply_adds(config).values()) / 1e9
        full = float(flops.clip_gflops(config, np.full(10, config.joint_tokens)))
        low, high = flops.implied_share(config, total)
        row = f"| {preset} | {total} | {total - fixed:.2f} of {full - fixed:.2f} | {low:.1%} to {high:.1%} |"
        assert row.replace("%", " %") in page
        assert f"**{fixed:.2f}**" in page
        assert f"**{full:.2f}**" in page


def test_flops_command(capsys):
    assert main(["flops", "--gflops", "9.9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["gflops"] == pytest.approx(17.626492416)
    assert report["joint"][0]["tokens"] == 473
    assert report["joint"][0]["gflops"] == report["joint"][0]["executed"]
    assert report["joint"][9]["executed"] < report["joint"][9]["gflops"]  # CLS alone
    assert report["implied_share_alive"]["lowest"] == pytest.approx(0.234, abs=1e-3)
    assert main(["flops"]) == 0
    assert "joint layer 10" in capsys.readouterr().out


@pytest.mark.parametrize("tokens", ["473", "a,b", "473,400,410,1,1,1,1,1,1,1", "400,1,1,1,1,1,1,1,1,1"])
def test_flops_command_refuses_impossible_tokens(tokens, capsys):
    assert main(["flops", "--tokens", tokens]) == 2
    assert "--tokens: expected" in capsys.readouterr().err
