"""Names, shapes and initial values of the parameters.

The names and shapes are those of a PyTorch state dict, so that published checkpoints load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from refvt.array import Array
from refvt.checks import at_most, brief
from refvt.limits import check_request
from refvt.model.config import HaltingVTConfig

__all__ = ["check_parameters", "initial_parameters", "parameter_shapes"]


def parameter_shapes(config: HaltingVTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by name, in the order of the forward pass."""
    D, F, C, P = config.width, config.hidden_width, config.channels, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, D),
        "pos_embed": (1, 1 + config.patches_per_frame, D),
        "time_embed": (1, config.num_frames, D),
        "patch_embed.proj.weight": (D, C, P, P),
        "patch_embed.proj.bias": (D,),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (D,), (D,)

    for i in range(config.depth):
        block = f"blocks.{i}"
        if i < config.glimpser_depth:
            norm(f"{block}.temporal_norm1")
            linear(f"{block}.temporal_attn.qkv", 3 * D, D)
            linear(f"{block}.temporal_attn.proj", D, D)
            linear(f"{block}.temporal_fc", D, D)
        norm(f"{block}.norm1")
        linear(f"{block}.attn.qkv", 3 * D, D)
        linear(f"{block}.attn.proj", D, D)
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.fc1", F, D)
        linear(f"{block}.mlp.fc2", D, F)
    norm("norm")
    linear("head", config.num_classes, D)
    linear("motion_head", 2, D)
    return shapes


def initial_parameters(config: HaltingVTConfig, rng: np.random.Generator, dtype: str = "float32") -> dict[str, Array]:
    """Initial parameters of a model that is trained from scratch.

    Linear weights, cls_token and pos_embed are normal with σ = 0.02, truncated at ±2. Linear biases, time_embed and
    every temporal_fc are zero. LayerNorms have weight 1 and bias 0. The patch projection is uniform in ±1/√(C·P²).
    All are drawn in double precision in the order of ``parameter_shapes``, so that a seed gives the same parameters in
    every dtype. ValueError if they need more memory than the machine has.
    """
    check_request("config: its parameters", list(parameter_shapes(config).values()), 8)
    bound = 1 / math.sqrt(config.channels * config.patch_size**2)
    parameters: dict[str, Array] = {}
    for name, shape in parameter_shapes(config).items():
        if name.startswith("patch_embed."):
            value = rng.uniform(-bound, bound, shape)
        elif "norm" in name:
            value = np.ones(shape) if name.endswith("weight") else np.zeros(shape)
        elif name.endswith("bias") or name == "time_embed" or ".temporal_fc." in name:
            value = np.zeros(shape)
        else:
            value = np.clip(rng.normal(0, 0.02, shape), -2, 2)
        parameters[name] = value.astype(dtype)
    return parameters


def check_parameters(parameters: Mapping[str, Array], config: HaltingVTConfig, dtype: str = "float64") -> None:
    """Check parameters against a configuration, and that ``dtype`` can hold them.

    One ValueError lists the missing, unexpected, wrongly shaped or non-finite parameters.
    """
    shapes = parameter_shapes(config)
    missing = [f"missing: {name} {list(shape)}" for name, shape in shapes.items() if name not in parameters]
    unexpected = [f"unexpected: {brief(name)[1:-1]}" for name in parameters if name not in shapes]
    found = []
    for name, shape in shapes.items():
        if name not in parameters:
            continue
        value = np.asarray(parameters[name])
        if value.shape != shape:
            found.append(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
        elif not np.issubdtype(value.dtype, np.floating):
            found.append(f"{name}: expected floating-point numbers, got {value.dtype}")
        elif not np.isfinite(value).all():
            found.append(f"{name}: expected finite values, got NaN or infinity")
        elif value.dtype.itemsize > np.dtype(dtype).itemsize and np.abs(value).max(initial=0) > np.finfo(dtype).max:
            found.append(f"{name}: expected values that {dtype} can hold, got {np.abs(value).max():.3g}")
    problems = len(missing) + len(unexpected) + len(found)
    if problems:  # some of each kind: missing and unexpected names tell more together
        listed = "\n  ".join([*at_most(missing), *at_most(unexpected), *at_most(found)])
        raise ValueError(f"parameters do not fit the configuration ({problems} problems):\n  {listed}")
