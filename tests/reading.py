"""Read built pages as people do: wide and narrow, light and dark, with axe-core."""

import asyncio
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import browsers

SCRIPT = Path(__file__).with_name("reader.js")
WIDTHS = (1400, 390)
THEMES = ("light", "dark")


def axe() -> Path | None:
    """The script of axe-core, if its package is installed."""
    found = importlib.util.find_spec("axe_core_python")
    return Path(found.origin).with_name("axe.min.js") if found and found.origin else None


async def faults(tab: browsers.Tab, address: str) -> list[str]:
    """Open a page and list what a reader would find wrong with it."""
    await tab.resize(WIDTHS[0])
    await tab.visit(address)
    await prepare(tab)
    found = await ask(tab, "complete()")
    found += await ask(tab, "tables()")
    for width in WIDTHS:
        await tab.resize(width)
        checks = ["overflow", "headings", "stretched", "small", *(["violations"] if axe() else [])]
        for check in checks:
            found += [f"at {width}: {one}" for one in await ask(tab, f"{check}()")]
    await tab.resize(WIDTHS[0])  # on a phone labels stand in pseudo-elements, which axe passes over
    for theme in THEMES if axe() else ():
        await ask(tab, f"theme('{theme}')")
        found += [f"{theme}: {one}" for one in await ask(tab, "pale()")]
    found += [f"asks for {url}" for url in tab.requested if is_external(url)]
    return found + [f"console: {text}" for text in tab.complaints]


async def ask(tab: browsers.Tab, call: str) -> Any:
    """Call the reader, in the open page, which holds what it promises: the browser does not."""
    return await tab.evaluate(f"globalThis.asked = reader.{call}")


async def prepare(tab: browsers.Tab) -> None:
    """Load our script and axe-core into an open page."""
    scripts = [SCRIPT, *filter(None, [axe()])]
    text = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    await tab.evaluate(text.replace("const reader", "globalThis.reader") + "\nnull")


def is_external(url: str) -> bool:
    """Whether a request leaves this machine."""
    return not url.startswith(("file:", "data:", "blob:", "about:"))


async def read(pages: Sequence[Path], at_once: int = 4) -> dict[str, list[str]]:
    """Read pages in one browser, several at once; return the faults of those that have some."""
    found: dict[str, list[str]] = {}
    left = list(pages)

    async def reads(browser: browsers.Browser) -> None:
        tab = await browser.tab()
        while left:
            page = left.pop()
            if seen := await faults(tab, page.as_uri()):
                found["/".join(page.parts[-2:])] = seen

    async with browsers.running("--allow-file-access-from-files") as browser:
        await asyncio.gather(*(reads(browser) for _ in range(at_once)))
    return found


async def search(html: Path, terms: Sequence[str]) -> dict[str, int]:
    """Ask the book's own search for each term; return how many pages it offers."""
    async with browsers.running("--allow-file-access-from-files") as browser:
        tab = await browser.tab()
        found = {}
        for term in terms:
            await tab.visit(f"{(html / 'search.html').as_uri()}?q={quote(term)}")
            await prepare(tab)
            found[term] = await ask(tab, "offered()")
    return found
