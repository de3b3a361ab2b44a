"""Weights set by hand, with which a patch stays alive as long as something moves in it.

The trained model that ships with refvt is small. At the paper's size no trained weights ship, and with random weights
no token halts, or all do at once. These weights show the whole mechanism (Glimpser, selection, halting, compaction) at
any size, with a network simple enough to follow by hand. It recognises nothing: its class head is zero. Each step below
sets a few entries of the model's parameters; all other entries are zero.

1. *Embedding*: the means of 4×4 blocks of a patch in each colour channel, the *content*, are written to channels of
   their own. Two more channels hold a large constant, +K and −K, which dominates the variance; the *balance* channel
   holds minus the sum of all others, so the mean is zero. LayerNorm then only scales, by √(D/2)/K.
2. *Block 0, temporal attention*: q = k = 0, so attention is the mean over the T frames, and temporal_fc = −1 subtracts
   it. The content is now the patch's difference from its mean over time: zero where nothing moves.
3. *Block 0, MLP*: GELU(a) + GELU(−a) is a soft |a|; its mean over the content is the *motion* of the token.
4. *Block 1, spatial attention*: the query of CLS matches the motion channel of the keys, so moving patches get its
   attention and are kept. CLS has no skip connection here; the projection's bias gives its constant back.
5. *Joint blocks*: GELU(a) − GELU(−a) = a. Each block adds rate · (1 − motion/STILL) to channel 0, the halting logit, of
   every patch: patches at rest halt within a few layers, moving ones stay alive. The rate of CLS is zero, so it stays
   alive to the end.
"""

from __future__ import annotations

import math

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.model.parameters import parameter_shapes

__all__ = ["handmade_parameters"]

K = 400.0  # the constant; content is at most 1, its sum at most 48
CONTENT_SIDE = 4  # block means of a patch, per side
SHARPNESS = 40.0  # of the soft absolute value: |a| above 1/40 counts in full
ATTENTION = 20.0  # logit per unit of motion, over all of a head's width
STILL = 0.4  # motion at which the halting logit does not grow
LAYERS_TO_REST = 2.0  # joint blocks after which the logit of a token without motion is at the halting centre

# channels
LOGIT, PLUS, MINUS, MARK, MOTION, BALANCE, CONTENT = 0, 1, 2, 3, 4, 5, 6


def handmade_parameters(config: HaltingVTConfig, dtype: str = "float32") -> dict[str, Array]:
    """Return the parameters for a configuration with at least two Glimpser blocks.

    Raises ValueError if glimpser_depth < 2, if the width is too small for the content, or if patch_size is not a
    multiple of 4.
    """
    _check_config(config)
    c, side = config, CONTENT_SIDE
    content = side * side * c.channels
    p = {name: np.zeros(shape) for name, shape in parameter_shapes(config).items()}
    for name in p:
        if name.endswith("norm1.weight") or name.endswith("norm2.weight") or name == "norm.weight":
            p[name][:] = 1
    D = c.width
    unnorm = K * math.sqrt(2 / D)  # the divisor of LayerNorm while the constant is ±K
    content_channels = CONTENT + np.arange(content)

    # 1. embedding: each content channel is the mean of one block of one colour channel
    block = c.patch_size // side
    for n, channel in enumerate(content_channels):
        colour, i, j = (int(index) for index in np.unravel_index(n, (c.channels, side, side)))
        rows, columns = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
        p["patch_embed.proj.weight"][channel, colour, rows, columns] = 1 / block**2
    p["patch_embed.proj.bias"][[PLUS, MINUS]] = K, -K
    p["cls_token"][0, 0, [PLUS, MINUS]] = K, -K
    p["pos_embed"][0, 1:, MARK] = 1  # patches are marked, CLS is not

    # 2. block 0, temporal attention: v = content, the mean over time, subtracted
    value_rows = 2 * D + content_channels
    p["blocks.0.temporal_attn.qkv.weight"][value_rows, content_channels] = unnorm
    p["blocks.0.temporal_attn.proj.weight"][content_channels, content_channels] = 1
    p["blocks.0.temporal_fc.weight"][content_channels, content_channels] = -1

    # 3. block 0, MLP: motion = mean of the soft |content|
    up, down = np.arange(content), content + np.arange(content)
    p["blocks.0.mlp.fc1.weight"][up, content_channels] = SHARPNESS * unnorm
    p["blocks.0.mlp.fc1.weight"][down, content_channels] = -SHARPNESS * unnorm
    p["blocks.0.mlp.fc2.weight"][MOTION, : 2 * content] = 1 / (SHARPNESS * content)

    # 4. every later Glimpser block: CLS's query is a constant, a patch's key its motion; CLS gets its constant back
    d = D // c.num_heads
    scale = 1.0  # the constant doubles with every block that adds it
    for g in range(1, c.glimpser_depth):
        heads = np.arange(c.num_heads) * d  # the first channel of every head
        p[f"blocks.{g}.attn.qkv.bias"][heads] = 1
        p[f"blocks.{g}.attn.qkv.weight"][D + heads, MOTION] = ATTENTION * math.sqrt(d) * unnorm * scale
        p[f"blocks.{g}.attn.proj.bias"][[PLUS, MINUS]] = K, -K
        scale += 1

    # 5. joint blocks: channel 0 of a patch grows by rate · (mark − motion / STILL)
    rate = c.halting_center / c.halting_scale / LAYERS_TO_REST
    for i in range(c.glimpser_depth, c.depth):
        p[f"blocks.{i}.mlp.fc1.weight"][[0, 1], MARK] = np.array([1, -1]) * unnorm * scale
        p[f"blocks.{i}.mlp.fc1.weight"][[0, 1], MOTION] = np.array([-1, 1]) * unnorm * scale / STILL
        p[f"blocks.{i}.mlp.fc2.weight"][LOGIT, [0, 1]] = rate, -rate
    # the balance: minus everything that is written to the state
    p["patch_embed.proj.weight"][BALANCE] = -p["patch_embed.proj.weight"].sum(axis=0)
    p["pos_embed"][..., BALANCE] = -p["pos_embed"].sum(axis=-1)
    for name in p:
        if name.endswith(("temporal_fc.weight", "mlp.fc2.weight")):
            p[name][BALANCE] = -p[name].sum(axis=0)
    return {name: value.astype(dtype) for name, value in p.items()}


def _check_config(c: HaltingVTConfig) -> None:
    """Raise ValueError unless the configuration has enough blocks, channels and pixels for the handmade weights."""
    content = CONTENT_SIDE**2 * c.channels
    if c.glimpser_depth < 2:
        raise ValueError(f"glimpser_depth: expected at least 2 for the handmade weights, got {c.glimpser_depth}")
    if c.width < CONTENT + content:
        raise ValueError(f"width: expected at least {CONTENT + content} for the handmade weights, got {c.width}")
    if c.hidden_width < 2 * content:
        raise ValueError(
            f"mlp_ratio: expected a hidden width of at least {2 * content} for the handmade weights, "
            f"got {c.hidden_width} ({c.mlp_ratio} · {c.width})"
        )
    if c.patch_size % CONTENT_SIDE:
        raise ValueError(
            f"patch_size: expected a multiple of {CONTENT_SIDE} for the handmade weights, got {c.patch_size}"
        )
