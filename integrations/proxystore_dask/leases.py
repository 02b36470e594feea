"""The client's side of lifetimes: which objects it answers for, and telling the scheduler so.

`proxystore.workflow.Ledger` counts who in this process still needs an object; this module turns
"the first" and "the last" into a lease at the scheduler. While a lease is open the object exists,
so only then does the ledger hand out the same object for the same bytes. (That a *task* mentions
an object proves nothing here: the scheduler keeps the first run spec of a key, so the task may
mention another object than the one that was sent.)
"""

from __future__ import annotations

import enum
import itertools
import logging
import os
import pickle
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any

from distributed import Future

from proxystore.connectors.protocols import EnumerableConnector
from proxystore.store import Store
from proxystore.workflow import Hold, Ledger, Ref, store_object
from proxystore_dask.scheduler_plugin import LEASE, LEASE_END

logger = logging.getLogger(__name__)

# How long a scheduler that has not answered in time is not asked again.
_SECONDS_UNASKED = 60

# How many objects may be on their way out when a scheduler dies; 10 MB of references.
_PAST = 10_000


class Lifetimes(enum.Enum):
    """Who evicts an object, and when."""

    GRAPH = "graph"
    """The scheduler's plugin, once no task can need the object again."""

    CLIENT = "client"
    """The client, when it closes: its scheduler takes no plugin, or cannot reach the store."""


