"""The guards of the book: what its pages, its tables of contents and its strict build must hold."""

import base64
import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from sparselib.comparison import Difference, paired_difference
from sparselib.sweep import grid
from sparselib.sweep.parameters import declared

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
TOOLS = BOOK / "_tools"
NOTEBOOKS = sorted(BOOK.rglob("[!.]*.ipynb"))
SOURCES = [*NOTEBOOKS, *sorted(BOOK.rglob("*.md"))]
METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|root|work|tmp|Users|mnt|opt|usr|var|data)/\w|[A-Z]:\\\\"
)


def machine_traces(text: str) -> list[str]:
    """Absolute paths, and the name of this machine."""
    host = socket.gethostname()
    named = [host] if len(host) > 5 and host != "localhost" and host in text else []
    return named + MACHINE.findall(text)


def printed(cell: dict) -> str:
    """Everything that a cell shows as text."""
    outputs = cell.get("outputs", [])
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in outputs)


def faults_of_declarations(source: str) -> list[str]:
    """What is wrong with the parameters cell, which holds declarations and nothing else."""
    try:
        declared(source)
    except ValueError as error:
        return [str(error)]
    return []


def faults_of_cell(cell: dict, position: int) -> list[str]:
    """What is wrong with the code cell that ran as number `position`."""
    found = []
    lines = cell.source.splitlines()
    if cell.execution_count != position:
        found.append(f"execution_count is {cell.execution_count}, not {position}")
    if any(output.output_type == "error" for output in cell.outputs):
        found.append("holds an error output")
    tags = cell.metadata.get("tags", [])
    limit = 31 if {"hide-input", "parameters"} & set(tags) else 25
    if len(lines) > limit:
        found.append(f"{len(lines)} lines of code: does that belong in sparselib?")
    if "parameters" in tags:
        found += faults_of_declarations(cell.source)
    if re.search(r"^\s*class\s|\.backward\(|optimizer\.step\(", cell.source, re.M):
        found.append("a class or a training loop on a page")
    if any("image/png" in output.get("data", {}) for output in cell.outputs):
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if len(alt) < 20 or alt.endswith(".png"):
            found.append(f"a figure without a telling alt text ({alt!r})")
    return [f"code cell {position}: {fault}" for fault in found]


