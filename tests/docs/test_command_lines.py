"""Every ``refvt …`` that README, docs and notebooks show is a command that exists, with options that exist.

Whole command lines in shell blocks are parsed as the shell would hand them over. In running text a command may be
incomplete: only its name and its options are checked.
"""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from refvt import cli
from tests.docs.pages import PAGES, ROOT, blocks_of, name_of

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.py"))


def shell_commands(text):
    """Every complete ``refvt …`` of a shell block as the list of its words."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = [] if "…" in line else shlex.split(line, comments=True)
        for start in (i for i, word in enumerate(words) if word == "refvt"):
            rest = words[start + 1 :]
            ends = [i for i, word in enumerate(rest) if word in ("&&", "||", "|", ";", ">")]
            yield rest[: ends[0]] if ends else rest


SHELL = [
    (name_of(page), words)
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "sh"
    for words in shell_commands(block.text)
]
INLINE = sorted(
    {
        (name_of(page), text)
        for page in (*PAGES, *NOTEBOOKS)
        for text in re.findall(r"(?<!`)`refvt ([a-z][^`\n]*)`", page.read_text(encoding="utf-8"))
    }
)
USAGE = [
    (name_of(page), text)
    for page in PAGES
    for block in blocks_of(page)
    for text in re.findall(r"^refvt ([^\n]*(?:\n +[^\n]*)*)", block.text, re.MULTILINE)
    if block.language == "" or "…" in text
]


def options_of(parser):
    """All options of a parser and of the parsers below it."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found |= options_of(sub)
    return found


def commands():
    (found,) = (a for a in cli._make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return found.choices


@pytest.mark.parametrize(("page", "words"), SHELL, ids=[f"{page}:{' '.join(words)[:40]}" for page, words in SHELL])
def test_a_command_line_parses(page, words, capsys):
    try:
        cli._make_parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"{page}: refvt {' '.join(words)}: {capsys.readouterr().err.splitlines()[-1:]}")


@pytest.mark.parametrize(("page", "text"), [*INLINE, *USAGE])
def test_a_command_in_the_text_exists(page, text):
    words = text.split()
    assert words[0] in commands(), f"{page}: refvt {text}"
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert options <= options_of(commands()[words[0]]), f"{page}: refvt {text}"


def test_the_pages_show_every_command():
    shown = {words[0] for _, words in SHELL} | {text.split()[0] for _, text in INLINE}
    assert shown == set(commands())


@pytest.mark.parametrize("words", [["hallt", "VIDEO"], ["halt"], ["halt", "VIDEO", "--picture"]])
def test_a_wrong_command_line_is_found(words):
    with pytest.raises(SystemExit):
        cli._make_parser().parse_args(words)
