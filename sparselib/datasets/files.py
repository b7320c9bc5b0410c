"""Where data lies: the search order, the checksums and the download."""

import gzip
import hashlib
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path

SOURCES = {
    "mnist": (
        "http://yann.lecun.com/exdb/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "higgs": (
        "https://archive.ics.uci.edu/ml/machine-learning-databases/00280/",
    ),
    "apnea-ecg": ("https://physionet.org/files/apnea-ecg/1.0.0/",),
    "pretrained-cifar10": (
        "https://raw.githubusercontent.com/akamaster/pytorch_resnet_cifar10/"
        "d5489e8995e8/pretrained_models/",
    ),
    "tinyshakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b/data/tinyshakespeare/",
    ),
}

SHA256 = {
    "mnist/train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "mnist/train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "mnist/t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "mnist/t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
    "fashion-mnist/train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "fashion-mnist/train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
    "fashion-mnist/t10k-images-idx3-ubyte.gz": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
    ),
    "fashion-mnist/t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
    "apnea-ecg/SHA256SUMS.txt": "970d643ec848af6bbc2bda148d1f8e165d439514948b23e5df76e962ba7a5b61",
    "pretrained-cifar10/resnet20-12fca82f.th": (
        "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"
    ),
    "pretrained-cifar10/resnet56-4bfd9763.th": (
        "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"
    ),
    "tinyshakespeare/input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "higgs/HIGGS.csv.gz": "ea302c18164d4e3d916a1e2e83a9a8d07069fa6ebc7771e4c0540d54e593b698",
    "higgs/HIGGS_subset35298.csv.gz": (
        "349a4327922ac108a075b59b84eef6bc50a7a210bf1bcc351e4d0e27c015faf3"
    ),
}

