"""Objects to buffers and back: the stored form, without a copy that can be avoided.

An object becomes a short header, a pickle stream, and the large pieces of memory
that the stream refers to (pickle protocol 5, out of band), in this order:

    offset  size  field (integers little endian)
    0       8     magic
    8       1     version: 2 if it is said who made the stored form and when, else 1
    9       1     kind: how the first buffer is decoded
    10      2     length of the names
    12      4     number of buffers
    16      16    checksum of all that is not content; version 2: XOR that of the origin
    32      8     length of the whole stored form
    40      16    checksum of the content
    56      1     1 if that one was computed, else 0
    57      7     version 2: when, in milliseconds since 1970; version 1: zero
    64            length of each buffer, 8 bytes each; names, UTF-8: the class's, and in
                  version 2 a zero byte and who; padding
    ...           the buffers, each starting at a multiple of 64 bytes

Content is what is not interpreted: the buffers after the pickle stream, or the one
buffer of bytes or text. The rest, which is short for an array of any size, is always
compared on reading, so that what is unpickled is what was pickled. Whether content is
compared is up to the reader; whether there is something to compare with, to the writer:
a gigabyte that will be mapped and not read need not be read to be written either.

The first checksum is that of the same object in version 1, and what version 2 adds has
another: XOR of the two protects both, and each can be had from the header alone. So
`Buffers.digest`, by which equal objects are found, does not depend on who and when.

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
from datetime import datetime, timedelta, timezone
from time import time_ns
from typing import Any

import cloudpickle
import xxhash

from proxystore.serialize._errors import CorruptDataError, SerializationError

MAGIC = b"\x89PXS\r\n\x1a\n"  # PNG's recipe: not ASCII, shows line-ending conversion
VERSION = 1
VERSION_WITH_ORIGIN = 2
# A cache line; also what numpy, Arrow and SIMD code like their data aligned to.
ALIGNMENT = 64

_HEAD = struct.Struct("<8sBBHI16sQ16sB7s")
_NAMES_LENGTH_AT = slice(10, 12)
_CHECKSUM_AT = slice(16, 32)
_WHEN_AT = slice(57, 64)
_NOTHING = bytes(16)
_NO_TIME = bytes(7)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

# Both names together must fit into 65,535 bytes.
_LONGEST_NAME = 60_000
_LONGEST_OWNER = 1_000
_PADDING = tuple(bytes(n) for n in range(ALIGNMENT))

KIND_PICKLE = 0
KIND_CLOUDPICKLE = 1
KIND_BYTES = 2
KIND_STR = 3
KIND_BYTEARRAY = 4
# The names that error messages use; existing programs look for "pickle", "cloudpickle",
# "bytes" and "string" in them.
KIND_NAMES = ("pickle", "cloudpickle", "bytes", "string", "bytearray")


class Buffers:
    """The stored form of one object, not joined.

    The parts alias the object's memory where that is possible: write them out
    before the object changes. Not thread-safe.

    Args:
        kind: How the first buffer is decoded.
        payload: The buffers.
        type_name: ``module.qualname`` of the object's class.
        owner: Who makes this, in UTF-8, without zero bytes; it is then also said when.
            Empty: neither is said.

    Attributes:
        nbytes: Sum of the lengths of `parts`, in bytes.
        type_name: As given.
    """

    __slots__ = (
        "_bare", "_content", "_digest", "_origin", "_parts", "_seal", "_table",
        "nbytes", "type_name",
    )  # fmt: skip

    def __init__(
        self, kind: int, payload: Sequence[Any], type_name: str, owner: bytes = b""
    ) -> None:
        views = [memoryview(part).cast("B") if part else memoryview(b"") for part in payload]
        name = type_name.encode()[:_LONGEST_NAME]
        table = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views)) + name
        bare_table = written = table + _PADDING[-len(table) % ALIGNMENT]
        self._origin: tuple[int, bytes, bytes] | None = None
        if owner:
            rest = b"\0" + owner[:_LONGEST_OWNER]
            length = len(name) + len(rest)
            rest += _PADDING[-(len(table) + len(rest)) % ALIGNMENT]
            when = (time_ns() // 1_000_000).to_bytes(7, "little")
            self._origin = (length, when, rest)
            written = table + rest
        parts: list[Any] = [None, written]  # the header comes when it is asked for
        size = _HEAD.size + len(written)
        for view in views:
            parts.append(view)
            gap = -view.nbytes % ALIGNMENT
            if gap:
                parts.append(_PADDING[gap])
            size += view.nbytes + gap
        pickled = _stream(kind, views)
        self._table: list[Any] = [bare_table, *pickled]
        self._content = views[len(pickled) :]
        # What the header of version 1 would say.
        self._bare = (kind, len(name), len(views), size - len(written) + len(bare_table))
        self._digest = 0
        self._seal: bytes | None = None
        self._parts = parts
        self.nbytes = size
        self.type_name = type_name

    @property
    def parts(self) -> list[Any]:
        """What to write, in order, padding included."""
        if self._parts[0] is None:
            kind, length, count, size = self._bare
            seal, sealed = self._seal or _NOTHING, int(self._seal is not None)
            bare = (kind, length, count, _NOTHING, size, seal, sealed, _NO_TIME)
            checksum = xxhash.xxh3_128(_HEAD.pack(MAGIC, VERSION, *bare))
            for part in self._table:
                checksum.update(part)
            self._digest = found = checksum.intdigest()
            version, when = VERSION, _NO_TIME
            if self._origin is not None:
                version, size = VERSION_WITH_ORIGIN, self.nbytes
                length, when, rest = self._origin
                found ^= _checksum_of_origin(length.to_bytes(2, "little"), when, rest)
            whole = (kind, length, count, found.to_bytes(16, "big"), size, seal, sealed, when)
            self._parts[0] = _HEAD.pack(MAGIC, version, *whole)
        return self._parts

    def seal(self) -> Buffers:
        """Compute the checksum of the content, which reads all of it, and return self."""
        if self._seal is None:
            self._seal = _checksum_of(self._content)
            self._parts[0] = None
        return self

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that are equal for equal objects, whoever stored them; seals."""
        self.seal()
        _ = self.parts  # computes it
        return f"{self._digest:032x}"

    def join(self) -> bytes:
        """Return the stored form in one piece (one copy)."""
        return b"".join(self.parts)


