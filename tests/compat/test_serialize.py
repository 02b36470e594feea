"""Contract, section 4: objects and bytes."""

from __future__ import annotations

import io
import pickle
import sys

import cloudpickle
import numpy as np
import pandas as pd
import polars as pl
import pytest

from proxystore.proxy import Proxy, is_resolved
from proxystore.serialize import (
    BytesLike,
    CorruptDataError,
    SerializationError,
    deserialize,
    is_bytes_like,
    serialize,
)


class Text(str):
    """A subclass that must come back as itself."""


class ImportedFactory:
    def __call__(self):
        raise AssertionError("was called")


class Refuses:
    def __reduce__(self):
        raise ValueError("not me")


@pytest.mark.parametrize("value", [b"", bytearray(b"x"), memoryview(b"x")])
def test_bytes_likes_are_recognized(value):
    assert is_bytes_like(value)


@pytest.mark.parametrize("value", ["text", 1, None, [b"x"]])
def test_others_are_not(value):
    assert not is_bytes_like(value)


@pytest.mark.parametrize("value", [b"", bytearray(b"x"), memoryview(b"x"), "text", 1])
def test_bytes_like_is_a_type_that_can_be_asked_about(value):
    assert isinstance(value, BytesLike) is is_bytes_like(value)


def test_serialization_error_is_an_exception_of_its_own():
    assert issubclass(SerializationError, Exception)
    assert not issubclass(SerializationError, (ValueError, TypeError))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="any sized buffer counts since 3.12")
def test_an_array_is_not_bytes_like_before_python_3_12():
    assert not is_bytes_like(np.zeros(3))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        2**100,
        1.5,
        "",
        "newline\nand ünïcode",
        "lone surrogate \ud800",
        b"",
        b"PK\nnot a pickle",
        bytearray(b"mutable"),
        [1, [2, (3, {"four": {5}})]],
        Text("subclass"),
        frozenset({1, 2}),
        slice(1, 2),
        Exception("with", "args"),
    ],
    ids=repr,
)
def test_what_is_serialized_comes_back(value):
    data = serialize(value)
    assert type(data) is bytes
    again = deserialize(data)
    assert type(again) is type(value)
    assert again == value or repr(again) == repr(value)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_bytes_like_is_accepted(wrap):
    assert deserialize(wrap(serialize([1, 2]))) == [1, 2]


def test_functions_without_a_name_to_import_travel_by_value():
    offset = 3
    add = deserialize(serialize(lambda x: x + offset))
    assert add(1) == 4


def test_a_memoryview_comes_back_as_bytes():
    assert deserialize(serialize(memoryview(b"abc"))) == b"abc"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(12)[::2],
        np.zeros((0, 3)),
        np.array(5),
        np.array(["a", None], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["2026-11-23"], dtype="datetime64[D]"),
        np.arange(3, dtype=">i4"),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_keep_dtype_shape_order_and_can_be_written_to(array):
    again = deserialize(serialize(array))
    assert again.dtype == array.dtype
    if array.flags.contiguous:
        assert again.flags.f_contiguous == array.flags.f_contiguous
    np.testing.assert_array_equal(again, array)
    assert again.flags.writeable


def test_subclasses_of_fast_types_stay_what_they_are():
    # compat.md, row 7: the mask was lost without an error
    masked = np.ma.array([1, 2, 3], mask=[False, True, False])
    again = deserialize(serialize(masked))
    assert isinstance(again, np.ma.MaskedArray)
    assert again.mask.tolist() == [False, True, False]
    assert type(deserialize(serialize(np.str_("x")))) is np.str_


class Data(bytes):
    """Likewise."""


class Metres(np.ndarray):
    """An array that knows its unit."""

    unit = "none"

    def __reduce__(self):
        function, args, state = super().__reduce__()
        return function, args, (state, self.unit)

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.unit = state[1]


def test_subclasses_of_texts_and_arrays_come_back_as_themselves():
    length = np.arange(3.0).view(Metres)
    length.unit = "m"
    matrix, record = np.ones((1, 2)).view(np.matrix), np.rec.array([(1, 2.0)])
    for obj in (Text("x"), Data(b"x"), matrix, record, length):
        again = deserialize(serialize(obj))
        assert type(again) is type(obj)
        assert np.all(again == obj)
    assert deserialize(serialize(length)).unit == "m"


