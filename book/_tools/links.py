"""Check links and anchors inside built pages: ``python book/_tools/links.py _build/html``."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors that one page offers, and the addresses that it names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.addresses: list[str] = []
        self.feed(path.read_text(errors="replace", encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect ``id``, ``name``, ``href`` and ``src``."""
        for key, value in attrs:
            if value and (key == "id" or (tag == "a" and key == "name")):
                self.anchors.add(value)
            elif value and key in ("href", "src"):
                self.addresses.append(value)


def broken(html: Path) -> list[str]:
    """List ``page: address`` for each internal link whose file or anchor is missing."""
    files = [p for p in sorted(html.rglob("*.html")) if "_static" not in p.parts]
    pages = {path.resolve(): Page(path) for path in files}
    faults = []
    for path, page in pages.items():
        for address in page.addresses:
            url = urlsplit(address)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor = unquote(url.fragment)
            missing = anchor and target in pages and anchor not in pages[target].anchors
            if not target.exists() or missing:
                faults.append(f"{path.relative_to(html.resolve())}: {address}")
    return faults


if __name__ == "__main__":
    faults = broken(Path(sys.argv[1]))
    print("\n".join(faults) or "every internal link and anchor leads somewhere")
    sys.exit(bool(faults))
