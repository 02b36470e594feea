"""The stored form: layout, integrity, and no copy that can be avoided."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from proxystore.serialize import CorruptDataError, SerializationError, frames

nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    | st.tuples(inner, inner),
    max_leaves=20,
)  # fmt: skip


@given(nested)
def test_nested_objects_come_back(obj):
    assert frames.load(frames.dump(obj).join()) == obj


@given(
    hnp.arrays(
        hnp.scalar_dtypes(),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
    ),
    st.booleans(),
)
def test_arrays_come_back(array, fortran):
    array = np.asfortranarray(array) if fortran else array
    again = frames.load(bytearray(frames.dump(array).join()))
    # Pickle's own word on the dtype: numpy swaps the bytes of big-endian dates.
    assert again.dtype == pickle.loads(pickle.dumps(array, 5)).dtype
    np.testing.assert_array_equal(again, array)


@given(st.binary(min_size=1), st.data())
def test_any_changed_byte_is_noticed(payload, data):
    stored = bytearray(frames.dump(payload).seal().join())
    described = frames.describe(stored)
    end = described.start + described.lengths[0]  # then padding, which nobody reads
    at = data.draw(st.integers(0, end - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    if at < len(frames.MAGIC):
        assert not frames.is_stored_form(stored)
    else:
        with pytest.raises(CorruptDataError):
            frames.load(stored)


@given(st.binary(), st.integers(0, 300))
def test_any_missing_byte_is_noticed_without_reading_the_data(payload, length):
    stored = frames.dump(payload).join()
    for cut in (stored[:length], stored[: -1 - length], stored + b"x"):
        if len(cut) != len(stored):
            with pytest.raises(CorruptDataError):
                frames.load(cut, verify=False)


def test_errors_say_what_does_not_match():
    stored = bytearray(frames.dump([1]).join())
    short = rf"its length should be {len(stored)} bytes but is {len(stored) - 1} bytes"
    with pytest.raises(CorruptDataError, match=short):
        frames.load(stored[:-1])
    stored[frames.describe(stored).start] ^= 1
    with pytest.raises(CorruptDataError) as caught:
        frames.load(stored)
    assert caught.value.what == "checksum"
    stored[8] = 99
    with pytest.raises(CorruptDataError, match="its version should be 1 or 2 but is 99"):
        frames.load(stored)


def test_a_damaged_number_of_buffers_is_described_in_a_line():
    stored = bytearray(frames.dump(np.zeros(1_000_000)).join())
    stored[14] = 1  # 65,538 buffers where there are 2
    with pytest.raises(CorruptDataError) as caught:
        frames.load(stored, verify=False)
    assert len(str(caught.value)) < 300


def test_what_is_unpickled_is_compared_always_and_content_when_asked():
    array = np.zeros(1000)
    stored = bytearray(frames.dump(array).seal().join())
    described = frames.describe(stored)
    content = bytearray(stored)
    content[-100] ^= 1
    assert frames.load(content, verify=False).any()
    with pytest.raises(CorruptDataError, match="checksum of the content"):
        frames.load(content)
    stream = bytearray(stored)
    stream[described.start + 20] ^= 1
    with pytest.raises(CorruptDataError, match="checksum"):
        frames.load(stream, verify=False)


def test_what_is_not_sealed_has_nothing_to_compare():
    buffers = frames.dump(np.zeros(1000))
    unsealed = bytearray(buffers.join())
    assert frames.describe(unsealed).digest is None
    unsealed[-100] ^= 1
    assert frames.load(unsealed).any()
    assert frames.describe(buffers.seal().join()).digest == buffers.digest


def test_a_class_that_cannot_be_found_is_not_called_corrupt():
    class Local(NamedTuple):
        x: int

    Local.__qualname__ = "Local"
    globals()["Local"] = Local
    stored = frames.dump(Local(1)).join()
    del globals()["Local"]
    with pytest.raises(SerializationError, match="Local using the pickle serializer") as caught:
        frames.load(stored)
    assert not isinstance(caught.value, CorruptDataError)


def test_buffers_start_at_multiples_of_64_bytes():
    array = np.arange(1000.0)
    again = frames.load(bytearray(frames.dump(array).join()))
    described = frames.describe(frames.dump(array).join())
    assert described.start % frames.ALIGNMENT == 0
    assert described.lengths[1] == array.nbytes
    assert again.flags.aligned


def test_the_header_tells_without_unpickling():
    class Explodes:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    stored = frames.dump(Explodes()).join()
    described = frames.describe(stored)
    assert described.type_name.endswith("Explodes")
    assert described.nbytes == len(stored)
    assert described.kind in frames.KIND_NAMES


def test_equal_content_has_equal_digests_and_other_content_has_not():
    array = np.arange(1000.0)
    assert frames.dump(array).digest == frames.dump(array.copy()).digest
    changed = array.copy()
    changed[500] = -1
    assert frames.dump(array).digest != frames.dump(changed).digest
    assert frames.dump(b"1").digest != frames.dump("1").digest


def test_dumping_and_loading_an_array_copies_nothing():
    array = np.zeros(4_000_000)
    tracemalloc.start()
    buffers = frames.dump(array)
    _, dumping = tracemalloc.get_traced_memory()
    stored = bytearray(buffers.join())
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    again = frames.load(stored)
    _, loading = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dumping < array.nbytes / 20
    assert loading - before < array.nbytes / 20
    assert np.shares_memory(again, np.frombuffer(stored, np.uint8))


def test_arrays_from_read_only_memory_can_be_written_to():
    stored = frames.dump(np.zeros(10)).join()
    again = frames.load(stored)
    again[0] = 1
    assert frames.load(stored)[0] == 0


def test_what_is_defined_in_main_travels_by_value():
    namespace = {"__name__": "__main__"}
    exec("class Point:\n    x = 3\n", namespace)  # as a notebook's cell does
    stored = frames.dump(namespace["Point"]()).join()
    assert frames.describe(stored).kind == "cloudpickle"
    assert frames.load(stored).x == 3


def test_many_buffers():
    arrays = [np.full(10, i) for i in range(3000)]
    again = frames.load(frames.dump(arrays).join())
    assert all((a == b).all() for a, b in zip(again, arrays, strict=True))


def test_pickle_is_tried_before_cloudpickle():
    assert frames.describe(frames.dump({"a": 1}).join()).kind == "pickle"
    assert frames.describe(frames.dump(lambda: 1).join()).kind == "cloudpickle"
    assert pickle.HIGHEST_PROTOCOL >= 5


def test_when_neither_can_both_errors_are_there():
    class Refuses:
        def __reduce__(self):
            errors.append(ValueError(len(errors)))
            raise errors[-1]

    errors = []
    with pytest.raises(SerializationError) as caught:
        frames.dump([Refuses()])
    assert caught.value.__cause__ is errors[1]
    assert caught.value.__cause__.__context__ is errors[0]


def test_a_late_failure_of_pickle_does_not_copy_the_arrays_before_it():
    array = np.zeros(1_000_000)
    tracemalloc.start()
    buffers = frames.dump([array, lambda: 1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert frames.describe(buffers.join()).kind == "cloudpickle"
    assert peak < array.nbytes / 10
