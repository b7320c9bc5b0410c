"""Where runs are carried out: over TLS with certificates of one's own, and on loopback alone."""

import json
import subprocess

import psutil
import pytest
from sweeping import ROOT, Place, cluster, until

from sparselib.sweep import engine, workers
from sparselib.sweep.workers import Certificates, SchedulerError, Workers, connected

pytest.importorskip("distributed", reason="dask is not installed")

GRID = [{"product": {"x": [1, 2]}}]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Certificates as the book's recipe makes them."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["sh", str(ROOT / "book/clusters/certificates.sh"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 127 or "openssl: not found" in done.stderr:
        pytest.skip("there is no openssl")
    assert done.returncode == 0, done.stderr
    return folder


def options(folder):
    """Options of dask's commands, which are those of a sweep."""
    names = {"--tls-ca-file": "ca.pem", "--tls-cert": "cert.pem", "--tls-key": "key.pem"}
    return [part for option, name in names.items() for part in (option, str(folder / name))]


def test_what_cannot_be_used_is_named_as_it_was_given():
    error = OSError("no space left")
    assert workers._told(Workers(), error) == "workers here cannot be used: no space left"
    told = workers._told(Workers("tcp://127.0.0.1:1"), error)
    assert told == "the scheduler tcp://127.0.0.1:1 cannot be used: no space left"
    told = workers._told(Workers("tls://127.0.0.1:1"), error)
    assert told.endswith("no space left, or it does not accept these certificates")
    told = workers._told(Workers("tcp://127.0.0.1:1"), KeyError("op"))
    assert told.endswith("what listens there is none of this version of dask ('op')")


def test_a_worker_suffices_that_offers_as_much_as_a_run_claims():
    watch = engine._Watch(None, {"GPU": 2.0, "memory": 1.5}, print)
    assert watch._suffices({"resources": {"GPU": 2, "memory": 1.5, "disk": 1}})
    assert not watch._suffices({"resources": {"GPU": 1.9, "memory": 1.5}})
    assert not watch._suffices({"resources": {"GPU": 4}})
    assert engine._Watch(None, {}, print)._suffices({})


@pytest.mark.slow
def test_a_sweep_over_tls_makes_the_table_of_one_alone(tmp_path, authority):
    place = Place(tmp_path, GRID)
    with cluster(tmp_path, place.log, workers=1, protocol="tls", options=options(authority)) as at:
        assert at.address.startswith("tls://127.0.0.1:")
        code, _, err = place.run("--scheduler", at.address)
        assert code == 2
        assert "TLS needs certificates; give --tls-ca-file" in err
        code, _, err = place.run("--scheduler", at.address.replace("tls", "tcp"))
        assert code == 2
        assert err.splitlines()[-1].endswith("nothing was started")
        assert place.starts() == []
        code, out, err = place.run("--scheduler", at.address, *options(authority))
        assert code == 0, out + err
    assert place.rows() == [1, 2]


@pytest.mark.slow
def test_certificates_of_another_authority_are_refused_and_dasks_configuration_is_read(
    tmp_path, authority
):
    place = Place(tmp_path, GRID)
    other = tmp_path / "other"
    command = ["sh", str(ROOT / "book/clusters/certificates.sh"), str(other)]
    subprocess.run(command, capture_output=True, check=True)
    with cluster(tmp_path, place.log, workers=1, protocol="tls", options=options(authority)) as at:
        code, _, err = place.run("--scheduler", at.address, *options(other))
        assert code == 2
        assert "does not accept these certificates" in err
        assert "Traceback" not in err
        files = dict(zip(["CA_FILE", "CLIENT__CERT", "CLIENT__KEY"], options(authority)[1::2]))
        named = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": file for name, file in files.items()}
        code, out, err = place.run_from_a_shell("--scheduler", at.address, environment=named)
        assert code == 0, out + err
    assert place.rows() == [1, 2]


def refused(**given):
    with pytest.raises(SchedulerError) as error, connected(Workers(**given), 1):
        raise AssertionError("connected")
    return str(error.value)


def test_plain_tcp_to_another_machine_is_refused_unless_told(monkeypatch):
    address = "tcp://203.0.113.1:8786"
    assert "whoever reaches it could run programs as you" in refused(scheduler=address)
    tried = []
    monkeypatch.setattr(workers, "_knock", lambda address: tried.append(address) or 1 / 0)
    refused(scheduler=address, plain=True)
    assert tried == [address]


def test_what_is_no_certificate_is_told_by_name(tmp_path, authority):
    address = "tls://127.0.0.1:1"
    missing = Certificates(tmp_path / "no.pem", tmp_path / "no.pem")
    assert "no.pem is not there" in refused(scheduler=address, certificates=missing)
    (tmp_path / "bad.pem").write_text("no certificate", encoding="utf-8")
    bad = Certificates(tmp_path / "bad.pem", tmp_path / "bad.pem")
    assert "certificates cannot be read" in refused(scheduler=address, certificates=bad)
    good = Certificates(authority / "ca.pem", authority / "cert.pem", authority / "key.pem")
    told = refused(scheduler="tcp://127.0.0.1:1", certificates=good)
    assert "certificates are for an address that begins with tls://" in told


def test_options_of_tls_that_lack_another_start_nothing(tmp_path):
    place = Place(tmp_path, GRID)
    for given in (["--tls-ca-file", "a"], ["--tls-key", "a", "--scheduler", "tls://localhost"]):
        code, _, err = place.run(*given)
        assert code == 2
        assert "--tls-ca-file and --tls-cert belong together" in err


def listening(process):
    """Addresses on which a process and its children listen."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            places = one.net_connections("inet")
        except psutil.Error:
            continue
        found |= {place.laddr for place in places if place.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.slow
def test_a_cluster_started_here_listens_on_loopback_and_lets_nobody_else_in(tmp_path):
    place = Place(tmp_path, [{"product": {"x": [1]}, "fixed": {"pause": 4.0}}])
    sweep = place.start("--workers", 1)
    until(place.starts)
    found = listening(psutil.Process(sweep.pid))
    out, err = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, out + err
    assert len(found) >= 2
    assert {at.ip for at in found} == {"127.0.0.1"}


@pytest.mark.slow
@pytest.mark.skipif(not workers.is_private(), reason="cryptography is not installed")
def test_another_user_of_the_machine_cannot_send_programs_to_the_workers():
    from distributed import Client
    from distributed.security import Security

    with connected(Workers(processes=1), 1) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client.submit(json.loads, "7").result(timeout=60) == 7
        plain = address.replace("tls", "tcp")
        for place, security in ((plain, None), (address, Security.temporary())):
            with pytest.raises((OSError, ValueError, RuntimeError)):
                Client(place, security=security, timeout=2).close()
