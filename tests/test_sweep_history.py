"""Rows carry the commit of what made them, and stored ones are in the history."""

import subprocess
from pathlib import Path

import nbformat
import pytest
from sweeping import ROOT

from sparselib.sweep import history, table


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


@pytest.mark.skipif(is_shallow(), reason="there is no whole history here")
def test_commits_of_stored_rows_are_in_the_history():
    tables = [table.table_rows(Path(path)) for path in ROOT.glob("data/results/*.csv")]
    assert unknown({row["commit"] for rows in tables for row in rows if row.get("commit")}) == set()
    head = git(ROOT, "rev-parse", "HEAD")
    assert unknown({head, f"{head} dirty", "0" * 40}) == {f"{head} dirty", "0" * 40}
