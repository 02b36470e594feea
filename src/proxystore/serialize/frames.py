"""Objects to buffers and back: the stored form, without a copy that can be avoided.

An object becomes a short header, a pickle stream, and the large pieces of memory
that the stream refers to (pickle protocol 5, out of band), in this order:

    offset  size  field (integers little endian)
    0       8     magic
    8       1     version
    9       1     kind: how the first buffer is decoded
    10      2     length of the type name
    12      4     number of buffers
    16      16    checksum of all that is not content
    32      8     length of the whole stored form
    40      16    checksum of the content
    56      1     1 if that one was computed, else 0
    57      7     zero
    64            length of each buffer, 8 bytes each; type name, UTF-8; padding
    ...           the buffers, each starting at a multiple of 64 bytes

Content is what is not interpreted: the buffers after the pickle stream, or the one
buffer of bytes or text. The rest, which is short for an array of any size, is always
compared on reading, so that what is unpickled is what was pickled. Whether content is
compared is up to the reader; whether there is something to compare with, to the writer:
a gigabyte that will be mapped and not read need not be read to be written either.

The same text, for other implementers, is in docs/wire_format.md. Nothing is joined
on the way out: `Buffers.parts` goes to `writev` as it is. On the way in, arrays are
views of the buffer that was read, so what can be written to in memory (a private
mapping, a `bytearray`) gives arrays that can be written to, without a copy.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import xxhash

from proxystore.serialize._errors import CorruptDataError, SerializationError

MAGIC = b"\x89PXS\r\n\x1a\n"  # PNG's recipe: not ASCII, shows line-ending conversion
VERSION = 1
# A cache line; also what numpy, Arrow and SIMD code like their data aligned to.
ALIGNMENT = 64

_HEAD = struct.Struct("<8sBBHI16sQ16sB7x")
_CHECKSUM_AT = slice(16, 32)
_NOTHING = bytes(16)
_PADDING = tuple(bytes(n) for n in range(ALIGNMENT))

KIND_PICKLE = 0
KIND_CLOUDPICKLE = 1
KIND_BYTES = 2
KIND_STR = 3
KIND_BYTEARRAY = 4
# The names that error messages use; "pickle", "cloudpickle", "bytes" and "string"
# are those of contract 4.3.
KIND_NAMES = ("pickle", "cloudpickle", "bytes", "string", "bytearray")


class Buffers:
    """The stored form of one object, not joined.

    The parts alias the object's memory where that is possible: write them out
    before the object changes. Not thread-safe.

    Attributes:
        nbytes: Sum of the lengths of `parts`, in bytes.
        type_name: ``module.qualname`` of the object's class.
    """

    __slots__ = ("_content", "_fields", "_parts", "_seal", "_table", "nbytes", "type_name")

    def __init__(self, kind: int, payload: Sequence[Any], type_name: str) -> None:
        views = [memoryview(part).cast("B") if part else memoryview(b"") for part in payload]
        name = type_name.encode()[:0xFFFF]
        table = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views)) + name
        table += _PADDING[-len(table) % ALIGNMENT]
        parts: list[Any] = [None, table]  # the header comes when it is asked for
        size = _HEAD.size + len(table)
        for view in views:
            parts.append(view)
            gap = -view.nbytes % ALIGNMENT
            if gap:
                parts.append(_PADDING[gap])
            size += view.nbytes + gap
        pickled = _stream(kind, views)
        self._table: list[Any] = [table, *pickled]
        self._content = views[len(pickled) :]
        self._fields = (MAGIC, VERSION, kind, len(name), len(views))
        self._seal: bytes | None = None
        self._parts = parts
        self.nbytes = size
        self.type_name = type_name

    @property
    def parts(self) -> list[Any]:
        """What to write, in order, padding included."""
        if self._parts[0] is None:
            end = (self.nbytes, self._seal or _NOTHING, int(self._seal is not None))
            checksum = xxhash.xxh3_128(_HEAD.pack(*self._fields, _NOTHING, *end))
            for part in self._table:
                checksum.update(part)
            self._parts[0] = _HEAD.pack(*self._fields, checksum.digest(), *end)
        return self._parts

    def seal(self) -> Buffers:
        """Compute the checksum of the content, which reads all of it, and return self."""
        if self._seal is None:
            self._seal = _checksum_of(self._content)
            self._parts[0] = None
        return self

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that are equal for equal stored forms; seals."""
        self.seal()
        return bytes(self.parts[0][_CHECKSUM_AT]).hex()

    def join(self) -> bytes:
        """Return the stored form in one piece (one copy)."""
        return b"".join(self.parts)


