"""Break the wide diagrams for narrow screens, like text: ``python book/_tools/diagrams.py``.

A piece of a diagram is set above the next; a sentence that runs through both is set below them.
The style sheet shows the result, such as `network-csr-narrow.svg`, on a phone.
"""

import re
from pathlib import Path
from typing import NamedTuple

STATIC = Path(__file__).resolve().parents[1] / "_static"
SENTENCE = 17
GAP = 12


class Cut(NamedTuple):
    """Where a diagram breaks: pieces as (left, top, width, height), and a sentence in lines."""

    pieces: tuple[tuple[int, int, int, int], ...]
    sentence: tuple[str, ...] = ()


CUTS = {
    "csr": Cut(((50, 10, 380, 370), (480, 10, 340, 370))),
    "liset": Cut(((60, 10, 420, 335), (500, 70, 280, 220))),
    "dsn": Cut(
        ((10, 5, 420, 350), (422, 100, 360, 255)),
        ("1-tap convolution to 47 signals,", "three times more"),
    ),
    "pruning": Cut(((10, 10, 420, 365), (418, 0, 380, 350))),
    "san": Cut(
        ((5, 15, 478, 290), (478, 40, 317, 265)),
        (
            "The same kernels encode and decode.",
            "What is stored: where, how strongly,",
            "and the kernels.",
        ),
    ),
}


def narrow(svg: str, cut: Cut) -> str:
    """Return a diagram with its pieces one above the other.

    Raises
    ------
    ValueError
        If the diagram does not hold the sentence.
    """
    head, body = re.split(r"(?<=fill=\"#fff\"/>)\n", svg, maxsplit=1)
    body = body.rsplit("</svg>", 1)[0]
    about = "".join(re.findall(r"<title>.*?</title>\n<desc>.*?</desc>\n", head, re.S))
    marker = "".join(re.findall(r"<defs>(.*?)</defs>", svg, re.S))
    body = re.sub(r"<defs>.*?</defs>\n?", "", body, flags=re.S)
    if cut.sentence:
        text = rf"<text[^>]*>{re.escape(' '.join(cut.sentence))}</text>\n"
        body, found = re.subn(text, "", body)
        if found != 1:
            raise ValueError(f"the diagram has no text {' '.join(cut.sentence)!r}")
    width = max(piece[2] for piece in cut.pieces)
    lines = []
    below = GAP
    for left, top, wide, high in cut.pieces:
        place = f'x="{(width - wide) // 2}" y="{below}" width="{wide}" height="{high}"'
        box = f'viewBox="{left} {top} {wide} {high}"'
        lines.append(f'<svg {place} {box}><use href="#all"/></svg>')
        below += high + GAP
    for line in cut.sentence:
        below += SENTENCE + 5
        lines.append(
            f'<text x="{width // 2}" y="{below - GAP}" text-anchor="middle" fill="#222222">'
            f"{line}</text>"
        )
    size = f'viewBox="0 0 {width} {below}" width="{width}" height="{below}"'
    opened = re.sub(r'viewBox="[^"]*" width="\d+" height="\d+"', size, svg.split(">", 1)[0])
    drawn = "\n".join(lines)
    return (
        f'{opened}>\n{about}<defs>{marker}<g id="all">\n{body.strip()}\n</g></defs>\n'
        f'<rect width="{width}" height="{below}" rx="8" fill="#fff"/>\n{drawn}\n</svg>\n'
    )


def smallest_text(svg: str, screen: float) -> float:
    """Return the size of the smallest text in pixels, if the diagram is as wide as the screen."""
    width = float(re.findall(r'viewBox="0 0 (\d+)', svg)[0])
    return min(map(float, re.findall(r'font-size="([\d.]+)"', svg))) * screen / width


def main() -> None:
    """Write the narrow ones beside the wide ones."""
    for name, cut in CUTS.items():
        svg = (STATIC / f"network-{name}.svg").read_text(encoding="utf-8")
        (STATIC / f"network-{name}-narrow.svg").write_text(narrow(svg, cut), encoding="utf-8")


if __name__ == "__main__":
    main()
