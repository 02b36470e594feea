"""When a stored object can never be needed again, and its eviction.

Rules of this file:

* An object is needed while a *task* mentions it: from the graph's arrival until the scheduler has
  forgotten the task. "Released" is too early (a lost result is recomputed), "finished" far too
  early.
* An object is needed while its client holds a *lease* on it: from before the graph is sent until
  no future made from the object is left in that client. Leases bridge the time between put and
  graph, and cover an object that no task ever mentions because the scheduler already knew the
  task's key.
* Everything here runs in the scheduler's event loop; only evictions run in a thread of the plugin.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections.abc import Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from proxystore.store import Store, get_or_create_store
from proxystore.workflow import Ref
from proxystore_dask.graph import counted_refs

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler, TaskState

logger = logging.getLogger(__name__)

# Counts up when messages change their meaning; a client refuses a scheduler with another number.
PROTOCOL = 1

LEASE = "proxystore-lease"
LEASE_END = "proxystore-lease-end"
HELLO = "proxystore_hello"
STATS = "proxystore_stats"

# Seconds from the end of the need to the eviction. Futures are dropped by the dozen, which makes a
# batch; and workers first hear that the tasks are cancelled, else they log errors of some of them.
LINGER = 0.1


class StoreLifetimes(SchedulerPlugin):
    """Evicts stored objects once no task and no client can need them.

    Clients register it by themselves; on a scheduler that allows no plugins from clients it can be
    added where the scheduler is started: ``scheduler.add_plugin(StoreLifetimes())``.
    """

    name = "proxystore"
    idempotent = True

    def __init__(self) -> None:
        self._objects: dict[Hashable, Ref] = {}
        self._tasks: dict[Hashable, set[Key]] = {}
        self._mentions: dict[Key, tuple[Hashable, ...]] = {}
        self._leases: dict[Hashable, str] = {}
        self._offers: dict[str, bytes | None] = {}
        # By configuration. A store is looked up when a client first speaks of it: it may be that
        # client's own, in this process, and the user may close it before the last eviction. To
        # look it up then would make it anew, directory and all.
        self._stores: dict[str, Store[Any]] = {}
        self._doomed: list[Ref] = []
        self._evicting: asyncio.Task[None] | None = None
        self._evicted = 0
        self._failed = 0

    # Never awaits anything: two clients may register at once, and the scheduler looks for an
    # existing plugin before it awaits `start`, so a pause in here would give it two.
    async def start(self, scheduler: Scheduler) -> None:
        """Listen to clients, and take up the tasks that are there already."""
        self._closing = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="proxystore-evict")
        scheduler.stream_handlers.update({LEASE: self._lease, LEASE_END: self._lease_end})
        scheduler.handlers.update({HELLO: self._hello, STATS: self._stats})
        for task in scheduler.tasks.values():
            self._mention(task)

    async def close(self) -> None:
        """Evict every object: without the scheduler no task will ever run."""
        self._closing.set()
        self.forget_all()
        if self._evicting is not None:
            await self._evicting
        self._pool.shutdown()

    # ------------------------------------------------------------ what the scheduler tells

    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Key], **kwargs: Any) -> None:
        """Note which objects new tasks mention."""
        for key in tasks:
            task = scheduler.tasks.get(key)
            if task is not None:
                self._mention(task)

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Let go of what a forgotten task mentioned."""
        if finish != "forgotten":
            return
        for ident in self._mentions.pop(key, ()):
            keys = self._tasks[ident]
            keys.discard(key)
            if not keys:
                del self._tasks[ident]
                self._settle(ident)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """End the leases of a client that has closed, crashed or lost its connection."""
        self._offers.pop(client, None)
        for ident in [ident for ident, owner in self._leases.items() if owner == client]:
            del self._leases[ident]
            self._settle(ident)

    # --------------------------------------------------------------- what the clients tell

    def _lease(self, ref: bytes, client: str, **kwargs: Any) -> None:
        leased: Ref = pickle.loads(ref)
        self._objects[leased.id] = leased
        self._leases[leased.id] = client

    def _lease_end(self, ref: bytes, client: str, **kwargs: Any) -> None:
        leased: Ref = pickle.loads(ref)
        # After a lost connection a client may end a lease that is news to us.
        self._objects.setdefault(leased.id, leased)
        if self._leases.get(leased.id) == client:
            del self._leases[leased.id]
        self._settle(leased.id)

    async def _hello(
        self, probe: bytes | None = None, offered_by: str | None = None
    ) -> dict[str, Any]:
        """Tell a client what it can expect.

        Args:
            probe: A reference to an object in the client's store: can it be seen, and so evicted,
                from here?
            offered_by: The client's id, if tasks that submit tasks may use its store.
        """
        loop = asyncio.get_running_loop()
        reachable = probe is not None and await loop.run_in_executor(
            self._pool, self._can_see, probe
        )
        if reachable and offered_by is not None:
            self._offers[offered_by] = probe
        return {
            "protocol": PROTOCOL,
            "reachable": reachable,
            "store": next(iter(self._offers.values()), None),
        }

    async def _stats(self) -> dict[str, int]:
        return {
            "objects": len(self._objects),
            "leased": len(self._leases),
            "tasks": len(self._mentions),
            "evicted": self._evicted,
            "failed": self._failed,
        }

    # ------------------------------------------------------------------------- book-keeping

    def _mention(self, task: TaskState) -> None:
        # A known key keeps its first run spec, whatever later graphs say.
        if task.key in self._mentions or task.run_spec is None:
            return
        refs = {ref.id: ref for ref in counted_refs(task.run_spec)}
        if not refs:
            return
        self._mentions[task.key] = tuple(refs)
        for ident, ref in refs.items():
            self._objects.setdefault(ident, ref)
            self._tasks.setdefault(ident, set()).add(task.key)

    def _settle(self, ident: Hashable) -> None:
        """Evict the object if this was the last that needed it."""
        if ident in self._tasks or ident in self._leases:
            return
        ref = self._objects.pop(ident, None)
        if ref is not None:
            self._evict_soon([ref])

    def forget_all(self) -> None:
        """Evict every object this plugin knows of."""
        self._mentions.clear()
        self._tasks.clear()
        self._leases.clear()
        refs = list(self._objects.values())
        self._objects.clear()
        self._evict_soon(refs)

    def _evict_soon(self, refs: list[Ref]) -> None:
        self._doomed.extend(refs)
        if self._doomed and self._evicting is None:
            self._evicting = asyncio.ensure_future(self._evict())

    async def _evict(self) -> None:
        """Evict in batches until nothing is doomed; what comes in meanwhile is the next batch."""
        loop = asyncio.get_running_loop()
        try:
            while self._doomed:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), LINGER)
                batch, self._doomed = self._doomed, []
                try:
                    failed = await loop.run_in_executor(self._pool, self._evict_batch, batch)
                except RuntimeError:
                    # The interpreter is exiting, with a client that nobody has closed: threads
                    # take no work any more.
                    failed = self._evict_batch(batch)
                self._failed += failed
                self._evicted += len(batch) - failed
        finally:
            self._evicting = None

    # ------------------------------------------------------- what runs in the plugin's thread

    def _can_see(self, probe: bytes) -> bool:
        try:
            ref: Ref = pickle.loads(probe)
            return self._store_of(ref).exists(ref.factory.key)
        except Exception:  # a store's own errors can be anything; all of them mean "not from here"
            logger.info("The scheduler cannot reach a client's store", exc_info=True)
            return False

    def _evict_batch(self, refs: Iterable[Ref]) -> int:
        """Evict each object; the number that could not be."""
        failed = 0
        for ref in refs:
            try:
                self._store_of(ref).evict(ref.factory.key)
            except Exception:  # noqa: PERF203 - one bad store must not keep the other objects
                failed += 1
                logger.exception("Could not evict %r", ref)
        return failed

    def _store_of(self, ref: Ref) -> Store[Any]:
        place = repr(ref.factory.store_config)
        store = self._stores.get(place)
        if store is None:
            self._stores[place] = store = get_or_create_store(
                ref.factory.store_config, register=False
            )
        return store
