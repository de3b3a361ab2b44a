"""The command line ``refvt``: a file per command, each with ``HELP``, ``add_arguments`` and ``run``.

Nothing else in refvt prints. Exit codes: 0 done; 1 a check failed; 2 the request or its input was wrong, in one line
on stderr; 130 interrupted; 141 the reader of the output closed it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import refvt
from refvt import backends
from refvt.cli import bench, check, demo, evaluate, experiment, flops, golden, halt, info, train, warmup

__all__ = ["main"]

COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "halt": halt,
    "train": train,
    "evaluate": evaluate,
    "experiment": experiment,
    "check": check,
    "golden": golden,
    "flops": flops,
    "warmup": warmup,
    "bench": bench,
    "info": info,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _make_parser().parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has enough: refvt check … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes at its end goes nowhere
        return 141  # as a program that SIGPIPE ends
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, TypeError, OSError, ImportError, backends.DeviceError) as error:
        return _fail(str(error), 2)


def _fail(message: str, code: int) -> int:
    print(f"refvt: {message}", file=sys.stderr)
    return code


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="refvt",
        description="The reference implementation of HaltingVT: a video transformer that halts tokens layer by layer.",
    )
    parser.add_argument("--version", action="version", version=f"refvt {refvt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        sub.set_defaults(run=command.run)
        command.add_arguments(sub)
    return parser
