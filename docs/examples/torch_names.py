"""A PyTorch module with a names map: ``refvt check torch_names:candidate``.

The map says which named tensor each module's output is; ``{i}`` stands for every block.
"""

from torch_port import HaltingVT

from refvt.conformance import adapters

NAMES = {
    "blocks.{i}.temporal_norm1": "blocks.{i}.temporal_norm1",
    "blocks.{i}.temporal_attn.qkv": tuple(f"blocks.{{i}}.temporal_attn.{x}" for x in "qkv"),
    "blocks.{i}.temporal_attn.proj": "blocks.{i}.temporal_attn.proj",
    "blocks.{i}.norm1": "blocks.{i}.norm1",
    "blocks.{i}.attn.qkv": tuple(f"blocks.{{i}}.attn.{x}" for x in "qkv"),
    "blocks.{i}.attn.proj:input": "blocks.{i}.attn.y",
    "blocks.{i}.norm2": "blocks.{i}.norm2",
    "blocks.{i}": "blocks.{i}.mlp",
    "norm": "norm",
}

candidate = adapters.torch_model(lambda config, parameters: HaltingVT(config), NAMES)
broken = adapters.torch_model(lambda config, parameters: HaltingVT(config, bug="eps"), NAMES)
