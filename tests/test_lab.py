"""Two pages in JupyterLab, where a reader chooses "Run All Cells"."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import browsers
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("csr/format.ipynb", "san/architecture.ipynb")
RUN_ALL = """(async () => {
  const ready = async (find) => {
    for (let wait = 0; wait < 600; wait++) {
      const found = find();
      if (found) return found;
      await new Promise((awake) => setTimeout(awake, 100));
    }
    throw new Error("waited for " + find);
  };
  const app = await ready(() => window.jupyterapp);
  await app.restored;
  const panel = await app.commands.execute("docmanager:open", { path: PATH, factory: "Notebook" });
  await panel.context.ready;
  await panel.sessionContext.ready;
  await ready(() => panel.sessionContext.session?.kernel);
  await app.commands.execute("notebook:run-all-cells");
  const code = panel.context.model.toJSON().cells.filter((cell) => cell.cell_type === "code");
  return {
    counts: code.map((cell) => cell.execution_count),
    errors: code.flatMap((cell) => cell.outputs)
      .filter((output) => output.output_type === "error").map((output) => output.evalue),
    printed: code.flatMap((cell) => cell.outputs)
      .filter((output) => output.name === "stdout").map((output) => [output.text].flat().join("")),
    figures: panel.node.querySelectorAll(".jp-RenderedImage img").length,
  };
})()"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve copies of the pages; yield the address."""
    folder = tmp_path_factory.mktemp("lab")
    for page in PAGES:
        (folder / page).parent.mkdir()
        shutil.copy(ROOT / "book" / page, folder / page)
    broken = new_notebook(cells=[new_code_cell("print(1)"), new_code_cell("1 / 0")])
    broken.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(broken, folder / "broken.ipynb")
    command = [
        *(sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"),
        *(f"--ServerApp.root_dir={folder}", "--ServerApp.port=0", "--IdentityProvider.token="),
        "--LabApp.expose_app_in_browser=True",
    ]
    env = os.environ | {"JUPYTER_RUNTIME_DIR": str(folder / "run"), "OMP_NUM_THREADS": "1"}
    env |= {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_DATA_DIR": str(folder / "data")}
    server = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("w", encoding="utf-8"),
    )
    try:
        yield address(server, folder)
    finally:
        server.terminate()
        server.wait(60)


def address(server: subprocess.Popen, folder: Path) -> str:
    """Wait until the server has written where it listens."""
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        for written in (folder / "run").glob("jpserver-*.json"):
            if text := written.read_text(encoding="utf-8"):
                return json.loads(text)["url"]
        time.sleep(0.2)
    raise RuntimeError((folder / "log").read_text(encoding="utf-8"))


async def run_all(server: str, pages: Sequence[str]) -> dict[str, dict]:
    """Open pages in JupyterLab, one after the other, and run all their cells."""
    async with browsers.running() as browser:
        tab = await browser.tab()
        await tab.resize(1400)
        await tab.visit(f"{server}lab")
        return {
            page: await tab.evaluate(RUN_ALL.replace("PATH", json.dumps(page)), timeout=300)
            for page in pages
        }


@pytest.fixture(scope="module")
def shown(lab: str) -> dict[str, dict]:
    """Return what the cells of each page have shown."""
    return asyncio.run(run_all(lab, [*PAGES, "broken.ipynb"]))


pytestmark = [
    pytest.mark.browser,
    pytest.mark.built,
    pytest.mark.slow,
    pytest.mark.xdist_group("lab"),
    pytest.mark.skipif("BUILT_BOOK" not in os.environ, reason="make check opens JupyterLab"),
]


@pytest.mark.parametrize("page", PAGES)
def test_run_all_in_jupyterlab_shows_what_is_stored(shown: dict[str, dict], page: str) -> None:
    stored = nbformat.read(ROOT / "book" / page, as_version=4)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert shown[page]["errors"] == []
    assert shown[page]["counts"] == list(range(1, len(code) + 1))
    assert shown[page]["printed"] == [o.text for o in outputs if o.get("name") == "stdout"]
    assert shown[page]["figures"] >= 1


def test_a_page_that_fails_is_seen(shown: dict[str, dict]) -> None:
    assert shown["broken.ipynb"]["errors"] == ["division by zero"]
    assert shown["broken.ipynb"]["printed"] == ["1\n"]
