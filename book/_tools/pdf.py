"""Print the built book into one file: ``python book/_tools/pdf.py _build/html _build/book.pdf``.

The pages are put one after the other, links between them become links inside the document, and a
headless Chromium prints it, with an outline and page numbers.
"""

import asyncio
import base64
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browsers
from bs4 import BeautifulSoup, Tag
from build import pages

STYLE = """
@page { size: A4; margin: 18mm 15mm 20mm; }
html, body { background: #fff; font-size: 10.5pt; }
body > section { break-before: page; }
body > section:first-of-type { break-before: auto; }
article { max-width: none !important; padding: 0 !important; }
h1, h2, h3, caption, .sl-caption { break-after: avoid; }
figure, img, svg, tr, .admonition, div.math { break-inside: avoid; }
img { max-width: 100% !important; height: auto; }
pre, pre * { white-space: pre-wrap !important; overflow-wrap: anywhere; font-size: 8pt; }
table { width: 100% !important; font-size: 8pt !important; display: table !important; }
thead { display: table-header-group !important; }
td, th { white-space: normal !important; overflow-wrap: anywhere; padding: 2px 4px !important; }
.sl-scroll, .text_html, .pst-scrollable-table-container { overflow: visible !important; }
details.hide, .sl-figure, .headerlink, .copybtn { display: none !important; }
a { text-decoration: none; }
"""
FOOT = (
    '<div style="width: 100%; font-size: 8px; text-align: center; color: #555">'
    '<span class="pageNumber"></span> of <span class="totalPages"></span></div>'
)
CHROME = ".headerlink, .toctree-wrapper, .prev-next-area, script, .copybtn"


def anchor(name: str, fragment: str = "") -> str:
    """Where a place of a page is in the one document."""
    return f"{name.replace('/', '-')}--{fragment}" if fragment else name.replace("/", "-")


def moved(html: Path, name: str, names: set[str]) -> Tag:
    """Return what a page says, with its addresses turned into those of the one document."""
    path = html / f"{name}.html"
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    article = soup.find("article")
    assert isinstance(article, Tag), f"{path} has no article"
    for one in article.select(CHROME):
        one.decompose()
    for one in article.find_all(id=True):
        one["id"] = anchor(name, one["id"])
    for one in article.find_all(src=True):
        if not urlsplit(one["src"]).scheme:
            one["src"] = (path.parent / unquote(one["src"])).resolve().as_uri()
        one.attrs.pop("loading", None)
    for one in article.find_all("a", href=True):
        one["href"] = address(path, html, names, one["href"])
    for one in article.find_all("details"):
        one["open"] = ""
    section = soup.new_tag("section", id=anchor(name))
    section.append(article)
    return section


def address(path: Path, html: Path, names: set[str], href: str) -> str:
    """Turn a link between pages into one inside the document; leave others alone."""
    url = urlsplit(href)
    if url.scheme or url.netloc:
        return href
    target = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
    name = target.relative_to(html.resolve()).with_suffix("").as_posix()
    return f"#{anchor(name, unquote(url.fragment))}" if name in names else href


def joined(html: Path, root: Path) -> str:
    """All pages in the order of the table of contents, as one document."""
    names = [page.relative_to(root).with_suffix("").as_posix() for page in pages(root)]
    first = BeautifulSoup((html / f"{names[0]}.html").read_text(encoding="utf-8"), "html.parser")
    title = first.find("h1")
    head = [f"<title>{title.get_text().rstrip('#') if title else root.name}</title>"]
    for one in first.select('head link[rel="stylesheet"], script[src*="athjax"]'):
        key = "href" if one.name == "link" else "src"
        file = (html / names[0]).parent / urlsplit(one[key]).path
        head.append(str(one).replace(one[key], file.resolve().as_uri()))
    for one in first.find_all("script", src=False):
        if "MathJax" in one.get_text():
            head.append(str(one))
    sections = "\n".join(str(moved(html, name, set(names))) for name in names)
    return (
        '<!doctype html>\n<html lang="en" data-theme="light"><head><meta charset="utf-8">\n'
        f"{''.join(head)}\n<style>{STYLE}</style></head>\n<body>{sections}</body></html>\n"
    )


async def print_to(document: Path, pdf: Path) -> None:
    """Let the browser typeset a document and print it."""
    async with browsers.running("--allow-file-access-from-files") as browser:
        tab = await browser.tab()
        await tab.visit(document.as_uri())
        await tab.evaluate("document.fonts.ready.then(() => null)")
        await tab.evaluate("window.MathJax?.startup?.promise?.then(() => null)", timeout=300)
        printed = await tab.send(
            "Page.printToPDF",
            timeout=600,
            printBackground=True,
            preferCSSPageSize=True,
            displayHeaderFooter=True,
            headerTemplate="<span></span>",
            footerTemplate=FOOT,
            generateTaggedPDF=True,
            generateDocumentOutline=True,
            transferMode="ReturnAsStream",
        )
        with pdf.open("wb") as file:
            finished = False
            while not finished:
                part = await tab.send("IO.read", handle=printed["stream"], size=1 << 20)
                file.write(base64.b64decode(part["data"]))
                finished = part["eof"]


def main(html: Path, pdf: Path) -> None:
    """Print a built book."""
    if not browsers.executable():
        sys.exit("no Chromium executable on PATH: install one, it prints the book")
    if not html.is_dir():
        sys.exit(f"{html} holds no built book; run make book")
    document = html / "print.html"
    document.write_text(joined(html, Path.cwd()), encoding="utf-8")
    try:
        asyncio.run(print_to(document.resolve(), pdf))
    finally:
        document.unlink()
    print(f"{pdf}: {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
