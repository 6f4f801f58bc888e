"""The documentation as a site: it is built without a warning, and asks no other server for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs the extra docs")
pytest.importorskip("mkdocstrings", reason="the site needs the extra docs")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # Not with `--quiet`, which hides warnings from `--strict` too.
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


class Loaded(HTMLParser):
    """What a page loads by itself, and the links that a reader may follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        name = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}.get(tag)
        self.resources += [value for key, value in attributes if key == name and value]


def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}
    assert not list(site.rglob("*.py"))


def test_pages_ask_no_other_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        resources = Loaded(page.read_text()).resources
        assert resources
        for resource in resources:
            assert not re.match(r"(https?:)?//", resource), f"{page.name} loads {resource}"
            if page.name != "404.html":
                assert (page.parent / resource).resolve().exists(), f"{page.name} loads {resource}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", sheet.read_text())


def test_docstrings_are_in_the_reference(site: Path) -> None:
    """With their sections as tables, and examples as code."""
    text = (site / "reference.html").read_text()
    assert 'id="fxhash.transform"' in text
    assert "Shrink a model to a fraction of its trainable parameters" in text
    assert "&gt;&gt;&gt;" in text
    assert "<blockquote>" not in text
