"""What travels in place of a large object: inert, small, and not a proxy.

Frameworks look at what they carry (`isinstance`, `hasattr`, `callable`, hashing,
tokenizing), and every look at a proxy may fetch it. A `Ref` can be looked at by
anybody; only `Ref.resolve` does I/O.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Container
from typing import Any

import xxhash

from proxystore.connectors.file import FileConnector
from proxystore.connectors.protocols import EnumerableConnector
from proxystore.proxy import Proxy
from proxystore.serialize import frames
from proxystore.store import Store, StoreFactory, get_or_create_store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.utils.imports import import_from_path

_MISSING = object()

# Identity of a stored object: its store's name and the fields of its key.
RefId = tuple[Any, ...]


class Ref:
    """A reference to a stored object.

    Equal and hashable by `id`. Not callable, holds nothing, evicts nothing by itself.

    Attributes:
        factory: Gets the object, in any process that can reach the store.
        digest: 32 hexadecimal digits, equal for equal content. Empty: not known.
        nbytes: Length of what is stored, in bytes.
        type_name: ``module.qualname`` of the object's class.
    """

    __slots__ = ("digest", "factory", "nbytes", "type_name")

    def __init__(
        self, factory: StoreFactory[Any], digest: str, nbytes: int, type_name: str
    ) -> None:
        self.factory = factory
        self.digest = digest
        self.nbytes = nbytes
        self.type_name = type_name

    @property
    def id(self) -> RefId:
        """The store's name and the fields of the key: what counts as the same object."""
        return (self.factory.store_config.name, *self.factory.key)

    @property
    def store(self) -> Store[Any]:
        """This process's store for the object; made if there is none."""
        return get_or_create_store(self.factory.store_config)

    def resolve(self) -> Any:
        """Return the object: the caller's own, which it may change.

        Raises:
            ProxyResolveMissingKeyError: It is gone.
            SerializationError: It is there and cannot be deserialized.
        """
        store = self.store
        obj = store.get(self.factory.key, default=_MISSING, cache=False)
        if obj is _MISSING:
            raise ProxyResolveMissingKeyError(self.factory.key, type(store), store.name)
        return obj

    def exists(self) -> bool:
        """Say whether the object is there."""
        return self.store.exists(self.factory.key)

    def evict(self) -> None:
        """Remove the object; that it is not there is no error."""
        self.store.evict(self.factory.key)

    def proxy(self) -> Proxy[Any]:
        """Return an unresolved proxy that knows its target's class, if that is importable."""
        proxy: Proxy[Any] = Proxy(self.factory)
        with contextlib.suppress(ImportError):  # a local class: using the proxy will tell
            proxy.__proxy_default_class__ = import_from_path(self.type_name)
        return proxy

    def __reduce__(self) -> Any:
        return type(self), (self.factory, self.digest, self.nbytes, self.type_name)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        name = self.type_name.rpartition(".")[2]
        return f"<{type(self).__name__} to {name}, {self.nbytes / 1e6:.1f} MB>"


class ProxyRef(Ref):
    """A proxy that the user has made, travelling inert.

    Where it arrives it is a proxy again. The object is the user's: nothing here counts
    its uses or evicts it.
    """

    __slots__ = ()

    def resolve(self) -> Proxy[Any]:
        """Return an unresolved proxy."""
        return self.proxy()

    def proxy(self) -> Proxy[Any]:
        """Return an unresolved proxy that knows its target's class, if the first one did."""
        return super().proxy() if self.type_name else Proxy(self.factory)


def ref_to(
    store: Store[Any],
    data: Any,
    type_name: str,
    *,
    name: str | None = None,
    digest: bool = True,
) -> Ref:
    """Store what `Store.dump` returned and return a reference to it.

    Args:
        store: Where to.
        data: What `Store.dump` returned.
        type_name: As for `Ref`.
        name: That of `Store.put_dumped`.
        digest: False: leave it empty, which saves a look at all of the content.
    """
    found, nbytes = digest_of(data) if digest else "", frames_size(data)
    key = store.put_dumped(data, name=name)
    return Ref(StoreFactory(key, store.config()), found, nbytes, type_name)


def store_object(
    store: Store[Any], obj: Any, *, name: str | None = None, digest: bool = True
) -> Ref:
    """Store an object and return a reference to it; other arguments are those of `ref_to`."""
    return ref_to(store, store.dump(obj), frames.type_name(obj), name=name, digest=digest)


def digest_of(data: Any) -> str:
    """Return 32 hexadecimal digits of what `Store.dump` returned, equal for equal data."""
    if isinstance(data, frames.Buffers):
        return data.digest
    return xxhash.xxh3_128(data).hexdigest()


def frames_size(data: Any) -> int:
    """Return the length of what `Store.dump` returned, in bytes."""
    return data.nbytes if isinstance(data, frames.Buffers) else memoryview(data).nbytes


def sweep(
    store: Store[Any],
    prefix: str,
    *,
    keep: Callable[[], Container[RefId] | None] = frozenset[RefId],
    begun: bool = True,
) -> int:
    """Evict objects whose names start with `prefix`, and what killed processes have begun of them.

    For whoever knows that nobody is writing an object of such a name at this moment, other than
    those of `keep`; or, without `begun`, that who does will not tell of it.

    Args:
        store: Where. If its connector cannot list objects, nothing is done.
        prefix: How their names start.
        keep: Gives the objects that stay; called after all were listed, so that one which is
            stored meanwhile need not be among them. None: leave all.
        begun: False: leave what has been begun. Who writes it may be alive, and would fail.

    Returns:
        How many were evicted.
    """
    connector = store.connector
    if not isinstance(connector, EnumerableConnector):
        return 0
    listed = list(connector.keys(prefix))
    files = _unfinished(store, prefix) if begun else {}
    needed = keep()
    if needed is None:
        return 0
    found = [key for key in listed if (store.name, *key) not in needed]
    for key in found:
        store.evict(key)
    if isinstance(connector, FileConnector):
        connector.remove_unfinished(
            path for path, key in files.items() if (store.name, *key) not in needed
        )
    return len(found)


def idle_for(store: Store[Any], prefix: str) -> float:
    """Return for how many seconds nothing was added to what is begun of objects of such names.

    Infinity: nothing is begun.
    """
    added: list[float] = []
    for path in _unfinished(store, prefix):
        with contextlib.suppress(FileNotFoundError):  # it is whole now
            added.append(os.stat(path).st_mtime)
    return time.time() - max(added) if added else math.inf


def _unfinished(store: Store[Any], prefix: str) -> dict[str, Any]:
    # Elsewhere what is not whole is not there.
    connector = store.connector
    return connector.unfinished(prefix) if isinstance(connector, FileConnector) else {}