def faults(notebook: nbformat.NotebookNode, name: str = "page") -> list[str]:
    """List what is wrong with a page, one sentence a fault."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = [f for n, cell in enumerate(code, 1) for f in faults_of_cell(cell, n)]
    tags = [tag for cell in code for tag in cell.metadata.get("tags", [])]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("kernelspec is not python3")
    if "injected-parameters" in tags:
        found.append("is an output of papermill, not a page")
    allowed = (1,) if name == "training" else (0, 1)
    if tags.count("parameters") not in allowed:
        found.append(f"{tags.count('parameters')} cells are tagged parameters")
    if not code or not re.search(r"\d", printed(code[-1])):
        found.append("its last code cell prints no number for the tests to hold")
    if "$" in notebook.cells[0].source.partition("\n")[0]:
        found.append("mathematics in its title, which every page shows in its contents")
    text = "\n".join(cell.source + printed(cell) for cell in notebook.cells)
    found += [f"names this machine: {trace}" for trace in machine_traces(text)]
    return found


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda p: str(p.relative_to(BOOK)))
def test_page_is_sound(page: Path) -> None:
    assert faults(nbformat.read(page, as_version=4), page.stem) == []
    assert page.stat().st_size < 2_000_000


@pytest.mark.parametrize("page", SOURCES, ids=lambda p: str(p.relative_to(BOOK)))
def test_page_names_no_machine(page: Path) -> None:
    if page.suffix == ".md":
        assert machine_traces(page.read_text(encoding="utf-8")) == []


def sound_page() -> nbformat.NotebookNode:
    """Make a small page with nothing wrong in it."""
    alt = {"mystnb": {"image": {"alt": "A line that rises from left to right."}}}
    figure = new_output("display_data", {"image/png": "", "text/plain": "<Figure>"})
    number = new_output("stream", name="stdout", text="density = 0.25\n")
    cells = [
        new_markdown_cell("# A page"),
        new_code_cell("n: int = 4", execution_count=1, metadata={"tags": ["parameters"]}),
        new_code_cell("plt.show()", execution_count=2, metadata=alt, outputs=[figure]),
        new_code_cell("print('density = 0.25')", execution_count=3, outputs=[number]),
    ]
    return new_notebook(cells=cells, metadata=copy.deepcopy(METADATA))


def strip(page: nbformat.NotebookNode) -> None:
    for cell in page.cells[1:]:
        cell.execution_count, cell.outputs = None, []


def raise_error(page: nbformat.NotebookNode) -> None:
    page.cells[1].outputs = [new_output("error", ename="E", evalue="", traceback=[])]


BREAKAGES = {
    "execution_count is None": strip,
    "execution_count is 7": lambda page: page.cells[1].update(execution_count=7),
    "error output": raise_error,
    "26 lines": lambda page: page.cells[3].update(source="x = 1\n" * 26),
    "32 lines": lambda page: page.cells[1].update(source="x = 1\n" * 32),
    "declares 'n' twice": lambda page: page.cells[1].update(source="n: int = 4\nn: int = 5"),
    "training loop": lambda page: page.cells[1].update(source="loss.backward()"),
    "a class": lambda page: page.cells[1].update(source="class Net: ..."),
    "alt text ('')": lambda page: page.cells[2].metadata.clear(),
    "x.png": lambda page: page.cells[2].metadata.mystnb.image.update(alt="a" * 20 + "x.png"),
    "kernelspec": lambda page: page.metadata.kernelspec.update(name="env7"),
    "papermill": lambda page: page.cells[3].metadata.update(tags=["injected-parameters"]),
    "2 cells": lambda page: page.cells[3].metadata.update(tags=["parameters"]),
    "no number": lambda page: page.cells[3].outputs[0].update(text="done\n"),
    "in its title": lambda page: page.cells[0].update(source="# The $\\varphi$ metric\n\nText."),
    "names this machine": lambda page: page.cells[0].update(source="see /home/ada/x"),
}


@pytest.mark.parametrize("page", SOURCES, ids=lambda p: str(p.relative_to(BOOK)))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for file, test in re.findall(r"(tests/\w+\.py)::(\w+)", page.read_text(encoding="utf-8")):
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), (
            f"{file} has no {test}"
        )


@pytest.mark.parametrize("expected", BREAKAGES)
def test_guards_see_what_they_guard(expected: str) -> None:
    page = sound_page()
    assert faults(page) == []
    BREAKAGES[expected](page)
    assert any(expected in fault for fault in faults(page))


def title(page: Path) -> str:
    """First heading of a page."""
    return (
        prose(page).lstrip().partition("\n")[0]
        if page.suffix == ".ipynb"
        else (page.read_text(encoding="utf-8").lstrip().partition("\n")[0])
    )


def test_titles_are_unique() -> None:
    """Search and "next" show titles alone, so none may need the chapter beside it."""
    titles = [title(page) for page in SOURCES]
    assert all(re.match(r"# \S", one) for one in titles), titles
    assert sorted(titles) == sorted(set(titles))
    assert [one for one in titles if re.search(r"Chapter \d", one)] == []


FIRST_PAGES = sorted(BOOK.glob("*/paper.ipynb"))
PLAIN_PAGES = [*FIRST_PAGES, *sorted(BOOK.glob("*/results.ipynb")), BOOK / "intro.ipynb"]


def prose(page: Path) -> str:
    """The Markdown of a page, without what stands in code."""
    cells = nbformat.read(page, as_version=4).cells
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.sub(r"```.*?```", "", text, flags=re.S)


def slugs(page: Path) -> set[str]:
    """Anchors of the headings of a page, as the book and web views of repositories form them."""
    text = prose(page) if page.suffix == ".ipynb" else page.read_text(encoding="utf-8")
    heads = re.findall(r"^#+ +(.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def dead_links(text: str, folder: Path) -> list[str]:
    """Relative links of Markdown that lead to no file, or to no heading of it."""
    dead = []
    for address in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if re.match(r"[a-z]+:|#", address):
            continue
        name, _, anchor = address.partition("#")
        target = folder / name
        if not target.is_file() or (anchor and anchor not in slugs(target)):
            dead.append(address)
    return dead


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda p: str(p.relative_to(BOOK)))
def test_relative_links_of_notebooks_lead_somewhere(page: Path) -> None:
    assert dead_links(prose(page), page.parent) == []


def test_dead_links_are_seen() -> None:
    text = "[a](gone.ipynb) [b](intro.ipynb) [c](intro.ipynb#nowhere) [d](https://x.y) `[e](z)`"
    assert dead_links(text, BOOK) == ["gone.ipynb", "intro.ipynb#nowhere"]
    assert dead_links("[f](intro.ipynb#how-to-read-it)", BOOK) == []


ROLE = re.compile(r"\{[\w:]+\}`")


@pytest.mark.parametrize("page", PLAIN_PAGES, ids=lambda p: str(p.relative_to(BOOK)))
def test_plain_pages_show_no_raw_roles(page: Path) -> None:
    """A role reads as raw text everywhere but in the built book."""
    assert ROLE.findall(prose(page)) == []
    assert ROLE.findall("see {doc}`results`, {cite:t}`ertl2021`") == ["{doc}`", "{cite:t}`"]


# numbers in sentences that no code of the page prints: of the papers, of other pages, of settings
STATED = {
    "csr": "",
    "dsn": "91.82 92.03 90.92 1.17",
    "frontier": "",
    "liset": "0.001",
    "pruning": "1.3 0.05",
    "san": "",
}
LABELED = re.compile(r"(?:Sections?|Tables?|Figures?|Equations?) [\dA-Z.]+(?:(?: and|,) [\d.]+)*")
ASIDE = re.compile(r'(?m)^>.*$|"[^"]*"|`[^`]*`|\$[^$]*\$|\]\([^)]*\)')


def numbers_of_nowhere(page: nbformat.NotebookNode) -> list[str]:
    """Decimals and percentages in sentences that are no printed number, rounded."""
    shown = " ".join(printed(cell) for cell in page.cells if cell.cell_type == "code")
    known = [float(number) for number in re.findall(r"\d*\.?\d+", shown.replace(",", ""))]
    found = []
    for cell in page.cells:
        text = cell.source if cell.cell_type == "markdown" else ""
        text = LABELED.sub("", ASIDE.sub("", text)).replace(",", "")
        for number in re.findall(r"\d*\.\d+|\d+(?= ?%)", text):
            digits = len(number.partition(".")[2])
            if all(round(value, digits) != float(number) for value in known):
                found.append(number)
    return found


@pytest.mark.parametrize("chapter", STATED)
def test_numbers_in_sentences_of_results_are_printed_there(chapter: str) -> None:
    page = nbformat.read(BOOK / chapter / "results.ipynb", as_version=4)
    assert set(numbers_of_nowhere(page)) <= set(STATED[chapter].split())


def test_a_number_that_nothing_prints_is_seen() -> None:
    page = sound_page()
    page.cells[-1].outputs = [new_output("stream", text="accuracy 97.06 %, gain +0.13\n")]
    sentence = (
        "The network has 97.1 % and 97.06 %, .1 more, where the paper (Section 5.1) has 97.30 %."
    )
    page.cells.append(new_markdown_cell(sentence))
    assert numbers_of_nowhere(page) == ["97.30"]


def shown_tables(notebook: nbformat.NotebookNode) -> list[str]:
    """HTML of the tables that a page shows."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output.get("data", {}) for cell in code for output in cell.outputs]
    return [data["text/html"] for data in outputs if "<table" in data.get("text/html", "")]


