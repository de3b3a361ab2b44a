"""Weights set by hand, so that a patch lives as long as something moves in it.

No trained weights ship with refvt yet, and random weights halt nowhere or everywhere. These show the whole mechanism
(Glimpser, selection, halting, compaction) with a network one can hold in the head. It recognises nothing: its class
head is zero. Every step below is a few entries of a published parameter; all others are zero.

1. *Embedding*: 16 block means of each colour channel of a patch, the "content", go to their own channels. A large
   constant ±K stands beside them and dominates the variance; one more channel, the balance, always holds minus the
   sum of the others, so the mean is zero. So LayerNorm becomes a mere scaling by √(D/2)/K.
2. *Block 0, through time*: q = k = 0, so attention takes the plain mean over the T frames; temporal_fc = −1 subtracts
   it. What is left of the content is how much the patch differs from its mean over time: zero where nothing moves.
3. *Block 0, MLP*: GELU(a) + GELU(−a) is a soft |a|; the mean over the content is the *motion* of the token.
4. *Block 1, through space*: CLS asks for the motion channel, so the patches that move get its attention and are kept.
   The projection's bias gives CLS, which loses its skip connection here, its constant back.
5. *Joint blocks*: GELU(a) − GELU(−a) = a. Each block adds (1 − motion/STILL), times a rate, to channel 0, the halting
   logit, of every patch: what rests halts in a few layers, what moves lives on. CLS has no rate and lives to the end.
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
STILL = 0.4  # motion at which a token does not move towards halting at all
LAYERS_TO_REST = 2.0  # after so many joint blocks a token without motion is at the halting centre

# channels
LOGIT, PLUS, MINUS, MARK, MOTION, BALANCE, CONTENT = 0, 1, 2, 3, 4, 5, 6


def handmade_parameters(config: HaltingVTConfig, dtype: str = "float32") -> dict[str, Array]:
    """The parameters, for any configuration with two Glimpser blocks or more that is wide enough.

    ValueError if glimpser_depth < 2, the width has no room for the content, or the patch cannot be cut in 4×4 blocks.
    """
    c, side = config, CONTENT_SIDE
    content = side * side * c.channels
    if c.glimpser_depth < 2:
        raise ValueError(f"glimpser_depth: the handmade weights need at least 2 blocks, got {c.glimpser_depth}")
    if c.width < CONTENT + content or c.hidden_width < 2 * content:
        raise ValueError(f"width: the handmade weights need at least {CONTENT + content} channels, got {c.width}")
    if c.patch_size % side:
        raise ValueError(f"patch_size: the handmade weights need a multiple of {side}, got {c.patch_size}")
    p = {name: np.zeros(shape) for name, shape in parameter_shapes(config).items()}
    for name in p:
        if name.endswith("norm1.weight") or name.endswith("norm2.weight") or name == "norm.weight":
            p[name][:] = 1
    D = c.width
    unnorm = K * math.sqrt(2 / D)  # what LayerNorm divided by, while the constant is ±K
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
    # the balance: whatever is written to the state is taken off there
    p["patch_embed.proj.weight"][BALANCE] = -p["patch_embed.proj.weight"].sum(axis=0)
    p["pos_embed"][..., BALANCE] = -p["pos_embed"].sum(axis=-1)
    for name in p:
        if name.endswith(("temporal_fc.weight", "mlp.fc2.weight")):
            p[name][BALANCE] = -p[name].sum(axis=0)
    return {name: value.astype(dtype) for name, value in p.items()}
