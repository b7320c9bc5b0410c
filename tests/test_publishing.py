"""What the book tells search engines and previews, and what one setting turns on."""

import re
from pathlib import Path

import publishing
import pytest
from test_book import build, make_book, write_page

REPOSITORY = "https://github.com/someone/sparse"
FIGURE = """import matplotlib_inline.backend_inline as inline
from matplotlib import pyplot as plt
inline.set_matplotlib_formats("retina")
figure = plt.figure(figsize=(4, 2), dpi=100)
plt.plot([1, 2])
plt.show()"""


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build a book twice: as it is, and with the address of a repository."""
    found = {}
    for name in ("", REPOSITORY):
        root = make_book(tmp_path_factory.mktemp("published") / "book-of-two")
        write_page(root / "book/page.ipynb", FIGURE, "print(1)")
        config = root / "_config.yml"
        text = config.read_text(encoding="utf-8")
        assert 'repository: ""' in text
        config.write_text(text.replace('repository: ""', f"repository: {name!r}"), encoding="utf-8")
        assert build(root) == 0
        found[name] = root / "_build/html"
    return found


def read(html: Path, name: str = "book/page.html") -> str:
    return (html / name).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.xdist_group("published")
def test_without_a_repository_the_book_names_no_address(books: dict[str, Path]) -> None:
    page = read(books[""])
    assert re.findall(r"github\.com|colab\.|mybinder|og:url|og:image|unpkg|thebe", page) == []
    assert '<meta property="og:title" content="A page' in page
    assert not (books[""] / "sitemap.xml").exists()
    assert "- [A page – with φ](book/page.html)" in read(books[""], "llms.txt")


@pytest.mark.slow
@pytest.mark.xdist_group("published")
def test_one_setting_turns_on_all_that_needs_an_address(books: dict[str, Path]) -> None:
    page = read(books[REPOSITORY])
    for address in (
        "https://colab.research.google.com/github/someone/sparse/blob/main/book/page.ipynb",
        "https://mybinder.org/v2/gh/someone/sparse/main?urlpath=lab/tree/book/page.ipynb",
        f"{REPOSITORY}/edit/main/book/page.ipynb",
        f"{REPOSITORY}/issues/new",
        '<meta property="og:url" content="https://someone.github.io/sparse/book/page.html"',
        "https://someone.github.io/sparse/_static/evolution.png",
    ):
        assert address in page, address
    listed = re.findall(r"<loc>(.*?)</loc>", read(books[REPOSITORY], "sitemap.xml"))
    assert listed == [f"https://someone.github.io/sparse/book/{n}.html" for n in ("intro", "page")]
    assert "(https://someone.github.io/sparse/book/page.html)" in read(
        books[REPOSITORY], "llms.txt"
    )


@pytest.mark.slow
@pytest.mark.xdist_group("published")
def test_a_figure_of_many_pixels_keeps_its_size(books: dict[str, Path]) -> None:
    (width,) = re.findall(r"<img[^>]*width: (\d+)px", read(books[""]))
    assert 350 <= int(width) <= 400


def test_descriptions_are_whole_sentences() -> None:
    text = "Short. " + "Long words " * 30
    assert publishing.shortened(text) == "Short."
    assert publishing.shortened("a  b\nc") == "a b c"
    assert publishing.shortened("word " * 60).endswith("word ...")
    assert len(publishing.shortened("word " * 60)) <= publishing.LONGEST + 4
    assert publishing.meta("name", "description", 'a "b" <c>') == (
        '<meta name="description" content="a &quot;b&quot; &lt;c&gt;" />\n'
    )


def test_addresses_of_published_pages() -> None:
    assert publishing.pages_address(REPOSITORY) == "https://someone.github.io/sparse/"
    assert publishing.pages_address("https://gitlab.com/a/b") == "https://a.gitlab.io/b/"
    assert publishing.pages_address("") == ""


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.xdist_group("published")
def test_the_book_is_printed_with_an_outline(
    books: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pdf

    html = books[""]
    monkeypatch.chdir(html.parent.parent)
    document = pdf.joined(html, Path.cwd())
    assert 'href="#book-page"' in document
    assert re.findall(r'href="[^"#]*page\.html', document) == []
    assert re.findall(r'src="(?!file:|data:|https:)[^"]', document) == []
    pdf.main(html, tmp_path / "book.pdf")
    printed = (tmp_path / "book.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert b"/Outlines" in printed
    assert len(re.findall(rb"/Type /Page\b", printed)) >= 2
    assert not (html / "print.html").exists()


@pytest.mark.browser
def test_a_book_that_is_not_built_is_not_printed(tmp_path: Path) -> None:
    import pdf

    with pytest.raises(SystemExit, match="holds no built book; run make book"):
        pdf.main(tmp_path / "gone", tmp_path / "book.pdf")