def faults_of_tables(shown: list[str]) -> list[str]:
    """Cut sentences, empty reasons, and tables that are not ours."""
    found = []
    for table in shown:
        if 'class="sl-table' not in table:
            found.append("a table that sparselib.tables did not draw")
        if re.search(r"\.\.\.\s*</t[dh]>", table):
            found.append("a cell that is cut off")
        if re.search(r'data-label="why"[^>]*>\s*</td>', table):
            found.append("a difference without a reason")
    return found


@pytest.mark.parametrize("page", PLAIN_PAGES, ids=lambda p: str(p.relative_to(BOOK)))
def test_tables_are_whole(page: Path) -> None:
    assert faults_of_tables(shown_tables(nbformat.read(page, as_version=4))) == []


def test_faults_of_tables_are_seen() -> None:
    table = '<table class="sl-table"><td data-label="why">{}</td></table>'
    assert faults_of_tables([table.format("Open.")]) == []
    assert faults_of_tables([table.format(" ")]) == ["a difference without a reason"]
    assert faults_of_tables([table.format("The paper nam...")]) == ["a cell that is cut off"]
    assert len(faults_of_tables(["<table></table>"])) == 1


@pytest.mark.parametrize("page", FIRST_PAGES, ids=lambda p: str(p.relative_to(BOOK)))
def test_chapters_open_with_their_verdict(page: Path) -> None:
    notebook = nbformat.read(page, as_version=4)
    kinds = [cell.cell_type for cell in notebook.cells]
    second = kinds.index("markdown", 1)
    opening = nbformat.from_dict(notebook | {"cells": notebook.cells[:second]})
    assert [table.count("sl-verdicts") for table in shown_tables(opening)] == [1]
    assert len(notebook.cells[0].source) < 900
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all("hide-input" in cell.metadata.get("tags", []) for cell in code[:-1])


