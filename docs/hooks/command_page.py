"""The page of the command line: what every command says with --help."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path


def pages(root: Path) -> Iterator[tuple[str, str, str]]:
    """The page ``commands.md``."""
    os.environ["COLUMNS"] = "100"
    from refvt import cli

    (commands,) = (a for a in cli._make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    parts = [
        "# The command line\n\nWhat each command says with `--help`. Exit codes: 0 done; 1 a check failed; 2 it "
        "could not be done, one line on stderr says why; 130 interrupted; 141 the reader of stdout has closed it."
    ]
    for name, parser in commands.choices.items():
        parts.append(f"## refvt {name}\n\n{parser.description}\n\n```text\n{parser.format_help().rstrip()}\n```")
    yield "commands.md", "refvt/cli/__init__.py", "\n\n".join(parts)
