"""Execute pages in place and normalize them: ``python book/_tools/refresh.py [page.ipynb ...]``.

This is the only way to change stored outputs, which the tests compare with what the pages print.
"""

import hashlib
import sys
from pathlib import Path

import kernels
import nbformat

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TRACES = {"execution", "papermill", "ExecuteTime", "collapsed", "scrolled", "trusted"}


def normalize(notebook: nbformat.NotebookNode) -> None:
    """Keep what the author wrote (tags, captions, alt texts); drop what a tool left behind."""
    notebook.metadata = nbformat.from_dict(
        METADATA | {k: v for k, v in notebook.metadata.items() if k == "mystnb"}
    )
    notebook.nbformat = 4
    notebook.nbformat_minor = 5
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    taken: set[str] = set()
    for position, cell in enumerate(notebook.cells):
        for key in TRACES & set(cell.metadata):
            del cell.metadata[key]
        if not cell.get("id") or cell.id in taken:
            text = f"{position}{cell.source}"
            cell.id = hashlib.sha256(text.encode()).hexdigest()[:8]
        taken.add(cell.id)


def refresh(page: Path) -> bool:
    """Execute one page in its own folder and write it back; return whether anything changed."""
    before = page.read_text(encoding="utf-8")
    notebook = nbformat.reads(before, as_version=4)
    normalize(notebook)
    kernels.run(notebook, page.parent)
    for cell in notebook.cells:
        if (
            cell.cell_type == "code"
        ):  # what was printed while it ran, such as progress, is no result
            cell.outputs = [shown for shown in cell.outputs if shown.get("name") != "stderr"]
    notebook.metadata = nbformat.from_dict(dict(notebook.metadata) | METADATA)
    after = nbformat.writes(notebook).rstrip("\n") + "\n"
    page.write_text(after, encoding="utf-8")
    return after != before


def main() -> None:
    """Refresh the pages named on the command line, or every notebook of the book."""
    named = [Path(name) for name in sys.argv[1:]]
    pages = named or sorted(Path("book").rglob("[!.]*.ipynb"))
    kernels.fork_for(len(pages))
    for page in pages:
        print(page, "changed" if refresh(page) else "as before", flush=True)


if __name__ == "__main__":
    main()
