"""Checks of compaction against plain loops over tokens, layer after layer, for any backend."""

import numpy as np

from refvt.conformance.adapters import on_host
from refvt.ops.compaction import all_alive
from refvt.ops.compaction.laws import mask_halted_is_the_plain_loop, next_block_by_hand


def check_compaction(ops, rng, B, N, ghosts, leave_early, layers=5):
    """Run several layers in which random tokens halt; in the last block CLS is the only query.

    Returns the number of layers in which rows were moved.
    """
    to_numpy, from_numpy = ops.arrays.to_numpy, ops.arrays.from_numpy
    expected_layer, halting_layer = np.zeros(B * N, np.int64), ops.arrays.zeros(B * N, np.int64)
    found, tokens, counts = all_alive(B, N, False), np.arange(B * N), np.array([[N] * B, [1] * B])
    moved = 0
    for layer in range(1, layers + 1):
        if len(tokens) == 0:
            break
        halted = rng.random(len(tokens)) < rng.choice([0.0, 0.1, 0.5, 0.9], p=[0.2, 0.3, 0.3, 0.2])
        switches = {"ghosts": ghosts, "leave_early": leave_early, "cls_only": layer == layers}
        given = {
            "halted": halted,
            "tokens": tokens,
            "counts": counts,
            "halting_layer": expected_layer,
            "layer": layer,
            "N": N,
        }
        expected = next_block_by_hand({**given, **switches})
        entered = np.arange(len(tokens))
        tokens, counts = np.array(expected["tokens"], np.int64), expected["counts"]
        expected_layer = expected["halting_layer"]
        found = ops.compact(from_numpy(halted), found.tokens, found.backend_counts, halting_layer, layer, N, **switches)
        for name in ("counts", "backend_counts", "tokens", "survivor_rows", "entering_rows", "query_rows"):
            value = getattr(found, name)
            assert np.array_equal(entered if value is None else to_numpy(value), expected[name]), name
        assert np.array_equal(to_numpy(halting_layer), expected_layer)
        moved += found.entering_rows is not None
    return moved


def check_mask_halted(ops, rng, n, masked):
    halting_layer = np.array([0, 1, 2, 0, 0][:n] + [0] * max(0, n - 5))
    halted = (halting_layer > 0) | (rng.random(n) < 0.5)
    inputs = {"halted": halted, "halting_layer": halting_layer, "layer": 3, "masked": masked}
    mask_halted_is_the_plain_loop(on_host(ops, "mask_halted"), inputs)


def check_index_functions(arrays, rng):
    """Check ``take_patches``, ``frames_to_patches`` and ``take`` against plain loops."""
    B, T, S, k = 2, 3, 5, 2
    table = rng.permutation(B * T * (2 + S)).reshape(B * T, 2 + S)
    places = np.stack([rng.permutation(S)[:k] for _ in range(B * T)])
    on_backend = arrays.from_numpy(places)
    for tail in (0, 1):
        rows = arrays.take_patches(table if tail else table[:, :-1], on_backend, tail)
        expected = [
            [row[0], *(row[1 + p] for p in chosen), *([row[-1]] if tail else [])]
            for row, chosen in zip(table.tolist(), places.tolist(), strict=True)
        ]
        assert arrays.to_numpy(rows).tolist() == expected
        flat = [expected[b * T + t][m] for b in range(B) for m in range(1 + k + tail) for t in range(T)]
        assert arrays.to_numpy(arrays.frames_to_patches(rows, T)).tolist() == flat
    index = rng.integers(0, 40, 33)
    x = rng.permutation(40)
    assert arrays.to_numpy(arrays.take(x, arrays.from_numpy(index))).tolist() == [x[i] for i in index]
