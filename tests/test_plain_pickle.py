"""Pickles as data: what they describe comes back, and nothing in them is ever called."""

import builtins
import collections
import contextlib
import copyreg
import datetime
import fractions
import os
import pickle
import pickletools
import struct
from pathlib import Path

import numpy as np
import pytest
from corrupting import corruptions
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sparselib.datasets import plain_pickle

# empty bytes are a call of `bytes` in old protocols
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(min_size=1),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.binary(min_size=1) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


def deep(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(deep, value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max(map(deep, value), default=0)
    return 0


@pytest.mark.slow
@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back_by_every_protocol(value: object, protocol: int) -> None:
    if deep(value) <= plain_pickle.DEPTH:
        assert plain_pickle.read(pickle.dumps(value, protocol)) == value


@given(
    array=arrays(st.sampled_from(["u1", "<i2", ">i4", "<i8", ">f4", "<f8"]), array_shapes()),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    order=st.sampled_from("CF"),
)
def test_arrays_come_back_by_every_protocol(array: np.ndarray, protocol: int, order: str) -> None:
    found = plain_pickle.read(pickle.dumps({"array": np.asarray(array, order=order)}, protocol))
    assert found["array"].dtype == array.dtype
    np.testing.assert_array_equal(found["array"], array)


def test_a_pickle_of_python_2_is_read() -> None:
    """Texts of Python 2 are bytes: operation SHORT_BINSTRING, which Python 3 never writes."""
    state = b"(K\x01K\x02K\x03\x86" + b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff"
    state += b"\xff\xffJ\xff\xff\xff\xffK\x00tb" + b"\x89U\x06abc\xfdef" + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR" + state
    data = b"\x80\x02}q\x01(U\x06labels](K\x03K\x04eU\x04data" + array + b"u."
    found = plain_pickle.read(data)
    assert found[b"labels"] == [3, 4]
    assert found[b"data"].tolist() == [list(b"abc"), list(b"\xfdef")]
    assert set(pickle.loads(data, encoding="bytes")) == set(found)


# --- nothing is called

TOUCH = "touch MARK"


class Reduced:
    """Asks for a call by whatever its protocol has for it."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


SYSTEM = b"cos\nsystem\n"
PAYLOADS = {
    "GLOBAL": SYSTEM + b"(S'touch MARK'\ntR.",
    "GLOBAL posix": b"cposix\nsystem\n(S'touch MARK'\ntR.",
    "GLOBAL builtins": b'c__builtin__\neval\n(S\'__import__("os").system("touch MARK")\'\ntR.',
    "GLOBAL dotted": b"\x80\x04cnumpy\nos.system\n(S'touch MARK'\ntR.",
    "GLOBAL numpy load": b"cnumpy\nload\n(S'MARK'\ntR.",
    "GLOBAL runstring": b"cnumpy.testing._private.utils\nrunstring\n"
    b"(S'import os; os.system(\"touch MARK\")'\n}tR.",
    "STACK_GLOBAL": b"\x80\x04" + short("os") + short("system") + b"\x93" + text(TOUCH) + b"\x85R.",
    "STACK_GLOBAL memo": b"\x80\x04"
    + short("os")
    + b"q\x000"
    + b"h\x00"
    + short("system")
    + b"\x93"
    + text(TOUCH)
    + b"\x85R.",
    "INST": b"(S'touch MARK'\nios\nsystem\n.",
    "OBJ": b"(" + SYSTEM + b"S'touch MARK'\no.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + text(TOUCH) + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n" + text(TOUCH) + b"\x85}\x92.",
    "REDUCE of a text": text("os.system") + text(TOUCH) + b"\x85R.",
    "BUILD setstate": b"ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__"
    + SYSTEM
    + b"sb"
    b"" + text(TOUCH) + b"b.",
    "BUILD ndarray": b"cnumpy\nndarray\n}X\x0c\x00\x00\x00__setstate__"
    + SYSTEM
    + b"sb"
    + text(TOUCH)
    + b"b.",
    "EXT1": b"\x80\x02\x82\xe7" + text(TOUCH) + b"\x85R.",
    "EXT2": b"\x80\x02\x83\xe7\x00" + text(TOUCH) + b"\x85R.",
    "EXT4": b"\x80\x02\x84\xe7\x00\x00\x00" + text(TOUCH) + b"\x85R.",
    "PERSID": b"Ptouch MARK\n.",
    "BINPERSID": b"\x80\x02" + text(TOUCH) + b"Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05\x97\x98.",
    "EMPTY_SET": b"\x80\x04\x8f.",
    "ADDITEMS": b"\x80\x04\x8f(K\x01\x90.",
    "FROZENSET": b"\x80\x04(K\x01\x91.",
    "DUP": SYSTEM + b"2" + text(TOUCH) + b"\x85R.",
    "POP_MARK": b"(" + SYSTEM + b"1" + SYSTEM + text(TOUCH) + b"\x85R.",
    "encode of another": b"c_codecs\nencode\n" + text("v9") + text("idna") + b"\x86R.",
    "module numpy, name os": b"cnumpy\nos\n.",
}


def test_the_payloads_have_every_operation_that_is_not_on_the_list() -> None:
    allowed = {
        *plain_pickle.LITERALS,
        *plain_pickle.BYTES,
        *plain_pickle.CONSTANTS,
        *plain_pickle.EMPTY,
        *plain_pickle.SHORT_TUPLES,
        *plain_pickle.STORE,
        *plain_pickle.FETCH,
        *plain_pickle.SILENT,
    }
    allowed |= {"MEMOIZE", "MARK", "POP", "STOP", "TUPLE", "LIST", "DICT"}
    allowed |= {"APPEND", "APPENDS", "SETITEM", "SETITEMS"}
    known = {operation.name for operation in pickletools.opcodes}
    attacked = {
        operation.name for data in PAYLOADS.values() for operation, *_ in pickletools.genops(data)
    }
    assert known - allowed <= attacked


@pytest.fixture
def registered() -> None:
    """Give `os.system` an extension code, as a program might have done before."""
    module = os.system.__module__
    copyreg.add_extension(module, "system", 0xE7)
    # once used, an extension comes from a cache and never passes `find_class`
    copyreg._extension_cache[0xE7] = os.system
    yield
    copyreg.remove_extension(module, "system", 0xE7)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_is_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "m"
    data = PAYLOADS[name]
    where = str(mark)
    # texts of a counted length keep it
    padded = TOUCH.replace("MARK", where)
    data = data.replace(text(TOUCH), text(padded)).replace(b"MARK", where.encode())
    with pytest.raises(plain_pickle.Refused):
        plain_pickle.read(data)
    assert not mark.exists()


@pytest.mark.usefixtures("registered")
def test_the_payloads_work_with_the_standard_module(tmp_path: Path) -> None:
    """What is refused above is no harmless text: `pickle.loads` carries several of them out."""
    for name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "BUILD setstate"):
        mark = tmp_path / name.replace(" ", "-")
        data = PAYLOADS[name].replace(text(TOUCH), text(f"touch {mark}"))
        pickle.loads(data.replace(b"MARK", str(mark).encode()))
        assert mark.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        os.getcwd,
        np.load,
        collections.OrderedDict(a=1),
        datetime.date(2000, 1, 1),
        fractions.Fraction(1, 3),
        Reduced(builtins.print, ("said",)),
        np.array([os.getcwd], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "u1")]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_are_refused_by_every_protocol(
    value: object, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(plain_pickle.Refused):
        plain_pickle.read(pickle.dumps({"data": value}, protocol))
    assert capsys.readouterr().out == ""


def test_a_list_within_itself_and_towers_of_lists_are_refused() -> None:
    for data in (b"]q\x00h\x00a.", b"(" * 5000 + b"l" * 5000 + b"."):
        with pytest.raises(ValueError, match="containers more than 8 deep"):
            plain_pickle.read(data)


def test_references_are_converted_once() -> None:
    """Eight lists of ten references each to the next: 10 ** 8 items, if each was copied."""
    data = b"(K\x01l"
    for place in range(7):
        data += b"q" + bytes([place]) + b"0](" + (b"h" + bytes([place])) * 10 + b"e"
    found = plain_pickle.read(data + b".")
    assert found[0][0] is found[9][9]


def test_damage_ends_in_a_value_error_only() -> None:
    array = np.random.default_rng(0).integers(256, size=(4, 30), dtype=np.uint8)
    for protocol in (2, 5):
        whole = pickle.dumps({b"data": array, b"labels": [1, 2, 3, 4]}, protocol)
        for damaged in corruptions(whole, 400, seed=protocol):
            with contextlib.suppress(ValueError):
                plain_pickle.read(damaged)
