"""The built site: no warning, no link or anchor that leads nowhere, nothing from elsewhere, titles and texts for all.

The site is built once. The checks read the HTML as a browser does, and take no part in building it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.site


class Html(HTMLParser):
    """What the checks need of one HTML file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []  # where a reader may go
        self.loaded: list[str] = []  # what the browser fetches by itself
        self.without_alt: list[str] = []
        self.headings: list[str] = []
        self.title, self.language = "", ""
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {str(found[key]) for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag in ("img", "script", "iframe", "source") and found.get("src"):
            self.loaded.append(str(found["src"]))
        if tag == "link" and found.get("rel") in ("stylesheet", "preconnect", "icon", "preload"):
            self.loaded.append(str(found["href"]))
        if tag == "img" and len(str(found.get("alt") or "")) < 8:
            self.without_alt.append(str(found.get("src"))[:60])
        if tag == "iframe" and not found.get("title"):
            self.without_alt.append(str(found.get("src")))
        if tag in ("h1", "h2", "h3"):
            self.headings.append(tag)
        if tag == "html":
            self.language = str(found.get("lang") or "")
        self._in_title = tag == "title"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    if shutil.which("npm") is None and not list(ROOT.glob(".cache/katex-*.tgz")):
        pytest.skip("npm is missing, which fetches KaTeX")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def pages(folder) -> dict[Path, Html]:
    return {path: Html(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}


def broken(folder: Path, pages: dict[Path, Html]) -> list[str]:
    """Every link of the site to a file or an anchor that is not there."""
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links start at the root of the server
            continue
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file():
                found.append(f"{path.relative_to(folder)}: {link}")
            elif anchor and target in pages and anchor not in pages[target].ids:
                found.append(f"{path.relative_to(folder)}: {link}, no such anchor")
    return found


def test_every_link_and_anchor_leads_somewhere(folder, pages):
    assert not broken(folder.resolve(), {path.resolve(): page for path, page in pages.items()})


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="here">a</h1>')
    path = tmp_path / "b.html"
    page = Html('<a href="a.html#here">1</a><a href="a.html#there">2</a><a href="c.html">3</a><img src="d.png">')
    known = {tmp_path / "a.html": Html((tmp_path / "a.html").read_text()), path: page}
    assert broken(tmp_path, known) == ["b.html: a.html#there, no such anchor", "b.html: c.html", "b.html: d.png"]


def test_nothing_is_loaded_from_elsewhere(pages):
    far = {url for page in pages.values() for url in page.loaded if urlsplit(url).netloc}
    assert not far


def test_every_page_has_a_title_of_its_own_and_one_heading(folder, pages):
    titles: dict[str, Path] = {}
    for path, page in pages.items():
        assert page.language == "en", path
        if path.name == "404.html" or (folder / "assets") in path.parents:
            continue
        assert page.headings.count("h1") == 1, path
        assert page.title not in titles, f"{path}, {titles.get(page.title)}"
        titles[page.title] = path


def test_every_picture_says_what_it_shows(pages):
    missing = {f"{path.name}: {source}" for path, page in pages.items() for source in page.without_alt}
    assert not missing


def test_formulas_and_notebooks_are_there(folder):
    halting = (folder / "operations/halting.html").read_text(encoding="utf-8")
    assert halting.count('class="arithmatex"') > 5
    for word in ("halt_tokens_forward", "closed_form_gradient", "op-halt_tokens-beta10"):
        assert word in halting
    names = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names <= {path.stem for path in (folder / "learn").glob("*.html")}


def test_every_operation_has_its_formulas():
    from refvt.ops import FAMILIES

    assert {path.stem for path in (ROOT / "docs/hooks/formulas").glob("*.md")} == set(FAMILIES)
