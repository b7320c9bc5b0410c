"""Kernels that nobody but their user can reach: they listen in a private folder, not on TCP.

A kernel takes some three seconds of a processor to load Jupyter, torch and matplotlib, the same for
each page. For many pages one process loads them, but not sparselib, and kernels are its forks.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from uuid import uuid4

import nbformat
from forks import IS_FORKED, Fork
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from nbclient import NotebookClient
from traitlets.config import Config

TIMEOUT = 300  # seconds a cell may take
LONGEST = 80  # characters: the address of a socket has room for some hundred
LAUNCHER = "ipykernel_launcher"
LOADED = ["ipykernel.kernelapp", "matplotlib.pyplot", "numba", "pandas", "sklearn.linear_model"]
LOADED += ["torch._dynamo"]
FEW = 8  # pages, for which loading all of these in each process takes as long


def private(folder: str) -> Config:
    """Configure a kernel whose sockets are files in `folder`.

    Windows has no such sockets, and an address that is too long cannot be bound; there kernels
    talk over TCP on the loopback device, as is Jupyter's default.
    """
    if sys.platform == "win32" or len(folder) > LONGEST:
        return Config()
    address = Path(folder) / uuid4().hex[:8]
    return Config({"KernelManager": {"transport": "ipc", "ip": str(address)}})


@contextmanager
def private_kernel() -> Iterator[Config]:
    """Yield the configuration of one kernel; its folder is there until the block ends."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        yield private(folder)


class Provisioner(LocalProvisioner):
    """Starts kernels of this Python as forks, and others as programs."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start a kernel."""
        if cmd[:3] != [sys.executable, "-m", LAUNCHER]:
            return await super().launch_kernel(cmd, **kwargs)
        self.cwd = kwargs.get("cwd") or os.getcwd()
        environment = kwargs["env"] | {"JPY_PARENT_PID": str(os.getpid())}
        self.process = Fork(cmd[2:], environment, str(self.cwd), LOADED)
        self.pid = self.process.pid
        self.pgid = self.process.pid
        return self.connection_info


def fork_for(pages: int) -> None:
    """Let the kernels of this process be forks from now on, if there are enough pages to run."""
    if not IS_FORKED or pages <= FEW:
        return
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["fork"] = EntryPoint("fork", "kernels:Provisioner", factory.GROUP_NAME)
    factory.default_provisioner_name = "fork"


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute a notebook in place, in `folder`; a failing cell raises."""
    with private_kernel() as config:
        client = NotebookClient(
            notebook,
            config=config,
            timeout=TIMEOUT,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
