"""Open built pages from the disk in a headless Chromium, as a reader without a network would."""

import asyncio
import os
from pathlib import Path

import browsers
import links
import pytest
import reading
from test_book import ROOT, build, make_book

TERMS = (
    "sparsity",
    "speedup",
    "magnitude",
    "compressed rows",
    "convolution",
    "pruning",
    "saliency",
    "balanced accuracy",
    "standard deviation",
    "wavelet",
)

needs_browser = pytest.mark.browser
AXE_ABSENT = "axe-core is absent: pip install axe-core-python"
needs_axe = pytest.mark.skipif(reading.axe() is None, reason=AXE_ABSENT)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built book that `BUILT_BOOK` names, or build a book of two pages."""
    if built := os.environ.get("BUILT_BOOK"):
        assert (ROOT / built / "book").is_dir(), f"{built} holds no built book; run make book"
        return ROOT / built
    root = make_book(tmp_path_factory.mktemp("browser") / "book-of-two")
    assert build(root) == 0
    return root / "_build/html"


@pytest.mark.built
@needs_browser
@pytest.mark.slow
def test_pages_read_well_from_disk(html: Path) -> None:
    """Wide and narrow, light and dark: see `reading.faults`."""
    pages = sorted((html / "book").rglob("*.html"))
    assert len(pages) >= 2
    assert asyncio.run(reading.read(pages)) == {}


@needs_axe
@needs_browser
@pytest.mark.slow
def test_axe_is_part_of_the_reading(html: Path) -> None:
    """Whoever installs the tests' dependencies has it; without it the pages are read unchecked."""
    script = reading.axe()
    assert script is not None
    assert script.stat().st_size > 100_000


@pytest.mark.built
@needs_browser
@pytest.mark.slow
def test_search_finds_standard_terms(html: Path) -> None:
    terms = TERMS if "BUILT_BOOK" in os.environ else ("page",)
    found = asyncio.run(reading.search(html, [*terms, "zyzzyva"]))
    assert [term for term in terms if not found[term]] == []
    assert found["zyzzyva"] == 0


SOUND = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width"></head>
<body><main><article><h1>A page</h1>{}</article></main></body></html>"""
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
GOOD = f"""<p>Text.</p><img src="{PIXEL}" alt="A line that rises">
<div class="math"><mjx-container>y</mjx-container></div>
<div style="overflow: auto"><table><tr><th>why</th></tr>
<tr><td data-label="why">The seeds differ.</td></tr></table></div>"""
BAD = {
    "console: Error: broken": "<script>throw new Error('broken')</script>",
    "console: no such thing": "<script>console.error('no such thing')</script>",
    "asks for http://127.0.0.1:9/a.js": "<script async src='http://127.0.0.1:9/a.js'></script>",
    "asks for http://127.0.0.1:9/a.css": "<link rel=stylesheet href='http://127.0.0.1:9/a.css'>",
    "at 390: the page is 700 wide": "<div style='width: 692px; height: 1px'></div>",
    "at 1400: a table is 1600 wide": "<div style='overflow: auto; width: 900px'>"
    "<table style='width: 1600px'><tr><td>1</td></tr></table></div>",
    "cut off: <td": "<table><tr><td>The paper nam...</td></tr></table>",
    "without a reason": "<table><tr><td>5</td><td data-label='why'> </td></tr></table>",
    "at 390: stretched to 40 x 80": f"<img src='{PIXEL}' alt='A line that rises' "
    "style='width: 40px; height: 80px'>",
    "does not load: gone.png": "<img src='gone.png' alt='A line that rises'>",
    "no telling alt text": f"<img src='{PIXEL}' alt='figure.png'>",
    "at 1400: headings of level 3": "<h2>A part</h2><h3 style='font-size: 3em'>Of it</h3>",
    "not typeset": "<span class='math'>\\(y\\)</span>",
}
INACCESSIBLE = {
    "light: color-contrast": "<p style='color: #aaa; background: #fff'>pale</p>",
    "dark: color-contrast": "<style>[data-theme=dark] p {color: #777; background: #666}"
    "</style><p>pale in the dark</p>",
    "at 390: button-name": "<button></button>",
}


@pytest.fixture(scope="module")
def read_of_bad_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Read one good page and one bad page for each guard."""
    folder = tmp_path_factory.mktemp("bad")
    bodies = [GOOD, *BAD.values(), *INACCESSIBLE.values()]
    for place, body in enumerate(bodies):
        (folder / f"{place}.html").write_text(SOUND.format(body), encoding="utf-8")
    return asyncio.run(reading.read(sorted(folder.glob("*.html"))))


