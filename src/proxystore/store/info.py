"""What is known of a stored object without getting it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from proxystore.serialize import BytesLike, frames
from proxystore.store.types import ConnectorKeyT

# Of a connector that can read the beginning of an object: enough for the header of most.
_HEAD_LENGTH = 4096


@dataclass(frozen=True)
class ObjectInfo:
    """What stored data say of themselves; nothing is unpickled, no checksum compared.

    All but `key` and `nbytes` is None for what another serializer than the package's own has
    made bytes of.

    Attributes:
        key: The connector's key.
        nbytes: Length of what is stored, in bytes: with a header, and padded.
        type_name: ``module.qualname`` of the object's class.
        kind: How the object is encoded: one of `proxystore.serialize.frames.KIND_NAMES`.
        created: When it was encoded, in UTC, by the clock of the host that did it. None also
            for data in version 1 of the stored form, which `docs/wire_format.md` describes.
        owner: Who encoded it: ``user@host:pid``. None as for `created`.
        digest: 32 hexadecimal digits, equal for equal objects. None also where the content
            was written without a checksum (see `verify` of `Store`).
    """

    key: ConnectorKeyT
    nbytes: int
    type_name: str | None = None
    kind: str | None = None
    created: datetime | None = None
    owner: str | None = None
    digest: str | None = None


def info_of(connector: Any, key: ConnectorKeyT, *, peeks: bool) -> ObjectInfo | None:
    """Return what is known of an object; None if there is none.

    Args:
        connector: Where to look.
        key: Of the object.
        peeks: The connector is a `PeekableConnector`. Otherwise the data are got, which
            costs nothing where they are only mapped.

    Raises:
        CorruptDataError: The header contradicts itself, or the length of the data.
    """
    read = connector.peek if peeks else _get_all(connector)
    found = read(key, _HEAD_LENGTH)
    if found is not None and _needs_more(*found):
        found = read(key, frames.head_length(found[0]))
    if found is None:
        return None
    data, nbytes = found
    if not frames.is_stored_form(data):
        return ObjectInfo(key, nbytes)
    said = frames.describe(data, nbytes)
    return ObjectInfo(
        key,
        nbytes,
        type_name=said.type_name,
        kind=said.kind,
        created=said.created,
        owner=said.owner,
        digest=said.digest,
    )


def _get_all(connector: Any) -> Any:
    def read(key: ConnectorKeyT, length: int) -> tuple[BytesLike, int] | None:
        data: BytesLike | None = connector.get(key)
        return None if data is None else (data, memoryview(data).nbytes)

    return read


def _needs_more(data: BytesLike, nbytes: int) -> bool:
    length = memoryview(data).nbytes
    if length == nbytes or not frames.is_stored_form(data):
        return False
    # Where the header is damaged it may ask for more than there is; then that is said.
    return length < frames.head_length(data) <= nbytes
