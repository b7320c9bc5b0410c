"""Where files lie: the search order, checked content, honest downloads."""

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sparselib.datasets import DataUnavailable, files

BODY = bytes(range(256)) * 64
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """Search nothing but the test's own folder and the checkout."""
    monkeypatch.setenv("SPARSELIB_DATA", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def place(folder, body=BODY, name="file.bin"):
    (folder / "toy").mkdir(parents=True, exist_ok=True)
    (folder / "toy" / name).write_bytes(body)
    return folder / "toy" / name


def test_search_order(monkeypatch, tmp_path):
    explicit, named = tmp_path / "explicit", tmp_path / "named"
    monkeypatch.setenv("SPARSELIB_DATA", str(named))
    assert files.folders(explicit)[:2] == [explicit, named]
    second = place(named)
    assert files.find("toy", "file.bin", explicit, sha256=SHA) == second
    first = place(explicit)
    assert files.find("toy", "file.bin", explicit, sha256=SHA) == first
    assert files.find("toy", "file.bin", sha256=SHA) == second


def test_last_folder_is_data_raw_of_the_checkout(alone, root):
    assert files.folders() == [root / "data" / "raw"]


def test_wrong_content_is_refused_by_name_and_left_alone(alone, serve):
    bad = place(alone, BODY[:-1])
    url, log = serve(answer(BODY))
    found = hashlib.sha256(BODY[:-1]).hexdigest()
    with pytest.raises(ValueError, match=f"{bad} is refused: its SHA-256 is {found}.*{SHA}.*elete"):
        files.find("toy", "file.bin", alone, sha256=SHA, sources=[url])
    assert bad.read_bytes() == BODY[:-1]
    assert not log


def test_only_what_can_be_fetched_again_may_be_deleted(alone, serve):
    place(alone, BODY[:-1])
    with pytest.raises(ValueError, match="Pass folder= with a good copy") as caught:
        files.find("toy", "file.bin", alone, sha256=SHA)
    assert "elete" not in str(caught.value)
    (alone / "higgs").mkdir()
    (alone / "higgs" / "HIGGS_subset35298.csv.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="is refused: its SHA-256") as caught:
        files.find("higgs", "HIGGS_subset35298.csv.gz", alone)
    assert "elete" not in str(caught.value)


def test_looking_fetches_nothing(alone, serve, monkeypatch):
    url, log = serve(answer(BODY))
    for dataset in ("mnist", "higgs", "apnea-ecg"):
        monkeypatch.setitem(files.SOURCES, dataset, (url,))
    for key in files.SHA256:
        dataset, name = key.split("/")
        assert files.locate(dataset, name, alone) is None
    assert log == []
    assert list(alone.iterdir()) == []


# --- lists of checksums

OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        f"{SHA} a.dat\n{OTHER} b.dat\n",
        f"{SHA}  a.dat\n{OTHER}  b.dat\n",
        f"{SHA} *a.dat\n{OTHER} *b.dat\n",
        f"{SHA}  ./a.dat\n{OTHER} *./b.dat\n",
        f"{SHA.upper()} a.dat\r\n\r\n{OTHER} b.dat\r\n",
        f"\n\n{OTHER} b.dat\n  \n{SHA} a.dat",
        f"\ufeff{SHA} a.dat\n{OTHER} b.dat\n",
        f"SHA256 (a.dat) = {SHA}\nSHA256 (b.dat) = {OTHER}\n",
        f"{SHA} a.dat\n{SHA} a.dat\n{OTHER} b.dat\n",
    ],
)
def test_a_list_of_checksums_is_read_in_every_spelling(tmp_path, text):
    path = tmp_path / "SHA256SUMS.txt"
    path.write_bytes(text.encode())
    assert files.read_checksums(path) == {"a.dat": SHA, "b.dat": OTHER}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{SHA[:-1]} a.dat\n", 1),
        (f"{SHA} a.dat\n{SHA}\n", 2),
        (f"{SHA} a.dat\n{OTHER} a.dat\n", 2),
        (f"{SHA[:-1]}g a.dat\n", 1),
        ("<html>\n", 1),
    ],
)
def test_a_line_that_is_no_checksum_is_refused_by_number(tmp_path, text, line):
    path = tmp_path / "SHA256SUMS.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path} is refused: line {line} is no SHA-256"):
        files.read_checksums(path)


def test_any_flipped_byte_is_refused(alone):
    for position in range(0, len(BODY), 1777):
        flipped = bytearray(BODY)
        flipped[position] ^= 1
        place(alone, bytes(flipped), f"{position}.bin")
        with pytest.raises(ValueError, match=f"{position}.bin is refused"):
            files.find("toy", f"{position}.bin", alone, sha256=SHA)