def test_training_page_must_have_parameters() -> None:
    page = sound_page()
    page.cells[1].metadata.clear()
    assert faults(page, "format") == []
    assert faults(page, "training") == ["0 cells are tagged parameters"]


def test_contents_and_pages_agree() -> None:
    names = re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = {str(p.relative_to(ROOT).with_suffix("")) for p in SOURCES if p.parent != TOOLS}
    assert sorted(names) == sorted(pages)


def medians(rows: pd.DataFrame) -> dict[float, float]:
    """Speedup over dense by sparsity: medians of the processes that measured it."""
    levels = [float(level) for level in rows.sparsities.iloc[0].strip("[]").split(",")]
    measured = np.array([cell.split() for cell in rows.sparse_speedup], dtype=float)
    return dict(zip(levels, np.median(measured, axis=0)))


def test_the_readme_states_the_stored_results() -> None:
    """Means over the seeds of `data/results`, as the README's table of claims gives them."""
    names = ("figure10", "repair", "figure8")
    tables = [pd.read_csv(ROOT / f"data/results/csr-{name}.csv") for name in names]
    rows = pd.concat(tables).drop_duplicates(["rule", "repair", "sparsity", "seed"])
    rows["run"] = rows.rule.mask(rows.repair, "repaired")
    mean = rows.groupby(["run", "sparsity"]).test_accuracy.mean().map("{:.2%}".format)
    mean = mean.str.replace("%", " %")
    step = pd.read_csv(ROOT / "data/results/csr-step.csv").query("rule == 'gradient' and lr == 0.5")
    step = step[(step.dataset == "mnist") & (step["images"] == 0)]
    half = 100 * step.groupby("sparsity").test_accuracy.mean()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for sentence in (
        f"| {mean['gradient', 0.9]} at 90 %; ",
        f"{mean['gradient', 0.97]} against {mean['static', 0.97]} at 97 %, "
        f"but {mean['threshold/random', 0.97]} with random growth; ",
        f"{mean['gradient', 0.99]} against {mean['static', 0.99]} at 99 %, ",
        f"{mean['repaired', 0.99]} with lost weights released; ",
        f"with half the step, another reading of the paper, {half[0.9]:.2f}, {half[0.97]:.2f} "
        f"and {half[0.99]:.2f} % |",
    ):
        assert sentence in readme, sentence