@needs_browser
@pytest.mark.slow
def test_a_good_page_has_no_faults(read_of_bad_pages: dict[str, list[str]]) -> None:
    assert not any(name.endswith("/0.html") for name in read_of_bad_pages)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("expected", [*BAD, *INACCESSIBLE])
def test_faults_of_pages_are_seen(expected: str, read_of_bad_pages: dict[str, list[str]]) -> None:
    """Each guard is broken on purpose."""
    if expected in INACCESSIBLE and not reading.axe():
        pytest.skip(AXE_ABSENT)
    place = [*BAD, *INACCESSIBLE].index(expected) + 1
    (found,) = (read_of_bad_pages[n] for n in read_of_bad_pages if n.endswith(f"/{place}.html"))
    assert any(expected in fault for fault in found), found


@needs_browser
def test_a_browser_that_dies_is_told() -> None:
    async def kill() -> None:
        async with browsers.running() as browser:
            tab = await browser.tab()
            browser.process.kill()
            await tab.evaluate("new Promise(() => {})")

    with pytest.raises(RuntimeError, match="the browser has closed"):
        asyncio.run(kill())


@pytest.mark.built
@pytest.mark.slow
def test_links_and_search_work_from_disk(html: Path) -> None:
    assert links.broken(html) == []
    assert (html / "searchindex.js").stat().st_size > 100


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">b</a><a href="#top">top</a>', encoding="utf-8"
    )
    (tmp_path / "b.html").write_text('<a href="c.html">c</a><p id="here">', encoding="utf-8")
    assert links.broken(tmp_path) == ["a.html: #top", "b.html: c.html"]


PRESS = """(async () => {
  const figure = document.querySelector(".sl-figure");
  for (let wait = 0; wait < 100 && !figure.querySelector("input"); wait++) {
    await new Promise((awake) => setTimeout(awake, 50));
  }
  const told = () => figure.querySelector(".sl-told").textContent;
  figure.querySelector("input").focus();
  return told();
})()"""


@pytest.mark.built
@needs_browser
@pytest.mark.slow
@pytest.mark.skipif("BUILT_BOOK" not in os.environ, reason="the two pages are of the whole book")
@pytest.mark.parametrize(
    ("page", "key", "before", "after"),
    [
        ("csr/speed.html", "Home", "Speedup 14.0×.", "50 % sparsity"),
        ("csr/evolution.html", "End", "0 of 2,258 connections", "; 512 start at pixels"),
    ],
)
def test_interactive_figures_follow_the_keyboard_and_are_static_without_scripts(
    html: Path, page: str, key: str, before: str, after: str
) -> None:
    async def press() -> tuple[str, str, str]:
        async with browsers.running("--allow-file-access-from-files") as browser:
            tab = await browser.tab()
            await tab.visit((html / "book" / page).as_uri())
            first = await tab.evaluate(PRESS)
            code = {"Home": 36, "End": 35}[key]
            for kind in ("keyDown", "keyUp"):
                await tab.send(
                    "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code
                )
            second = await tab.evaluate("document.querySelector('.sl-told').textContent")
            await tab.send("Emulation.setScriptExecutionDisabled", value=True)
            await tab.visit((html / "book" / page).as_uri())
            await tab.send("Emulation.setScriptExecutionDisabled", value=False)
            return (
                first,
                second,
                await tab.evaluate("document.querySelector('.sl-figure').textContent"),
            )

    first, second, without = asyncio.run(press())
    assert before in first
    assert after in second
    assert "In the built book this is a figure" in without