def test_a_check_is_remembered_until_size_or_time_changes(alone):
    path = place(alone)
    files.find("toy", "file.bin", alone, sha256=SHA)
    before = path.stat()
    path.write_bytes(BODY[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files.find("toy", "file.bin", alone, sha256=SHA) == path
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(ValueError, match="is refused"):
        files.find("toy", "file.bin", alone, sha256=SHA)


# --- downloads from a real server


def answer(body, status=200, announced=None):
    def respond(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if announced is None else announced))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


@pytest.fixture
def serve():
    """Start servers on this machine; each gives its answers in turn, then repeats the last."""
    servers = []

    def start(*answers):
        log = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                log.append((self.path, self.headers["Accept-Encoding"]))
                answers[min(len(log), len(answers)) - 1](self)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/", log

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def waits(monkeypatch):
    """Record the pauses between attempts instead of sitting through them."""
    pauses = []
    monkeypatch.setattr("pooch.core.time.sleep", pauses.append)
    return pauses


def dead():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def fetch(folder, *sources):
    return files.find("toy", "file.bin", folder, sha256=SHA, sources=sources)


def test_download(alone, serve, capfd):
    url, log = serve(answer(BODY))
    path = fetch(alone, url)
    assert path == alone / "toy" / "file.bin"
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o777 == 0o644
    # a server that unpacks .gz on the way would break every checksum
    assert log == [("/file.bin", "identity")]
    assert "100%" in capfd.readouterr().err
    assert fetch(alone, url) == path
    assert len(log) == 1
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_download_goes_to_the_named_folder(monkeypatch, alone, serve):
    monkeypatch.setenv("SPARSELIB_DATA", str(alone / "new"))
    path = files.find("toy", "file.bin", sha256=SHA, sources=[serve(answer(BODY))[0]])
    assert path == alone / "new" / "toy" / "file.bin"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (answer(BODY[:5000], announced=len(BODY)), "IncompleteRead"),
        (answer(BODY[:5000]), "does not match the known hash"),
        (answer(BODY[::-1]), "does not match the known hash"),
        (answer(b"", status=503), "503"),
    ],
    ids=["cut", "short", "wrong", "server error"],
)
def test_bad_download_is_tried_again_then_refused(alone, serve, waits, bad, sentence):
    url, log = serve(bad)
    with pytest.raises(DataUnavailable, match=sentence):
        fetch(alone, url)
    assert len(log) == 4
    assert waits == [1, 2, 3]
    assert not list((alone / "toy").iterdir())


def test_server_that_recovers(alone, serve, waits):
    url, log = serve(answer(b"", 500), answer(BODY[:99], announced=len(BODY)), answer(BODY))
    assert fetch(alone, url).read_bytes() == BODY
    assert len(log) == 3
    assert waits == [1, 2]


def test_dead_mirror_is_passed_over_at_once(alone, serve, waits):
    absent, log = serve(answer(b"", 404))
    assert fetch(alone, dead(), absent, serve(answer(BODY))[0]).read_bytes() == BODY
    assert len(log) == 1
    assert waits == []


@pytest.mark.slow
def test_killed_download_leaves_no_file_under_the_final_name(alone, serve):
    released = threading.Event()

    def stall(handler):
        answer(BODY[:9000], announced=len(BODY))(handler)
        handler.wfile.flush()
        released.wait(30)

    url, log = serve(stall)
    call = f"find('toy', 'file.bin', {str(alone)!r}, sha256={SHA!r}, sources=[{url!r}])"
    program = f"from sparselib.datasets.files import find; {call}"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 300
        while not log and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        process.kill()
    released.set()
    assert log
    assert files.locate("toy", "file.bin", alone) is None
    good, _ = serve(answer(BODY))
    assert fetch(alone, good).read_bytes() == BODY


def test_offline_error_says_everything(alone, root):
    sources = ["http://mirror.invalid/mnist/", dead()]
    with pytest.raises(DataUnavailable) as caught:
        files.find("mnist", "train-images-idx3-ubyte.gz", alone, sha256=SHA, sources=sources)
    text = str(caught.value)
    assert "mnist/train-images-idx3-ubyte.gz lies in none of" in text
    for part in (alone, root / "data" / "raw", *sources, "datasets.digits()"):
        assert str(part) in text
    assert isinstance(caught.value, OSError)


def test_file_without_a_source_is_only_found(alone):
    with pytest.raises(DataUnavailable, match=r"no public source.*datasets\.synthetic"):
        files.find("toy", "file.bin", alone)
    path = place(alone, b"anything")
    assert files.find("toy", "file.bin", alone) == path


@pytest.mark.slow
def test_import_is_light():
    program = "import sys, sparselib.datasets; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "sparselib.datasets.tabular" in loaded
    assert not {"pooch", "requests", "pandas", "sklearn"} & set(loaded)


def test_a_file_is_hashed_again_only_when_it_has_changed(alone, monkeypatch):
    hashed = []

    def counted(*arguments):
        hashed.append(arguments)
        return digest(*arguments)

    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", counted)
    path = alone / "toy" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(BODY)
    for _ in range(2):
        assert files.find("toy", "file.bin", alone, sha256=SHA) == path
    assert len(hashed) == 1
    path.write_bytes(BODY[:-1])
    with pytest.raises(ValueError, match="is refused: its SHA-256 is"):
        files.find("toy", "file.bin", alone, sha256=SHA)
    assert len(hashed) == 2
