"""The command line ``refvt``: a file per command, each with ``HELP``, ``add_arguments`` and ``run``.

Nothing else in refvt prints, but for a line about compilation (``backends/progress.py``) and the scripts of
``refvt/bench`` that run as modules. Exit codes: 0 done; 1 a check failed; 2 it could not be done, because the request
or its input was wrong or the machine lacks something, in one line on stderr; 130 interrupted; 141 the reader of stdout
has closed it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from refvt.cli.outcome import flush, interrupt_ends_at_once, prepare, report

__all__ = ["COMMANDS", "main"]

COMMANDS = (
    "demo",
    "halt",
    "train",
    "evaluate",
    "experiment",
    "check",
    "golden",
    "flops",
    "warmup",
    "bench",
    "info",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        prepare()
        with interrupt_ends_at_once():
            parser = _make_parser()
        try:
            options = parser.parse_args(arguments)
            return int(options.run(options))
        finally:
            flush()
    except (Exception, KeyboardInterrupt) as error:
        return report(error)


def _make_parser() -> argparse.ArgumentParser:
    from refvt import __version__

    parser = argparse.ArgumentParser(
        prog="refvt",
        description="The reference implementation of HaltingVT: a video transformer that halts tokens layer by layer.",
    )
    parser.add_argument("--version", action="version", version=f"refvt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = import_module(f"refvt.cli.{name}")
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        sub.set_defaults(run=command.run)
        command.add_arguments(sub)
    return parser
