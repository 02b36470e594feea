"""What goes wrong with stores and the proxies they make.

Errors come home from other machines: each survives pickling wherever it is unpickled,
also where a connector's classes cannot be imported.
"""

from __future__ import annotations

import concurrent.futures
import errno
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
        text = (
            f"unknown connector kind {self.kind!r}: use one of {', '.join(self.known)}, "
            f"or the full path of a class that can be imported here"
        )
        if self.kind.startswith("__main__.") or "<locals>" in self.kind:
            text += (
                "; a class that is defined in a script, a notebook or a function is in no "
                "module: move it to one that can be imported wherever its objects are used"
            )
        return text


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
        path = get_object_path(self.store_type)
        return _rebuild_missing, (type(self), *_pack_key(self.key), path, self.store_name)


def _rebuild_missing(
    cls: type[ProxyResolveMissingKeyError],
    pickled_key: bytes,
    shown_key: str,
    store_type: str,
    store_name: str,
) -> ProxyResolveMissingKeyError:
    key = _unpack_key(pickled_key, shown_key)
    try:
        found = import_from_path(store_type)
    except Exception:  # noqa: BLE001 - as above
        found = type(store_type.rpartition(".")[2], (), {})
    return cls(key, found, store_name)


class ProxyResolveTimeoutError(ProxyResolveMissingKeyError, TimeoutError):
    """There was no object under the key of a future for as long as its consumer waited.

    Attributes:
        waited: How long that was, in seconds.
    """

    def __init__(
        self, key: tuple[Any, ...], store_type: type, store_name: str, waited: float = 0.0
    ) -> None:
        super().__init__(key, store_type, store_name)
        # OSError has taken the three for these.
        self.errno, self.strerror, self.filename = errno.ETIMEDOUT, "timed out", None
        self.waited = waited

    def __str__(self) -> str:
        return (
            f"{self.store_type.__name__}(name={self.store_name!r}) has had no object under "
            f"{self.key!r} for {self.waited:.3f} s: its producer has not called set_result(), or "
            f"the object was evicted, or this process cannot see where the store keeps its "
            f"objects; wait longer (polling_timeout), or see how the producer is doing"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"waited": self.waited}


class _FutureStateError(StoreError):
    """A future is not in the state that was asked for.

    Attributes:
        key: The connector's key; a tuple of its text where its class cannot be imported.
        store_name: Name of the future's store.
    """

    def __init__(self, key: tuple[Any, ...], store_name: str, *facts: str) -> None:
        super().__init__(key, store_name, *facts)
        self.key = key
        self.store_name = store_name

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_future, (type(self), *_pack_key(self.key), *self.args[1:])


class FutureCancelledError(_FutureStateError, concurrent.futures.CancelledError):
    """A future was cancelled: there is no result, and there will be none."""

    def __str__(self) -> str:
        return f"the future of {self.key!r} in the store {self.store_name!r} was cancelled"


class FutureAlreadyDoneError(_FutureStateError, concurrent.futures.InvalidStateError):
    """A future has a result or an exception, or was cancelled, and is not given another.

    Attributes:
        outcome: What it has: "a result", "an exception" or "been cancelled".
    """

    def __init__(self, key: tuple[Any, ...], store_name: str, outcome: str) -> None:
        super().__init__(key, store_name, outcome)
        self.outcome = outcome

    def __str__(self) -> str:
        advice = (
            "nobody waits for one, so do without"
            if self.outcome == "been cancelled"
            else "set overwrite=True if its producer runs again"
        )
        return (
            f"the future of {self.key!r} in the store {self.store_name!r} has "
            f"{self.outcome} and takes no other: {advice}"
        )


class ProducerError(StoreError):
    """The producer of an object failed, with an exception that cannot be raised here.

    It could not be pickled, its class cannot be imported, or it was an interruption or exit
    of the producer's process.

    Attributes:
        description: The exception's last line in a traceback.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description)
        self.description = description

    def __str__(self) -> str:
        return f"the producer failed with {self.description}"


def _rebuild_future(
    cls: type[_FutureStateError], pickled_key: bytes, shown_key: str, *rest: str
) -> _FutureStateError:
    return cls(_unpack_key(pickled_key, shown_key), *rest)


def _pack_key(key: tuple[Any, ...]) -> tuple[bytes, str]:
    try:
        return pickle.dumps(key), repr(key)
    except Exception:  # noqa: BLE001 - a key is a connector's own; the error must still travel
        return b"", repr(key)


def _unpack_key(pickled: bytes, shown: str) -> tuple[Any, ...]:
    try:
        key: tuple[Any, ...] = pickle.loads(pickled)
    except Exception:  # noqa: BLE001 - its class is not here; say what it was
        return (shown,)
    return key
