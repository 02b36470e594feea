"""What goes into a store comes out: same type, same layout, same content, and one's own."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import pickle
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.extra import pandas as hpd
from polars.testing import assert_frame_equal, assert_series_equal
from polars.testing.parametric import dataframes as polars_frames

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import Proxy, is_resolved
from proxystore.serialize import deserialize, serialize
from proxystore.store import Store, store_registration

Way = Callable[[Any], Any]

# Makes what is stored longer than what files are mapped from (64 KiB).
PADDING = bytes(80_000)


@pytest.fixture(scope="module", params=["bytes", "local", "mapped file", "read file"])
def through(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """Return a function that returns what becomes of an object on one way through a store."""
    if request.param == "bytes":
        yield lambda obj: deserialize(serialize(obj))
        return
    connector: Any = LocalConnector()
    if request.param != "local":
        path = tmp_path_factory.mktemp("round_trips") / "objects"
        connector = FileConnector(path, mmap=request.param == "mapped file")
    with Store(f"round trips, {request.param}", connector, cache_size=0) as store:

        def put_and_get(obj: Any) -> Any:
            key = store.put(obj)
            found, again = store.get(key), store.get(key)
            store.evict(key)  # while the objects are in use
            assert type(found) is type(again)
            if (
                isinstance(found, np.ndarray)
                and found.flags.writeable
                and not found.dtype.hasobject
            ):
                before = again.copy()
                found.view(np.ndarray).reshape(-1, order="A")[...] = np.zeros((), found.dtype)
                assert_same(before, again)  # each has an array of its own
            return again

        with store_registration(store):
            yield put_and_get


@pytest.fixture(params=[False, True], ids=["small", "large"], scope="module")
def carry(request: Any, through: Way) -> Way:
    """As `through`, for objects that are stored alone, or with 80 kB beside them."""
    return (lambda obj: through((obj, PADDING))[0]) if request.param else through


def assert_same(a: Any, b: Any) -> None:
    """Assert that two objects cannot be told apart but by identity."""
    assert type(a) is type(b)
    if isinstance(a, np.ma.MaskedArray):
        assert_same(np.ma.getmaskarray(a), np.ma.getmaskarray(b))
        assert_same(a.filled(), b.filled())
        assert_same(a.fill_value, b.fill_value)
        assert a.hardmask == b.hardmask
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.dtype.metadata == b.dtype.metadata
        if a.dtype.names is not None:  # between the fields there may be anything
            for name in a.dtype.names:
                assert_same(a.view(np.ndarray)[name], b.view(np.ndarray)[name])
        elif a.dtype.hasobject or a.dtype.kind == "T":
            for x, y in zip(a.flat, b.flat, strict=True):
                assert_same(x, y)
        else:
            assert a.tobytes() == b.tobytes()
    elif isinstance(a, (list, tuple, collections.deque)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert_same([*a], [*b])
        assert_same([*a.values()], [*b.values()])
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, check_freq=True, check_flags=True)
        assert a.attrs == b.attrs
    elif isinstance(a, pd.Series):
        pd.testing.assert_series_equal(a, b, check_freq=True, check_flags=True)
    elif isinstance(a, pd.Index):
        pd.testing.assert_index_equal(a, b, exact=True)
    elif isinstance(a, pl.DataFrame):
        assert_frame_equal(a, b, categorical_as_str=True)
    elif isinstance(a, pl.Series):
        assert_series_equal(a, b, categorical_as_str=True)
    elif isinstance(a, (float, complex, decimal.Decimal, np.generic)):
        assert repr(a) == repr(b)  # NaN, and -0.0
    else:
        assert a == b
        assert vars_of(a) == vars_of(b)


def vars_of(obj: Any) -> Any:
    return getattr(obj, "__dict__", None) if type(obj).__module__ == __name__ else None


# -- what Python has


class Text(str):
    """A subclass with an attribute."""


class Data(bytes):
    """A subclass with an attribute."""


class Buffer(bytearray):
    """A subclass with an attribute."""


class Numbers(list[int]):
    """A subclass with an attribute."""


class Colour(enum.Enum):
    """An enumeration: its members are the same objects everywhere."""

    RED = 1
    BLUE = "blue"


class Point(collections.namedtuple("Point", "x y")):
    """A named tuple."""


@dataclasses.dataclass
class Node:
    """An object with attributes."""

    value: Any = None
    next: Any = None


def with_note(obj: Any) -> Any:
    obj.note = "kept"
    return obj


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary(max_size=50)
    | st.binary(max_size=50).map(bytearray)
    | st.decimals()
    | st.fractions()
    | st.datetimes(timezones=st.none() | st.just(datetime.timezone.utc))
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from(Colour)
    | st.builds(range, st.integers(0, 9))
)
arrays = hnp.arrays(
    hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
)
keys = st.text(max_size=5) | st.integers() | st.tuples(st.integers(), st.booleans())
nested = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.builds(Point, inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict)
        | st.lists(inner, max_size=4).map(collections.deque)
        | st.builds(Node, inner, inner).map(lambda node: [node.value, node.next])
    ),
    max_leaves=15,
)


@given(obj=nested)
@settings(max_examples=60)
def test_nested_objects(carry: Way, obj: Any) -> None:
    before = copy.deepcopy(obj)
    again = carry(obj)
    # Of an array's layout, pickle may change what its content does not depend on.
    assert_same(pickle.loads(pickle.dumps(before, 5)), again)
    assert_same(before, obj)


@pytest.mark.parametrize(
    "obj",
    [
        *("", b"", bytearray(), [], (), {}, set(), frozenset(), range(0), 0, -0.0),
        *("\ud800", "\0", "ä" * 70_000, b"\0" * 70_000, bytearray(70_000), 2**5000),
        *({1, 2}, frozenset("ab"), slice(1, None, 2), ..., NotImplemented, int, len, Colour),
        *(
            float("inf"),
            complex("nan"),
            decimal.Decimal("NaN"),
            fractions.Fraction(1, 3),
        ),
        *(uuid.UUID(int=1), pathlib.PurePosixPath("a/b"), datetime.date(2020, 2, 29)),
        *(collections.Counter("aab"), collections.ChainMap({1: 2}), Node([1], Node())),
        *(collections.defaultdict(list, a=[1]), Point(1, [2])),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_objects_of_python(carry: Way, obj: Any) -> None:
    assert_same(obj, carry(obj))


@pytest.mark.parametrize(
    "obj",
    [Text("text"), Data(b"data"), Buffer(b"buffer"), Numbers([1, 2]), Text(), Data(), Buffer()],
    ids=repr,
)
def test_subclasses_stay_what_they_are(carry: Way, obj: Any) -> None:
    again = carry(with_note(obj))
    assert_same(obj, again)
    assert again.note == "kept"


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"data"),
        memoryview(b""),
        memoryview(b"0123456789")[::3],
        memoryview(b"0123456789")[::-1],
        memoryview(np.arange(6.0)),
        memoryview(np.arange(6).reshape(2, 3)),
        memoryview(np.asfortranarray(np.arange(6).reshape(2, 3))),
        memoryview(np.array(1.5)),
        memoryview(np.zeros((0, 3))),
        memoryview(np.asfortranarray(np.arange(90_000).reshape(300, 300))),
    ],
    ids=lambda view: f"{view.format}{view.shape}{view.strides}",
)
def test_views_of_memory_become_bytes(through: Way, view: memoryview) -> None:
    assert_same(view.tobytes(), through(view))


def test_lambdas_and_local_classes(carry: Way) -> None:
    class Local:
        def __init__(self) -> None:
            self.array = np.arange(3)

        def double(self) -> Any:
            return self.array * 2

    assert carry(lambda x: x + 1)(1) == 2
    again = carry(Local())
    assert again.double().tolist() == [0, 2, 4]
    again.array[0] = 7  # also what cloudpickle has written can be changed


# -- what refers to what


def test_one_object_twice_stays_one(carry: Way) -> None:
    for shared in ([1], np.arange(20_000), Node(), pd.DataFrame({"a": [1]}), bytearray(b"x")):
        first, second, inner = carry([shared, shared, {"deep": (shared,)}])
        assert first is second is inner["deep"][0]
    a, b = carry([np.zeros(3), np.zeros(3)])
    a[0] = 1
    assert b[0] == 0, "equal ones stay two"


def test_cycles_stay_cycles(carry: Way) -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    again = carry(loop)
    assert again[1] is again

    table: dict[str, Any] = {}
    table["self"] = (table, [table])
    again = carry(table)
    assert again["self"][0] is again["self"][1][0] is again

    first = Node(1)
    first.next = Node(2, first)
    again = carry(first)
    assert again.next.next is again


def test_proxies_travel_as_proxies(through: Way) -> None:
    with Store("proxies inside", LocalConnector(), register=True) as store:
        proxy = store.proxy(["target"], populate_target=False)
        again = through(proxy)
        inside = through({"a": [proxy, proxy], "b": PADDING})["a"]
        assert type(again) is type(inside[0]) is Proxy
        assert inside[0] is inside[1]
        assert not any(map(is_resolved, (proxy, again, *inside)))
        assert (again, inside[0]) == (["target"], ["target"])


# -- NumPy


class Tagged(np.ndarray):
    """An array with an attribute that it takes care of itself."""

    unit = ""

    def __reduce__(self) -> Any:
        make, args, state = super().__reduce__()
        return make, args, (*state, self.unit)

    def __setstate__(self, state: Any) -> None:
        *state, self.unit = state
        super().__setstate__(tuple(state))


class Plain(np.ndarray):
    """A subclass that has nothing of its own."""


def assert_same_array(array: Any, again: Any) -> None:
    """Assert what pickle keeps, that is all that can be kept."""
    oracle = pickle.loads(pickle.dumps(array, 5))
    assert_same(oracle, again)
    assert_same(array, again) if array.dtype.isnative else None
    for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE", "ALIGNED"):
        assert again.flags[flag] == oracle.flags[flag], flag


layouts = st.sampled_from(
    [
        lambda a: a,
        np.asfortranarray,
        np.ascontiguousarray,
        lambda a: a.T,
        lambda a: a[..., ::2] if a.ndim else a,
        lambda a: a[::-1] if a.ndim else a,
        lambda a: a[:0] if a.ndim else a,
        lambda a: np.broadcast_to(a, (2, *a.shape)),
        lambda a: a.newbyteorder() if hasattr(a, "newbyteorder") else a,
        lambda a: a.view(Plain),
    ]
)


@given(
    array=hnp.arrays(
        hnp.scalar_dtypes() | hnp.array_dtypes() | hnp.byte_string_dtypes(min_len=1),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    ),
    layout=layouts,
    is_large=st.booleans(),
)
@settings(max_examples=80)
def test_arrays(through: Way, array: Any, layout: Any, is_large: bool) -> None:
    if is_large and array.size and array.dtype.itemsize:
        array = np.resize(array, (70_000 // array.nbytes + 1, *array.shape))
    array = layout(array)
    assert_same_array(array, through(array))


DTYPES = [
    *("?", "i1", "<i2", ">i4", "u8", "f2", "<f4", ">f8", "g", "F", "D", "G"),
    *("S3", "U3", "V5", "M8[ns]", "M8[D]", "m8[s]", ">M8[us]"),
    [("a", "i4"), ("b", "U3"), ("c", [("d", "f2", (2, 2))])],
    {"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 16], "itemsize": 32},
    np.dtype("i1,f8", align=True),
    np.dtype("i4", metadata={"unit": "m"}),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_of_each_dtype(through: Way, dtype: Any) -> None:
    dtype = np.dtype(dtype)
    for shape in ((), (0,), (3,), (2, 3), (0, 4), (70_000 // dtype.itemsize, 2)):
        count = math.prod(shape)
        content = bytearray([1, 0, 0, 0] * (count * dtype.itemsize))[: count * dtype.itemsize]
        for order in ("C", "F"):
            array = np.frombuffer(content, dtype, count).reshape(shape, order=order)
            assert_same_array(array, through(array))


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, 1, "x", [2], {}], dtype=object),
        np.array([["a", None], [b"", 2.5]], dtype=object).T,
        np.array([(1, [2])], dtype=[("a", "i4"), ("b", "O")]),
        np.array(None, dtype=object),
        np.array(["a", "b" * 100, ""], dtype=np.dtypes.StringDType()),
        np.array(["NaT", "2020"], dtype="M8[s]"),
        np.frombuffer(b"xxxxxxxx", "f8"),
        np.arange(10)[::-2],
        np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
        np.lib.stride_tricks.as_strided(np.arange(4), (3, 2), (8, 8)),
        np.zeros((3, 0, 2)),
        np.zeros(7, "i1")[3:],
        np.frombuffer(bytearray(17), "f8", 2, offset=1),
        np.arange(100_000.0)[::2],
        np.arange(100_000.0).reshape(100, 1000).T,
        np.float64(1.5),
        np.datetime64("NaT", "s"),
        np.str_("x"),
        np.void(b"abc"),
        np.dtype("f2"),
        np.random.default_rng(1),
        np.poly1d([1, 2]),
    ],
    ids=lambda a: f"{type(a).__name__}-{getattr(a, 'dtype', '')}-{getattr(a, 'shape', '')}",
)
def test_arrays_of_special_kinds(through: Way, array: Any) -> None:
    again = through(array)
    if isinstance(array, np.ndarray):
        assert_same_array(array, again)
    elif isinstance(array, np.random.Generator):
        assert again.random() == array.random()
    else:
        assert_same(array, again)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")  # NumPy 2.5
@pytest.mark.parametrize("size", [6, 60_000])
def test_subclasses_of_arrays(through: Way, size: int, tmp_path: Any) -> None:
    tagged = np.arange(size).view(Tagged)
    tagged.unit = "m"
    again = through(tagged)
    assert_same(tagged, again)
    assert again.unit == "m"

    mapped = np.memmap(tmp_path / "map", "f8", "w+", shape=(size,))
    mapped[:] = np.arange(size)
    for array in (
        np.arange(size).view(Plain),
        np.matrix(np.arange(size).reshape(2, -1)),
        np.rec.array([(1, 2.0)] * size, dtype=[("a", "i4"), ("b", "f8")]),
        np.char.array(["ab"] * size),
        mapped,
    ):
        assert_same_array(array, through(array))


@pytest.mark.parametrize("size", [6, 60_000])
def test_masked_arrays_keep_their_masks(through: Way, size: int) -> None:
    data = np.arange(size, dtype="f8")
    for mask in (data % 3 == 0, np.ma.nomask, True, False):
        array = np.ma.array(data, mask=mask, fill_value=-7)
        assert_same(array, through(array))
        assert_same(array[::2], through(array[::2]))
    array.harden_mask()
    assert_same(np.ma.masked_invalid([1, np.nan]), through(np.ma.masked_invalid([1, np.nan])))
    structured = np.ma.array([(1, 2.0)] * size, mask=[(0, 1)] * size, dtype="i4,f8")
    assert_same(structured, through(structured))
    assert through(np.ma.masked) is np.ma.masked


@pytest.mark.parametrize("size", [10, 100_000])
def test_what_could_be_written_to_can_be_and_what_could_not_cannot(through: Way, size: int) -> None:
    array = np.zeros(size)
    again = through(array)
    again += 1
    assert array.sum() == 0
    array.flags.writeable = False
    assert not through(array).flags.writeable


# -- pandas

FRAMES: dict[str, Callable[[int], Any]] = {
    "integers": lambda n: pd.DataFrame({"a": range(n), "b": np.arange(n, dtype="u1")}),
    "mixed": lambda n: pd.DataFrame({"a": [1.5, None] * (n // 2), "b": ["x", None] * (n // 2)}),
    "objects": lambda n: pd.DataFrame({"a": pd.Series([{1}, [2]] * (n // 2), dtype=object)}),
    "nullable": lambda n: pd.DataFrame(
        {
            "i": pd.array([1, None] * (n // 2), dtype="Int64"),
            "f": pd.array([1.5, None] * (n // 2), dtype="Float32"),
            "b": pd.array([True, None] * (n // 2), dtype="boolean"),
            "s": pd.array(["x", None] * (n // 2), dtype="string"),
        }
    ),
    "categorical": lambda n: pd.DataFrame(
        {
            "a": pd.Categorical(["x", "y"] * (n // 2), categories=["y", "x", "z"], ordered=True),
            "b": pd.Categorical([1, None] * (n // 2)),
        }
    ),
    "times": lambda n: pd.DataFrame(
        {
            "naive": pd.date_range("2020", periods=n, freq="s"),
            "zoned": pd.date_range("2020", periods=n, freq="s", tz="Europe/Berlin"),
            "delta": pd.timedelta_range(0, periods=n, freq="s"),
            "period": pd.period_range("2020", periods=n, freq="s"),
        }
    ),
    "intervals": lambda n: pd.DataFrame({"a": pd.interval_range(0, n, n)}),
    "sparse": lambda n: pd.DataFrame({"a": pd.arrays.SparseArray([0, 1] * (n // 2))}),
    "time index": lambda n: pd.DataFrame(
        {"a": range(n)}, pd.date_range("2020", periods=n, freq="s", tz="UTC", name="when")
    ),
    "many indexes": lambda n: pd.DataFrame(
        {("a", 1): range(n), ("b", 2): range(n)},
        pd.MultiIndex.from_product([["x", "y"], range(n // 2)], names=["k", None]),
    ),
    "categories as index": lambda n: pd.DataFrame(
        {"a": range(n)}, pd.CategoricalIndex(["x", "y"] * (n // 2))
    ),
    "steps as index": lambda n: pd.DataFrame({"a": range(n)}, pd.RangeIndex(1, 2 * n, 2)),
    "columns twice": lambda n: pd.DataFrame(np.zeros((n, 2)), columns=["a", "a"]),
    "no rows": lambda n: pd.DataFrame({"a": [], "b": pd.array([], dtype="Int8")}),
    "no columns": lambda n: pd.DataFrame(index=range(n)),
    "a series": lambda n: pd.Series(np.arange(n, dtype="f4"), name=("a", 1)),
    "an index": lambda n: pd.Index([f"{i}" for i in range(n)], name="i"),
    "periods": lambda n: pd.period_range("2020", periods=n, freq="D"),
}


@pytest.mark.parametrize("size", [4, 20_000])
@pytest.mark.parametrize("kind", FRAMES)
def test_pandas(through: Way, kind: str, size: int) -> None:
    obj = FRAMES[kind](size)
    assert_same(obj, through(obj))


def test_pandas_keep_what_is_said_about_them(through: Way) -> None:
    frame = pd.DataFrame({"a": [1]})
    frame.attrs = {"source": "here"}
    frame.flags.allows_duplicate_labels = False
    again = through(frame)
    assert again.attrs == {"source": "here"}
    assert not again.flags.allows_duplicate_labels


@pytest.mark.parametrize("size", [4, 100_000])
def test_pandas_can_be_changed(through: Way, size: int) -> None:
    frame = pd.DataFrame({"a": np.zeros(size), "b": pd.array([1] * size, dtype="Int64")})
    again = through(frame)
    again.iloc[0, 0] = 7.0
    again.loc[:, "b"] += 1
    again["c"] = 1
    assert again.iloc[0].tolist() == [7.0, 2, 1]
    assert frame.iloc[0].tolist() == [0.0, 1]


@given(
    frame=hpd.data_frames(
        [
            hpd.column("a", dtype=float),
            hpd.column("b", dtype="M8[ns]"),
            hpd.column("c", elements=st.text() | st.none(), dtype=object),
            hpd.column("d", dtype=bool),
        ],
        index=hpd.range_indexes(max_size=10) | hpd.indexes(dtype=int, max_size=10),
    )
)
@settings(max_examples=20)
def test_pandas_of_any_content(through: Way, frame: pd.DataFrame) -> None:
    assert_same(frame, through(frame))


# -- Polars


@given(frame=polars_frames(max_cols=5, max_size=10))
@settings(max_examples=30)
def test_polars_of_any_content(through: Way, frame: pl.DataFrame) -> None:
    assert_same(frame, through(frame))


@pytest.mark.parametrize("size", [4, 20_000])
def test_polars(through: Way, size: int) -> None:
    frame = pl.DataFrame(
        {
            "i": range(size),
            "f": [1.5, None] * (size // 2),
            "s": ["x", None] * (size // 2),
            "c": pl.Series(["x", "y"] * (size // 2), dtype=pl.Categorical),
            "e": pl.Series(["x", "y"] * (size // 2), dtype=pl.Enum(["y", "x"])),
            "l": [[1], None] * (size // 2),
            "a": pl.Series([[1, 2]] * size, dtype=pl.Array(pl.Int8, 2)),
            "r": [{"x": 1, "y": "z"}] * size,
            "t": [datetime.datetime(2020, 1, 1)] * size,
            "d": [decimal.Decimal("1.5")] * size,
            "n": [None] * size,
        }
    )
    assert_same(frame, through(frame))
    for column in frame:
        assert_same(column, through(column))
    lazy = through(frame.lazy().filter(pl.col("i") < 2))
    assert lazy.collect().height == 2


# -- Arrow and PyTorch, where they are installed


@pytest.mark.parametrize("size", [4, 50_000])
def test_arrow(through: Way, size: int) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table(
        {
            "i": pa.array([1, None] * (size // 2)),
            "s": pa.array(["x", None] * (size // 2)),
            "d": pa.array(["x", "y"] * (size // 2)).dictionary_encode(),
            "l": pa.array([[1, 2], []] * (size // 2)),
            "r": pa.array([{"x": 1}, None] * (size // 2)),
        },
        metadata={"source": "here"},
    )
    for obj in (
        table,
        table.slice(1, 2),
        pa.concat_tables([table, table]),
        table.to_batches()[0],
        table.schema,
        *table.columns,
        *(column.chunk(0) for column in table.columns),
        pa.scalar(5),
        pa.py_buffer(bytes(size)),
    ):
        again = through(obj)
        assert type(again) is type(obj)
        assert again.equals(obj)
    assert through(table).schema.equals(table.schema, check_metadata=True)
    frame = pd.DataFrame({"a": pd.array([1, None] * (size // 2), dtype="int64[pyarrow]")})
    assert_same(frame, through(frame))


@pytest.mark.parametrize("size", [6, 60_000])
def test_torch(through: Way, size: int) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(size, dtype=torch.float32)
    for tensor in (
        base,
        base.to(torch.bfloat16),
        base.to(torch.complex64),
        base > 3,
        base.reshape(2, -1).T,
        base[::2],
        torch.tensor(1.5),
        torch.empty(0, 3),
        torch.nn.Parameter(base.clone()),
    ):
        again = through(tensor)
        assert type(again) is type(tensor)
        assert (again.dtype, again.shape, again.stride()) == (
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
        )
        assert again.requires_grad == tensor.requires_grad
        assert torch.equal(again, tensor)
    a, b = through([base, base])
    assert a is b
    a += 1
    assert base[0] == 0
    layer = torch.nn.Linear(3, 2)
    twice = through(torch.nn.Sequential(layer, layer))
    assert twice[0] is twice[1], "tied weights stay tied"
    assert torch.equal(twice[0](torch.ones(3)), layer(torch.ones(3)))
    view = base.view(2, -1)
    found = through([base, view, view.numpy()])
    assert torch.equal(found[0], base)
    assert torch.equal(found[1], view)
    assert np.array_equal(found[2], view.numpy())
    found[0][:] = -1
    # Not one memory any more, which is PyTorch's doing: `pickle` says the same.
    expected = pickle.loads(pickle.dumps([base, view]))
    expected[0][:] = -1
    assert torch.equal(found[1], expected[1])
