"""What a run starts from if it is given no parameters: the paper's initialisation, or one to learn from scratch with.

The paper starts from weights that saw ImageNet, and its fresh weights (σ = 0.02 throughout, time_embed and temporal_fc
zero) only fill the gaps. A small model that has to learn everything from them stands still: after LayerNorm a patch's
content is some thirty times as loud as its place, its time is not to be heard at all, and each block adds next to
nothing. ``scratch`` gives everything a voice from the first step:

* linear weights: normal with σ = 1.5/√(inputs), half of that where a block writes to the state; temporal_fc like them
* pos_embed and time_embed: normal with σ = 0.7, as loud as a patch with something in it
* the patch projection's bias: such that a black patch, −1 in every pixel, gives zero
* channel 0, the halting logit: zero in every token and written to by nobody, so that all tokens of all layers begin
  with the score σ(−β) and learn from there
"""

from __future__ import annotations

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.model.parameters import initial_parameters
from refvt.training.recipe import Recipe

__all__ = ["initialise", "scratch_parameters"]

GAIN, INTO_STATE, PLACE = 1.5, 0.5, 0.7
WRITERS = ("attn.proj.weight", "temporal_fc.weight", "mlp.fc2.weight")  # of the state, and so of channel 0


def scratch_parameters(config: HaltingVTConfig, rng: np.random.Generator, dtype: str = "float32") -> dict[str, Array]:
    """Parameters to learn from scratch with, see above. Drawn in double precision, like ``initial_parameters``."""
    parameters = initial_parameters(config, rng, "float64")
    for name, value in parameters.items():
        if name.startswith("blocks.") and value.ndim == 2:
            value[...] = rng.normal(0, GAIN / np.sqrt(value.shape[1]), value.shape)
        if name.endswith(WRITERS):
            value *= INTO_STATE
            value[0] = 0
        elif name in ("pos_embed", "time_embed"):
            value[...] = rng.normal(0, PLACE, value.shape)
        if name in ("cls_token", "pos_embed", "time_embed"):
            value[..., 0] = 0
    projection = parameters["patch_embed.proj.weight"]
    projection[0] = 0
    parameters["patch_embed.proj.bias"][...] = projection.reshape(len(projection), -1).sum(axis=1)
    return {name: value.astype(dtype) for name, value in parameters.items()}


def initialise(recipe: Recipe, dtype: str = "float32") -> dict[str, Array]:
    """The parameters a recipe starts from if it is given no others."""
    make = scratch_parameters if recipe.init == "scratch" else initial_parameters
    parameters = make(recipe.config, np.random.default_rng(recipe.seed), dtype)
    parameters["pos_embed"][..., 0] += recipe.halting_start
    return parameters
