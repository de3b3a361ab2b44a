"""What compaction must do, in plain loops over tokens: held against every column that has it."""

import numpy as np

from refvt.ops.compaction.reference import everyone


def by_hand(halted, tokens, layers, layer, B, N, ghosts, leave_early, cls_only):
    """(tokens, goes_on, entering, asks, counts) of the next block; layers is written to."""
    halted_cls = {int(t) // N for t, h in zip(tokens, halted, strict=True) if h and t % N == 0}
    has_cls = {int(t) // N for t, h in zip(tokens, halted, strict=True) if not h and t % N == 0}
    assert not halted_cls & has_cls
    for token, stops in zip(tokens, halted, strict=True):
        if stops:
            layers[token] = layer
    next_tokens, goes_on, entering, asks, counts = [], [], [], [], np.zeros((2, B), np.int64)
    for b in range(B):
        stays = [
            (i, t)
            for i, (t, stops) in enumerate(zip(tokens, halted, strict=True))
            if t // N == b and not stops and (b in has_cls or not leave_early)
        ]
        counts[:, b] = len(stays), b in has_cls
        next_tokens += [t for _, t in stays]
        goes_on += [i for i, _ in stays]
        if not stays or (cls_only and b not in has_cls):
            continue
        top = len(entering)
        entering += [i for i, _ in stays]
        asks += [top] if cls_only else range(top, len(entering))
        if ghosts and len(stays) < N:
            entering.append(-1)
    return next_tokens, goes_on, entering, asks, counts


def check_compaction(moves, rng, B, N, ghosts, leave_early, layers=5):
    """Several layers of a random life, one on the other; the last block is one where CLS alone asks."""
    mine, halting_layer = np.zeros(B * N, np.int64), moves.zeros(B * N, np.int64)
    found, tokens = everyone(B, N, False), np.arange(B * N)
    moved = 0
    for layer in range(1, layers + 1):
        if len(tokens) == 0:
            break
        halted = rng.random(len(tokens)) < rng.choice([0.0, 0.1, 0.5, 0.9], p=[0.2, 0.3, 0.3, 0.2])
        cls_only = layer == layers
        before = tokens
        tokens, goes_on, entering, asks, counts = by_hand(
            halted, tokens, mine, layer, B, N, ghosts, leave_early, cls_only
        )
        found = moves.compact(moves.from_numpy(halted), found, halting_layer, layer, N, ghosts, leave_early, cls_only)
        tokens, right = np.array(tokens, np.int64), moves.to_numpy
        assert np.array_equal(found.counts, counts)
        assert np.array_equal(right(found.living), counts)
        assert np.array_equal(right(found.tokens), tokens)
        assert np.array_equal(right(found.asks), asks)
        assert found.rows.sum() + found.ghosts.sum() == len(entering)
        if found.goes_on is None:
            assert goes_on == list(range(len(before)))
        else:
            assert np.array_equal(right(found.goes_on), goes_on)
        if found.entering is None:
            assert entering == list(range(len(before)))
        else:
            assert np.array_equal(right(found.entering), entering)
            moved += 1
        assert np.array_equal(right(halting_layer), mine)
    return moved


def check_silence(moves, rng, n, masked):
    layers = np.array([0, 1, 2, 0, 0][:n] + [0] * max(0, n - 5))
    there = moves.from_numpy(layers.copy())
    halted = (layers > 0) | (rng.random(n) < 0.5)
    entering, key_bias = moves.silence(moves.from_numpy(halted), there, 3, np.dtype("float32"), masked)
    expected = [3 if stops and was == 0 else was for stops, was in zip(halted, layers, strict=True)]
    assert moves.to_numpy(there).tolist() == expected
    assert moves.to_numpy(entering).tolist() == [-1 if stops else i for i, stops in enumerate(halted)]
    if masked:
        assert moves.to_numpy(key_bias).dtype == np.float32
        assert moves.to_numpy(key_bias).tolist() == [-np.inf if stops else 0.0 for stops in halted]
    else:
        assert key_bias is None


def check_index_moves(moves, rng):
    """Of a frame's rows: picked, turned, taken; in loops."""
    B, T, S, k = 2, 3, 5, 2
    table = rng.permutation(B * T * (2 + S)).reshape(B * T, 2 + S)
    places = np.stack([rng.permutation(S)[:k] for _ in range(B * T)])
    there = moves.from_numpy(places)
    for tail in (0, 1):
        rows = moves.take_patches(table if tail else table[:, :-1], there, tail)
        expected = [
            [row[0], *(row[1 + p] for p in chosen), *([row[-1]] if tail else [])]
            for row, chosen in zip(table.tolist(), places.tolist(), strict=True)
        ]
        assert moves.to_numpy(rows).tolist() == expected
        flat = [expected[b * T + t][m] for b in range(B) for m in range(1 + k + tail) for t in range(T)]
        assert moves.to_numpy(moves.frames_to_patches(rows, T)).tolist() == flat
    index = rng.integers(0, 40, 33)
    x = rng.permutation(40)
    assert moves.to_numpy(moves.take(x, moves.from_numpy(index))).tolist() == [x[i] for i in index]