def _stream(kind: int, views: list[memoryview]) -> list[memoryview]:
    return views[:1] if kind in (KIND_PICKLE, KIND_CLOUDPICKLE) else []


def _checksum_of(parts: Sequence[Any]) -> bytes:
    checksum = xxhash.xxh3_128()
    for part in parts:
        checksum.update(part)
    return checksum.digest()


@dataclass(frozen=True)
class Description:
    """What stored data says of itself, without unpickling anything.

    Attributes:
        type_name: ``module.qualname`` of the object's class.
        kind: How it is encoded: one of `KIND_NAMES`.
        nbytes: Length of the whole stored form, in bytes.
        digest: `Buffers.digest`; None if the content was written without a checksum.
        lengths: Length of each buffer, in bytes.
        start: Offset of the first buffer, in bytes.
    """

    type_name: str
    kind: str
    nbytes: int
    digest: str | None
    lengths: tuple[int, ...]
    start: int


class _Head:
    """A parsed header; raises `CorruptDataError` on what cannot be ours."""

    __slots__ = ("checksum", "content", "kind", "lengths", "name", "sealed", "size", "start")

    kind: int
    checksum: bytes
    content: bytes
    sealed: int
    size: int

    def __init__(self, view: memoryview) -> None:
        if view.nbytes < _HEAD.size:
            raise CorruptDataError("length", f"at least {_HEAD.size} bytes", view.nbytes)
        _, version, self.kind, name_length, count, *rest = _HEAD.unpack_from(view)
        self.checksum, self.size, self.content, self.sealed = rest
        if version != VERSION:
            raise CorruptDataError("version", VERSION, version)
        if self.kind >= len(KIND_NAMES):
            raise CorruptDataError("kind", f"0 to {len(KIND_NAMES) - 1}", self.kind)
        if self.size != view.nbytes:
            raise CorruptDataError("length", f"{self.size} bytes", f"{view.nbytes} bytes")
        table_end = _HEAD.size + 8 * count
        name_end = table_end + name_length
        if count == 0 or name_end > self.size:
            raise CorruptDataError("header", "a table that fits the data", f"{count} buffers")
        self.lengths: tuple[int, ...] = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
        self.name = view[table_end:name_end]
        self.start = _aligned(name_end)
        if self.start + sum(map(_aligned, self.lengths)) != self.size:
            found = f"{count} buffers of {sum(self.lengths)} bytes and their padding"
            raise CorruptDataError("header", f"one of {self.size} bytes in all", found)

    def split(self, view: memoryview) -> list[memoryview]:
        parts = []
        at = self.start
        for length in self.lengths:
            parts.append(view[at : at + length])
            at += _aligned(length)
        return parts

    def check(self, view: memoryview, parts: list[memoryview], *, content: bool) -> None:
        pickled = _stream(self.kind, parts)
        before, after = view[: _CHECKSUM_AT.start], view[_CHECKSUM_AT.stop : self.start]
        found = _checksum_of([before, _NOTHING, after, *pickled])
        if found != self.checksum:
            raise CorruptDataError("checksum", self.checksum.hex(), found.hex())
        if content and self.sealed:
            found = _checksum_of(parts[len(pickled) :])
            if found != self.content:
                raise CorruptDataError("checksum of the content", self.content.hex(), found.hex())


def _aligned(length: int) -> int:
    return length + -length % ALIGNMENT


def type_name(obj: object) -> str:
    """Return ``module.qualname`` of the class of `obj`; a proxy's own, not its target's."""
    cls = type(obj)
    return f"{cls.__module__}.{cls.__qualname__}"


