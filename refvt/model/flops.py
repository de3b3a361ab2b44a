"""Multiply-adds of a HaltingVT, as the literature counts them and as compact execution really spends them.

A "GFLOP" here is 10⁹ multiply-adds, as in the paper (the GFLOP/s of ``refvt bench`` count two operations for each).
The *convention* counts the patch projection, every linear layer on the tokens that enter it (the Glimpser's MLP on the
kept ones), q kᵀ and weights · v over living tokens. It does not count the ghost token, the saving of the CLS-only last
block, LayerNorm, softmax, GELU, embeddings and the two heads.

*Executed* counts the matrix products of compact execution: the ghost's key and value come on top, the last block is
computed for CLS alone, in a selecting Glimpser block only CLS and the kept patches are queries, the two layers after
temporal attention are merged into one where no gradient is needed, and the heads count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.model.plan import merge_pays

__all__ = [
    "clip_gflops",
    "count_clip",
    "executed_fixed_multiply_adds",
    "executed_joint_multiply_adds",
    "executed_multiply_adds",
    "fixed_multiply_adds",
    "implied_share",
    "joint_multiply_adds",
]


def fixed_multiply_adds(config: HaltingVTConfig) -> dict[str, int]:
    """Multiply-adds of one clip before the joint blocks, by part: the cost that halting cannot save."""
    D, F, T = config.width, config.hidden_width, config.num_frames
    sizes = config.patches_entering()
    counts = {"patch_embed": sizes[0] * T * config.channels * config.patch_size**2 * D}
    for g in range(config.glimpser_depth):
        S, kept = sizes[g], sizes[g + 1]
        frame_rows = T * (1 + S)  # every frame has its copy of CLS
        counts[f"blocks.{g}.temporal_attn"] = S * T * 4 * D * D + 2 * S * T * T * D
        counts[f"blocks.{g}.temporal_fc"] = S * T * D * D
        counts[f"blocks.{g}.attn"] = frame_rows * 4 * D * D + 2 * frame_rows * (1 + S) * D
        counts[f"blocks.{g}.mlp"] = (1 + kept * T) * 2 * D * F
    return counts


def joint_multiply_adds(config: HaltingVTConfig, tokens: Array) -> Array:
    """Multiply-adds of one joint block for ``tokens`` living tokens of a clip; any shape of counts.

    A block with n tokens costs n (4 D² + 2 D F) + 2 n² D.
    """
    n = np.asarray(tokens, dtype=np.int64)
    D, F = config.width, config.hidden_width
    return np.asarray(n * (4 * D * D + 2 * D * F) + 2 * n * n * D)


def clip_gflops(config: HaltingVTConfig, tokens_per_layer: Array) -> Array:
    """10⁹ multiply-adds of each clip, by convention.

    Shapes: tokens_per_layer [B, L], number of living tokens that enter each joint block → [B].
    """
    fixed = sum(fixed_multiply_adds(config).values())
    return np.asarray((fixed + joint_multiply_adds(config, tokens_per_layer).sum(axis=-1)) / 1e9)


def executed_joint_multiply_adds(config: HaltingVTConfig, alive: Array) -> Array:
    """Multiply-adds that compact execution spends in each joint block.

    Shapes: alive [B, L, N'], as in ``Output`` → int64 [B, L]. A block with n living tokens and a ghost has n queries
    and n + 1 keys and values. In the last block CLS is the only query; a clip whose CLS has halted skips it.
    """
    D, F = config.width, config.hidden_width
    living = alive.sum(axis=2)  # [B, L]
    ghost = (config.halted_keys == "zero") & (living > 0) & (living < alive.shape[2])
    queries = living.copy()
    queries[:, -1] = alive[:, -1, 0]  # 1 where CLS lives to the last block
    keys = np.where(queries > 0, living + ghost, 0)
    per_query = 2 * D * D + 2 * D * F  # q, projection, MLP
    return np.asarray(queries * per_query + keys * 2 * D * D + 2 * queries * keys * D)


def executed_fixed_multiply_adds(config: HaltingVTConfig, training: bool = False) -> dict[str, int]:
    """Multiply-adds that compact execution spends on one clip outside the joint blocks, by part.

    training: in a forward pass that is followed by a backward pass. Parts whose names end in ``merged`` are spent once
    for a whole batch.
    """
    counts = fixed_multiply_adds(config)
    sizes, T, D = config.patches_entering(), config.num_frames, config.width
    for g, rate in enumerate(config.keep_rates):
        S, kept, block = sizes[g], sizes[g + 1], f"blocks.{g}"
        # temporal_fc runs over all rows of the state; CLS's row is multiplied too, and then scaled by zero
        counts[f"{block}.temporal_fc"] += D * D
        if not training and merge_pays(config, S):  # the projection is part of temporal_fc then
            counts[f"{block}.temporal_attn"] -= S * T * D * D
            counts[f"{block}.merged"] = D**3 + D * D
        if rate < 1:
            # the scores are computed a second time, for the CLS row of every frame; fusing adds a sum, and where
            # nothing is fused only CLS (twice) and the kept patches have a query and a projection
            counts[f"{block}.scores"] = T * (1 + S) * D
            if config.fuse_dropped:
                counts[f"{block}.fused"] = T * S * D
            else:
                counts[f"{block}.attn"] += T * D * D - T * (S - kept) * (2 * D * D + 2 * (1 + S) * D)
    counts["heads"] = D * (config.num_classes + 2)
    return counts


def executed_multiply_adds(config: HaltingVTConfig, alive: Array, training: bool = False) -> Array:
    """Multiply-adds that compact execution spends on each clip, heads included.

    Shapes: alive [B, L, N'] → int64 [B]. training: in a forward pass that is followed by a backward pass. The product
    of two weights, which is computed once for the whole batch, counts with its first clip.
    """
    parts = executed_fixed_multiply_adds(config, training)
    once = sum(count for part, count in parts.items() if part.endswith("merged"))
    counts = executed_joint_multiply_adds(config, alive).sum(axis=1) + (sum(parts.values()) - once)
    counts[:1] += once
    return np.asarray(counts)


def implied_share(config: HaltingVTConfig, gflops: float) -> tuple[float, float]:
    """Bounds (lowest, highest) on the mean share of tokens alive in the joint blocks, given the total cost of a clip.

    All N' tokens enter the first block, so only the other L − 1 are open. A block costs a·n + b·n², which is convex, so
    for a given total the mean share is largest if those blocks are all equally full (Jensen), and smallest if some are
    full and the others empty. ValueError if no halting can give the total.
    """
    N, L = config.joint_tokens, config.joint_depth
    full = float(joint_multiply_adds(config, np.asarray(N)))
    rest = gflops * 1e9 - sum(fixed_multiply_adds(config).values()) - full
    if not 0 <= rest <= (L - 1) * full * (1 + 1e-12):
        low, high = (float(clip_gflops(config, np.array([N] + [n] * (L - 1)))) for n in (0, N))
        raise ValueError(f"gflops: expected {low:.2f} to {high:.2f} for this configuration, got {gflops}")
    lowest = (1 + rest / full) / L
    if L == 1:
        return lowest, lowest
    D, F = config.width, config.hidden_width
    a, b = 4 * D * D + 2 * D * F, 2 * D
    each = (-a + np.sqrt(a * a + 4 * b * rest / (L - 1))) / (2 * b)  # a·n + b·n² = rest / (L − 1)
    return lowest, float((1 + (L - 1) * each / N) / L)


def count_clip(config: HaltingVTConfig, tokens: Array) -> dict[str, Any]:
    """All counts of one clip in 10⁹ multiply-adds, by part and by joint layer, as JSON can hold them.

    tokens [L] are the tokens that enter each joint block. ``gflops`` counts by convention, ``executed`` what compact
    execution spends; CLS lives as long as any token.
    """
    alive = np.arange(config.joint_tokens) < np.asarray(tokens)[:, None]  # [L, N'], CLS is token 0
    fixed, really = fixed_multiply_adds(config), executed_fixed_multiply_adds(config)
    by_convention = joint_multiply_adds(config, tokens)
    executed = executed_joint_multiply_adds(config, alive[None])[0]
    return {
        "parts": {part: {"gflops": fixed.get(part, 0) / 1e9, "executed": n / 1e9} for part, n in really.items()},
        "joint": [
            {"layer": i + 1, "tokens": int(n), "gflops": float(c) / 1e9, "executed": float(e) / 1e9}
            for i, (n, c, e) in enumerate(zip(tokens, by_convention, executed, strict=True))
        ],
        "gflops": float(clip_gflops(config, np.asarray(tokens)[None])[0]),
        "executed": float(executed_multiply_adds(config, alive[None])[0]) / 1e9,
    }
