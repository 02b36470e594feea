"""What goes wrong with stores and the proxies they make.

Errors come home from other machines: each survives pickling wherever it is unpickled,
also where a connector's classes cannot be imported.
"""

from __future__ import annotations

import pickle
from typing import Any

from proxystore.utils.imports import get_object_path, import_from_path


class StoreError(Exception):
    """Base of errors about stores."""


class StoreExistsError(StoreError):
    """A store of that name is registered already."""


# With one built-in base at the most: tblib, which Dask and Parsl switch on, rebuilds an
# exception by the `__new__` of its first built-in base, and that has to be the right one.
class StoreConfigError(StoreError):
    """A store's configuration cannot be used.

    Attributes:
        source: Where the configuration came from: a path, or a description.
        reason: What is wrong with it.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot use the store configuration in {self.source}: {self.reason}"


class StoreConfigReadError(StoreConfigError, OSError):
    """A file that should hold a store's configuration cannot be read."""


class UnknownConnectorError(StoreError, ValueError):
    """A connector's kind is neither a built-in's name nor a path that can be imported.

    Attributes:
        kind: What was asked for.
        known: Names that would have been understood.
    """

    def __init__(self, kind: str, known: tuple[str, ...]) -> None:
        super().__init__(kind, known)
        self.kind = kind
        self.known = known

    def __str__(self) -> str:
        return (
            f"unknown connector kind {self.kind!r}: use one of {', '.join(self.known)}, "
            f"or the full path of a class that can be imported here"
        )


class ConnectorOptionsError(StoreError, TypeError):
    """A connector's constructor does not take the options it was given.

    Attributes:
        kind: The connector's class.
        options: Names of the options given.
        reason: What the constructor said.
    """

    def __init__(self, kind: str, options: tuple[str, ...], reason: str) -> None:
        super().__init__(kind, options, reason)
        self.kind = kind
        self.options = options
        self.reason = reason

    def __str__(self) -> str:
        given = ", ".join(self.options) or "no options"
        return f"{self.kind} cannot be made with {given}: {self.reason}"


class ProxyStoreFactoryError(StoreError):
    """A proxy was not made by a store."""


class NonProxiableTypeError(Exception):
    """None, True and False cannot be proxied: code compares them with ``is``."""


class ProxyResolveMissingKeyError(Exception):
    """The object behind a proxy is gone, or was never there.

    Attributes:
        key: The connector's key.
        store_type: Class of the store that was asked.
        store_name: Its name.
    """

    def __init__(self, key: tuple[Any, ...], store_type: type, store_name: str) -> None:
        super().__init__(key, store_type, store_name)
        self.key = key
        self.store_type = store_type
        self.store_name = store_name

    def __str__(self) -> str:
        return (
            f"{self.store_type.__name__}(name={self.store_name!r}) has no object under "
            f"{self.key!r}: it was evicted, or its producer has not stored it yet, or this "
            f"process cannot see where the store keeps its objects"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            key = pickle.dumps(self.key)
        except Exception:  # noqa: BLE001 - a key is a connector's own; the error must still travel
            key = b""
        path = get_object_path(self.store_type)
        return _rebuild_missing, (type(self), key, repr(self.key), path, self.store_name)


def _rebuild_missing(
    cls: type[ProxyResolveMissingKeyError],
    pickled_key: bytes,
    shown_key: str,
    store_type: str,
    store_name: str,
) -> ProxyResolveMissingKeyError:
    try:
        key = pickle.loads(pickled_key)
    except Exception:  # noqa: BLE001 - its class is not here; say what it was
        key = (shown_key,)
    try:
        found = import_from_path(store_type)
    except Exception:  # noqa: BLE001 - as above
        found = type(store_type.rpartition(".")[2], (), {})
    return cls(key, found, store_name)
