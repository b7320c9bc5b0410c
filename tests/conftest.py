"""What every test may rely on: data, hypothesis profiles, a seed, and honest skips."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# the library of this tree, installed or not, here and in the processes that tests start
sys.path[:0] = [str(ROOT), str(ROOT / "book" / "_tools")]
_before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, _before)])

# the same examples each time, and few; every week others, and many
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("weekly", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_beside = ROOT.parent / "shared" / "data"
if _beside.is_dir():
    os.environ.setdefault("SPARSELIB_DATA", str(_beside))


def missing(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None if they can."""
    if marker == "realdata":
        folder = os.environ.get("SPARSELIB_DATA", "")
        return None if folder and Path(folder).is_dir() else "real data absent: set SPARSELIB_DATA"
    if marker == "browser":
        import browsers

        return None if browsers.executable() else "no Chromium executable on PATH"
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two processes per core: many tests wait for others that start, die or draw a page."""
    return min(8, 2 * (os.cpu_count() or 1))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that share a fixture of their module to one process, and begin with the slow."""
    for item in items:
        if item.path.suffix == ".ipynb":  # cells of one page follow each other
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
            continue
        found = item._fixtureinfo.name2fixturedefs.values()
        shared = any(definitions[-1].scope == "module" for definitions in found)
        if shared and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if "checking" in sys.modules:  # which the option of pyproject.toml loads
        sys.modules["checking"].begin()
    for marker in ("realdata", "gpu", "browser"):
        if item.get_closest_marker(marker) and (reason := missing(marker)):
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed torch before each test; a test that needs the number asks for it."""
    import torch

    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def root() -> Path:
    """Top of the checkout."""
    return ROOT
