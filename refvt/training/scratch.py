"""Initial parameters of a run: the paper's initialisation, or one for training from scratch.

The paper starts from weights pretrained on ImageNet; its new weights (σ = 0.02 throughout, time_embed and temporal_fc
zero) only fill the gaps. A small model trained from these alone does not learn: after LayerNorm the content of a patch
is about thirty times larger than its position embedding, its time embedding is negligible, and each block adds almost
nothing. ``scratch`` gives every part a comparable scale from the first step:

* linear weights: normal with σ = 1.5/√(inputs), half of that where a block writes to the state; temporal_fc likewise
* pos_embed and time_embed: normal with σ = 0.7, the scale of a patch that is not empty
* the bias of the patch projection: such that a black patch, −1 in every pixel, gives zero
* channel 0, the halting logit: zero in every token, and no block writes to it, so that all tokens start with the
  halting score σ(−β) in all layers
"""

from __future__ import annotations

import numpy as np

from refvt.array import Array
from refvt.model.config import HaltingVTConfig
from refvt.model.parameters import initial_parameters
from refvt.training.recipe import Recipe

__all__ = ["initialise", "scratch_parameters"]

GAIN, INTO_STATE, EMBEDDING = 1.5, 0.5, 0.7
WRITERS = ("attn.proj.weight", "temporal_fc.weight", "mlp.fc2.weight")  # they write to the state and its channel 0


def scratch_parameters(config: HaltingVTConfig, rng: np.random.Generator, dtype: str = "float32") -> dict[str, Array]:
    """Draw parameters for training from scratch, as described above, in float64 like ``initial_parameters``."""
    parameters = initial_parameters(config, rng, "float64")
    for name, value in parameters.items():
        if name.startswith("blocks.") and value.ndim == 2:
            value[...] = rng.normal(0, GAIN / np.sqrt(value.shape[1]), value.shape)
        if name.endswith(WRITERS):
            value *= INTO_STATE
            value[0] = 0
        elif name in ("pos_embed", "time_embed"):
            value[...] = rng.normal(0, EMBEDDING, value.shape)
        if name in ("cls_token", "pos_embed", "time_embed"):
            value[..., 0] = 0
    projection = parameters["patch_embed.proj.weight"]
    projection[0] = 0
    parameters["patch_embed.proj.bias"][...] = projection.reshape(len(projection), -1).sum(axis=1)
    return {name: value.astype(dtype) for name, value in parameters.items()}


def initialise(recipe: Recipe, dtype: str = "float32") -> dict[str, Array]:
    """Draw the initial parameters of a recipe from its seed."""
    make = scratch_parameters if recipe.init == "scratch" else initial_parameters
    parameters = make(recipe.config, np.random.default_rng(recipe.seed), dtype)
    parameters["pos_embed"][..., 0] += recipe.halting_start
    return parameters
