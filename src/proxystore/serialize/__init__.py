"""Objects to bytes and back.

`serialize` and `deserialize` work on whole byte strings; a `Store` uses the same
stored form without joining it (see `proxystore.serialize.frames`).
"""

from __future__ import annotations

import sys
from typing import Any

from proxystore.serialize import frames, legacy
from proxystore.serialize._errors import CorruptDataError, SerializationError

if sys.version_info >= (3, 12):
    from collections.abc import Buffer, Sized
    from typing import Protocol, TypeGuard, runtime_checkable

    @runtime_checkable
    class BytesLike(Buffer, Sized, Protocol):
        """Any buffer that has a length: bytes, bytearray, memoryview, mmap, arrays."""
else:
    from typing import TypeAlias, TypeGuard

    BytesLike: TypeAlias = bytes | bytearray | memoryview

__all__ = [
    "BytesLike",
    "CorruptDataError",
    "SerializationError",
    "deserialize",
    "is_bytes_like",
    "serialize",
]


def is_bytes_like(obj: Any) -> TypeGuard[BytesLike]:
    """Say whether `obj` can be written as bytes without being converted."""
    return isinstance(obj, BytesLike)


def serialize(obj: Any) -> bytes:
    """Return `obj` as bytes that `deserialize` understands in any process.

    Pickle protocol 5 where it works, cloudpickle for what it refuses (lambdas,
    local classes) and for what was defined in ``__main__``. A proxy is stored as a
    proxy and is not resolved.

    Raises:
        SerializationError: The object cannot be pickled.
    """
    return frames.dump(obj).seal().join()


def deserialize(buffer: BytesLike) -> Any:
    """Return the object that `serialize`, or an existing installation, made bytes of.

    Length and checksum are compared first.

    Args:
        buffer: Any bytes-like object; it is not changed. Arrays in the result are
            views of it if it can be written to, else copies.

    Raises:
        ValueError: `buffer` is not bytes-like.
        CorruptDataError: Length or checksum do not match.
        SerializationError: Unknown header, or the payload does not decode.
    """
    if not is_bytes_like(buffer):
        raise ValueError(f"buffer must be bytes-like, got {type(buffer).__name__}")
    if frames.is_stored_form(buffer):
        return frames.load(buffer)
    return legacy.load(buffer)