def test_the_readme_states_what_the_saliency_term_buys(root: Path) -> None:
    """Points of accuracy of the public ResNet-20 and of our own, paired by seed."""
    rows = pd.read_csv(root / "data/results/pruning-pretrained.csv").set_index("seed")
    rows = rows[rows.steer == "selector"]
    own = pd.read_csv(root / "data/results/pruning-own.csv").set_index("seed")
    own = own[own.steer == "selector"]

    def of(
        column: str, structure: str, gamma_1: float = 0.5, rows: pd.DataFrame = rows
    ) -> pd.Series:
        chosen = rows[(rows.structure == structure) & (rows.gamma_1 == gamma_1)]
        return 100 * chosen[f"{column}_accuracy"].sort_index()

    def gain(column: str, rows: pd.DataFrame) -> Difference:
        with_it, without = (of(column, "gates", weight, rows) for weight in (0.5, 0.0))
        return paired_difference(with_it, without)

    gates = of("tuned", "gates", 0.0)
    tuned = gain("tuned", rows)
    unseen = of("tuned_valid", "whole", rows=own) - of("tuned_valid", "gates", 0.0, own)
    sentence = (
        f"({of('whole', 'gates').mean():.1f} %) {-gain('cut', rows).mean:.1f} points right after "
        f"the cut, and after fine-tuning nothing that three seeds show, "
        f"{tuned.mean:+.1f} points ({tuned.low:+.1f} to "
        f"{tuned.high:+.1f}), {gain('tuned_valid', own):.1f} for our own ones of "
        f"90 % on images that nothing has learned from; gates without it choose best before "
        f"fine-tuning, and end {(gates - of('tuned', 'uniform')).mean():.1f} points ahead of "
        f"uniform channels, {(of('tuned', 'group_norm') - gates).mean():.1f} behind group norms "
        f"and {(of('tuned', 'whole') - gates).mean():.1f} behind the whole network, "
        f"{unseen.mean():.1f} on those images"
    )
    assert sentence in (root / "README.md").read_text(encoding="utf-8"), sentence


MACHINES = ("zen3", "zen4", "zen5")


