"""Who still needs what: stored objects, counted by those who hold them.

A `Ledger` answers for the objects that one process has stored, or taken over from a
worker that stored them. Whoever needs an object has a `Hold`; when the last one is
released the ledger says so, once, from a thread of its own.

The rules:

- Releasing may happen anywhere, also in a finalizer in the middle of anything. It only
  appends to a queue; the reaper thread does the counting and the I/O.
- The lock protects the tables. Nobody does I/O, calls back or waits under it.
- An object is in the tables from when it is complete until nobody holds it. What has
  left is never taken back: the same content, wanted again, is stored again. So whoever
  was told that an object is unneeded may evict it without asking.
- A forked child starts with empty tables. What its parent holds is the parent's.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from proxystore.connectors.exceptions import StorageFullError
from proxystore.connectors.protocols import EnumerableConnector
from proxystore.serialize import frames
from proxystore.store import Store
from proxystore.workflow.refs import Ref, RefId, digest_of, ref_to

logger = logging.getLogger(__name__)

# How long to wait for room in a store that is full, in seconds, before each further try.
_WAITS_FOR_ROOM = (0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class LedgerStats:
    """What a ledger has done so far.

    Attributes:
        puts: Objects stored.
        put_bytes: Their length in all, in bytes.
        reused: How often content was wanted that was there already.
        adopted: Objects taken over that another process has stored.
        unneeded: Objects that nobody holds any more.
    """

    puts: int = 0
    put_bytes: int = 0
    reused: int = 0
    adopted: int = 0
    unneeded: int = 0


class _Entry:
    """An object in a ledger; `count` is the number of holds not yet given back."""

    __slots__ = ("count", "digest", "ref")

    def __init__(self, ref: Ref, digest: str | None) -> None:
        self.ref = ref
        self.digest = digest
        self.count = 0


class Hold:
    """Somebody needs an object, until this is released or garbage.

    Attributes:
        ref: The object.
    """

    __slots__ = ("__weakref__", "_entry", "_ledger", "_pid", "ref")

    def __init__(self, ledger: Ledger, entry: _Entry) -> None:
        self.ref = entry.ref
        self._ledger = ledger
        self._entry: _Entry | None = entry
        self._pid = os.getpid()

    def release(self) -> None:
        """Give the object back; calling it again does nothing. Safe in finalizers."""
        entry, self._entry = self._entry, None
        if entry is not None and self._pid == os.getpid():
            self._ledger._returned.put(entry)

    def __del__(self) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Hold({self.ref!r}{', released' if self._entry is None else ''})"


class Ledger:
    """The objects a process answers for, by content.

    Thread-safe.

    Args:
        store: Where new objects go.
        on_stored: Called with each new object before anybody can have a hold on it,
            in the thread that stored it. If it raises, the object is evicted.
        on_unneeded: Called with each object that nobody holds any more, in the
            reaper thread. None: evict it.
        name: Returns the name of the next object, as `Store.put_dumped` takes it, so
            that whoever survives this process can find what it has stored and told nobody
            of; called in any thread. None: names of the connector's own, as with a connector
            that has no names.
        find: Called with the digest of content that is not here, in the thread that wants it.
            Returns an object of this content that somebody else has stored, and that stays
            until it is reported as unneeded here too; or None.
        make_room: Called when the store is full, in the thread that wants to put something there.
            Has somebody else evict what is not needed; returns whether there was any.
    """

    def __init__(
        self,
        store: Store[Any],
        *,
        on_stored: Callable[[Ref], None] | None = None,
        on_unneeded: Callable[[Ref], None] | None = None,
        name: Callable[[], str | None] | None = None,
        find: Callable[[str], Ref | None] | None = None,
        make_room: Callable[[], bool] | None = None,
    ) -> None:
        self.store = store
        self._name = name if isinstance(store.connector, EnumerableConnector) else None
        self._find = find
        self._make_room = make_room
        self._on_stored = on_stored
        self._on_unneeded = on_unneeded or Ref.evict
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._by_digest: dict[str, _Entry] = {}
        self._by_id: dict[RefId, _Entry] = {}
        # Content on its way into the store, by digest: others who want it wait here.
        self._arriving: dict[str, Future[None]] = {}
        self._kept: set[RefId] = set()
        self._stats = LedgerStats()
        # SimpleQueue: its put is re-entrant, a finalizer may interrupt another put.
        self._returned: queue.SimpleQueue[_Entry | threading.Event | None] = queue.SimpleQueue()
        self._reaper: threading.Thread | None = None
        self._closed = False
        self._reaped = False

    # -- taking

    def hold(self, obj: Any) -> Hold:
        """Return a hold on an object with this content, storing it if there is none.

        Content that is there is not stored again, nor by two threads at once.

        Raises:
            SerializationError: The object cannot be pickled.
            RuntimeError: The ledger is closed.
        """
        return self.hold_dumped(self.store.dump(obj), frames.type_name(obj))

    def hold_dumped(self, data: Any, type_name: str, *, digest: bool = True) -> Hold:
        """As `hold`, for what `Store.dump` returned.

        Args:
            data: What `Store.dump` returned.
            type_name: As for `Ref`.
            digest: False: do not look whether the content is there already.
        """
        self._check_usable()
        if not digest:
            return self._store(data, None, type_name)
        return self._hold_content(data, digest_of(data), type_name)

    def _hold_content(self, data: Any, digest: str, type_name: str) -> Hold:
        while True:
            with self._lock:
                entry = self._by_digest.get(digest)
                if entry is not None:
                    self._stats = replace(self._stats, reused=self._stats.reused + 1)
                    return self._hold(entry)
                arriving = self._arriving.get(digest)
                if arriving is None:
                    self._arriving[digest] = Future()
                    break
            arriving.result()  # then look again: the first one may have failed
        try:
            found = None if self._find is None else self._find(digest)
            return self._store(data, digest, type_name) if found is None else self._take(found)
        finally:
            with self._lock:
                arrived = self._arriving.pop(digest)
            arrived.set_result(None)

    def _put(self, data: Any, type_name: str, *, digest: bool) -> Ref:
        name = None if self._name is None else self._name()
        for wait in _WAITS_FOR_ROOM:
            try:
                return ref_to(self.store, data, type_name, name=name, digest=digest)
            except StorageFullError:  # noqa: PERF203 - four times at most
                # What was released a moment ago may be on its way out, through the reaper
                # or, where another process evicts, through that.
                self.flush()
                if self._make_room is not None and self._make_room():
                    continue
                if not self._stats.unneeded:
                    raise
                time.sleep(wait)
        return ref_to(self.store, data, type_name, name=name, digest=digest)

    def _store(self, data: Any, digest: str | None, type_name: str) -> Hold:
        ref = self._put(data, type_name, digest=digest is not None)
        try:
            if self._on_stored is not None:
                self._on_stored(ref)
        except BaseException:
            ref.evict()
            raise
        with self._lock:
            self._stats = replace(
                self._stats,
                puts=self._stats.puts + 1,
                put_bytes=self._stats.put_bytes + ref.nbytes,
            )
            if not self._closed:
                entry = _Entry(ref, digest)
                self._by_id[ref.id] = entry
                if digest is not None:
                    self._by_digest[digest] = entry
                return self._hold(entry)
            self._stats = replace(self._stats, unneeded=self._stats.unneeded + 1)
        # Closed meanwhile: nobody has it, and who hears of what is unneeded may be gone, too.
        self.store.evict(ref.factory.key)
        raise self._is_closed()

    def _take(self, ref: Ref) -> Hold:
        with self._lock:
            if not self._closed:
                self._stats = replace(self._stats, reused=self._stats.reused + 1)
                entry = _Entry(ref, ref.digest)
                self._by_id[ref.id] = entry
                self._by_digest[ref.digest] = entry
                return self._hold(entry)
        self._unneeded(ref)  # closed meanwhile
        raise self._is_closed()

    def adopt(self, ref: Ref) -> Hold:
        """Return a hold on an object that another process has stored.

        From the first one on, this ledger answers for it.
        """
        self._check_usable()
        with self._lock:
            entry = self._by_id.get(ref.id)
            if entry is None:
                self._stats = replace(self._stats, adopted=self._stats.adopted + 1)
                self._by_id[ref.id] = entry = _Entry(ref, None)
            return self._hold(entry)

    def _hold(self, entry: _Entry) -> Hold:
        """Count one hold more; call with the lock held."""
        if self._reaper is None:
            self._reaper = threading.Thread(
                target=self._reap, name="proxystore-reaper", daemon=True
            )
            self._reaper.start()
        entry.count += 1
        return Hold(self, entry)

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            self._start_afresh()
        if self._closed:
            raise self._is_closed()

    def _is_closed(self) -> RuntimeError:
        return RuntimeError(f"the ledger of {self.store.name!r} is closed")

    def keep(self, ref: Ref) -> None:
        """Never report an object as unneeded from now on."""
        with self._lock:
            self._kept.add(ref.id)

    def disown(self, is_gone: Callable[[Ref], bool]) -> list[Ref]:
        """Forget objects that somebody else has evicted; the same content is stored again.

        Holds on them stay, and mean nothing.

        Args:
            is_gone: Says which; must not call the ledger.

        Returns:
            What was forgotten. Nothing is reported as unneeded.
        """
        with self._lock:
            gone = [entry for entry in self._by_id.values() if is_gone(entry.ref)]
            for entry in gone:
                del self._by_id[entry.ref.id]
                if entry.digest is not None:
                    del self._by_digest[entry.digest]
        return [entry.ref for entry in gone]

    def forget_content(self) -> None:
        """Store content again when it is wanted again, whatever is held; it may not be there."""
        with self._lock:
            for entry in self._by_digest.values():
                entry.digest = None
            self._by_digest.clear()

    # -- giving back

    def _reap(self) -> None:
        while (returned := self._returned.get()) is not None:
            if isinstance(returned, threading.Event):
                returned.set()
            else:
                self._give_back(returned)

    def _give_back(self, entry: _Entry) -> None:
        with self._lock:
            entry.count -= 1
            # What was disowned may be there again, in an entry of its own.
            if entry.count or self._by_id.get(entry.ref.id) is not entry:
                return
            del self._by_id[entry.ref.id]
            if entry.digest is not None:
                del self._by_digest[entry.digest]
            kept = entry.ref.id in self._kept
        if not kept:
            self._unneeded(entry.ref)

    def _unneeded(self, ref: Ref) -> None:
        with self._lock:
            self._stats = replace(self._stats, unneeded=self._stats.unneeded + 1)
        try:
            self._on_unneeded(ref)
        except Exception:
            # The reaper has to outlive whatever a back end or a closing framework does.
            logger.exception("could not give up %r", ref)

    def flush(self, timeout: float | None = 10) -> bool:
        """Wait until everything released so far has been dealt with.

        Args:
            timeout: Longest wait, in seconds. None: for ever.

        Returns:
            Whether that was so in time.
        """
        if self._reaper is None or self._pid != os.getpid():
            return True
        reached = threading.Event()
        self._returned.put(reached)
        # Nobody reaps once the ledger is closed: what is released then was reported already.
        return self._reaped or reached.wait(timeout)

    def close(self) -> None:
        """Report everything that is held, and not kept, as unneeded; then refuse new holds.

        Calling it again does nothing.
        """
        with self._lock:
            if self._closed or self._pid != os.getpid():
                return
            self._closed = True
        self.flush()
        self._reaped = True
        self._returned.put(None)
        with self._lock:
            refs = [entry.ref for entry in self._by_id.values()]
            self._by_id.clear()
            self._by_digest.clear()
            kept = set(self._kept)
        for ref in refs:
            if ref.id not in kept:
                self._unneeded(ref)

    # -- looking

    @property
    def live(self) -> tuple[Ref, ...]:
        """The objects that somebody holds."""
        with self._lock:
            return tuple(entry.ref for entry in self._by_id.values())

    @property
    def stats(self) -> LedgerStats:
        """What this ledger has done so far."""
        return self._stats
