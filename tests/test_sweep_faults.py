"""Whatever dies, the other runs are done, and nothing is recorded twice."""

import json
import shutil
import subprocess
from contextlib import ExitStack

import pytest
from sweeping import Place, alive, cluster, kill, launch_worker, parent, result, until

from sparselib.sweep import engine
from sparselib.sweep.grid import read
from sparselib.sweep.workers import Workers, connected

pytest.importorskip("distributed", reason="dask is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

on_shared_workers = pytest.mark.xdist_group("workers")
GRID = [{"product": {"x": [1, 2, 3, 4]}, "fixed": {"pause": 1.0}}]


def finished(process):
    code, out, err = result(process)
    return code, out + err


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two workers with their nannies, for all tests that leave at least one pair alive."""
    folder = tmp_path_factory.mktemp("cluster")
    with cluster(folder, folder / "log") as running:
        yield running


@pytest.fixture
def crowd(tmp_path, shared):
    """A sweep that those workers carry out; no run has started."""
    shared.log.unlink(missing_ok=True)
    return Place(tmp_path, GRID, log=shared.log)


@on_shared_workers
@pytest.mark.parametrize("and_nanny", [False, True])
def test_a_worker_is_killed(crowd, shared, and_nanny):
    place = crowd
    sweep = place.start("--scheduler", shared.address)
    worker = until(place.starts)[0]["worker"]
    nanny = parent(worker)
    if and_nanny:
        kill(nanny)
    kill(worker)
    code, told = finished(sweep)
    assert code == 0, told
    assert place.rows() == [1, 2, 3, 4]
    assert len(place.starts()) > 4


def recorded(place):
    """Numbers x of the runs that are complete."""
    paths = place.folder.glob("runs/*/*.ipynb")
    rows = [path.with_suffix(".json") for path in paths if path.stem.isalnum()]
    return [json.loads(row.read_text(encoding="utf-8"))["x"] for row in rows]


def interrupt(place, *options):
    """Kill the client when something is done; give the same command again."""
    sweep = place.start(*options)
    until(lambda: recorded(place))
    kill(sweep.pid)
    sweep.communicate()
    done = recorded(place)
    code, out, err = place.run(*options)
    assert code == 0, out + err
    started = [start["x"] for start in place.starts()]
    assert {x: started.count(x) for x in done} == dict.fromkeys(done, 1)
    assert place.rows() == [1, 2, 3, 4]


def test_the_client_is_killed(tmp_path):
    place = Place(tmp_path, GRID)
    interrupt(place, "--workers", 1)
    kernels = [start["kernel"] for start in place.starts()]
    until(lambda: not any(map(alive, kernels)))


@on_shared_workers
def test_the_client_of_a_named_scheduler_is_killed(crowd, shared):
    interrupt(crowd, "--scheduler", shared.address)


def test_a_kernel_dies(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1, 2]}}, {"points": [{"x": 3, "mode": "die"}]}])
    code, out, _ = place.run("--workers", 1)
    assert code == 1
    assert "lost: x=3 mode=die\n  DeadKernelError" in out
    assert place.rows() == [1, 2]


@on_shared_workers
def test_a_run_always_kills_its_worker(crowd, shared):
    crowd.write(grid=[{"points": [{"x": 0, "mode": "murder"}]}, {"product": {"x": [1, 2, 3]}}])
    code, told = finished(crowd.start("--scheduler", shared.address))
    assert code == 1
    assert "lost: x=0 mode=murder\n  KilledWorker" in told
    assert crowd.rows() == [1, 2, 3]


def can_mount():
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "x",
        "/mnt",
    ]
    return shutil.which("unshare") and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no file system of one's own may be mounted here")
def test_the_disk_of_the_table_is_full(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1, 2, 3]}}])
    place.table.parent.mkdir()
    full = (
        f"mount -t tmpfs -o size=4k tmpfs {place.table.parent} && "
        f'head -c 4096 /dev/zero > {place.table.parent}/filler; exec "$@"'
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", full, "sh"]
    code, _, err = place.run_from_a_shell("--workers", 0, command=command)
    assert code == 1
    assert "No space left on device" in err
    assert "its rows are safe in" in err
    assert len(place.starts()) == 3
    code, out, _ = place.run("--workers", 0)
    assert code == 0
    assert place.rows() == [1, 2, 3]
    assert len(place.starts()) == 3, out


def test_two_sweeps_of_one_file_at_once(tmp_path):
    place = Place(tmp_path, GRID)
    sweeps = [place.start("--workers", workers) for workers in (0, 1)]
    assert [finished(sweep)[0] for sweep in sweeps] == [0, 0]
    assert place.rows() == [1, 2, 3, 4]
    assert sorted(start["x"] for start in place.starts()) == [1, 2, 3, 4]


def test_the_scheduler_dies(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1, 2, 3]}, "fixed": {"pause": 1.5}}])
    with cluster(tmp_path, place.log, workers=1, nannies=False) as scheduler:
        sweep = place.start("--scheduler", scheduler.address)
        until(lambda: recorded(place))
        kill(scheduler.pid)
        code, told = finished(sweep)
    assert code == 1
    assert "Traceback" not in told
    assert "the scheduler is gone; what is done is kept, the same command goes on" in told
    assert 1 in place.rows()
    code, told, _ = place.run("--workers", 0)
    assert code == 0, told
    assert place.rows() == [1, 2, 3]


@pytest.mark.parametrize("status", ["connecting", "closed"])
def test_nothing_is_sent_to_a_scheduler_that_is_gone(tmp_path, status):
    runs = read(Place(tmp_path, GRID).file, tmp_path / "runs").runs
    with cluster(tmp_path, tmp_path / "log", workers=0) as scheduler:
        workers = Workers(scheduler.address)
        with connected(workers, len(runs)) as client:
            kill(scheduler.pid)
            until(lambda: client.status == status)
            watch = engine._Watch(client, {}, print)
            with pytest.raises(engine.SchedulerLostError, match="the scheduler is gone"):
                list(engine._attempt(client, runs, workers, watch, wait=False))


@pytest.mark.parametrize(
    ("claims", "offered", "told"),
    [
        ({}, [], "0 workers and none"),
        ({"GPU": 2}, ["GPU=1"], "1 workers and none that offers GPU 2"),
    ],
)
def test_runs_that_no_worker_can_take_wait_and_say_so(tmp_path, claims, offered, told):
    place = Place(tmp_path, [{"points": [{"x": 1}]}], resources=claims)
    with ExitStack() as opened, cluster(tmp_path, place.log, workers=0) as scheduler:

        def start_worker(resources):
            started = launch_worker(tmp_path, place.log, "--no-nanny", "--resources", resources)
            opened.callback(started.end)
            return started

        for resources in offered:
            start_worker(resources)
        sweep = place.start("--scheduler", scheduler.address)
        sentence = f"the scheduler has {told}: runs wait until one comes"
        until(lambda: sentence in sweep.complaints())
        able = start_worker("GPU=2")
        code, _ = finished(sweep)
        assert [start["worker"] for start in place.starts()] == [able.pid]
    assert code == 0
    assert place.rows() == [1]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "htp://here:8786", "nonsense"])
def test_there_is_no_scheduler(tmp_path, address):
    code, _, err = Place(tmp_path, [{}]).run("--scheduler", address)
    assert code == 2
    assert f"the scheduler {address} cannot be used" in err
    assert err.splitlines()[-1].endswith("nothing was started")
    assert "Traceback" not in err


def test_what_a_page_writes_wrongly_is_reported_with_its_run(tmp_path):
    modes = ["half", "lie", "ok", "hang"]
    points = [{"x": x, "mode": mode} for x, mode in enumerate(modes)]
    points[-1]["pause"] = 60.0
    place = Place(tmp_path, [{"points": points}], timeout=4)
    code, out, _ = place.run("--workers", 0)
    assert code == 1
    assert "failed: x=0 mode=half pause=0.0\n  the row of results that it wrote is no JSON" in out
    assert "x=1 mode=lie pause=0.0\n  its row has x = 2, but it was run with 1" in out
    assert "x=3 mode=hang pause=60.0\n  a cell took more than 4 s" in out
    assert place.rows() == [2]
    assert {start["transport"] for start in place.starts()} == {"ipc"}
