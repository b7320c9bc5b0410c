"""Where runs are carried out: processes of a cluster started here, or those of a dask scheduler."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from .notebook import Perform, with_papermill

CONNECTING = 10  # seconds in which a scheduler has to answer
ENCRYPTED = ("tls", "wss")


class SchedulerError(Exception):
    """The scheduler cannot be reached, or no workers can be started."""


class Certificates(NamedTuple):
    """Files (PEM) for TLS: whom to trust, and what to show to be trusted.

    Attributes
    ----------
    authority : Path
        Certificate of the authority that signed those of scheduler, workers and client.
    certificate : Path
        The client's own certificate.
    key : Path, optional
        Its key, if that is not in the same file.
    """

    authority: Path
    certificate: Path
    key: Path | None = None


class Workers(NamedTuple):
    """Where runs are carried out.

    Attributes
    ----------
    scheduler : str
        Address of a running dask scheduler; without one a cluster is started here.
    processes : int, optional
        Processes of the cluster started here, by default one per core. With 0 there is no cluster:
        one run after the other, and nothing else at work, as a measurement of time needs it.
    threads : int
        Threads that each of those may compute with.
    resources : dict
        What each run claims of a worker.
    perform : callable
        What executes a run's notebook.
    certificates : Certificates, optional
        For a scheduler with TLS; by default those of dask's configuration.
    plain : bool
        Whether a scheduler on another machine may be spoken to without TLS.
    """

    scheduler: str = ""
    processes: int | None = None
    threads: int = 1
    resources: dict[str, float] | None = None
    perform: Perform = with_papermill
    certificates: Certificates | None = None
    plain: bool = False

    def is_exposed(self) -> bool:
        """Whether other users of this machine could reach a cluster started here."""
        starts = not self.scheduler and self.processes != 0 and is_parallel()
        return starts and not is_private()


def is_parallel() -> bool:
    """Whether dask.distributed is installed."""
    try:
        import distributed
    except ImportError:
        return False
    return bool(distributed.__version__)


@contextmanager
def connected(workers: Workers, runs: int) -> Iterator[Any]:
    """Give a dask client, or None where runs follow each other in this process.

    Raises
    ------
    SchedulerError
        If there is no scheduler at the address, it may not be spoken to, or workers cannot be
        started here.
    """
    if workers.processes == 0 or not is_parallel():
        yield None
        return
    import dask
    from distributed import Client

    _silence()
    # one run at a time is sent to a worker, so that only it falls with the worker; dask's own
    # environment for workers is left out: it makes glibc give all memory back, which slows torch;
    # and what dask measures of itself would take some 4 % of a core in each process
    config = {
        "distributed.scheduler.worker-saturation": 1.0,
        "distributed.nanny.pre-spawn-environ": {},
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "5s",
        "distributed.comm.timeouts.connect": f"{CONNECTING}s",
    }
    with dask.config.set(config), ExitStack() as opened:
        try:
            if workers.scheduler:
                security = _security(workers)
                _knock(workers.scheduler)
                address = workers.scheduler
            else:
                security = _own_security()
                address = opened.enter_context(
                    _cluster(workers, runs, security)
                )
            client = Client(address, timeout=CONNECTING, security=security)
        except SchedulerError:
            raise
        except (
            Exception
        ) as error:  # whatever dask, a socket or the system may raise
            raise SchedulerError(_told(workers, error)) from None
        opened.callback(_close, client)
        yield client


def _told(workers: Workers, error: Exception) -> str:
    told = str(error) or type(error).__name__
    if not workers.scheduler:
        return f"workers here cannot be used: {told}"
    if not isinstance(error, OSError | ValueError):
        told = f"what listens there is none of this version of dask ({told})"
    elif _scheme(workers.scheduler) in ENCRYPTED:
        told += ", or it does not accept these certificates"
    return f"the scheduler {workers.scheduler} cannot be used: {told}"


def _silence() -> None:
    """Leave it to the sweep to tell what goes wrong; some loggers of dask set their own levels."""
    names = ["distributed", *logging.Logger.manager.loggerDict]
    for name in names:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _scheme(address: str) -> str:
    from distributed.comm import parse_address

    return str(parse_address(address, strict=False)[0])


def _place(address: str) -> tuple[str, int]:
    """Return the host and the port of an address."""
    from distributed.comm import parse_address, parse_host_port

    _, place = parse_address(address, strict=True)
    host, port = parse_host_port(place, 8786)
    return host, int(port)


def _knock(address: str) -> None:
    """Find out at once whether anybody listens: dask would try for minutes."""
    place = _place(address)
    if _scheme(address) in ("tcp", "tls"):
        socket.create_connection(place, CONNECTING).close()


def _security(workers: Workers) -> Any:
    """Return what dask needs for TLS, from the files that were named or its configuration.

    Without it whoever reaches the port may carry out any program as the one who started the
    scheduler, so that it is asked for wherever others reach it.

    Raises
    ------
    SchedulerError
        If files are missing or are none of TLS, or the address would be spoken to without it.
    """
    from distributed.comm.registry import get_backend
    from distributed.security import Security

    address = workers.scheduler
    host, _ = _place(address)
    get_backend(_scheme(address))  # known at all?
    encrypted = _scheme(address) in ENCRYPTED
    told = f"the scheduler {address} cannot be used: "
    if not encrypted:
        if workers.certificates:
            raise SchedulerError(
                f"{told}certificates are for an address that begins with tls://"
            )
        if not (workers.plain or _is_loopback(host)):
            raise SchedulerError(
                f"{told}whoever reaches it could run programs as you, as nothing is encrypted or "
                f"authenticated; start it with TLS and name it by tls://, or give --plain-tcp in "
                f"a network that is yours alone"
            )
        return None
    security = Security(require_encryption=True, **_files(workers))
    found = security.get_tls_config_for_role("client")
    if not (found["ca_file"] and found["cert"]):
        raise SchedulerError(
            f"{told}TLS needs certificates; give --tls-ca-file, --tls-cert and --tls-key, or "
            f"name them in dask's configuration under distributed.comm.tls"
        )
    try:
        security.get_connection_args("client")
    except OSError as error:  # ssl.SSLError is one
        raise SchedulerError(
            f"{told}the certificates cannot be read ({error})"
        ) from None
    return security


def _files(workers: Workers) -> dict[str, str]:
    if workers.certificates is None:
        return {}
    authority, certificate, key = workers.certificates
    for file in (authority, certificate, key):
        if file is not None and not file.is_file():
            raise SchedulerError(f"the certificate or key {file} is not there")
    return {
        "tls_ca_file": str(authority),
        "tls_client_cert": str(certificate),
        "tls_client_key": str(key or certificate),
    }


def _is_loopback(host: str) -> bool:
    """Whether all that a name stands for is reached from this machine alone."""
    found = socket.getaddrinfo(host, None)
    return all(ip_address(place[4][0]).is_loopback for place in found)


def is_private() -> bool:
    """Whether a cluster started here can have certificates: they are made by `cryptography`.

    Without it other users of this machine, who reach its ports, could run programs as the one who
    started the sweep.
    """
    return find_spec("cryptography") is not None


def _own_security() -> Any:
    """Return certificates that only the processes of a cluster started here know."""
    from distributed.security import Security

    return Security.temporary() if is_private() else None


def _close(client: Any) -> None:
    """Close a client; if its scheduler is gone, closing fails silently."""
    with suppress(Exception):
        client.close(timeout=CONNECTING)


def _cluster(workers: Workers, runs: int, security: Any) -> Any:
    from distributed import LocalCluster

    environment = {
        name: os.environ.get(name, str(workers.threads))
        for name in (
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
        )
    }
    return LocalCluster(
        n_workers=min(workers.processes or os.cpu_count() or 1, runs),
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        protocol="tls://" if security else "tcp://",
        security=security,
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        resources=workers.resources,
        env=environment,
        silence_logs=logging.CRITICAL,
    )
