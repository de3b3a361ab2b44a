"""``refvt flops``: multiply-adds per part and layer, by the paper's convention and as really executed."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from refvt.array import Array
from refvt.cli.options import add_json, add_preset
from refvt.model.config import HaltingVTConfig
from refvt.model.flops import count_clip, implied_share

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Count multiply-adds per part and layer, by convention and as really executed."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``refvt flops``."""
    add_preset(parser)
    parser.add_argument(
        "--tokens", default=None, metavar="N1,N2,…", help="tokens alive in each joint block; default: all"
    )
    parser.add_argument(
        "--gflops", type=float, default=None, help="say which share of the tokens is alive if a clip costs this much"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Count and print; 0. ValueError for counts of tokens, or a total, that cannot be."""
    config = HaltingVTConfig.preset(options.preset)
    report: dict[str, Any] = {"preset": options.preset, **count_clip(config, _tokens(options.tokens, config))}
    if options.gflops is not None:
        low, high = implied_share(config, options.gflops)
        report["implied_share_alive"] = {"gflops": options.gflops, "lowest": low, "highest": high}
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        _print(report)
    return 0


def _tokens(text: str | None, config: HaltingVTConfig) -> Array:
    """Tokens alive in each joint block, [L]."""
    L, N = config.joint_depth, config.joint_tokens
    if text is None:
        return np.full(L, N)
    try:
        tokens = np.array([int(n) for n in text.split(",")])
    except ValueError:
        raise ValueError(f"--tokens: expected whole numbers with commas, got {text!r}") from None
    if len(tokens) != L or tokens[0] != N or (np.diff(tokens) > 0).any() or tokens.min() < 0:
        raise ValueError(f"--tokens: expected {L} numbers that begin with {N} and never grow, got {text}")
    return tokens


def _print(report: dict[str, Any]) -> None:
    print(f"{report['preset']}: 10⁹ multiply-adds of one clip")
    print(f"{'part':24s}{'tokens':>8s}{'convention':>12s}{'executed':>10s}")
    for part, cost in report["parts"].items():
        print(f"{part:24s}{'':8s}{cost['gflops']:12.3f}{cost['executed']:10.3f}")
    for row in report["joint"]:
        print(f"joint layer {row['layer']:<12d}{row['tokens']:8d}{row['gflops']:12.3f}{row['executed']:10.3f}")
    print(f"{'whole clip':32s}{report['gflops']:12.3f}{report['executed']:10.3f}")
    if "implied_share_alive" in report:
        share = report["implied_share_alive"]
        print(
            f"{share['gflops']} GFLOPs: on average {share['lowest']:.1%} to {share['highest']:.1%} of the tokens are "
            "alive in the joint blocks"
        )
