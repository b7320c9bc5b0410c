"""Kernels that nobody but their user can reach: they listen in a private folder, not on TCP."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

TIMEOUT = 300  # seconds a cell may take
LONGEST = 80  # characters: the address of a socket has room for some hundred


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