# SHA-256 of what the files hold once they are unpacked, which other ways of packing do not change
CONTENT = {
    "mnist/train-images-idx3-ubyte.gz": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "mnist/train-labels-idx1-ubyte.gz": (
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "mnist/t10k-images-idx3-ubyte.gz": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "mnist/t10k-labels-idx1-ubyte.gz": (
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
    "fashion-mnist/train-images-idx3-ubyte.gz": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "fashion-mnist/train-labels-idx1-ubyte.gz": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "fashion-mnist/t10k-images-idx3-ubyte.gz": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "fashion-mnist/t10k-labels-idx1-ubyte.gz": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
    "higgs/HIGGS_subset35298.csv.gz": (
        "1dad0a86a0c613c9e5b917da90950c06e8431feaf5aa85b5b5a9796e175f9433"
    ),
}

# data sets whose files may be packed or not and named in capitals, for their content is checked
CHECKED_BY_CONTENT = ("isolet", "uci-epilepsy")

# where torchvision puts the same files
ELSEWHERE = {
    "mnist": ("mnist", "MNIST", "MNIST/raw"),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
}

# files that the source of their data set does not have
NOT_FETCHED = ("higgs/HIGGS_subset35298.csv.gz",)

EMBEDDED = {
    "mnist": "datasets.digits() or datasets.synthetic.images()",
    "fashion-mnist": "datasets.digits() or datasets.synthetic.images()",
    "higgs": "datasets.synthetic.collisions()",
    "isolet": "datasets.synthetic.letters()",
    "physionet": "datasets.synthetic.signals()",
    "tinyshakespeare": "datasets.coriolanus()",
    "uci-epilepsy": "datasets.synthetic.signals()",
    "apnea-ecg": 'datasets.apnea_ecg("synthetic")',
}

Folder = str | os.PathLike[str] | None

_verified: set[tuple[Path, int, int, str]] = set()


class DataUnavailable(OSError):
    """A file lies in no folder that was searched, and no source could deliver it."""


def folders(folder: Folder = None) -> list[Path]:
    """List the folders that are searched, in order.

    They are `folder`, the environment variable `SPARSELIB_DATA`, and `data/raw` of the checkout.
    A package that was installed without its checkout has the cache folder of the user instead of
    the last, as `pooch.os_cache("sparselib")` gives it.
    """
    named = [os.fspath(folder or ""), os.environ.get("SPARSELIB_DATA", "")]
    return [Path(name).expanduser() for name in named if name] + [_home()]


def locate(dataset: str, filename: str, folder: Folder = None) -> Path | None:
    """Return the first `<folder>/<dataset>/<filename>` that exists, unchecked, or None.

    Nothing is fetched. A file whose content is checked is found unpacked or packed as well, in
    capitals, and MNIST and Fashion-MNIST where torchvision puts them, `MNIST/raw`.
    """
    for place in folders(folder):
        exact = place / dataset / filename
        if exact.is_file():
            return exact
        if f"{dataset}/{filename}" in CONTENT or dataset in CHECKED_BY_CONTENT:
            path = next(_spelled_otherwise(place, dataset, filename), None)
            if path:
                return path
    return None


def find(
    dataset: str,
    filename: str,
    folder: Folder = None,
    *,
    sources: Sequence[str] | None = None,
    sha256: str | None = None,
) -> Path:
    """Return the path of a file whose content has been checked; fetch it if it lies nowhere.

    Parameters
    ----------
    dataset, filename
        The file is `<folder>/<dataset>/<filename>`.
    folder
        Searched first, and receives a download; see `folders` for the rest of the order.
        Without it a download goes to `SPARSELIB_DATA` if that can be written to, else to the last
        folder of the order.
    sources
        Addresses to fetch from, tried in turn, each ending in a slash. Official ones by default.
    sha256
        The checksum to demand. The known one by default; a file without one is found, not fetched.

    Raises
    ------
    ValueError
        If a file is there but its checksum is wrong. It is neither deleted nor replaced.
    DataUnavailable
        If the file lies nowhere and cannot be fetched.
    """
    key = f"{dataset}/{filename}"
    known = sha256 or SHA256.get(key)
    addresses = SOURCES.get(dataset, ()) if sources is None else sources
    if key in NOT_FETCHED:
        addresses = ()
    path = locate(dataset, filename, folder)
    if path is None:
        path = _fetch(dataset, filename, folder, addresses, known)
    if known:
        _verify(
            path,
            known,
            None if sha256 else CONTENT.get(key),
            again=bool(addresses),
        )
    return path


def open_content(path: Path) -> BufferedIOBase:
    """Open a file to read what it holds, unpacked if it is gzip, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def read_content(path: Path) -> bytes:
    """Read what a file holds, unpacked if it is gzip.

    Raises
    ------
    ValueError
        If it is gzip, but cut short or damaged.
    """
    try:
        with open_content(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is refused: it is no complete gzip file ({error})."
        ) from error


def read_checksums(path: Path) -> dict[str, str]:
    """Read a list of SHA-256 checksums by file name, as `sha256sum` writes and reads it.

    A line is ``<digest> <name>``, ``<digest> *<name>`` or ``SHA256 (<name>) = <digest>``; `./`
    before a name, capitals in a digest and empty lines mean nothing.

    Raises
    ------
    ValueError
        If a line is none of these, or a file has two checksums.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(
            r"(?P<digest>[0-9a-fA-F]{64})\s+\*?(?P<name>\S.*)", line.strip()
        )
        match = match or re.fullmatch(
            r"SHA256 \((?P<name>.+)\) = (?P<digest>[0-9a-fA-F]{64})",
            line.strip(),
        )
        name = match["name"].removeprefix("./") if match else ""
        digest = match["digest"].lower() if match else ""
        if not name or found.get(name, digest) != digest:
            raise ValueError(
                f"{path} is refused: line {number} is no SHA-256 with a file name of its own, but "
                f"{line.strip()[:80]!r}."
            )
        found[name] = digest
    return found


def _home() -> Path:
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / "data" / "raw"
    return derived()


def _spelled_otherwise(
    place: Path, dataset: str, filename: str
) -> Iterator[Path]:
    """Yield the files of other names that may hold the same, those closest to it first."""
    plain = filename.removesuffix(".gz")
    dotted = plain.replace("-idx", ".idx")
    names = [filename, plain, f"{plain}.gz", dotted, f"{dotted}.gz"]
    for inner in ELSEWHERE.get(dataset, (dataset,)):
        folder = place / inner
        for name in names:
            if (folder / name).is_file():
                yield folder / name
        present = sorted(folder.iterdir()) if folder.is_dir() else []
        lower = [name.lower() for name in names]
        yield from (
            path
            for path in present
            if path.name.lower() in lower and path.is_file()
        )


def _content_digest(path: Path) -> str:
    """Return the SHA-256 of what a file holds; in texts, all ends of lines count as one."""
    try:
        content = read_content(path)
    except ValueError as error:
        return str(error)
    if ".csv" in path.name.lower():
        content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        content = content.rstrip(b"\n") + b"\n"
    return hashlib.sha256(content).hexdigest()


def _verify(path: Path, sha256: str, content: str | None, again: bool) -> None:
    status = path.stat()
    key = (path.resolve(), status.st_size, status.st_mtime_ns, sha256)
    if key in _verified:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256 and (
        content is None or _content_digest(path) != content
    ):
        advice = (
            "Delete it to have it fetched again, or pass" if again else "Pass"
        )
        raise ValueError(
            f"{path} is refused: its SHA-256 is {found} ({status.st_size:,} bytes), but {sha256} "
            f"was expected, so the file is damaged, cut short or another version. "
            f"{advice} folder= with a good copy."
        )
    _verified.add(key)


def derived() -> Path:
    """Return the cache folder of the user, for what is computed from data and can be again."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # in notebooks pooch's bar warns that it has no widgets
        import pooch

    return Path(pooch.os_cache("sparselib"))


def _destination(folder: Folder) -> Path:
    places = folders(folder)
    if folder or _writable(places[0]):
        return places[0]
    return places[-1]


def _writable(folder: Path) -> bool:
    nearest = next(
        place
        for place in (folder, *folder.absolute().parents)
        if place.exists()
    )
    return os.access(nearest, os.W_OK)


def _fetch(
    dataset: str,
    filename: str,
    folder: Folder,
    sources: Sequence[str],
    sha256: str | None,
) -> Path:
    """Try each source in turn; pooch checks the content and only then gives the file its name."""
    failures = []
    if sha256:
        import pooch
        from requests import RequestException

        for source in sources:
            store = pooch.create(
                path=_destination(folder) / dataset,
                base_url=source,
                registry={filename: sha256},
                retry_if_failed=3,
                allow_updates=False,
            )
            try:
                return Path(store.fetch(filename, downloader=_download))
            except (ConnectionError, RequestException, ValueError) as error:
                failures.append(f"{source}{filename} failed ({error})")
    searched = ", ".join(str(place) for place in folders(folder))
    raise DataUnavailable(
        f"{dataset}/{filename} lies in none of the folders {searched}; "
        f"{'; '.join(failures) or 'it has no public source'}. Place the file in one of the folders "
        f"yourself, or use the embedded {EMBEDDED.get(dataset, 'datasets.synthetic')} instead."
    )


def _download(url: str, output_file: str, store: object) -> None:
    """Fetch one address, and keep pooch from repeating what would fail again.

    pooch repeats whatever raises a `requests` exception; the built-in `ConnectionError` ends it.
    """
    import pooch
    import requests
    from urllib3.exceptions import MaxRetryError

    download = pooch.HTTPDownloader(
        progressbar=True,
        chunk_size=2**16,
        timeout=(5, 30),
        headers={"Accept-Encoding": "identity"},
    )
    try:
        download(url, output_file, store)
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if 400 <= status < 500 and status != 429:
            raise ConnectionError(str(error)) from error
        raise
    except requests.ConnectionError as error:
        cause = error.args[0] if error.args else None
        if isinstance(cause, MaxRetryError):
            raise ConnectionError(str(cause.reason)) from error
        raise
    # the temporary file of pooch can be read by its owner only
    os.chmod(output_file, 0o644)
