"""Compile the kernels of a backend before their first use, by running small models of every variant."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from refvt.model.config import HaltingVTConfig
from refvt.model.haltingvt import HaltingVT

__all__ = ["compile_all", "start_compiling", "warm_up"]

# wide enough that tiles are cut as in a large model (a kernel is compiled again for every layout it meets)
SMALL = HaltingVTConfig(
    image_size=(12, 12),
    patch_size=4,
    num_frames=2,
    width=208,
    num_heads=2,
    mlp_ratio=1.0,
    depth=5,
    keep_rates=(1.0, 0.5),
    num_classes=3,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "forward, zero": {"halted_keys": "zero"},
    "forward, masked": {"halted_keys": "masked"},
    "forward, fuse": {"fuse_dropped": True},
    "training, zero": {"halted_keys": "zero"},
    "training, fuse and DropPath": {"fuse_dropped": True, "cls_skip": True},
}


def warm_up(backend: str = "jit", dtype: str = "float32", training: bool = True) -> None:
    """Compile what a forward pass needs and, with ``training``, what a training step needs.

    Compiled kernels are cached on disk: the next process loads them in a fraction of a second.
    """
    names = [name for name in VARIANTS if training or name.startswith("forward")]
    rng = np.random.default_rng(0)
    clips = rng.standard_normal((2, 3, 2, 12, 12)).astype(dtype)
    for name in names:
        config = HaltingVTConfig(**{**SMALL.as_dict(), **VARIANTS[name]})
        model = HaltingVT(config, seed=0, backend=backend, dtype=dtype)
        for b in range(config.glimpser_depth, config.depth):  # some tokens halt before the last block, others do not
            model.parameters[f"blocks.{b}.mlp.fc2.bias"][0] = 0.4
        model.parameters["pos_embed"][..., 0] = rng.uniform(-1, 1, model.parameters["pos_embed"].shape[:2])
        for execution in ("compact", "dense"):
            if name.startswith("forward"):
                model(clips, execution=execution)
            else:
                drop = 0.5 if "DropPath" in name else 0.0
                model.loss_and_gradients(
                    clips, np.array([0, 1]), np.array([1, 0]), execution=execution, drop_path=drop, rng=rng
                )


def compile_all(dtype: str = "float32", training: bool = True) -> float:
    """Compile or load the jit kernels, with a progress line on stderr; the seconds it took."""
    from refvt.backends.progress import compilation_shown  # imports Numba: not for a command that compiles nothing

    start = time.perf_counter()
    with compilation_shown(silent=0):
        warm_up("jit", dtype, training)
    return time.perf_counter() - start


def start_compiling(dtype: str = "float32") -> subprocess.Popen[bytes] | None:
    """Start a process that compiles the jit kernels without a word; processes share the cache on disk.

    None if there is one thread only: then it would be in the way.
    """
    from refvt.backends.jit.workspace import num_threads

    if num_threads() < 2:
        return None
    command = [sys.executable, "-m", "refvt", "warmup", "--dtype", dtype]
    environment = {**os.environ, "REFVT_QUIET": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
