"""KaTeX, and the worker that makes the search work without a server: fetched from npm once, then kept in ``.cache``.

The site loads nothing from elsewhere: a reader without a network sees the same pages.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

# name, version, SHA-256 of the package, what of it is used: file in the package → file of the site
PACKAGES = (
    (
        "katex",
        "0.19.1",
        "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd",
        {
            "package/dist/katex.min.js": "assets/katex/katex.min.js",
            "package/dist/katex.min.css": "assets/katex/katex.min.css",
            "package/dist/contrib/auto-render.min.js": "assets/katex/auto-render.min.js",
            "package/dist/fonts/*.woff2": "assets/katex/fonts/",
        },
    ),
    (
        "iframe-worker",
        "1.0.4",
        "e8c5d12d87829c503afba01d67772ea9f4aba5b7ae57a0c98e1917711030efbb",
        {"package/shim/index.js": "assets/iframe-worker-shim.js"},
    ),
)


def files(cache: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of the packages that the site needs, with its place on the site."""
    for name, version, sha256, wanted in PACKAGES:
        with tarfile.open(fileobj=io.BytesIO(_fetch(name, version, sha256, cache))) as archive:
            for member in archive.getmembers():
                for pattern, place in wanted.items():
                    if Path(member.name).match(pattern):
                        content = archive.extractfile(member)
                        assert content is not None
                        yield place + (Path(member.name).name if place.endswith("/") else ""), content.read()


def _fetch(name: str, version: str, sha256: str, cache: Path) -> bytes:
    """The package as npm gives it. ValueError if it is not the one that is pinned."""
    path = cache / f"{name}-{version}.tgz"
    if not path.exists():
        cache.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # a file of this name is whole
            subprocess.run(
                ["npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", folder],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            os.replace(Path(folder, path.name), path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path}: expected SHA-256 {sha256}, got {hashlib.sha256(content).hexdigest()}")
    return content
