"""The page "Works with": every section runs, with the real packages."""

import os
import re
import socket
from pathlib import Path

import pytest
import torch
from apart import Program, run_compiling

PAGE = Path(__file__).resolve().parent.parent / "book" / "works_with.md"


def sections() -> dict[str, list[str]]:
    """Blocks of Python by heading; those before the first heading have the title's."""
    parts = re.split(r"(?m)^#+ (.+)$", PAGE.read_text(encoding="utf-8"))
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {title: re.findall(r"(?ms)^```python\n(.*?)^```$", body) for title, body in pairs}


SECTIONS = sections()
SETUP = "\n".join(SECTIONS.pop("Works with"))
SECTIONS = {title: blocks for title, blocks in SECTIONS.items() if blocks}
NEEDS = {
    "Lightning": "lightning",
    "Accelerate": "accelerate",
    "Transformers": "transformers",
    "PEFT": "peft",
    "ONNX": "onnxscript",
}
IN_TWO_PROCESSES = "DistributedDataParallel"
COMPILED = "torch.compile"  # a compiler does not see through the checkers of types in these tests
APART = {IN_TWO_PROCESSES, COMPILED}


def test_the_page_has_its_sections() -> None:
    assert len(SECTIONS) >= 10
    assert {*NEEDS, *APART} <= SECTIONS.keys()


def run_in_two_processes(program: str, folder: Path) -> None:
    """Start a program twice, with the environment that ``torchrun`` gives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    started = [Program("-c", program, env=os.environ | rank, cwd=folder) for rank in ranks]
    for process in started:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("title", sorted(SECTIONS.keys() - APART))
def test_a_section_runs(title, tmp_path, monkeypatch) -> None:
    if title in NEEDS:
        pytest.importorskip(NEEDS[title])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in (SETUP, *SECTIONS[title]):
        exec(compile(block, title, "exec"), names)
    model = names["model"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(layer.sparsity > 0.85 for layer in names["sl"].nn.sparse_layers(model).values())
    assert torch.isfinite(model(torch.randn(2, 64))).all()


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_compiled_layers_train_and_evolve(tmp_path) -> None:
    ends = "assert evolution.steps == 1 and model[0].sparsity > 0.85\n"
    run_compiling("\n".join([SETUP, *SECTIONS[COMPILED], ends]), cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("compiler")
def test_a_packaged_model_gives_the_same(tmp_path) -> None:
    """A layer alone, since a C++ compiler takes seconds for each."""
    program = """
import torch
import sparselib as sl
from torch._inductor import aoti_compile_and_package, aoti_load_package
layer = sl.CSRLinear(6, 4, sparsity=0.5).eval()
exported = torch.export.export(layer, (torch.randn(3, 6),))
file = aoti_compile_and_package(exported, package_path="layer.pt2")
x = torch.randn(3, 6)
torch.testing.assert_close(aoti_load_package(file)(x), layer(x))
print("equal")
"""
    assert run_compiling(program, cwd=tmp_path) == ["equal"]


@pytest.mark.slow
def test_two_processes_end_with_the_same_network(tmp_path) -> None:
    ends = (
        "import os\n"
        "rank = os.environ['RANK']\n"
        "torch.save(model.state_dict(), f'{rank}.pt')\n"
        "torch.distributed.destroy_process_group()\n"
    )
    program = "\n".join([SETUP, *SECTIONS[IN_TWO_PROCESSES], ends])
    run_in_two_processes(program, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
