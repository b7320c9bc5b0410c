"""Rows carry the commit of what made them, and stored ones are in the history."""

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from sweeping import ROOT

from sparselib.sweep import history, notebook, table


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a package and a page; the library is taken to be there."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("", encoding="utf-8")
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    nbformat.write(page, tmp_path / "page.ipynb")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(history, "PACKAGE", tmp_path / "package")
    history.commit.cache_clear()
    yield tmp_path
    history.commit.cache_clear()


def test_a_clean_tree_gives_its_commit(checkout):
    assert history.commit() == git(checkout, "rev-parse", "HEAD")
    history.check_clean(checkout / "page.ipynb")


@pytest.mark.parametrize("name", ["__init__.py", "new.py"])
def test_a_changed_or_new_file_makes_it_dirty(checkout, name):
    (checkout / "package" / name).write_text("x = 1", encoding="utf-8")
    assert history.commit() == git(checkout, "rev-parse", "HEAD") + " dirty"
    with pytest.raises(ValueError, match="package differs from the last commit"):
        history.check_clean(checkout / "page.ipynb")


def test_a_page_is_dirty_if_its_code_is_not_if_its_outputs_are(checkout):
    path = checkout / "page.ipynb"
    page = nbformat.read(path, 4)
    page.cells[0].execution_count = 7
    nbformat.write(page, path)
    assert not history.differs(path)
    page.cells[0].source = "2"
    nbformat.write(page, path)
    assert history.differs(path)
    with pytest.raises(ValueError, match=r"page.ipynb differs from the last commit"):
        history.check_clean(path)


@pytest.mark.parametrize("changed", [[], ["page"], ["package"], ["package", "page"]])
def test_a_row_is_marked_once_whatever_differs(checkout, changed):
    page = checkout / "page.ipynb"
    if "page" in changed:
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("2")]), page)
    if "package" in changed:
        (checkout / "package/new.py").write_text("x = 1", encoding="utf-8")
    measured = checkout / "row.json"
    measured.write_text('{"accuracy": 0.5}', encoding="utf-8")
    run = notebook.Run("key", page, {"x": 3, "scale": "paper"}, checkout)
    head = git(checkout, "rev-parse", "HEAD")
    commit = f"{head} dirty" if changed else head
    expected = {"x": 3, "scale": "paper", "commit": commit, "accuracy": 0.5}
    assert notebook._row(run, measured) == expected


def test_without_a_history_there_is_the_version(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "PACKAGE", tmp_path)
    history.commit.cache_clear()
    assert history.commit() == f"version {history.__version__}"
    history.commit.cache_clear()


def is_shallow() -> bool:
    try:
        return git(ROOT, "rev-parse", "--is-shallow-repository") != "false"
    except (OSError, subprocess.CalledProcessError):
        return True


def unknown(commits: set[str]) -> set[str]:
    """Those that are no ancestors of what is checked out."""
    known = set(git(ROOT, "rev-list", "HEAD").splitlines())
    return commits - known


def stored() -> dict[str, set[tuple[str, str]]]:
    """Commit and checksum of the library in the rows of each table."""
    return {
        path.name: {
            (row.get("commit", ""), row["sparselib"].split()[1]) for row in table.table_rows(path)
        }
        for path in sorted(ROOT.glob("data/results/*.csv"))
    }


def contents(blobs: list[str]) -> Iterator[bytes]:
    """What the files with these hashes hold."""
    command = ["git", "-C", str(ROOT), "cat-file", "--batch"]
    asked = "".join(f"{blob}\n" for blob in blobs).encode()
    told = subprocess.run(command, input=asked, capture_output=True, check=True).stdout
    for _ in blobs:
        head, _, told = told.partition(b"\n")
        size = int(head.split()[-1])
        yield told[:size]
        told = told[size + 1 :]


def source_at(commit: str) -> str:
    """The checksum that rows made by the package of a commit carry."""
    lines = git(ROOT, "ls-tree", "-r", commit, "sparselib").splitlines()
    pairs = [line.split("\t") for line in lines]
    blobs = {Path(path): facts.split()[2] for facts, path in pairs if path.endswith(".py")}
    paths = sorted(blobs)
    digest = hashlib.sha256()
    for path, content in zip(paths, contents([blobs[path] for path in paths])):
        digest.update(path.relative_to("sparselib").as_posix().encode() + content)
    return digest.hexdigest()[:12]


@pytest.mark.skipif(is_shallow(), reason="there is no whole history here")
def test_commits_of_stored_rows_are_in_the_history():
    given = {commit for rows in stored().values() for commit, _ in rows if commit}
    assert unknown(given) == set()
    head = git(ROOT, "rev-parse", "HEAD")
    assert unknown({head, f"{head} dirty", "0" * 40}) == {f"{head} dirty", "0" * 40}


def test_every_stored_row_has_a_commit():
    assert {name for name, rows in stored().items() if not all(c for c, _ in rows)} == set()


@pytest.mark.skipif(is_shallow(), reason="there is no whole history here")
def test_the_library_of_a_stored_row_is_that_of_its_commit():
    pairs = {pair for rows in stored().values() for pair in rows if pair[0]}
    assert len(pairs) > 10
    assert {commit: source for commit, source in pairs if source_at(commit) != source} == {}
