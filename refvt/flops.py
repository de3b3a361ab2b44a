"""Multiply-adds of a HaltingVT, counted as the literature counts them.

One "FLOP" is one multiply-add here, as in the paper. Counted: the patch projection; every linear layer on the tokens
that enter it (the Glimpser's MLP on the kept ones); q kᵀ and weights · v over living tokens. Not counted: the ghost
token, the saving of the CLS-only last block, LayerNorm, softmax, GELU, embeddings, the two heads.
"""

from __future__ import annotations

import numpy as np

from refvt.model.config import HaltingVTConfig
from refvt.ops import Array

__all__ = ["clip_gflops", "fixed_multiply_adds", "joint_multiply_adds"]


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