def speedups(name: str, sizes: str) -> list[float]:
    """Speedups of one network at 90, 97 and 99 % sparsity, as the README prints them."""
    rows = pd.read_csv(ROOT / f"data/results/{name}.csv").dropna(subset="sparse_ms")
    ratios = medians(rows[rows.sizes == sizes])
    return [round(ratios[sparsity], 1) for sparsity in (0.9, 0.97, 0.99)]


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        ("inference, five layers of 512, batch 10,000", "[512, 512, 512, 512, 512, 10]"),
        ("training step, 256-256-256-10, batch 512", "[256, 256, 256, 10]"),
        ("training step, 784-1024-1024-10, batch 512", "[784, 1024, 1024, 10]"),
    ],
)
def test_the_readme_states_the_stored_speedups(network: str, sizes: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = ["{}, {} and {}".format(*speedups(f"csr-speed-{name}", sizes)) for name in MACHINES]
    assert f"| {network} | {' | '.join(shown)} |" in readme


def test_the_readme_states_what_normalizations_leave_of_a_speedup() -> None:
    rows = pd.read_csv(ROOT / "data/results/csr-normalized-zen4.csv")
    rows = rows[rows.sizes == "[256, 256, 256, 10]"]
    kept = {}
    for kind, part in rows.groupby("normalized"):
        found = np.array([cell.split() for cell in part.sparse_speedup], dtype=float)
        medians_of = np.median(found, axis=0)
        kept[kind] = f"{medians_of[0]:.1f} to {medians_of[2]:.1f}"
    sentence = f"keeps {kept['layer']} on Zen 4, with a batch normalization {kept['batch']}"
    assert sentence in (ROOT / "README.md").read_text(encoding="utf-8"), sentence


def test_the_readme_states_what_liset_gains() -> None:
    """ARA by the reading of the tables, and what each part of LiSET gains over SET."""
    rows = pd.read_csv(ROOT / "data/results/liset-tables.csv")
    rows = rows[rows.gamma == 0].groupby(["epsilon", "rule"]).ara.mean().map("{:.1%}".format)
    tables = rows.str.replace("%", " %")
    rows = pd.read_csv(ROOT / "data/results/liset-ablation.csv")
    rows = rows[(rows.dropout == 0.3) & (rows.gamma <= 1)]
    mean = rows.groupby(["rule", "definition", "dataset"]).ara.mean().unstack()
    gain = (100 * (mean - mean.loc["set", "text"])).map("{:.1f}".format)
    text = gain.loc["liset", "text"]
    skips = gain.loc["skips", "text"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for sentence in (
        f"| {tables[4.5, 'set']} to {tables[4.5, 'liset']} and "
        f"{tables[21.0, 'set']} to {tables[21.0, 'liset']}, with the program's growth rule; ",
        f"Equation 2 as printed gains {text.mnist} points on MNIST and {text.isolet} on ISOLET, "
        f"the skip layers alone {skips.mnist} and {skips.isolet} |",
    ):
        assert sentence in readme, sentence


def test_the_readme_states_what_is_reached_on_random_minutes_and_on_unseen_nights() -> None:
    rows = pd.read_csv(ROOT / "data/results/dsn-windows.csv")
    rows = rows.query("model == 'dsn' and sparsity == 0.95 and rule == 'random'")
    assert rows.groupby(["by", "neighbors"]).fold.nunique().tolist() == [5] * 6
    runs = rows.groupby(["by", "neighbors"])
    mean, both = (
        (100 * runs[column].mean()).map("{:.1f} %".format)
        for column in ("test_accuracy", "balanced_accuracy")
    )
    rivals = pd.read_csv(ROOT / "data/results/dsn-yardsticks.csv")
    rivals = rivals[(rivals.normalize == "night") & (rivals.split == 0)]
    rivals = rivals[(rivals.by == "record") & (rivals.neighbors == 1)]
    of = rivals.groupby("model")[["test_accuracy", "balanced_accuracy"]].mean()
    trees, logistic = (100 * of.loc[model] for model in ("boosting", "logistic"))
    sentence = (
        f"{mean['minute', 0]} of random minutes, {mean['minute', 1]} with the minutes before and "
        f"after, but {mean['record', 0]} and {mean['record', 1]} on unseen nights (mean of both "
        f"classes {both['record', 0]} and {both['record', 1]}), where boosted trees on the heart "
        f"rate's variability reach {trees.test_accuracy:.1f} % with three minutes "
        f"({trees.balanced_accuracy:.1f} %) and logistic regression {logistic.test_accuracy:.1f} % "
        f"({logistic.balanced_accuracy:.1f} %)"
    )
    assert sentence in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("picture", "page"), [("opening", "intro"), ("evolution", "csr/evolution")]
)
def test_pictures_outside_the_pages_are_outputs_of_one(picture: str, page: str) -> None:
    """To mend it, store the figure of that page as that picture in `book/_static`."""
    notebook = nbformat.read(BOOK / f"{page}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output.get("data", {}).get("image/png", "") for output in outputs]
    shown = (BOOK / f"_static/{picture}.png").read_bytes()
    assert shown in [base64.b64decode(figure) for figure in figures]


def test_the_readme_opens_with_a_picture_whose_words_are_the_stored_rows() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 60
    accuracy = pd.read_csv(ROOT / "data/results/csr-figure10.csv")
    accuracy = 100 * accuracy.groupby(["rule", "sparsity"]).test_accuracy.mean()
    dense = pd.read_csv(ROOT / "data/results/csr-table4.csv").astype({"sparsity": str})
    dense = dense[(dense.dataset == "mnist") & (dense.sparsity == "0.0")].test_accuracy
    falls = [f"{accuracy['gradient', sparsity]:.0f}" for sparsity in (0.9, 0.99)]
    fixed = f"{accuracy['static', 0.99]:.0f}"
    sizes = "[784, 1024, 1024, 10]"
    zen3, _, zen5 = (speedups(f"csr-speed-{name}", sizes) for name in MACHINES)
    for sentence in (
        f"from {falls[0]} to {falls[1]} %, with a fixed topology to {fixed} %",
        f"rises from {zen5[0]:.0f} to {zen5[2]:.0f} on one processor "
        f"and from {zen3[0]:.0f} to {zen3[2]:.0f} on another](book/_static/opening.png)",
        f"dense is {100 * dense.mean() - accuracy['gradient', 0.99]:.1f} points ahead",
    ):
        assert sentence in readme, sentence


def test_the_readme_states_what_a_sparse_gpt_gains_and_what_a_small_one() -> None:
    rows = pd.read_csv(ROOT / "data/results/frontier-gpt.csv")
    rows = rows[(rows.attention == 0) & (rows.rule == "static") & rows.density_step]
    network = ["width", "hidden", "sparsity"]
    rows = rows.groupby([*network, "lr"]).filter(lambda part: len(part) == 5)
    loss = rows.groupby(network).test_loss.mean()
    sparse = loss[384, 1536, 0.95]
    gain = f"{loss[384, 1536, 0.0] - sparse:.2f}".lstrip("0")
    behind = f"{sparse - loss[128, 512, 0.0]:.2f}".lstrip("0")
    sentence = (
        f"is {gain} nats per character ahead of the dense one of the same width; but a dense one "
        f"that is narrower throughout is {behind} ahead of it"
    )
    assert sentence in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_states_what_a_wide_sparse_perceptron_gains() -> None:
    """Accuracy paired by seed, each with the step that was best on validation images, and costs."""
    rows = pd.read_csv(ROOT / "data/results/frontier-mlp.csv")
    sizes = {"static": (4096, 0.99), "dense": (1024, 0.0)}
    runs = {}
    for family, (width, sparsity) in sizes.items():
        own = rows[(rows.family == family) & (rows.width == width) & (rows.sparsity == sparsity)]
        best = own[own.seed == 0].set_index("lr").valid_accuracy.idxmax()
        runs[family] = 100 * own[own.lr == best].set_index("seed").test_accuracy
    gain = (runs["static"] - runs["dense"]).dropna()
    assert len(gain) >= 4
    timed = (
        pd.read_csv(ROOT / "data/results/frontier-seconds.csv").query("network == 'mlp'").iloc[0]
    )
    steps = dict(zip(json.loads(timed.families), map(float, timed.step_ms.split())))
    share = f"{steps['4096/0.99/0'] / steps['1024/0/0']:.2f}".lstrip("0")
    sentence = (
        f"are {f'{gain.mean():.1f}'.lstrip('0')} points ahead of dense ones of 1,024 at {share} of "
        "the step"
    )
    assert sentence in (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere() -> None:
    assert dead_links((ROOT / "README.md").read_text(encoding="utf-8"), ROOT) == []


def test_pins_are_exact() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.!]+", pin)] == []
    assert "torch==2.13.0" in pins


def test_config_needs_no_network() -> None:
    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    bound = r"https?:|launch_buttons|thebe|intersphinx|comments|tippy|mermaid|plotly"
    assert re.findall(bound, text) == []
    assert "sphinx-mathjax-offline" in text
    execute = yaml.safe_load(text)["execute"]
    assert execute["raise_on_error"] is True
    assert execute["allow_errors"] is False


def write_page(path: Path, *code: str) -> None:
    cells = [new_markdown_cell("# A page – with φ\n\n$$ y = W x $$")]
    cells += [new_code_cell(source) for source in code]
    nbformat.write(new_notebook(cells=cells, metadata=copy.deepcopy(METADATA)), path)


def make_book(root: Path) -> Path:
    """Make a book of two pages on a library of one number, under our own configuration."""
    (root / "book").mkdir(parents=True)
    (root / "sparselib").mkdir()
    for stray in (".pytest_cache", ".venv/lib/site-packages", "book/.ipynb_checkpoints"):
        (root / stray).mkdir(parents=True)
        (root / stray / "README.md").write_text("# Not a page\n", encoding="utf-8")
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copytree(BOOK / "_static", root / "book/_static")
    (root / "book/_tools").mkdir()
    shutil.copy(TOOLS / "publishing.py", root / "book/_tools")
    shutil.copy(BOOK / "references.bib", root / "book")
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n- file: book/page\n",
        encoding="utf-8",
    )
    (root / "book/intro.md").write_text("# A book\n\n[The page](page.ipynb)\n", encoding="utf-8")
    (root / "sparselib/__init__.py").write_text("density = 0.25\n", encoding="utf-8")
    write_page(root / "book/page.ipynb", "import sparselib", "print('d =', sparselib.density)")
    return root


def run(root: Path, *command: object) -> subprocess.CompletedProcess:
    """Run a command of Python on a book, where the locale knows nothing but ASCII."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"} | ascii_only
    argv = [sys.executable, *map(str, command)]
    return subprocess.run(
        argv, cwd=root, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def build(root: Path) -> int:
    return run(root, TOOLS / "build.py").returncode


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    book = make_book(tmp_path_factory.mktemp("tiny") / "book-of-two")
    first = run(book, TOOLS / "build.py")
    assert first.returncode == 0, first.stdout + first.stderr
    return book


@pytest.mark.slow
@pytest.mark.xdist_group("tiny")
def test_changed_library_changes_the_page(tiny: Path) -> None:
    page = tiny / "_build/html/book/page.html"
    assert "d = 0.25" in page.read_text(encoding="utf-8")
    (tiny / "sparselib/__init__.py").write_text("density = 0.75\n", encoding="utf-8")
    assert build(tiny) == 0
    assert "d = 0.75" in page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.xdist_group("tiny")
def test_broken_reference_fails_every_time(tiny: Path) -> None:
    intro = tiny / "book/intro.md"
    before = intro.read_text(encoding="utf-8")
    intro.write_text(before + "\n{py:func}`sparselib.gone`\n", encoding="utf-8")
    assert (build(tiny) != 0, build(tiny) != 0) == (True, True)
    intro.write_text(before, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.xdist_group("tiny")
def test_failing_cell_fails_the_build(tiny: Path) -> None:
    page = tiny / "book/page.ipynb"
    before = page.read_text(encoding="utf-8")
    write_page(page, "1 / 0")
    assert build(tiny) != 0
    page.write_text(before, encoding="utf-8")


@pytest.mark.slow
def test_refresh_keeps_what_authors_wrote_and_nbval_holds_the_numbers(tmp_path: Path) -> None:
    book = make_book(tmp_path / "refreshed")
    page = book / "book/page.ipynb"
    written = nbformat.read(page, as_version=4)
    written.cells[1].metadata = {"tags": ["hide-input"], "execution": {"time": "noon"}}
    written.metadata.widgets = {}
    nbformat.write(written, page)
    assert run(book, TOOLS / "refresh.py").returncode == 0
    fresh = nbformat.read(page, as_version=4)
    assert faults(fresh) == []
    assert dict(fresh.cells[1].metadata) == {"tags": ["hide-input"]}
    assert "widgets" not in fresh.metadata
    once = page.read_text(encoding="utf-8")
    assert "as before" in run(book, TOOLS / "refresh.py").stdout
    assert page.read_text(encoding="utf-8") == once

    flags = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", ROOT / "tests/nbval.cfg"]
    check = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", book, page, *flags]
    assert run(book, *check).returncode == 0
    altered = copy.deepcopy(fresh)
    altered.cells[-1].outputs[0].text = "d = 0.26\n"
    nbformat.write(altered, page)
    assert run(book, *check).returncode == 1


def test_the_page_on_running_again_counts_the_runs_of_the_sweeps():
    chapter, told = "csr", {}
    for line in (BOOK / "reproduce.md").read_text(encoding="utf8").splitlines():
        if found := re.search(r"^The chapter on .*`book/(\w+)/sweeps`", line):
            chapter = found[1]
        if found := re.fullmatch(r"\| (`[\w-]+\.yml`.*?) \| ([\d, ]+) \| .* \|", line):
            names = re.findall(r"`([\w-]+\.yml)`", found[1])
            told |= zip([(chapter, name) for name in names], map(int, found[2].split(", ")))
    assert len(told) > 20
    for (chapter, name), count in told.items():
        table = (BOOK / chapter / "sweeps" / name).read_text(encoding="utf8")
        blocks = yaml.safe_load(table)["grid"]
        assert sum(len(grid.expand(block)) for block in blocks) == count, (chapter, name)
