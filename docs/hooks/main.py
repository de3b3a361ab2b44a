"""The hooks of mkdocs.yml: they write the pages that come from the code, and send links to files of the repository.

A link on a page works on the code host and on the site alike: it is relative to the file it stands in. A link to a
notebook or to an operation leads to its page on the site, and a link to any other file to a page with its text.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from posixpath import join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # the text of this checkout, not of an installed refvt

import api_pages  # noqa: E402
import command_page  # noqa: E402
import notebook_pages  # noqa: E402
import operation_pages  # noqa: E402
import web_packages  # noqa: E402

FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
OTHER_TEXT = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "notebooks/README.md": "learn/index.md",
}
LANGUAGES = {".py": "python", ".c": "c", ".json": "json", ".toml": "toml", ".yml": "yaml", ".css": "css"}


class Site:
    """Which file of the repository each page of the site comes from, and the pages that links ask for."""

    def __init__(self) -> None:
        self.page_of = dict(OTHER_TEXT)  # file of the repository → page of the site
        self.pages: dict[str, str | bytes] = {}  # generated pages and pictures
        self.origin: dict[str, str] = {}  # page → the file that its relative links start from

    def add(self, page: str, origin: str, content: str | bytes) -> None:
        """A generated page, or a picture; links in it are relative to the file ``origin``."""
        self.pages[page], self.origin[page], self.page_of[origin] = content, origin, page

    def links(self, markdown: str, page: str) -> str:
        """The Markdown of a page with all relative links leading to pages of the site."""
        origin = self.origin.get(page, f"docs/{page}")
        fences: list[str] = []

        def keep(match: re.Match[str]) -> str:
            fences.append(match[0])
            return f"\0{len(fences) - 1}\0"

        def lead(match: re.Match[str]) -> str:
            target, anchor = match[1], match[2] or ""
            if re.match(r"[a-z]+:|/", target):
                return match[0]
            return (
                relpath(self.find(normpath(join(os.path.dirname(origin), target)), page), os.path.dirname(page))
                + anchor
            )

        text = LINK.sub(lead, FENCE.sub(keep, markdown))
        return re.sub(r"\0(\d+)\0", lambda match: fences[int(match[1])], text)

    def find(self, path: str, page: str) -> str:
        """The page of a file or folder of the repository; a page with its text is made if it has none."""
        if path in self.page_of:
            return self.page_of[path]
        if path in self.pages:
            return path
        if path.startswith("docs/") and path.endswith((".md", ".png", ".gif", ".html", ".svg")):
            return path.removeprefix("docs/")
        file = ROOT / path
        if file.is_dir() and (file / "__init__.py").is_file():
            return self.find(f"{path}/__init__.py", page)
        if not file.exists():
            raise ValueError(f"{page}: no file {path}")
        found = f"source/{path}.md"
        if found not in self.pages:
            self.add(found, path, _text_page(file, path))
        return found


def _text_page(file: Path, path: str) -> str:
    """A page with the text of a file, or with links to the files of a folder."""
    head = f"---\ntitle: {path}\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# `{path}`\n\n"
    if file.is_dir():
        names = sorted(entry.name for entry in file.iterdir() if entry.suffix in LANGUAGES)
        return head + "\n".join(f"- [`{name}`]({file.name}/{name})" for name in names)
    text = file.read_text(encoding="utf-8")
    if len(text) > 60_000:
        text = text[:60_000] + "\n… (the rest is in the repository)\n"
    return f"{head}```````{LANGUAGES.get(file.suffix, 'text')}\n{text}\n```````\n"


def _collect(config: MkDocsConfig, files: Files) -> Site:
    site = Site()
    for pages in (operation_pages.pages, notebook_pages.pages, command_page.pages, api_pages.pages):
        for page, origin, content in pages(ROOT):
            site.add(page, origin, content)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        site.add(OTHER_TEXT[name], name, (ROOT / name).read_text(encoding="utf-8"))
    for file in files.documentation_pages():
        site.links(file.content_string, file.src_uri)
    ready: set[str] = set()
    while todo := [page for page, text in site.pages.items() if isinstance(text, str) and page not in ready]:
        for page in todo:
            site.links(str(site.pages[page]), page)
            ready.add(page)
    return site


_site: Site


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what is generated: pages of operations, notebooks, commands and the API, source texts, web packages."""
    global _site
    _site = _collect(config, files)
    for page, content in (*_site.pages.items(), *web_packages.files(ROOT / ".cache")):
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Send the links of every page to pages of the site."""
    return _site.links(markdown, page.file.src_uri)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Give the search dialog the name that the theme leaves out, for those who hear the page."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
