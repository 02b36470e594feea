"""How a store's objects become data and back: defaults, checks and errors in one place."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

from proxystore.serialize import (
    BytesLike,
    SerializationError,
    deserialize,
    frames,
    is_bytes_like,
    serialize,
)
from proxystore.store._failures import Failure, is_failure
from proxystore.store.types import DeserializerT, SerializerT
from proxystore.utils._process import owner

# What goes to a connector: several pieces that make one object, or data in one piece.
Encoded = frames.Buffers | BytesLike


class Codec:
    """A store's serializer and deserializer.

    Args:
        serializer: None: the package's own, whose pieces are not joined.
        deserializer: None: the package's own.
        verify: Compare the checksum of objects' content on reading, and so compute it
            on writing. None: unless the data are, or will be, a mapped file, of which
            only what is used should be read.
    """

    def __init__(
        self,
        serializer: SerializerT | None,
        deserializer: DeserializerT | None,
        verify: bool | None,
    ) -> None:
        self.serializer = serializer
        self.deserializer = deserializer
        self.verify = verify

    def dump(self, obj: Any, serializer: SerializerT | None, connector: Any) -> Encoded:
        """Return `obj` encoded by `serializer`, or by the store's if that is None.

        Args:
            obj: What to encode.
            serializer: None: the store's.
            connector: Where it will go; its ``maps_from`` says from which length on it
                returns mappings of files (None, or no such attribute: never).

        Raises:
            TypeError: The serializer returned something that is not bytes-like.
        """
        serializer = serializer or self.serializer
        if serializer is None or serializer is serialize:
            buffers = frames.dump(obj, owner=owner())
            return buffers.seal() if self._seals(buffers.nbytes, connector) else buffers
        data = serializer(obj)
        if not is_bytes_like(data):
            raise TypeError(
                f"a serializer must return bytes (or a bytes-like object), "
                f"{name_of(serializer)} returned {type(data).__name__}"
            )
        return data

    def _seals(self, nbytes: int, connector: Any) -> bool:
        if self.verify is not None:
            return self.verify
        maps_from = getattr(type(connector), "maps_from", None) and connector.maps_from
        return maps_from is None or nbytes < maps_from

    def load(self, data: BytesLike, deserializer: DeserializerT | None, key: Any) -> Any:
        """Return the object in `data`.

        Raises:
            Exception: What `data` hold in place of an object, see `Failure`.
            SerializationError: Whatever went wrong, with the key; ``__cause__`` is it.
        """
        deserializer = deserializer or self.deserializer
        try:
            if deserializer is None or deserializer is deserialize or is_failure(data):
                obj = self._load(data)
            else:
                obj = deserializer(data)
        except Exception as error:
            raise SerializationError(
                f"Failed to deserialize object with key {key!r} using "
                f"{name_of(deserializer or deserialize)}: {error}"
            ) from error
        if type(obj) is Failure:
            raise obj.error()
        return obj

    def _load(self, data: BytesLike) -> Any:
        if not frames.is_stored_form(data):
            return deserialize(data)
        verify = self.verify
        if verify is None:
            verify = not isinstance(getattr(data, "obj", None), mmap.mmap)
        return frames.load(data, verify=verify)


def size_of(data: Encoded) -> int:
    """Return the length of encoded data, in bytes."""
    return data.nbytes if isinstance(data, frames.Buffers) else memoryview(data).nbytes


def parts_of(data: Encoded) -> Sequence[Any]:
    """Return encoded data as pieces to be written one after the other."""
    return data.parts if isinstance(data, frames.Buffers) else (data,)


def joined(data: Encoded) -> BytesLike:
    """Return encoded data in one piece."""
    return data.join() if isinstance(data, frames.Buffers) else data


def name_of(function: Any) -> str:
    """Return a name for any callable, also one without ``__qualname__``."""
    return getattr(function, "__qualname__", None) or repr(function)
