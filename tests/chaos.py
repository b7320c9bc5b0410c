"""Kill the parts of a sweep at random moments: ``python tests/chaos.py --kills 50 --seed 0``.

Victims are the driver, a worker, a kernel and the scheduler. Whoever sits before it gives the same
command again when it has ended, and starts a scheduler anew when it is gone. At the end the table
has to be that of a sweep that nobody disturbed.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import psutil
from sweeping import Place, cluster, environ, until

VICTIMS = ("driver", "worker", "kernel", "scheduler")
CHANGING = ["date", "run_seconds"]  # what two runs of the same differ in
PATIENCE = 20  # times that the command is given at most once nobody disturbs it


class Ordeal:
    """A sweep over a scheduler of its own, and what may be killed of it."""

    def __init__(self, folder: Path, runs: int, seed: int) -> None:
        self.place = Place(folder, [{"product": {"x": list(range(runs))}}])
        self.random = random.Random(seed)
        self.killed: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.opened = ExitStack()
        self.generation = 0
        self._start_cluster()
        self._start_driver()

    def _start_cluster(self) -> None:
        self.opened.close()
        self.generation += 1
        folder = self.place.folder / f"cluster{self.generation}"
        folder.mkdir()
        # processes that were spawned tell workers from the servers of a fork
        running = cluster(folder, self.place.log, method="spawn")
        self.scheduler = self.opened.enter_context(running)
        time.sleep(self.random.uniform(0, 2))

    def _start_driver(self) -> None:
        with self.place.folder.joinpath("told").open("a", encoding="utf-8") as told:
            options = ["--allow-dirty", "--scheduler", self.scheduler.address]
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "sparselib.sweep", str(self.place.file), *options],
                cwd=self.place.folder,
                env=environ(self.place.log),
                stdout=told,
                stderr=told,
            )

    def _processes(self, word: str) -> list[psutil.Process]:
        """Processes of this ordeal whose command line has a word."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if word in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _victims(self, kind: str) -> list[psutil.Process]:
        if kind == "kernel":
            return self._processes("ipykernel_launcher")
        if kind == "worker":
            # what a nanny started; kernels and the tracker of resources are others
            return self._processes("multiprocessing.spawn")
        pid = self.driver.pid if kind == "driver" else self.scheduler.pid
        return [psutil.Process(pid)] if psutil.pid_exists(pid) else []

    def wait(self) -> None:
        """Wait for a random moment after a run has started since the last kill."""
        before = len(self.place.starts())
        until(lambda: len(self.place.starts()) > before or self.driver.poll() is not None, 300)
        time.sleep(self.random.expovariate(1 / 2))

    def kill(self) -> None:
        """Kill one of a kind drawn at random, if there is one."""
        kind = self.random.choice(VICTIMS)
        victims = self._victims(kind)
        if not victims:
            return
        try:
            self.random.choice(victims).kill()
        except psutil.NoSuchProcess:
            return
        self.killed[kind] += 1
        if kind in ("driver", "scheduler"):
            self._await_driver()
        if kind == "scheduler":
            self._start_cluster()

    def _await_driver(self) -> None:
        self.driver.wait(timeout=120)

    def mend(self) -> None:
        """Give the same command again if it has ended, though runs are missing."""
        if self.driver.poll() not in (None, 0):
            self.statuses[self.driver.returncode] += 1
            self._start_driver()

    def finish(self) -> pd.DataFrame:
        """Disturb nobody until everything is done; return the table."""
        for _ in range(PATIENCE):
            status = self.driver.wait(timeout=1200)
            self.statuses[status] += 1
            if status == 0:
                break
            self._start_driver()
        self.opened.close()
        assert status == 0, self.place.folder.joinpath("told").read_text(encoding="utf-8")[-3000:]
        until(lambda: not self._processes("ipykernel_launcher"))
        return table(self.place)

    def is_over(self) -> bool:
        """Whether the sweep has ended with everything done."""
        return self.driver.poll() == 0


def table(place: Place) -> pd.DataFrame:
    """Read a table without what differs between two runs of the same."""
    return pd.read_csv(place.table).drop(columns=CHANGING, errors="ignore")


def undisturbed(folder: Path, runs: int) -> pd.DataFrame:
    """Return the table of a sweep that nobody disturbs, in this folder."""
    place = Place(folder, [{"product": {"x": list(range(runs))}}])
    code, out, err = place.run("--workers", 2)
    assert code == 0, out + err
    return table(place)


def trial(folder: Path, whole: pd.DataFrame, kills: int, seed: int) -> Ordeal:
    """Disturb a sweep with up to so many kills; its table must be that of an undisturbed one."""
    ordeal = Ordeal(folder, len(whole), seed)
    with ordeal.opened:
        while ordeal.killed.total() < kills and not ordeal.is_over():
            ordeal.wait()
            if ordeal.is_over():
                break
            ordeal.kill()
            ordeal.mend()
        found = ordeal.finish()
    pd.testing.assert_frame_equal(found, whole)
    assert found.run.is_unique
    assert not list(ordeal.place.folder.glob("runs/*/*.part"))
    return ordeal


def main() -> None:
    """Run trials, each with another seed, until there were as many kills as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    killed: Counter[str] = Counter()
    seed = options.seed
    with tempfile.TemporaryDirectory() as folder:
        whole = undisturbed(Path(folder), options.runs)
    while killed.total() < options.kills:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            left = options.kills - killed.total()
            ordeal = trial(Path(folder), whole, left, seed)
        killed += ordeal.killed
        told = f"seed {seed}: {dict(ordeal.killed)} killed, statuses {dict(ordeal.statuses)}"
        print(f"{told}, {time.monotonic() - begun:.0f} s; the table is the same", flush=True)
        seed += 1
    print(f"{killed.total()} kills in all: {dict(killed)}")


if __name__ == "__main__":
    main()
