"""Multiply-adds of a HaltingVT: as the literature counts them, and as compact execution really spends them.

One "FLOP" is one multiply-add here, as in the paper. The *convention* counts the patch projection, every linear layer
on the tokens that enter it (the Glimpser's MLP on the kept ones), q kᵀ and weights · v over living tokens. It does not
count the ghost token, the saving of the CLS-only last block, LayerNorm, softmax, GELU, embeddings and the two heads.

*Executed* is what the matrix multiplies of compact execution amount to: the ghost's key and value come on top, the last
block is computed for CLS alone, of the frames of a selecting Glimpser block only CLS and the kept patches ask, the two
layers after temporal attention are one where no gradient is asked for, and the heads count.
"""

from __future__ import annotations

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.model.plan import merge_pays

__all__ = [
    "clip_gflops",
    "executed_fixed_multiply_adds",
    "executed_joint_multiply_adds",
    "executed_multiply_adds",
    "fixed_multiply_adds",
    "implied_share",
    "joint_multiply_adds",
]


def fixed_multiply_adds(config: HaltingVTConfig) -> dict[str, int]:
    """Multiply-adds of one clip before the joint blocks, by part: what no halting can save."""
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
    """Multiply-adds of one joint block that ``tokens`` living tokens of a clip enter; any shape of counts."""
    n = np.asarray(tokens, dtype=np.int64)
    D, F = config.width, config.hidden_width
    return np.asarray(n * (4 * D * D + 2 * D * F) + 2 * n * n * D)


def clip_gflops(config: HaltingVTConfig, tokens_per_layer: Array) -> Array:
    """10⁹ multiply-adds of each clip. tokens_per_layer [B, L] living tokens that enter each joint block → [B]."""
    fixed = sum(fixed_multiply_adds(config).values())
    return np.asarray((fixed + joint_multiply_adds(config, tokens_per_layer).sum(axis=-1)) / 1e9)


def executed_joint_multiply_adds(config: HaltingVTConfig, alive: Array) -> Array:
    """Multiply-adds compact execution spends in each joint block. alive [B, L, N'] as in ``Output`` → int64 [B, L].

    A block with n living tokens and a ghost has n queries and n + 1 keys and values. In the last block CLS alone asks;
    a clip whose CLS has halted skips it.
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
    """What compact execution spends on one clip outside the joint blocks, by part; see ``executed_multiply_adds``.

    Parts whose names end in ``merged`` are spent once for a whole batch.
    """
    counts = fixed_multiply_adds(config)
    sizes, T, D = config.patches_entering(), config.num_frames, config.width
    for g, rate in enumerate(config.keep_rates):
        S, kept, block = sizes[g], sizes[g + 1], f"blocks.{g}"
        # temporal_fc runs over all rows of the state; CLS's row is multiplied and then dropped by its gain of zero
        counts[f"{block}.temporal_fc"] += D * D
        if not training and merge_pays(config, S):  # the projection is part of temporal_fc then
            counts[f"{block}.temporal_attn"] -= S * T * D * D
            counts[f"{block}.merged"] = D**3 + D * D
        if rate < 1:
            # the scores are formed once more, for the CLS row of every frame; fusing adds a sum, and where nothing is
            # fused only CLS (twice) and the kept patches have a query and a projection
            counts[f"{block}.scores"] = T * (1 + S) * D
            if config.fuse_dropped:
                counts[f"{block}.fused"] = T * S * D
            else:
                counts[f"{block}.attn"] += T * D * D - T * (S - kept) * (2 * D * D + 2 * (1 + S) * D)
    counts["heads"] = D * (config.num_classes + 2)
    return counts


def executed_multiply_adds(config: HaltingVTConfig, alive: Array, training: bool = False) -> Array:
    """Multiply-adds compact execution spends on each clip, heads included. alive [B, L, N'] → int64 [B].

    training: of a forward pass that is followed by a backward pass. What is done once for the whole batch, the product
    of two weights, counts with its first clip.
    """
    parts = executed_fixed_multiply_adds(config, training)
    once = sum(count for part, count in parts.items() if part.endswith("merged"))
    counts = executed_joint_multiply_adds(config, alive).sum(axis=1) + (sum(parts.values()) - once)
    counts[:1] += once
    return np.asarray(counts)


def implied_share(config: HaltingVTConfig, gflops: float) -> tuple[float, float]:
    """What a clip's total says about the mean share of tokens alive over the joint blocks: (lowest, highest).

    All N' tokens enter the first block, so only the other L − 1 are open. A block costs a·n + b·n², so a total buys
    the largest mean share if those blocks are all equally full (Jensen), the smallest if some are full and the others
    empty. ValueError if no halting can give the total.
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
