"""Compile the kernels of a backend before their first use, by running small models of every variant."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from refvt.backends import Backend, get
from refvt.model.config import HaltingVTConfig
from refvt.model.haltingvt import HaltingVT

__all__ = ["compile_all", "warm_up"]

PRODUCTS = ("embed", "linear", "gelu", "mlp")  # matrix products: half of all compilation

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


def warm_up(dtype: str = "float32", training: bool = True, ops: Backend | None = None) -> None:
    """Compile what a forward pass of the jit backend needs and, with ``training``, what a training step needs.

    Compiled kernels are cached on disk: the next process loads them in a fraction of a second. ops: another table of
    operations; what it takes from ``reference`` is not compiled.
    """
    names = [name for name in VARIANTS if training or name.startswith("forward")]
    rng = np.random.default_rng(0)
    clips = rng.standard_normal((2, 3, 2, 12, 12)).astype(dtype)
    for name in names:
        config = HaltingVTConfig(**{**SMALL.as_dict(), **VARIANTS[name]})
        model = HaltingVT(config, seed=0, backend="jit", dtype=dtype)
        model._ops = ops or model._ops
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
    """Compile or load the jit kernels, with a progress line on stderr; the seconds it took.

    With two threads or more, another process compiles the matrix products meanwhile; the two share the cache on disk.
    """
    # they import Numba: not for a command that compiles nothing
    from refvt.backends.jit.workspace import num_threads
    from refvt.backends.progress import at_first_compilation, compilation_shown

    start = time.perf_counter()
    get("jit")  # or the sentence that says why this machine cannot compile
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        with compilation_shown(silent=0):
            if num_threads() > 1:
                with at_first_compilation(lambda: helpers.append(_start_products(dtype, training))):
                    warm_up(dtype, training, _table(products=False))
            for helper in helpers:
                helper.wait()
            warm_up(dtype, training)
    finally:
        for helper in helpers:
            helper.kill()  # after an error or Ctrl-C; nothing happens to a process that has ended
    return time.perf_counter() - start


def _start_products(dtype: str, training: bool) -> subprocess.Popen[bytes]:
    """Start a process that compiles the matrix products without a word."""
    code = f"from refvt.model import warmup as w; w.warm_up({dtype!r}, {training}, w._table(products=True))"
    environment = {**os.environ, "REFVT_QUIET": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _table(products: bool) -> Backend:
    """Operations of which one half is from jit, the rest from the reference: the matrix products, or all others."""
    table, others = (Backend(name) for name in (("jit", "reference") if products else ("reference", "jit")))
    for name in Backend.__annotations__:
        if name not in PRODUCTS:
            setattr(table, name, others[name])
    return table