def _stream(kind: int, views: list[memoryview]) -> list[memoryview]:
    return views[:1] if kind in (KIND_PICKLE, KIND_CLOUDPICKLE) else []


def _checksum_of_origin(length: bytes, when: bytes, rest: bytes) -> int:
    """Return the checksum of what version 2 adds.

    Args:
        length: Of the names, as in the header.
        when: As in the header.
        rest: What follows the name of the class, up to the first buffer.
    """
    return xxhash.xxh3_128_intdigest(length + when + rest)


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
        created: When it was encoded, in UTC, by the clock of who did it; None: not said.
        owner: Who did; None: not said.
    """

    type_name: str
    kind: str
    nbytes: int
    digest: str | None
    lengths: tuple[int, ...]
    start: int
    created: datetime | None = None
    owner: str | None = None


class _Head:
    """A parsed header; raises `CorruptDataError` on what cannot be ours.

    Args:
        view: The stored form, or enough of its beginning.
        nbytes: Length of the whole, in bytes.
    """

    __slots__ = (
        "checksum", "content", "kind", "lengths", "name", "name_end", "owner",
        "sealed", "size", "start", "version", "when",
    )  # fmt: skip

    version: int
    kind: int
    checksum: bytes
    content: bytes
    sealed: int
    size: int
    when: bytes

    def __init__(self, view: memoryview, nbytes: int) -> None:
        if view.nbytes < _HEAD.size:
            raise CorruptDataError("length", f"at least {_HEAD.size} bytes", view.nbytes)
        _, self.version, self.kind, names_length, count, *rest = _HEAD.unpack_from(view)
        self.checksum, self.size, self.content, self.sealed, self.when = rest
        if self.version not in (VERSION, VERSION_WITH_ORIGIN):
            raise CorruptDataError("version", f"{VERSION} or {VERSION_WITH_ORIGIN}", self.version)
        if self.kind >= len(KIND_NAMES):
            raise CorruptDataError("kind", f"0 to {len(KIND_NAMES) - 1}", self.kind)
        if self.size != nbytes:
            raise CorruptDataError("length", f"{self.size} bytes", f"{nbytes} bytes")
        table_end = _HEAD.size + 8 * count
        names_end = table_end + names_length
        self.start = _aligned(names_end)
        if count == 0 or self.start > self.size:
            raise CorruptDataError("header", "a table that fits the data", f"{count} buffers")
        if self.start > view.nbytes:
            raise CorruptDataError("header", f"{self.start} bytes", f"{view.nbytes} bytes")
        self.lengths: tuple[int, ...] = struct.unpack_from(f"<{count}Q", view, _HEAD.size)
        self.name = bytes(view[table_end:names_end])
        self.owner = b""
        if self.version == VERSION_WITH_ORIGIN:
            # The last one: nothing keeps a class's name from having some.
            self.name, _, self.owner = self.name.rpartition(b"\0")
        self.name_end = table_end + len(self.name)
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
        found = _checksum_of([*self._bare(view), *pickled])
        if self.version == VERSION_WITH_ORIGIN:
            found = _xor(found, self._origin_checksum(view))
        if found != self.checksum:
            raise CorruptDataError("checksum", self.checksum.hex(), found.hex())
        if content and self.sealed:
            found = _checksum_of(parts[len(pickled) :])
            if found != self.content:
                raise CorruptDataError("checksum of the content", self.content.hex(), found.hex())

    def _bare(self, view: memoryview) -> list[Any]:
        """Return header and table as they would be in version 1, without the checksum."""
        if self.version == VERSION:
            return [view[: _CHECKSUM_AT.start], _NOTHING, view[_CHECKSUM_AT.stop : self.start]]
        end = self.name_end
        size = self.size - self.start + _aligned(end)
        names = (self.kind, len(self.name), len(self.lengths))
        rest = (_NOTHING, size, self.content, self.sealed, _NO_TIME)
        head = _HEAD.pack(MAGIC, VERSION, *names, *rest)
        return [head, view[_HEAD.size : end], _PADDING[-end % ALIGNMENT]]

    def _origin_checksum(self, view: memoryview) -> int:
        rest = bytes(view[self.name_end : self.start])
        return _checksum_of_origin(bytes(view[_NAMES_LENGTH_AT]), self.when, rest)

    def digest(self, view: memoryview) -> str:
        """Return the checksum that the object would have in version 1."""
        if self.version == VERSION:
            return self.checksum.hex()
        return _xor(self.checksum, self._origin_checksum(view)).hex()

    def created(self) -> datetime | None:
        if self.version == VERSION:
            return None
        try:
            return _EPOCH + timedelta(milliseconds=int.from_bytes(self.when, "little"))
        except OverflowError:  # damaged: nobody has compared the checksum yet
            return None


def _xor(checksum: bytes, other: int) -> bytes:
    return (int.from_bytes(checksum, "big") ^ other).to_bytes(16, "big")


def _aligned(length: int) -> int:
    return length + -length % ALIGNMENT


def type_name(obj: object) -> str:
    """Return ``module.qualname`` of the class of `obj`; a proxy's own, not its target's."""
    cls = type(obj)
    return f"{cls.__module__}.{cls.__qualname__}"


def dump(obj: Any, *, owner: bytes = b"") -> Buffers:
    """Return the stored form of any object that pickle or cloudpickle can handle.

    It is not sealed: see `Buffers.seal`.

    Args:
        obj: The object.
        owner: As for `Buffers`.

    Raises:
        SerializationError: Neither can; ``__cause__`` is cloudpickle's error and
            that one's ``__context__`` pickle's.
    """
    # Exact types only: a subclass would come back as its base (compat.md, row 7).
    cls = type(obj)
    if cls is bytes:
        return Buffers(KIND_BYTES, (obj,), "builtins.bytes", owner)
    if cls is str:
        return Buffers(KIND_STR, (obj.encode("utf-8", "surrogatepass"),), "builtins.str", owner)
    if cls is bytearray:
        return Buffers(KIND_BYTEARRAY, (obj,), "builtins.bytearray", owner)
    if cls is memoryview:  # no pickler takes one; it comes back as bytes
        # Buffers casts it, from C order only, and asks for its length, which what has no
        # dimension has not (Python 3.12).
        data = obj if obj.c_contiguous and obj.ndim else bytes(obj)
        return Buffers(KIND_BYTES, (data,), "builtins.bytes", owner)
    kind, payload = _pickled(obj)
    return Buffers(kind, payload, type_name(obj), owner)


def _pickled(obj: Any) -> tuple[int, list[Any]]:
    out_of_band: list[pickle.PickleBuffer] = []
    try:
        stream = pickle.dumps(obj, protocol=5, buffer_callback=out_of_band.append)
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything; cloudpickle decides
        return _cloudpickled(obj)  # in here: what it raises has this error as its context
    # What is defined in a script or a notebook exists only there: another process has
    # its own __main__, so it has to travel by value.
    if b"__main__" not in stream:
        return KIND_PICKLE, [stream, *_raw(out_of_band)]
    del stream, out_of_band
    return _cloudpickled(obj)


def _cloudpickled(obj: Any) -> tuple[int, list[Any]]:
    out_of_band: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    try:
        cloudpickle.Pickler(file, protocol=5, buffer_callback=out_of_band.append).dump(obj)
    except Exception as error:
        raise SerializationError(f"Object of type {type(obj)} is not supported.") from error
    return KIND_CLOUDPICKLE, [file.getbuffer(), *_raw(out_of_band)]


def _raw(buffers: list[pickle.PickleBuffer]) -> list[memoryview]:
    return [buffer.raw() for buffer in buffers]


def is_stored_form(data: Any) -> bool:
    """Say whether `data` starts as what `dump` makes (and not as older data)."""
    return bytes(memoryview(data)[: len(MAGIC)]) == MAGIC


def is_of_type(data: Any, name: bytes) -> bool:
    """Say whether `data` is the stored form of an instance of the class called `name`.

    For classes whose instances have no buffers beside the pickle stream. Cheap (0.3 us)
    where the answer is no: it is asked whenever a store's own deserializer reads.

    Args:
        data: A contiguous buffer, of whatever origin.
        name: What `type_name` returns for an instance, in ASCII.
    """
    start = _HEAD.size + 8  # after a table of one length
    if bytes(memoryview(data)[start : start + len(name)]) != name:
        return False
    return is_stored_form(data) and describe(data).type_name.encode() == name


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
    head = _Head(view, view.nbytes)
    parts = head.split(view)
    head.check(view, parts, content=verify)
    try:
        return _decode(head.kind, parts, copy=view.readonly)
    except Exception as error:
        raise SerializationError(
            f"Failed to deserialize object of type {head.name.decode()} "
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


def head_length(data: Any) -> int:
    """Return how many bytes `describe` needs of the stored form that starts with `data`.

    Args:
        data: At least the first 64 bytes.
    """
    _, _, _, names_length, count, *_ = _HEAD.unpack_from(memoryview(data))
    return _aligned(_HEAD.size + 8 * count + names_length)


def describe(data: Any, nbytes: int | None = None) -> Description:
    """Return what the header of stored data says; nothing is unpickled.

    Lengths are compared, checksums are not: that would take more than the header.

    Args:
        data: The stored form, or as much of its beginning as `head_length` says.
        nbytes: Length of the whole, in bytes. None: `data` is the whole.

    Raises:
        CorruptDataError: `data` is not a whole stored form, or the beginning of one.
    """
    view = memoryview(data).cast("B")
    if not is_stored_form(view):
        raise CorruptDataError("header", MAGIC, bytes(view[: len(MAGIC)]))
    head = _Head(view, view.nbytes if nbytes is None else nbytes)
    return Description(
        # As far as can be read: nobody has compared the checksum.
        type_name=head.name.decode(errors="replace"),
        kind=KIND_NAMES[head.kind],
        nbytes=head.size,
        digest=head.digest(view) if head.sealed else None,
        lengths=head.lengths,
        start=head.start,
        created=head.created(),
        owner=head.owner.decode(errors="replace") or None,
    )
