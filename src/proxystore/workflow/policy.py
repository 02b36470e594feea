"""What is worth passing by reference: sizes, thresholds, and how large an object is."""

from __future__ import annotations

import io
import operator
import pickle
import types
from collections.abc import Callable, Iterable
from typing import Any

import cloudpickle

from proxystore.utils.data import readable_to_bytes

# Never worth a look: their size does not depend on their value, or hardly does.
_ALWAYS_SMALL = frozenset({type(None), bool, int, float, complex, slice, range, type(Ellipsis)})

# Code, not data: frameworks send it their own way and look at it (names, modules).
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)


class ThresholdError(ValueError):
    """A threshold is not a size.

    Attributes:
        name: Name of the parameter.
        value: What was given.
    """

    def __init__(self, name: str, value: object) -> None:
        super().__init__(name, value)
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return (
            f"{self.name} must be a number of bytes of 0 or more, or a size such as "
            f"'1 MiB' or '500 kB', got {self.value!r}"
        )


def parse_size(value: int | str, *, name: str = "threshold") -> int:
    """Return a size in bytes.

    Args:
        value: A number of bytes, or text: ``"1 MiB"``, ``"500kB"``, ``"4096"``.
        name: What it is called in the error.

    Raises:
        ThresholdError: `value` is not a size; a `ValueError`.

    >>> parse_size("1 MiB"), parse_size(4096)
    (1048576, 4096)
    """
    if isinstance(value, str):
        try:
            value = readable_to_bytes(value)
        except (ValueError, OverflowError) as error:
            raise ThresholdError(name, value) from error
    try:
        size = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError as error:
        raise ThresholdError(name, value) from error
    if size < 0:
        raise ThresholdError(name, value)
    return size


def is_small(obj: Any) -> bool:
    """Say whether an object is small whatever the threshold, from its class alone."""
    cls = type(obj)  # isinstance would resolve a proxy
    return cls in _ALWAYS_SMALL or issubclass(cls, _CODE)


def are_small(items: Iterable[Any]) -> bool:
    """Say whether `is_small`, or short text, is true of the class of every item."""
    return _ALWAYS_SMALL.issuperset(set(map(type, items)) - {str})


def size_of(obj: Any) -> int | None:
    """Return how many bytes of data an object says it holds; None if it does not say.

    Buffers, text, and whatever has an ``nbytes`` (arrays of numpy, torch, xarray, Arrow).
    """
    cls = type(obj)
    if cls is bytes or cls is str or cls is bytearray:
        return len(obj)
    try:
        nbytes = getattr(obj, "nbytes", None)
    except Exception:  # noqa: BLE001 - a property may raise anything; the pickler can tell, too
        return None
    return nbytes if type(nbytes) is int else None


def measure(obj: Any, limit: int) -> int | None:
    """Return how many bytes an object takes when it is pickled, up to about `limit`.

    Costs nothing for what tells its size. Other objects are pickled into a counter
    that stops at the limit, so that a huge one costs no more than one of that size.

    Returns:
        A number of bytes; `limit` or more says "at least that". None: neither pickle
        nor cloudpickle takes the object.
    """
    if is_small(obj):
        return 0
    # An array of objects tells the size of its pointers, an empty array nothing.
    known = size_of(obj)
    if known:
        return known
    count = _count(pickle.Pickler, obj, limit)
    return _count(cloudpickle.Pickler, obj, limit) if count is None else count


def size_at_least(obj: Any, threshold: int) -> bool:
    """Say whether an object takes `threshold` bytes or more when pickled; see `measure`."""
    return (measure(obj, threshold) or 0) >= threshold


def surely_below(obj: Any, limit: int) -> bool:
    """Say whether a container holds plain data, of less than `limit` bytes also in pieces.

    That is: whatever parts of it `measure` measures, the sum is less. False says nothing. Pickled
    in one go, thousands of small lists take as long as a dozen of them one by one.
    """
    try:
        _PlainPickler(_Bound(limit)).dump(obj)
    except Exception:  # noqa: BLE001 - too large, not plain, or it holds itself
        return False
    return True


class _PlainPickler(pickle.Pickler):
    """Pickles what consists of the classes that pickle has codes for; all else is an error."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, protocol=5)
        self.fast = True  # without a memo: each time that an object is there counts

    def reducer_override(self, obj: Any) -> Any:
        raise pickle.PicklingError("not plain data")


class _LimitReached(Exception):
    """The counter need not go on."""


class _Counter(io.RawIOBase):
    """A file that keeps nothing but the number of bytes written to it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.count += length
        if self.count >= self._limit:
            raise _LimitReached
        return length

    def write_buffer(self, buffer: pickle.PickleBuffer) -> None:
        self.write(buffer.raw())


class _Bound(_Counter):
    """Counts no less than all containers take, each with the begin and end of a pickle."""

    # With each of these codes a list, tuple, dictionary or set begins or ends. Bytes of data that
    # look the same count, too.
    _CONTAINERS = b"".join(
        [
            *(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.FROZENSET),
            *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        ]
    )
    # What says that it holds nothing is pickled to see how large it is.
    _EMPTY = (pickle.SHORT_BINUNICODE + b"\0", pickle.SHORT_BINBYTES + b"\0", pickle.BYTEARRAY8)
    # Protocol, frame, memo and stop take 13 of them, more than a thousand items 11 for each.
    _EACH = 16

    def write(self, data: Any) -> int:
        if self.count + memoryview(data).nbytes >= self._limit:
            raise _LimitReached  # nobody is to look at gigabytes for that
        content = bytes(data)
        pieces = len(content) - len(content.translate(None, self._CONTAINERS))
        pieces += sum(map(content.count, self._EMPTY))
        # Half as much again: for an entry in the memo, of a string of two bytes or more.
        self.count += self._EACH * pieces + len(content) // 2
        return super().write(content)


def _count(pickler: Callable[..., Any], obj: Any, limit: int) -> int | None:
    counter = _Counter(limit)
    try:
        pickler(counter, protocol=5, buffer_callback=counter.write_buffer).dump(obj)
    except _LimitReached:
        pass
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything; None says so
        return None
    return counter.count
