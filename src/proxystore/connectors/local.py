"""Objects in a dictionary of this process: for tests, threads and trying things out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any, NamedTuple

from proxystore.connectors._base import (
    ConnectorMixin,
    beginning,
    check_claim,
    checked_name,
    new_name,
    wrong_key,
)
from proxystore.serialize import BytesLike


class LocalKey(NamedTuple):
    """Key of an object in a `LocalConnector`."""

    id: str


# Who waits for an object: by the identity of the dictionary, which connectors may share,
# and by key.
_waiting: dict[tuple[int, LocalKey], list[threading.Event]] = {}
# Who has claimed an object, and until when on the monotonic clock; by the same.
_claims: dict[tuple[int, LocalKey], tuple[str, float]] = {}
# With how many of them to look for those that are over: twice as many as were left then.
_FEWEST_CLAIMS = 64
_most_claims = _FEWEST_CLAIMS
# Protects all three. Nobody waits for anything while holding it. Re-entrant: the garbage
# collector may run a finalizer that sets an object in the middle.
_lock = threading.RLock()


def _forget_waiting() -> None:
    # They are threads of the parent, one of which may have held the lock. What the parent's
    # consumers have claimed are the parent's objects, not the copies here.
    global _lock
    _lock = threading.RLock()
    _waiting.clear()
    _claims.clear()


os.register_at_fork(after_in_child=_forget_waiting)


def _check(key: object) -> None:
    # By its class alone: what a proxy's target is, would resolve it.
    if not issubclass(type(key), tuple):
        raise wrong_key(key, LocalKey)


class LocalConnector(ConnectorMixin[LocalKey]):
    """Keeps the data it is given in a dictionary, without copying it.

    Thread-safe: each operation is one operation of the dictionary.

    Args:
        store_dict: Where to keep objects; shared with whoever else holds it. None:
            a new dictionary.
        include_data_in_config: Put the dictionary into `config`, so that a connector
            rebuilt from it has the data: in this process the same dictionary, in
            another one a copy. Otherwise a rebuilt connector starts empty.
    """

    thread_safe = True

    def __init__(
        self,
        store_dict: dict[LocalKey, BytesLike] | None = None,
        *,
        include_data_in_config: bool = False,
    ) -> None:
        self._store = {} if store_dict is None else store_dict
        self._include_data_in_config = include_data_in_config

    def __repr__(self) -> str:
        return "LocalConnector()"

    def config(self) -> dict[str, Any]:
        """Return the keyword arguments that rebuild this connector."""
        config: dict[str, Any] = {"include_data_in_config": self._include_data_in_config}
        if self._include_data_in_config:
            config["store_dict"] = self._store
        return config

    def evict(self, key: LocalKey) -> None:
        """Remove the object; that it is not there is no error."""
        _check(key)
        self._store.pop(key, None)
        if _claims:  # looked at after the object is gone, as `claim` does it the other way round
            with _lock:
                _claims.pop((id(self._store), key), None)

    def exists(self, key: LocalKey) -> bool:
        """Say whether there is an object under `key`."""
        _check(key)
        return key in self._store

    def get(self, key: LocalKey) -> BytesLike | None:
        """Return the data as it was put, or None if there is no such key.

        Raises:
            TypeError: `key` is no key, as everywhere here.
        """
        if type(key) is not LocalKey:  # most are: a call less
            _check(key)
        return self._store.get(key)

    def peek(self, key: LocalKey, length: int) -> tuple[BytesLike, int] | None:
        """Return the first `length` bytes of the data (or all, if less) and their whole length.

        None if there is no such key.
        """
        data = self.get(key)
        return None if data is None else beginning(data, length)

    def new_key(self, obj: bytes | None = None) -> LocalKey:
        """Return a key with no object behind it yet; `obj` is not looked at."""
        return LocalKey(new_name())

    def put(self, obj: BytesLike) -> LocalKey:
        """Store data under a new key and return it."""
        key = self.new_key()
        self._store[key] = obj
        return key

    def set(self, key: LocalKey, obj: BytesLike) -> None:
        """Put an object behind a key, replacing what was there."""
        _check(key)
        self._store[key] = obj
        if _waiting:  # looked at after the object is there, as `wait` does it the other way round
            with _lock:
                for arrived in _waiting.get((id(self._store), key), ()):
                    arrived.set()

    def wait(self, key: LocalKey, timeout: float) -> bool:
        """Return True once there is an object under `key`, False if none comes.

        Args:
            key: Of an object that any connector with the same dictionary may `set`; what
                is put into the dictionary in other ways is noticed when the time is up.
            timeout: Longest wait, in seconds; 0: only look.
        """
        _check(key)
        if timeout <= 0 or key in self._store:
            return key in self._store
        arrived = threading.Event()
        place = (id(self._store), key)
        with _lock:
            _waiting.setdefault(place, []).append(arrived)
        try:
            # Once more: who has set it a moment ago has told nobody.
            if key not in self._store:
                arrived.wait(timeout)
            return key in self._store
        finally:
            with _lock:
                others = _waiting.get(place, [])
                if arrived in others:
                    others.remove(arrived)
                if not others:
                    _waiting.pop(place, None)

    def claim(self, key: LocalKey, claimant: str, seconds: float) -> str:
        """Try to claim the object for a time, and return who has it now.

        See `proxystore.connectors.protocols.ClaimableConnector`. Known to all connectors with
        the same dictionary, in this process.

        Raises:
            ValueError: `seconds` is not more than 0.
        """
        global _most_claims
        check_claim(seconds)
        _check(key)
        place, now = (id(self._store), key), monotonic()
        with _lock:
            has, until = _claims.get(place, (claimant, now))
            if has != claimant and now < until:
                return has
            _claims[place] = claimant, now + seconds
            if key not in self._store:
                del _claims[place]
            elif len(_claims) > _most_claims:  # of dictionaries that nobody has any more
                for other in [other for other, (_, end) in _claims.items() if end <= now]:
                    del _claims[other]
                _most_claims = max(_FEWEST_CLAIMS, 2 * len(_claims))
        return claimant

    def release(self, key: LocalKey, claimant: str) -> None:
        """End the claim of `claimant`; if somebody else has the object, do nothing."""
        _check(key)
        place = (id(self._store), key)
        with _lock:
            if place in _claims and _claims[place][0] == claimant:
                del _claims[place]

    def put_buffers(self, parts: Sequence[BytesLike]) -> LocalKey:
        """Store the concatenation of `parts`; it is copied, since parts alias objects."""
        return self.put(b"".join(parts))

    def set_buffers(self, key: LocalKey, parts: Sequence[BytesLike]) -> None:
        """Put a copy of the concatenation of `parts` behind `key`."""
        self.set(key, b"".join(parts))

    def named_key(self, name: str) -> LocalKey:
        """Return the key for a name of the form ``UUID4`` or ``UUID4.suffix``."""
        return LocalKey(checked_name(name))

    def keys(self, prefix: str = "") -> Iterator[LocalKey]:
        """Yield the keys that start with `prefix`, as they were when first asked."""
        return (key for key in tuple(self._store) if key.id.startswith(prefix))
