"""The page of the command line: what every command says with --help."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path


def pages(root: Path) -> Iterator[tuple[str, str, str]]:
    """The page ``commands.md``."""
    os.environ["COLUMNS"] = "100"
    from refvt.cli import COMMANDS, _make_parser

    (commands,) = (a for a in _make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    parts = [
        "# The command line\n\nWhat each command says with `--help`. Exit codes: 0 done; 1 a check failed; 2 the "
        "request or its input was wrong; 130 interrupted."
    ]
    for name, command in COMMANDS.items():
        parts.append(
            f"## refvt {name}\n\n{command.HELP}\n\n```text\n{commands.choices[name].format_help().rstrip()}\n```"
        )
    yield "commands.md", "refvt/cli/__init__.py", "\n\n".join(parts)
