"""Docstrings as Markdown: a paragraph that ends with ``::`` announces a literal block."""

from __future__ import annotations

import re
import textwrap

import griffe

LITERAL = re.compile(r"^(?P<before>.*?)::[ ]*\n\n(?P<block>(?:[ ]{2,}.*\n|\n)+)", re.MULTILINE)


def to_markdown(text: str) -> str:
    """The text with its literal blocks in fences and its headings as bold lines."""

    def fence(match: re.Match[str]) -> str:
        before = match["before"].rstrip()
        block = textwrap.dedent(match["block"]).strip("\n")
        return f"{before + ':' if before else ''}\n\n```text\n{block}\n```\n\n"

    return LITERAL.sub(fence, text + "\n").strip() + "\n"


class LiteralBlocks(griffe.Extension):
    """Rewrites every docstring that mkdocstrings reads."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for every object that is loaded."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