class Leases:
    """Keeps objects alive from their put to the end of the last future made from them.

    Thread-safe. The lock keeps messages in order while the connection comes and goes; nobody does
    I/O under it.

    Args:
        store: Where objects go.
        send: Queues a message to the scheduler, in order with the graphs; must not block.
        ask: Has the scheduler lease an object of a digest to the owner that is named, if it
            knows one in this store: waits for the answer, a reference or None. What it raises
            is logged, and for some time nothing is asked.
        make_room: As for `Ledger`.
    """

    def __init__(
        self,
        store: Store[Any],
        send: Callable[[dict[str, Any]], None],
        ask: Callable[[str, str], Ref | None],
        make_room: Callable[[], bool] | None = None,
    ) -> None:
        self.ledger = Ledger(
            store,
            on_stored=self._opened,
            on_unneeded=self._ended,
            name=self._name,
            find=self._find,
            make_room=make_room,
        )
        # Whether others store in the same place: only then somebody may have the same content.
        self.has_company = False
        self._ask = ask
        self._ask_from = 0.0
        # Names of leases on what others have stored, by the identity of their references. They
        # come from another connection, so the end of an older lease may be heard after them.
        self._found: dict[int, str] = {}
        # Another one for each connection: the scheduler may be looking for what is left of the
        # last one while this one stores already.
        self.prefix = str(uuid.uuid4())
        self._numbers = itertools.count()
        self._send = send
        self._lock = threading.Lock()
        self._lifetimes: Lifetimes | None = None
        # What to tell the scheduler once there is one again, in order.
        self._waiting: list[tuple[str, Ref]] = []
        # Whose leases have ended; a scheduler that dies may not have evicted them. Names are not
        # used again, so to evict one twice does no harm.
        self._past: deque[Ref] = deque(maxlen=_PAST)
        # What nobody needs any more and the client has to evict when it closes.
        self._left: list[Ref] = []
        self._kept: dict[int, tuple[Hashable, tuple[Hold, ...]]] = {}
        self._tokens = itertools.count()

    @property
    def lifetimes(self) -> Lifetimes | None:
        """Who evicts; None while not connected, when nothing new should be stored."""
        return self._lifetimes

    def start(self, lifetimes: Lifetimes, *, anew: bool = False) -> None:
        """Connected: a scheduler that may know nothing of us hears of every lease.

        Args:
            lifetimes: Who evicts from now on.
            anew: The scheduler of before is gone, with its tasks. This one shall evict for it.
                Otherwise it is the same one, and has evicted when the connection was lost.
        """
        with self._lock:
            self._lifetimes = lifetimes
            waiting, self._waiting = self._waiting, []
            if anew:
                past, self._past = list(self._past), deque(maxlen=_PAST)
                waiting = [*((LEASE_END, ref) for ref in past), *waiting]
                # One that has closed in order has evicted before; one that died has not.
                self.ledger.forget_content()
            else:
                untold = {ref.id for op, ref in waiting if op == LEASE and self._is_current(ref)}
                gone = self.ledger.disown(lambda ref: ref.id not in untold)
                # One that was on its way to the store may have come after the eviction.
                waiting = [each for each in waiting if each[0] == LEASE_END or each[1].id in untold]
                waiting += ((LEASE_END, ref) for ref in gone)
            for ref in self.ledger.live:
                self._deliver(LEASE, ref)
            for op, ref in waiting:
                self._deliver(op, ref)

    def pause(self) -> None:
        """Not connected: every future is cancelled, and the scheduler ends our leases by itself."""
        with self._lock:
            self._lifetimes = None
        self.release_all()
        # Nothing from before may be handed out again: the scheduler is evicting it.
        self.ledger.flush()

    def probe(self) -> Ref:
        """An object of no content, to ask others whether they reach the store."""
        store = self.ledger.store
        name = self._name() if isinstance(store.connector, EnumerableConnector) else None
        return store_object(store, "proxystore_dask", name=name)

    def _name(self) -> str:
        # A forked child counts on from where its parent was.
        return f"{self.prefix}.{os.getpid()}-{next(self._numbers)}"

    def _is_current(self, ref: Ref) -> bool:
        """Whether an object was stored on this connection, as far as its name can tell."""
        if not isinstance(self.ledger.store.connector, EnumerableConnector):
            return True
        return str(ref.id[1]).startswith(self.prefix)

    def keep(self, future: Future[Any], holds: Iterable[Hold]) -> None:
        """Keep the objects behind `holds` for as long as `future` lives and is not cancelled.

        Futures may share a hold: it is released with the last reference to it.
        """
        token = next(self._tokens)
        self._kept[token] = (future.key, tuple(holds))
        weakref.finalize(future, self._kept.pop, token, None).atexit = False

    def release(self, keys: Collection[Hashable]) -> None:
        """Keep nothing any more for futures of these keys: they are cancelled.

        One that has been made meanwhile under the same key loses its objects here, and not at
        the scheduler, where its task mentions them.
        """
        keys = set(keys)
        for token, (key, _) in list(self._kept.items()):
            if key in keys:
                self._kept.pop(token, None)

    def release_all(self) -> None:
        """Keep nothing for any future any more."""
        self._kept.clear()

    def close(self) -> tuple[Ref, ...]:
        """Stop; with `Lifetimes.CLIENT`, evict everything.

        Otherwise the scheduler evicts: it ends the leases of a client that is gone.

        Returns:
            Objects that a scheduler, out of reach at this moment, may never evict.
        """
        self.release_all()
        self.ledger.close()
        with self._lock:
            left, self._left = self._left, []
            unheard = {ref.id: ref for _, ref in self._waiting}
        for ref in left:
            ref.evict()
        return tuple(unheard.values())

    def _find(self, digest: str) -> Ref | None:
        """An object of this content that another client has stored, leased to this one."""
        prefix = self.prefix
        if (
            not self.has_company
            or self._lifetimes is not Lifetimes.GRAPH
            or time.monotonic() < self._ask_from
        ):
            return None
        lease = f"{prefix}.{next(self._numbers)}"
        try:
            ref = self._ask(digest, lease)
        except Exception as error:  # noqa: BLE001 - whatever it is, the object can be stored
            logger.info("the scheduler has not said whether it knows an object: %r", error)
            self._ask_from = time.monotonic() + _SECONDS_UNASKED
            return None
        with self._lock:
            if ref is None or self.prefix != prefix:  # another scheduler, perhaps
                return None
            self._found[id(ref)] = lease
        return ref

    def _opened(self, ref: Ref) -> None:
        self._tell(LEASE, ref)

    def _ended(self, ref: Ref) -> None:
        self._tell(LEASE_END, ref)

    def _tell(self, op: str, ref: Ref) -> None:
        with self._lock:
            if self._lifetimes is None:
                self._waiting.append((op, ref))
            else:
                self._deliver(op, ref)

    def _deliver(self, op: str, ref: Ref) -> None:
        if self._lifetimes is Lifetimes.GRAPH:
            lease = self._found.get(id(ref), "")
            if op == LEASE_END:
                self._past.append(ref)
                self._found.pop(id(ref), None)
            self._send({"op": op, "ref": pickle.dumps(ref), "lease": lease})
        elif op == LEASE_END:
            self._left.append(ref)
