"""Many runs: dask.distributed, or one after the other without it."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from . import notebook
from .notebook import Outcome, Perform, Run
from .rows import SOURCE
from .workers import Workers, connected

SUBMITTED = 2000  # runs at most that dask knows of at once
SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_FOR_RESULT = 5
SECONDS_WITHOUT_WORKERS = 10  # that are waited for in silence
RETRIES = (
    2  # of what goes wrong around a notebook; what goes wrong in it is a result
)


class SchedulerLostError(Exception):
    """The scheduler went away while runs were under way."""


def outcomes(
    runs: Iterable[Run], workers: Workers, tell: Callable[[str], None]
) -> Iterator[Outcome]:
    """Carry out runs, in parallel where dask is installed, and yield what became of each.

    A run that another sweep is at is waited for last of all. A run that was lost is tried once
    more, alone: it may have stood beside one that kills its workers. Where the scheduler has no
    worker for the runs they wait until one comes, which `tell` is told once.

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
    with connected(workers, len(pending)) as client:
        again: list[Run] = []
        watch = _Watch(client, workers.resources or {}, tell)
        for outcome in _attempt(
            client, list(pending.values()), workers, watch, wait=False
        ):
            if outcome.status in ("busy", "lost"):
                again.append(pending[outcome.key])
            else:
                yield outcome
        for run in again:
            yield from _attempt(client, [run], workers, watch, wait=True)


class _Watch:
    """Looks whether the scheduler has a worker for the runs, and tells once if it has none."""

    def __init__(
        self,
        client: Any,
        resources: dict[str, float],
        tell: Callable[[str], None],
    ) -> None:
        self._client = client
        self._resources = resources
        self._tell = tell
        self._next = time.monotonic() + SECONDS_WITHOUT_WORKERS
        self._is_told = False

    def look(self) -> None:
        """Ask the scheduler, if it is time to."""
        now = time.monotonic()
        if self._is_told or now < self._next:
            return
        self._next = now + SECONDS_WITHOUT_WORKERS
        found = self._client.scheduler_info().get("workers", {}).values()
        if any(map(self._suffices, found)):
            return
        self._is_told = True
        claims = [f"{name} {n:g}" for name, n in self._resources.items()]
        offering = f" that offers {', '.join(claims)}" if claims else ""
        self._tell(
            f"the scheduler has {len(found)} workers and none{offering}: runs wait until one comes"
        )

    def _suffices(self, worker: dict[str, Any]) -> bool:
        offered = worker.get("resources", {})
        return all(offered.get(k, 0) >= n for k, n in self._resources.items())


def _attempt(
    client: Any, runs: list[Run], workers: Workers, watch: _Watch, wait: bool
) -> Iterator[Outcome]:
    if client is None:
        yield from (_serially(run, wait, workers.perform) for run in runs)
        return
    from distributed import as_completed

    _check(client)
    waiting = iter(runs)
    futures: dict[Any, Run] = {}
    finished = as_completed(loop=client.loop)

    def submit() -> None:
        """Fill up what dask knows of; the futures of other runs would take memory for nothing."""
        some = list(islice(waiting, SUBMITTED - len(futures)))
        if some:
            found = _submitted(client, some, workers, wait)
            futures.update(zip(found, some))
            finished.update(found)

    submit()
    while futures:
        future = _next(client, finished, watch)
        run = futures.pop(future)
        outcome = _fetched(client, future, run)
        if len(futures) <= SUBMITTED // 2:
            submit()
        yield outcome


def _next(client: Any, finished: Any, watch: _Watch) -> Any:
    """Wait for the next finished future.

    A client that loses its scheduler cancels all its futures and tries to connect anew. That may
    fail in ways that leave later futures pending for good, so its status is looked at as well.
    """
    while not finished.has_ready():
        _check(client)
        watch.look()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    future = next(finished)
    if future.cancelled():
        raise SchedulerLostError("the scheduler is gone")
    _check(client)
    return future


def _check(client: Any) -> None:
    if client.status != "running":
        raise SchedulerLostError("the scheduler is gone")


def _submitted(
    client: Any, runs: list[Run], workers: Workers, wait: bool
) -> list[Any]:
    # keys of one group: then dask sends a worker one run at a time, in order
    group = f"run-{os.getpid()}-{wait}"
    count = len(runs)
    try:
        futures = client.map(
            notebook.execute,
            runs,
            [SOURCE] * count,
            [wait] * count,
            [workers.perform] * count,
            key=[(group, run.key) for run in runs],
            pure=False,
            retries=RETRIES,
            resources=workers.resources or None,
        )
    except Exception:  # of several kinds, once the client is closed
        _check(client)
        raise
    return list(futures)


def _fetched(client: Any, future: Any, run: Run) -> Outcome:
    """Return what became of a finished run; its result is still with the scheduler's workers.

    If its worker has died since, dask has another one do it once more.
    """
    while True:
        try:
            error = future.exception(timeout=SECONDS_FOR_RESULT)
            if error is not None:
                return _lost(run, error)
            return future.result(timeout=SECONDS_FOR_RESULT)
        except TimeoutError:
            _check(client)
        except Exception as failure:  # the connection broke: what a run raises was returned above
            raise SchedulerLostError("the scheduler is gone") from failure


def _serially(run: Run, wait: bool, perform: Perform) -> Outcome:
    for attempt in range(1 + RETRIES):
        try:
            return notebook.execute(run, SOURCE, wait, perform)
        except Exception as error:  # whatever a kernel or a disk may do
            if attempt == RETRIES:
                return _lost(run, error)
    raise AssertionError("not reached")


def _lost(run: Run, error: BaseException) -> Outcome:
    return Outcome(run.key, "lost", error=f"{type(error).__name__}: {error}")
