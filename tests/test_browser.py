"""Open built pages from the disk in a headless Chromium, as a reader without a network would."""

import os
import re
import subprocess
from pathlib import Path

import browsers
import links
import pytest
from test_book import ROOT, build, make_book

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=8000",
    "--window-size=1280,900",
]
LOADED = r"<(?:script|img|iframe)\b[^>]*\ssrc=[\"'](https?:[^\"']+)"
STYLED = r"<link\b[^>]*\shref=[\"'](https?:[^\"']+)"


def chromium(page: Path, profile: Path, *flags: str) -> str:
    """Run the browser on a file and return what it wrote to its standard output."""
    command = [
        str(browsers.executable()),
        *FLAGS,
        f"--user-data-dir={profile}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def faults_of_page(source: str, shown: str) -> list[str]:
    """What is wrong with a page, given its file and the document that the browser made of it."""
    found = [f"loads {url}" for url in re.findall(LOADED, shown) + re.findall(STYLED, shown)]
    for image in re.findall(r"<img\b[^>]*>", shown):
        alt = re.search(r"\balt=\"([^\"]*)\"", image)
        if not alt or not alt[1].strip() or alt[1].endswith(".png"):
            found.append(f"no telling alt text: {image[:120]}")
    if 'class="math' in source and "<mjx-container" not in shown:
        found.append("the mathematics is not typeset")
    return found


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built book that `BUILT_BOOK` names, or build a book of two pages."""
    if built := os.environ.get("BUILT_BOOK"):
        assert (ROOT / built / "book").is_dir(), f"{built} holds no built book; run make book"
        return ROOT / built
    root = make_book(tmp_path_factory.mktemp("browser") / "book-of-two")
    assert build(root) == 0
    return root / "_build/html"


@pytest.mark.browser
@pytest.mark.slow
def test_pages_read_well_from_disk(html: Path, tmp_path: Path) -> None:
    found = []
    for page in sorted((html / "book").rglob("*.html")):
        shown = chromium(page, tmp_path / "profile", "--dump-dom")
        assert "</html>" in shown
        found += [
            f"{page.name}: {fault}"
            for fault in faults_of_page(page.read_text(encoding="utf-8"), shown)
        ]
    assert found == []


@pytest.mark.browser
@pytest.mark.slow
def test_first_page_can_be_pictured(html: Path, tmp_path: Path) -> None:
    picture = tmp_path / "intro.png"
    chromium(html / "book/intro.html", tmp_path / "profile", f"--screenshot={picture}")
    assert picture.stat().st_size > 10_000


def test_faults_of_pages_are_seen() -> None:
    math = '<div class="math notranslate">'
    assert faults_of_page(math, math) == ["the mathematics is not typeset"]
    assert faults_of_page(math, math + "<mjx-container>") == []
    assert len(faults_of_page("", '<img src="a.png" alt="a.png"><img alt=""><img src="b">')) == 3
    assert len(faults_of_page("", '<script async src="https://x.y/z.js"></script>')) == 1
    assert len(faults_of_page("", '<link rel="stylesheet" href="https://x.y/z.css">')) == 1


def test_links_and_search_work_from_disk(html: Path) -> None:
    assert links.broken(html) == []
    assert (html / "searchindex.js").stat().st_size > 100


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">b</a><a href="#top">top</a>', encoding="utf-8"
    )
    (tmp_path / "b.html").write_text('<a href="c.html">c</a><p id="here">', encoding="utf-8")
    assert links.broken(tmp_path) == ["a.html: #top", "b.html: c.html"]
