"""Weights made for measuring: random, but halting so that a clip costs a wanted number of multiply-adds.

The published weights cannot be downloaded everywhere, and the time of a forward pass depends only on the number of
tokens alive in each layer. So a profile takes fresh random weights and sets the halting channel by hand: every patch
gets a random head start (a random projection of its pixels), every joint block adds the same step, and the step is
found by bisection so that the first clip costs the wanted GFLOPs. CLS lives to the end.
"""

from __future__ import annotations

import numpy as np

from refvt.array import Array
from refvt.model import flops
from refvt.model.config import HaltingVTConfig
from refvt.model.parameters import initial_parameters

__all__ = ["profile_parameters"]

FAR = 8.0  # how far CLS is kept from halting, in units of channel 0


def profile_parameters(
    config: HaltingVTConfig, gflops: float, clips: Array, seed: int = 0, dtype: str = "float32"
) -> dict[str, Array]:
    """Random parameters under which the first of the clips [B, C, T, height, width] costs ``gflops``, to about 1 %.

    Tokens die over several layers, as in the paper's figure 3. ValueError if the total is out of reach, or the
    configuration has no selecting Glimpser block without ``cls_skip`` (which is what tells CLS from patches here).
    """
    from refvt.model.haltingvt import HaltingVT

    flops.implied_share(config, gflops)  # refuses totals that halting cannot give
    selecting = [g for g, rate in enumerate(config.keep_rates) if rate < 1]
    if not selecting or config.cls_skip:
        raise ValueError("config: a profile needs a Glimpser block that selects, and cls_skip=False")
    p = initial_parameters(config, np.random.default_rng(seed), "float64")
    unit = config.halting_center / config.halting_scale  # channel 0 at which a score is one half
    for name in p:  # nothing but what follows writes to the halting channel
        if name.endswith(("attn.proj.weight", "temporal_fc.weight", "fc2.weight")):
            p[name][0] = 0
    for name in ("cls_token", "pos_embed"):
        p[name][..., 0] = 0
    head_start = p["patch_embed.proj.weight"][0]
    head_start *= 0.5 * unit / np.sqrt(np.square(head_start).sum() * np.square(clips).mean())
    # the first selecting block takes CLS's skip connection away: CLS keeps only the bias of its projection
    p[f"blocks.{selecting[0]}.attn.proj.bias"][0] = -FAR * unit
    p["pos_embed"][:, 1:, 0] = FAR * unit

    low, high = 0.0, 2 * unit
    for _ in range(12):
        step = (low + high) / 2
        for i in range(config.glimpser_depth, config.depth):
            p[f"blocks.{i}.mlp.fc2.bias"][0] = step
        out = HaltingVT(config, p, backend="reference")(clips[:1].astype(np.float32))
        low, high = (step, high) if out.gflops[0] > gflops else (low, step)
        if abs(out.gflops[0] - gflops) <= 0.002 * gflops:
            break
    return {name: value.astype(dtype) for name, value in p.items()}
