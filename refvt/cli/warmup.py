"""``refvt warmup``: compile the kernels of the jit backend ahead of their first use."""

from __future__ import annotations

import argparse

from refvt.cli.options import add_dtype
from refvt.model.warmup import compile_all

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Compile the kernels of the jit backend once, so that no later command waits for it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt warmup``."""
    add_dtype(parser)
    parser.add_argument("--forward-only", action="store_true", help="leave out what only training needs")


def run(options: argparse.Namespace) -> int:
    """Compile, or load what has been compiled; 0."""
    seconds = compile_all(options.dtype, not options.forward_only)
    print(f"kernels for {options.dtype} are ready, {seconds:.1f} s; they are cached on disk")
    return 0
