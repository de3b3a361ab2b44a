"""The arithmetic of the bench: turns, medians, ratios, multiply-adds and decisions. Nothing here looks at times."""

import numpy as np
import pytest

import refvt
from refvt.bench import agreement
from refvt.bench import forward as bench
from refvt.bench.contestants import EAGER, SDPA, Contestant
from refvt.bench.timing import interleave, quartiles
from refvt.model.decisions import Decisions

TINY = refvt.HaltingVTConfig(
    image_size=(96, 96), num_frames=2, width=32, num_heads=2, depth=6, keep_rates=(1.0, 0.5), num_classes=5
)


def test_each_runs_once_a_round_in_rotating_order():
    order = []
    samples = interleave({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_medians_quartiles_ratios_and_shares():
    assert quartiles([5, 1, 2, 4, 3]) == (2, 3, 4)
    contestants = [
        Contestant("ours", "reference", "compact"),
        Contestant("ours, one by one", "reference", "compact", singly=True),
        Contestant(EAGER, None),
        Contestant(SDPA, None),
    ]
    seconds = ([3.0, 1.0, 2.0], [5.0, 5.0, 1.0], [4.0, 8.0, 2.0], [2.0, 2.0, 9.0])
    samples = {c.name: s for c, s in zip(contestants, seconds, strict=True)}
    work = {c.name: 10**9 for c in contestants}
    ours, alone, eager, sdpa = bench.rows(contestants, samples, work, peak=4.0, agree=True)
    assert (ours["lower_quartile"], ours["median"], ours["upper_quartile"]) == (1.5, 2.0, 2.5)
    assert (ours["of_eager"], ours["of_sdpa"], ours["of_one_by_one"]) == (0.5, 1.0, 0.4)
    assert (alone["of_eager"], alone["of_one_by_one"]) == (1.25, None)
    assert (eager["of_eager"], eager["of_sdpa"], sdpa["of_eager"]) == (None, 2.0, 0.5)
    assert (ours["gflop_per_second"], ours["share_of_peak"]) == (1.0, 0.25)
    for row in bench.rows(contestants, samples, work, peak=4.0, agree=False):
        assert row["of_eager"] is row["of_sdpa"] is row["of_one_by_one"] is None
        assert row["samples"] == samples[row["name"]]


def test_a_straight_line_is_found():
    line = bench.fit([1.0, 2.0, 4.0], [5.0, 8.0, 14.0])
    assert line == pytest.approx({"intercept_ms": 2.0, "ms_per_gflop": 3.0, "r2": 1.0})
    assert bench.fit([1.0, 2.0, 3.0], [1.0, 3.0, 1.0])["r2"] == pytest.approx(0)


def test_dense_execution_computes_every_token_in_every_layer():
    D, F, N, L = TINY.width, TINY.hidden_width, TINY.joint_tokens, TINY.joint_depth
    alive = np.ones((2, L, N), dtype=bool)
    compact = bench.multiply_adds(TINY, alive, compact=True, train=True, torch=False) // 3
    dense = bench.multiply_adds(TINY, alive, compact=False, train=False, torch=False)
    # all live: what compact execution saves is the patches' queries, projections and MLPs in the last block, and the
    # queries and projections of the patches that a Glimpser block drops, where CLS is a query twice
    last_block = (N - 1) * (2 * D * D + 2 * D * F + 2 * N * D)
    sizes, T = TINY.patches_entering(), TINY.num_frames
    selecting = [g for g, rate in enumerate(TINY.keep_rates) if rate < 1]
    assert selecting
    dropped = sum(T * (sizes[g] - sizes[g + 1]) * (2 * D * D + 2 * (1 + sizes[g]) * D) - T * D * D for g in selecting)
    assert dense - compact == 2 * (last_block + dropped)
    torch = bench.multiply_adds(TINY, alive, compact=False, train=False, torch=True)
    assert dense - torch == 2 * TINY.glimpser_depth * D * D
    assert bench.multiply_adds(TINY, alive, compact=False, train=True, torch=False) == 3 * dense
    # without a gradient two layers of a Glimpser block are one
    assert bench.multiply_adds(TINY, alive, compact=True, train=False, torch=False) < compact
    few = alive.copy()
    few[:, 1:, 1:] = False
    assert bench.multiply_adds(TINY, few, compact=False, train=False, torch=False) == dense
    assert bench.multiply_adds(TINY, few, compact=True, train=False, torch=False) < compact


def test_decisions_are_compared_by_patch_not_by_rank():
    config = refvt.HaltingVTConfig(image_size=(32, 32), num_frames=1, keep_rates=(1.0, 0.5))
    everything = np.arange(4)[None, None]
    one = Decisions((everything, np.array([[[3, 1]]])), np.array([[10, 4, 6]]))
    assert agreement._decisions_apart(config, one, one) == 0
    permuted = Decisions((everything, np.array([[[1, 3]]])), np.array([[10, 6, 4]]))
    assert agreement._decisions_apart(config, one, permuted) == 0
    later = Decisions((everything, np.array([[[1, 3]]])), np.array([[10, 6, 5]]))
    assert agreement._decisions_apart(config, one, later) == 1
    left = Decisions((everything, np.array([[[3, 1]]])), np.array([[4, 4, 0]]))
    assert agreement._decisions_apart(config, one, left) == 0  # it is unknown when patch 1 would have halted
    other = Decisions((everything, np.array([[[3, 0]]])), np.array([[10, 4, 6]]))
    assert agreement._decisions_apart(config, one, other) == 2