def dump(obj: Any) -> Buffers:
    """Return the stored form of any object that pickle or cloudpickle can handle.

    It is not sealed: see `Buffers.seal`.

    Raises:
        SerializationError: Neither can; ``__cause__`` is cloudpickle's error and
            that one's ``__context__`` pickle's.
    """
    # Exact types only: a subclass would come back as its base (defects.md 7).
    cls = type(obj)
    if cls is bytes:
        return Buffers(KIND_BYTES, (obj,), "builtins.bytes")
    if cls is str:
        return Buffers(KIND_STR, (obj.encode("utf-8", "surrogatepass"),), "builtins.str")
    if cls is bytearray:
        return Buffers(KIND_BYTEARRAY, (obj,), "builtins.bytearray")
    if cls is memoryview:  # no pickler takes one; it comes back as bytes
        return Buffers(KIND_BYTES, (obj if obj.contiguous else bytes(obj),), "builtins.bytes")
    kind, payload = _pickled(obj)
    return Buffers(kind, payload, type_name(obj))


def _pickled(obj: Any) -> tuple[int, list[Any]]:
    out_of_band: list[pickle.PickleBuffer] = []
    try:
        stream = pickle.dumps(obj, protocol=5, buffer_callback=out_of_band.append)
        # What is defined in a script or a notebook exists only there: another
        # process has its own __main__, so it has to travel by value.
        if b"__main__" not in stream:
            return KIND_PICKLE, [stream, *_raw(out_of_band)]
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything; cloudpickle decides
        pass
    out_of_band.clear()
    file = io.BytesIO()
    try:
        cloudpickle.Pickler(file, protocol=5, buffer_callback=out_of_band.append).dump(obj)
        return KIND_CLOUDPICKLE, [file.getbuffer(), *_raw(out_of_band)]
    except Exception as error:
        raise SerializationError(f"Object of type {type(obj)} is not supported.") from error


def _raw(buffers: list[pickle.PickleBuffer]) -> list[memoryview]:
    return [buffer.raw() for buffer in buffers]


def is_stored_form(data: Any) -> bool:
    """Say whether `data` starts as what `dump` makes (and not as older data)."""
    return bytes(memoryview(data)[: len(MAGIC)]) == MAGIC


def load(data: Any, *, verify: bool = True) -> Any:
    """Return the object whose stored form is `data`.

    Args:
        data: A contiguous buffer. If it can be written to, arrays in the object are
            writable views of it; else they are copied out of it once.
        verify: Compare the checksum of the content too, which reads all of `data`.

    Raises:
        CorruptDataError: Length, header or checksum do not match.
        SerializationError: The data are what was written, and still do not decode,
            for instance because a class cannot be imported here.
    """
    view = memoryview(data).cast("B")
    head = _Head(view)
    parts = head.split(view)
    head.check(view, parts, content=verify)
    try:
        return _decode(head.kind, parts, copy=view.readonly)
    except Exception as error:
        raise SerializationError(
            f"Failed to deserialize object of type {bytes(head.name).decode()} "
            f"using the {KIND_NAMES[head.kind]} serializer: {type(error).__name__}: {error}"
        ) from error


def _decode(kind: int, parts: list[memoryview], *, copy: bool) -> Any:
    first = parts[0]
    if kind == KIND_BYTES:
        return bytes(first)
    if kind == KIND_STR:
        return str(first, "utf-8", "surrogatepass")
    if kind == KIND_BYTEARRAY:
        return bytearray(first)
    rest: Sequence[Any] = parts[1:]
    if copy:
        # An array on memory that cannot be written to would be read-only, which
        # the array that was stored was not.
        rest = [bytearray(part) for part in rest]
    return pickle.loads(first, buffers=rest)


def describe(data: Any) -> Description:
    """Return what the header of stored data says; nothing is unpickled.

    Raises:
        CorruptDataError: `data` is not a whole stored form.
    """
    view = memoryview(data).cast("B")
    if not is_stored_form(view):
        raise CorruptDataError("header", MAGIC, bytes(view[: len(MAGIC)]))
    head = _Head(view)
    return Description(
        type_name=bytes(head.name).decode(),
        kind=KIND_NAMES[head.kind],
        nbytes=head.size,
        digest=head.checksum.hex() if head.sealed else None,
        lengths=head.lengths,
        start=head.start,
    )