@pytest.mark.parametrize(
    "target",
    ["x" * 8000, b"x" * 8000, np.zeros(1000), pd.DataFrame({"a": range(1000)})],
    ids=lambda target: type(target).__name__,
)
def test_proxies_are_serialized_by_reference(target):
    proxy = Proxy(ImportedFactory(), cache_defaults=True, target=target)
    data = serialize(proxy)
    assert len(bytes(data)) < 1000
    again = deserialize(data)
    assert type(again) is Proxy
    assert not is_resolved(again)
    unresolved = Proxy(ImportedFactory())
    serialize(unresolved)
    assert not is_resolved(unresolved)


def test_frames_come_back():
    pandas_frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    pd.testing.assert_frame_equal(deserialize(serialize(pandas_frame)), pandas_frame)
    polars_frame = pl.DataFrame({"a": [1, 2]})
    assert deserialize(serialize(polars_frame)).equals(polars_frame)


def test_what_nothing_can_pickle_is_refused():
    shown = r"Object of type <class '.*Refuses'> is not supported\."
    with pytest.raises(SerializationError, match=shown) as caught:
        serialize(Refuses())
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("value", ["text", None, 3])
def test_deserialize_wants_bytes(value):
    with pytest.raises(ValueError, match="bytes-like"):
        deserialize(value)


@pytest.mark.parametrize("data", [b"", b"no newline", b"XX\nunknown", b"\n", b"x" * 10_000])
def test_unknown_headers_are_refused_in_few_words(data):
    with pytest.raises(SerializationError) as caught:
        deserialize(data)
    assert len(str(caught.value)) < 300


def _npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _pandas(frame):
    file = io.BytesIO()
    frame.to_pickle(file)
    return file.getvalue()


def _polars(frame):
    file = io.BytesIO()
    frame.write_ipc(file)
    return file.getvalue()


WRITTEN_BY_EXISTING_INSTALLATIONS = {
    "BS": (b"BS\nwith\nnewlines", b"with\nnewlines"),
    "US": (b"US\n" + "ü\n".encode(), "ü\n"),
    "PK": (b"PK\n" + pickle.dumps({"a": 1}), {"a": 1}),
    "CP": (b"CP\n" + cloudpickle.dumps((1, 2)), (1, 2)),
    "spaces": (b" BS \nx", b"x"),
    "white space": (b"\t\rUS\x0b\x0c \nx", "x"),
    "empty": (b"BS\n", b""),
}


@pytest.mark.parametrize("name", WRITTEN_BY_EXISTING_INSTALLATIONS)
def test_data_of_existing_installations_are_read(name):
    data, value = WRITTEN_BY_EXISTING_INSTALLATIONS[name]
    assert deserialize(data) == value
    assert deserialize(bytearray(data)) == value


def test_arrays_and_frames_of_existing_installations_are_read():
    array = np.array([[1, None]], dtype=object)
    np.testing.assert_array_equal(deserialize(b"NP\n" + _npy(array)), array)
    frame = pd.DataFrame({"a": [1]})
    pd.testing.assert_frame_equal(deserialize(b"PD\n" + _pandas(frame)), frame)
    columns = pl.DataFrame({"a": [1]})
    assert deserialize(b"PL\n" + _polars(columns)).equals(columns)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        *((b"PK", "pickle"), (b"CP", "cloudpickle"), (b"NP", "numpy")),
        *((b"PD", "pandas"), (b"PL", "polars"), (b"US", "string")),
    ],
)
def test_what_does_not_decode_names_the_serializer(header, name):
    with pytest.raises(SerializationError, match=r"^Failed to deserialize object") as caught:
        deserialize(header + b"\n\xff\xfe broken")
    assert f"using the {name} serializer" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_class_that_is_gone_names_the_serializer():
    data = serialize(Text("x")).replace(b"Text", b"Gone")
    with pytest.raises(CorruptDataError):
        deserialize(data)  # the checksum sees it first


def test_serialization_errors_travel():
    for error in (SerializationError("x"), CorruptDataError("length", 3, 4)):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
