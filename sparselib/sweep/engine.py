"""Many runs: dask.distributed, or one after the other without it."""

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from . import notebook
from .notebook import Outcome, Run
from .rows import SOURCE

CONNECTING = 10  # seconds in which a scheduler has to answer
RETRIES = (
    2  # of what goes wrong around a notebook; what goes wrong in it is a result
)


class SchedulerError(Exception):
    """The scheduler cannot be reached, or no workers can be started."""


class SchedulerLostError(Exception):
    """The scheduler went away while runs were under way."""


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
    """

    scheduler: str = ""
    processes: int | None = None
    threads: int = 1
    resources: dict[str, float] | None = None


def outcomes(runs: Iterable[Run], workers: Workers) -> Iterator[Outcome]:
    """Carry out runs, in parallel where dask is installed, and yield what became of each.

    A run that another sweep is at is waited for last of all. A run that was lost is tried once
    more, alone: it may have stood beside one that kills its workers.

    Raises
    ------
    SchedulerError
        If there is no scheduler at the address, or workers cannot be started here.
    SchedulerLostError
        If the scheduler goes away.
    """
    pending = {run.key: run for run in runs}
    if not pending:
        return
    with _client(workers, len(pending)) as client:
        again: list[Run] = []
        for outcome in _attempt(
            client, list(pending.values()), workers, wait=False
        ):
            if outcome.status in ("busy", "lost"):
                again.append(pending[outcome.key])
            else:
                yield outcome
        for run in again:
            yield from _attempt(client, [run], workers, wait=True)


def is_parallel() -> bool:
    """Whether dask.distributed is installed."""
    try:
        import distributed
    except ImportError:
        return False
    return bool(distributed.__version__)


def _attempt(
    client: Any, runs: list[Run], workers: Workers, wait: bool
) -> Iterator[Outcome]:
    if client is None:
        yield from (_serially(run, wait) for run in runs)
        return
    from distributed import as_completed

    # keys of one group, submitted at once: then dask sends a worker one run at a time, in order
    group = f"run-{os.getpid()}-{wait}"
    submitted = client.map(
        notebook.execute,
        runs,
        [SOURCE] * len(runs),
        [wait] * len(runs),
        key=[(group, run.key) for run in runs],
        pure=False,
        retries=RETRIES,
        resources=workers.resources or None,
    )
    futures = dict(zip(submitted, runs))
    for future in as_completed(list(futures)):
        run = futures.pop(future)
        if future.cancelled() or client.status not in ("running", "connecting"):
            raise SchedulerLostError("the scheduler is gone")
        yield _fetched(future, run)


def _fetched(future: Any, run: Run) -> Outcome:
    """Return what became of a finished run; its result is still with the scheduler's workers."""
    try:
        error = future.exception()
        return future.result() if error is None else _lost(run, error)
    except (
        Exception
    ) as failure:  # the connection broke: what a run raises was returned above
        raise SchedulerLostError("the scheduler is gone") from failure


def _serially(run: Run, wait: bool) -> Outcome:
    for attempt in range(1 + RETRIES):
        try:
            return notebook.execute(run, SOURCE, wait)
        except Exception as error:  # whatever a kernel or a disk may do
            if attempt == RETRIES:
                return _lost(run, error)
    raise AssertionError("not reached")


def _lost(run: Run, error: BaseException) -> Outcome:
    return Outcome(run.key, "lost", error=f"{type(error).__name__}: {error}")


@contextmanager
def _client(workers: Workers, runs: int) -> Iterator[Any]:
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
            address = workers.scheduler or opened.enter_context(
                _cluster(workers, runs)
            )
            if workers.scheduler:
                _knock(workers.scheduler)
            client = Client(address, timeout=CONNECTING)
        except (
            Exception
        ) as error:  # whatever dask, a socket or the system may raise
            where = (
                f"the scheduler {workers.scheduler}"
                if workers.scheduler
                else "workers here"
            )
            told = str(error) or type(error).__name__
            if workers.scheduler and not isinstance(
                error, OSError | ValueError
            ):
                told = f"what listens there is none of this version of dask ({told})"
            raise SchedulerError(f"{where} cannot be used: {told}") from None
        opened.callback(_close, client)
        yield client


def _silence() -> None:
    """Leave it to the sweep to tell what goes wrong; some loggers of dask set their own levels."""
    names = ["distributed", *logging.Logger.manager.loggerDict]
    for name in names:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _knock(address: str) -> None:
    """Find out at once whether anybody listens: dask would try for minutes."""
    from distributed.comm import parse_address, parse_host_port

    kind, place = parse_address(address, strict=True)
    host, port = parse_host_port(place, 8786)
    if kind in ("tcp", "tls"):
        socket.create_connection((host, port), CONNECTING).close()


def _close(client: Any) -> None:
    """Close a client; if its scheduler is gone, closing fails silently."""
    with suppress(Exception):
        client.close(timeout=CONNECTING)


def _cluster(workers: Workers, runs: int) -> Any:
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
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        resources=workers.resources,
        env=environment,
        silence_logs=logging.CRITICAL,
    )
