"""``refvt bench kernels --ladder``: time the naive CUDA kernels against the fast ones."""

from __future__ import annotations

import argparse

from refvt import backends
from refvt.bench import kernels
from refvt.cli.options import add_dtype

__all__ = ["add_to", "run"]


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the command ``kernels`` to ``refvt bench``."""
    what = "Time single CUDA kernels; needs a GPU."
    command = parser.add_subparsers(metavar="[kernels]").add_parser("kernels", help=what, description=what)
    command.add_argument("--ladder", action="store_true", required=True, help="naive kernels against fast ones")
    command.add_argument("--tokens", type=int, default=1569, metavar="N", help="rows of the matrices, default: 1569")
    add_dtype(command)
    command.add_argument("--repeats", type=int, default=9, metavar="N", help="launches of every kernel, default: 9")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the ladder; ``Unavailable`` without a GPU, ValueError for sizes below 1."""
    for name in ("tokens", "repeats"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    backends.get("cuda")
    print(kernels.ladder_as_markdown(kernels.ladder(options.tokens, dtype=options.dtype, repeats=options.repeats)))
    return 0
