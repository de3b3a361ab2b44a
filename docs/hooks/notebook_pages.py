"""One page for each notebook, with the outputs that are committed with it."""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICTURES = {"image/png": "png", "image/gif": "gif", "image/jpeg": "jpg"}


def pages(root: Path) -> Iterator[tuple[str, str, str | bytes]]:
    """The page of every notebook, and the pictures and pages that it shows, with the file each comes from."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        origin = f"notebooks/{path.name}"
        parts: list[str] = []
        shown: list[tuple[str, bytes]] = []  # ending and content
        heading = ""
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(_markdown(source))
                heading = (re.findall(r"^#+ (.+)$", source, re.MULTILINE) or [heading])[-1]
                continue
            if source:
                parts.append(f"```python\n{source}\n```")
            for output in _joined(cell["outputs"]):
                parts.append(_output(output, path.stem, heading, shown))
        title = re.sub(r"^\d+\. ", "", re.findall(r"^# (.+)$", "\n".join(parts), re.MULTILINE)[0])
        run = f'`python -m pip install ".[notebooks]"`, `jupyter lab {origin}`'
        note = f'!!! note "A notebook"\n    Run it yourself: {run}.'
        text = "\n\n".join(parts)
        first, _, rest = text.partition("\n")
        yield f"learn/{path.stem}.md", origin, f'---\ntitle: "{title}"\n---\n\n{first}\n\n{note}\n{rest}\n'
        for number, (ending, content) in enumerate(shown):
            name = f"{path.stem}-{number}.{ending}"
            yield f"learn/{name}", f"notebooks/{name}", content


def _markdown(source: str) -> str:
    """A text cell: Markdown inside of <details>, and blank lines where Python-Markdown needs them."""
    source = re.sub(r"<details>\s*<summary>(.*?)</summary>", r'<details markdown="1"><summary>\1</summary>\n', source)
    source = re.sub(r"^(```)\n</details>", r"\1\n\n</details>", source, flags=re.MULTILINE)
    lines: list[str] = []
    for line in source.splitlines():
        starts = re.match(r"([-*]|\d+\.) ", line)
        if starts and lines and lines[-1].strip() and not re.match(r"\s*([-*]|\d+\.) |\s{2,}", lines[-1]):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _joined(outputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The outputs of a cell, what was printed in several pieces as one."""
    for name, group in itertools.groupby(outputs, key=lambda output: output.get("name")):
        if name is None:
            yield from group
        else:
            yield {"output_type": "stream", "name": name, "text": ["".join(piece["text"]) for piece in group]}


def _output(output: dict[str, Any], stem: str, heading: str, shown: list[tuple[str, bytes]]) -> str:
    """The Markdown of one output: a picture, a page in a frame, Markdown, HTML, or text."""
    if output["output_type"] == "stream":
        return _text("".join(output["text"])) if output["name"] == "stdout" else ""
    data = {kind: "".join(text) for kind, text in output.get("data", {}).items() if kind.startswith(("text", "image"))}
    for kind, ending in PICTURES.items():
        if kind in data:
            shown.append((ending, base64.b64decode(data[kind])))
            alt = output.get("metadata", {}).get(kind, {}).get("alt") or f"Picture: {heading}"
            return f"![{alt}]({stem}-{len(shown) - 1}.{ending})"
    if "text/markdown" in data:
        return data["text/markdown"]
    if found := re.search(r'<iframe[^>]*?title="([^"]*)"[^>]*?srcdoc="([^"]*)"', data.get("text/html", "")):
        shown.append(("html", html.unescape(found[2]).encode()))
        name = f"{stem}-{len(shown) - 1}.html"
        frame = f'<iframe title="{found[1]}" sandbox="allow-scripts" src="{name}" class="page"></iframe>'
        return f"{frame}\n\n[{found[1]} in a window of its own]({name})"
    return data.get("text/html") or _text(data.get("text/plain", ""))


def _text(text: str) -> str:
    return f"```{{.text .output}}\n{text.rstrip()}\n```" if text.strip() else ""
