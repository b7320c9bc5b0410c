"""Kernels that are forks; `test_forks` runs this file in a process of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kernels
import nbformat
import psutil
import pytest
from jupyter_client import KernelClient, KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory
from nbclient.exceptions import DeadKernelError

LIKE_OTHERS = (
    """
import os, signal, sys, warnings
print(os.environ)
print(os.getcwd(), os.getsid(0) == os.getpid(), sys.path, sys.flags, sys.orig_argv[:0])
print(__name__, sys.modules["__main__"].__name__, signal.getsignal(signal.SIGTERM))
""",
    """
import numpy as np, torch, random, locale, decimal
for module in (np.random, random):
    module.seed(1)
torch.manual_seed(2)
print(np.random.rand(2), torch.rand(2), torch.get_num_threads(), random.random())
print(np.geterr(), np.get_printoptions(), torch.get_default_dtype(), locale.getlocale())
""",
    """
import matplotlib, matplotlib.pyplot as plt
print(dict(matplotlib.rcParams), matplotlib.get_backend(), plt.isinteractive())
figure, axes = plt.subplots()
axes.plot([1, 3, 2])
axes.set_title("a title")
plt.show()
""",
    """
import multiprocessing, pandas as pd, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.warn("a warning", DeprecationWarning)
print(len(caught))
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(abs, [-1]), multiprocessing.get_start_method(allow_none=True))
pd.DataFrame({"a": [1.5]})
""",
    """
1 / 0
""",
)
CHANCE = """
import random, numpy as np, torch
print(torch.initial_seed(), *torch.rand(1), np.random.rand(), random.random())
"""
LOADED = "import sys; print({'torch', 'matplotlib', 'sparselib'} & set(sys.modules))"
PARENT = """
import os, signal, sys, kernels, psutil
from jupyter_client.manager import KernelManager
kernels.LOADED = ["ipykernel.kernelapp"]
kernels.fork_for(kernels.FEW + 1)
for environment in (os.environ, os.environ, os.environ | {"NEW": "1"}):
    manager = KernelManager(config=kernels.private(sys.argv[1]))
    manager.start_kernel(env=environment)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=300)
print(*(process.pid for process in psutil.Process().children(recursive=True)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def forked() -> Iterator[None]:
    factory = KernelProvisionerFactory.instance()
    before = factory.default_provisioner_name
    kernels.fork_for(kernels.FEW + 1)
    yield
    factory.default_provisioner_name = before


@pytest.fixture
def manager() -> Iterator[KernelManager]:
    with kernels.private_kernel() as config:
        manager = KernelManager(config=config)
        manager.start_kernel()
        yield manager
        manager.shutdown_kernel(now=True)


@pytest.fixture
def client(manager: KernelManager) -> Iterator[KernelClient]:
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=300)
    yield client
    client.stop_channels()


def outputs(folder: Path, *sources: str) -> list[list[nbformat.NotebookNode]]:
    """Run cells in a kernel of their own and return what each has shown."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[-1].metadata.tags = ["raises-exception"]
    kernels.run(nbformat.v4.new_notebook(cells=cells), folder)
    return [cell.outputs for cell in cells]


def printed(folder: Path, source: str) -> str:
    return outputs(folder, source)[0][0].text.strip()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_they_show_what_others_show(tmp_path):
    shown = outputs(tmp_path, *LIKE_OTHERS)
    KernelProvisionerFactory.instance().default_provisioner_name = "local-provisioner"
    others = outputs(tmp_path, *LIKE_OTHERS)
    assert [str(cell).split(", ") for cell in shown] == [str(cell).split(", ") for cell in others]
    assert "image/png" in shown[2][1].data
    assert printed(tmp_path, LOADED) == "set()"


def test_they_have_loaded_what_takes_long_and_nothing_of_ours(tmp_path):
    assert printed(tmp_path, LOADED) in ("{'torch', 'matplotlib'}", "{'matplotlib', 'torch'}")


def test_an_edited_module_is_seen(tmp_path):
    for value in ("1", "22"):
        (tmp_path / "edited.py").write_text(f"value = {value}\n", encoding="utf-8")
        assert printed(tmp_path, "import edited; print(edited.value)") == value


def test_no_two_have_the_same_random_numbers(tmp_path):
    first, second = (printed(tmp_path, CHANCE).split() for _ in range(2))
    assert [a == b for a, b in zip(first, second)] == [False] * 4


def test_where_the_environment_is_another_libraries_read_it(tmp_path, monkeypatch):
    other = "2" if os.environ.get("OMP_NUM_THREADS") == "1" else "1"
    monkeypatch.setenv("OMP_NUM_THREADS", other)
    monkeypatch.setenv("MPLBACKEND", "svg")
    assert printed(tmp_path, LOADED) == "set()"
    source = "import torch, matplotlib as m; print(torch.get_num_threads(), m.get_backend())"
    assert printed(tmp_path, source) == f"{other} svg"


def test_a_killed_kernel_is_noticed(tmp_path):
    with pytest.raises(DeadKernelError):
        outputs(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_a_kernel_is_interrupted_and_goes_on(manager, client):
    sleeps = "import time; print('begun'); time.sleep(600)"
    client.execute(sleeps, stop_on_error=False)  # else it drops what comes soon after the error
    until(lambda: client.get_iopub_msg(timeout=60)["msg_type"] == "stream")
    manager.interrupt_kernel()
    assert client.get_shell_msg(timeout=60)["content"]["ename"] == "KeyboardInterrupt"
    assert client.execute_interactive("1", timeout=60)["content"]["status"] == "ok"


def test_a_kernel_that_is_shut_down_leaves_no_process(manager, client):
    program = "import subprocess; child = subprocess.Popen(['sleep', '600'])"
    client.execute_interactive(program, timeout=60)
    kernel = psutil.Process(manager.provisioner.pid)
    processes = [kernel, *kernel.children()]
    assert [process.name() for process in processes[1:]] == ["sleep"]
    manager.shutdown_kernel(now=True)
    assert not manager.is_alive()
    until(lambda: not any(alive(process.pid) for process in processes))


def test_all_end_with_the_process_that_started_them():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PARENT, folder]
        answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    processes = [int(pid) for pid in answer.stdout.split()]
    assert len(processes) == 5  # the one that forks, multiprocessing's tracker, and three kernels
    until(lambda: not any(alive(pid) for pid in processes))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # nobody reaps an orphan here
    except psutil.NoSuchProcess:
        return False
