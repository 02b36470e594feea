"""When a stored object can never be needed again.

Rules of this file:

* An object is needed while a *task* mentions it: from the graph's arrival until the scheduler has
  forgotten the task. "Released" is too early (a lost result is recomputed), "finished" far too
  early.
* Only what has been told of is evicted: by a lease, or as a result. A client whose objects cannot
  be seen from here evicts them itself, and its tasks mention them all the same.
* An object is needed while a client holds a *lease* on it: from before the graph is sent until no
  future made from the object is left in that client. A client that is about to store the same
  content asks first, if it is not alone, and gets a lease on what is there. Leases bridge the time
  between put and graph, and cover an object that no task ever mentions because the scheduler
  already knew the task's key.
* A result that a worker has left in the store is needed as long as Dask keeps the result. If a task
  has taken it without fetching it, that task's own result may hold the proxy: then until no task
  is left that depends on it, that is, until it is forgotten.
* A durable result is needed until its task is forgotten.
* Everything here runs in the scheduler's event loop, and no store is touched: that is for
  `scheduler_stores`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import pickle
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from itertools import chain
from typing import TYPE_CHECKING, Any

from dask.utils import key_split
from distributed.diagnostics.plugin import SchedulerPlugin

from proxystore.store import StoreConfig
from proxystore.workflow import Ref, RefId, identity
from proxystore_dask import dashboard, prometheus
from proxystore_dask.figures import Figures, Loads, loads
from proxystore_dask.graph import counted_refs
from proxystore_dask.results import HURRY, RESULT, kept_result, tag, takes_as_it_is
from proxystore_dask.scheduler_stores import SchedulerStores

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler, TaskState

logger = logging.getLogger(__name__)

# Counts up when messages change their meaning. A client of a scheduler with another number leaves
# nothing to it: what it has stored stays until it closes (`Lifetimes.CLIENT`), and results stay in
# Dask.
PROTOCOL = 4

LEASE = "proxystore-lease"
LEASE_END = "proxystore-lease-end"
HELLO = "proxystore_hello"
PROBE = "proxystore_probe"
FIND = "proxystore_find"
KEEP = "proxystore_keep"
GOODBYE = "proxystore_goodbye"
# The event for clients that hear that they are not the only ones in their store, and not the only
# ones whose results are there.
COMPANY = "proxystore-company"
STATS = "proxystore_stats"


class StoreLifetimes(SchedulerPlugin):
    """Evicts stored objects once no task and no client can need them.

    Clients register it by themselves; on a scheduler that allows no plugins from clients it can be
    added where the scheduler is started: ``scheduler.add_plugin(StoreLifetimes())``.

    It also adds the page ``/proxystore`` to the scheduler's dashboard, and its figures to
    ``/metrics`` if prometheus_client is installed.
    """

    name = "proxystore"
    idempotent = True

    def __init__(self) -> None:
        self._objects: dict[RefId, Ref] = {}
        self._tasks: dict[RefId, set[Key]] = {}
        self._mentions: dict[Key, tuple[RefId, ...]] = {}
        self._last_idents: tuple[RefId, ...] = ()
        # Each with the client's id, and a name if the client has not stored the object itself.
        self._leases: dict[RefId, set[tuple[str, str]]] = {}
        self._digests: dict[tuple[str, str], RefId] = {}
        # Of tasks that are running or in memory; more than one only if a task has run again.
        self._results: dict[Key, list[Ref]] = {}
        # Of tasks whose results Dask has dropped, and others may hold.
        self._held: dict[Key, list[Ref]] = {}
        # Of tasks that are not forgotten; which of them are in the store `_objects` says.
        self._kept: dict[Key, Ref] = {}
        # The keys in `_kept` whose results a worker may have begun to store when it died.
        self._suspects: set[Key] = set()
        # Begins the names of all results, so that none is left of a worker that was killed.
        self.group = str(uuid.uuid4())
        self._tags: dict[str, str] = {}
        # Of workers that have joined, by their addresses.
        self._checking: dict[str, asyncio.Task[None]] = {}
        self._offers: dict[str, bytes | None] = {}
        # How the names of a client's objects begin, its process, and where the objects are; by its
        # id.
        self._prefixes: dict[str, tuple[str, str]] = {}
        self._places: dict[str, StoreConfig] = {}
        # Clients that have stored results; "" if there are some that are not of a client that is
        # here alone: of one that is gone, or in a variable.
        self._with_results: set[str] = set()
        self.figures = Figures()
        self._shown: list[Callable[[], None]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # A client sends a new one, and a scheduler of another version has attributes of its own.
        return type(self), ()

    # Never awaits anything: two clients may register at once, and the scheduler looks for an
    # existing plugin before it awaits `start`, so a pause in here would give it two.
    async def start(self, scheduler: Scheduler) -> None:
        """Listen to clients, and take up the tasks that are there already."""
        self._stores = SchedulerStores(
            self.group, self._objects, self._kept, self._tags, self._places, self.figures
        )
        scheduler.stream_handlers.update(
            {LEASE: self._lease, LEASE_END: self._lease_end, RESULT: self._result}
        )
        scheduler.handlers.update(
            {
                HELLO: self._hello,
                PROBE: self._probed,
                FIND: self._find,
                KEEP: self._keep,
                GOODBYE: self._goodbye,
                HURRY: self._hurry,
                STATS: self._stats,
            }
        )
        self._worker_metrics = scheduler.cumulative_worker_metrics
        self._log_event = scheduler.log_event
        self._subscribe = scheduler.subscribe_topic
        self._unsubscribe = scheduler.unsubscribe_topic
        self._all_tasks = scheduler.tasks
        self._clients = scheduler.clients
        self._client_comms = scheduler.client_comms
        for task in scheduler.tasks.values():
            self._mention(task)
        for worker in scheduler.workers:
            self.add_worker(scheduler, worker)
        for show in (lambda: dashboard.serve(scheduler, self), lambda: prometheus.register(self)):
            try:
                self._shown.append(show())
            except Exception:  # noqa: PERF203 - nobody's work depends on what can be looked at
                logger.exception("Some figures of proxystore cannot be shown")

    async def close(self) -> None:
        """Evict every object: without the scheduler no task will ever run."""
        while self._shown:
            self._shown.pop()()
        self._stores.hasten()
        if self._checking:
            await asyncio.wait(self._checking.values(), timeout=1)
        self.forget_all()
        await self._stores.close()

    # ------------------------------------------------------------ what the scheduler tells

    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Key], **kwargs: Any) -> None:
        """Note which objects new tasks mention."""
        for key in tasks:
            task = scheduler.tasks.get(key)
            if task is not None:
                self._mention(task)

    def transition(self, key: Key, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Let go of what a forgotten task mentioned, and of a result that is dropped."""
        if key in self._results and finish not in ("processing", "memory"):
            self._drop_results(key)
        if finish != "forgotten":
            return
        for ref in self._held.pop(key, ()):
            self._settle(ref.id)
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._settle(kept.id)
            self._stores.release_soon()  # if it has failed, nothing is evicted
            if key in self._suspects:
                self._suspects.discard(key)
                self._stores.sweep_soon()
        idents = self._mentions.pop(key, ())
        if idents:
            self.figures.forget(key_split(key), idents)
        for ident in idents:
            keys = self._tasks[ident]
            keys.discard(key)
            if not keys:
                del self._tasks[ident]
                self._settle(ident)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """End the leases of a client that has closed, crashed or lost its connection."""
        self._offers.pop(client, None)
        self._unsubscribe(COMPANY, client)
        if client in self._with_results:
            self._with_results.discard(client)
            self._with_results.add("")
        if not (self._results or self._held or self._kept):
            self._with_results.discard("")
        names = self._prefixes.pop(client, None)
        place = self._places.pop(client, None)
        if names is not None:
            self._stores.bury(*names, place)
        ended = [
            (ident, lease)
            for ident, leases in self._leases.items()
            for lease in leases
            if lease[0] == client
        ]
        for ident, lease in ended:
            self._end(ident, lease)
        self._stores.release_soon()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Note what the worker's results will be called."""
        self._tags[worker] = tag(scheduler.workers[worker].server_id)
        if self._stores.opened:
            checking = asyncio.ensure_future(self._stores.check_worker(scheduler, worker))
            self._checking[worker] = checking
            checking.add_done_callback(functools.partial(self._checked, worker))

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Evict what a worker has stored and not told of."""
        checking = self._checking.get(worker)
        if checking is not None:
            checking.cancel()  # it will not answer
        if self._tags.pop(worker, None) is not None:
            # Another worker may be about to write what this one has begun: then that stays.
            self._suspects.update(self._kept)
            self._stores.sweep_soon()

    def _checked(self, worker: str, checking: asyncio.Task[None]) -> None:
        if self._checking.get(worker) is checking:
            del self._checking[worker]

    # ---------------------------------------------------- what the clients and workers tell

    def _result(self, key: Key, ref: bytes, worker: str, kept: bool = False, **kwargs: Any) -> None:
        made: Ref = pickle.loads(ref)
        self._learn(made)
        task = self._all_tasks.get(key)
        wanted_by = set() if task is None else self._who_may_get(task)
        if not wanted_by <= self._with_results:
            self._with_results |= wanted_by
            self._log_event(COMPANY, {"with_results": list(wanted_by)})
        if kept:
            if self._kept.get(key) != made:
                self._settle(made.id)  # its task is forgotten
            return
        if task is None or task.state not in ("processing", "memory"):
            self._settle(made.id)  # of a run that nobody waits for
        else:
            self._results.setdefault(key, []).append(made)

    def _who_may_get(self, task: TaskState) -> set[str]:
        """Clients that want a task's result; "" for whoever opens what it is published in."""
        keys = {client.client_key for client in task.who_wants or ()}
        keys.discard("fire-and-forget")  # wants it to be made, and hands it to nobody
        return {key if key in self._client_comms else "" for key in keys}

    def _lease(self, ref: bytes, client: str, lease: str = "", **kwargs: Any) -> None:
        leased: Ref = pickle.loads(ref)
        self._learn(leased)
        self._leases.setdefault(leased.id, set()).add((client, lease))

    def _lease_end(self, ref: bytes, client: str, lease: str = "", **kwargs: Any) -> None:
        leased: Ref = pickle.loads(ref)
        # After a lost connection a client may end a lease that is news to us.
        self._learn(leased)
        self._end(leased.id, (client, lease))

    def _end(self, ident: RefId, lease: tuple[str, str]) -> None:
        leases = self._leases.get(ident, set())
        leases.discard(lease)
        if not leases:
            self._leases.pop(ident, None)
            self._settle(ident)

    # Never awaits anything: between finding an object and leasing it, it could be evicted.
    async def _find(self, digest: str, place: bytes, client: str, lease: str) -> bytes | None:
        """Lease an object of this content to a client.

        Args:
            digest: As `Ref.digest`.
            place: The configuration of the store where it has to be.
            client: The client's id.
            lease: The name of the lease.

        Returns:
            The reference; None if there is none, or the client is gone.
        """
        config: StoreConfig = pickle.loads(place)
        ref = self._objects.get(self._digests.get((config.name, digest), ()))
        if ref is None or ref.factory.store_config != config or client not in self._clients:
            return None
        self._leases.setdefault(ref.id, set()).add((client, lease))
        return pickle.dumps(ref)

    async def _hello(
        self,
        client: str | None = None,
        prefix: str = "",
        place: bytes = b"",
        former: str = "",
        process: str = "",
    ) -> dict[str, Any]:
        """Tell a client what it can expect.

        Args:
            client: The id of a client that will store objects. None: it only asks.
            prefix: How their names will begin.
            place: The configuration of the store where they will be.
            former: The group of the scheduler that it was connected to before.
            process: The `identity` of the client's process.
        """
        # If it is gone already, it has not stored anything.
        if client in self._clients and prefix:
            self._prefixes[client] = (prefix, process)
            with contextlib.suppress(Exception):  # not from here, as `open` logs
                self._places[client] = pickle.loads(place)
            # Its own subscription comes another way, and perhaps after the next client. Nothing is
            # awaited before: each of several that come at once finds another number.
            self._subscribe(COMPANY, client)
            company = self._company(client)
            if len(company) == 2:  # for the one that was alone; others know
                self._log_event(COMPANY, {"clients": company})
            await self._stores.open(place)
            if former:
                self._stores.take_over(former)
        return {
            "protocol": PROTOCOL,
            "store": next(iter(self._offers.values()), None),
            "group": self.group,
            "company": bool(self._company(client)),
            "others_results": not self._with_results <= {client},
            "process": identity(),
        }

    async def _probed(self, probe: bytes, offered_by: str | None = None) -> dict[str, Any]:
        """Tell a client whether its objects can be seen, and so evicted, from here.

        Args:
            probe: A reference to one.
            offered_by: The client's id, if tasks that submit tasks may use its store.
        """
        seen = await self._stores.see(probe)
        # It may have gone while its probe waited for the thread: nobody would take the offer back.
        if seen["reachable"] and offered_by in self._clients:
            self._offers[offered_by] = probe
        return seen

    def _company(self, client: str | None) -> list[str]:
        """The clients that store in the same place, this one among them; none if it is alone."""
        place = self._places.get(client or "")
        clients = [other for other, config in self._places.items() if config == place]
        return clients if len(clients) > 1 else []

    async def _keep(self, place: bytes) -> str | None:
        """Keep what is needed in a store that is about to be closed; the name of its keeper.

        Args:
            place: The configuration of the store.
        """
        return await self._stores.keep(pickle.loads(place))

    async def _goodbye(self, client: str) -> None:
        """Return once what only this client, which is closing, has needed is evicted."""
        while client in self._clients:
            await asyncio.sleep(0.005)
        await self._stores.hurry(0.01)  # its tasks are cancelled where they wait to be run
        await self._stores.settle()

    async def _hurry(self) -> bool:
        """Evict at once what is to be evicted; return whether there was anything."""
        await asyncio.sleep(0.02)  # a client may have let go of something just before it asked
        return await self._stores.hurry()

    async def _stats(self) -> dict[str, int]:
        return {
            "objects": len(self._objects),
            "leased": len(self._leases),
            "tasks": len(self._mentions),
            "evicted": self.figures.evicted,
            "failed": self.figures.failed,
        }

    # ---------------------------------------------------------------------- who only looks

    def loads(self) -> dict[str, Loads]:
        """What workers have got from stores, by graph key prefix."""
        return loads(self._worker_metrics)

    def totals(self) -> dict[str, float]:
        """Every figure that does not belong to one prefix; sizes in bytes, times in seconds."""
        figures = self.figures
        got = Counter[str]()
        for each in self.loads().values():
            got.update(vars(each))
        return {
            "objects": figures.objects,
            "nbytes": figures.nbytes,
            "peak_nbytes": figures.peak_nbytes,
            "leased": len(self._leases),
            "tasks": len(self._mentions),
            "puts": figures.puts,
            "put_bytes": figures.put_bytes,
            "evicted": figures.evicted,
            "evicted_bytes": figures.evicted_bytes,
            "failed": figures.failed,
            **{of.name: got[of.name] for of in fields(Loads)},
        }

    def results(self) -> Iterator[tuple[Key, list[Ref]]]:
        """Results in stores, by the keys of their tasks."""
        kept = (
            (key, [self._objects[ref.id]])
            for key, ref in self._kept.items()
            if ref.id in self._objects
        )
        return chain(self._results.items(), self._held.items(), kept)

    def places(self) -> list[dict[str, Any]]:
        """Where the objects are, and how many: an entry for each store."""
        found: list[tuple[StoreConfig, dict[str, Any]]] = []
        # Of thousands of objects, most have the same instance.
        by_instance: dict[int, dict[str, Any]] = {}
        for ref in self._objects.values():
            config = ref.factory.store_config
            place = by_instance.get(id(config))
            if place is None:
                place = next((row for known, row in found if known == config), None)
                if place is None:
                    connector = self._stores.describe(config)
                    place = {"name": config.name, "connector": connector, "objects": 0, "nbytes": 0}
                    found.append((config, place))
                by_instance[id(config)] = place
            place["objects"] += 1
            place["nbytes"] += ref.nbytes
        return sorted((row for _, row in found), key=lambda place: -place["nbytes"])

    # ------------------------------------------------------------------------- book-keeping

    def _mention(self, task: TaskState) -> None:
        # A known key keeps its first run spec, whatever later graphs say.
        if task.key in self._mentions or task.key in self._kept or task.run_spec is None:
            return
        kept = kept_result(task.run_spec)
        if kept is not None:
            self._kept[task.key] = kept
        refs = {ref.id: ref for ref in counted_refs(task.run_spec)}
        if not refs:
            return
        idents = tuple(refs)
        if idents != self._last_idents:
            self._last_idents = idents
        # Thousands of tasks that share an argument share what stands for it here.
        self._mentions[task.key] = self._last_idents
        self.figures.mention(key_split(task.key), refs)
        for ident in refs:
            self._tasks.setdefault(ident, set()).add(task.key)

    def _learn(self, ref: Ref) -> None:
        if ref.id not in self._objects:
            self._objects[ref.id] = ref
            if ref.digest:
                self._digests[ref.id[0], ref.digest] = ref.id
            self.figures.put(ref)

    def _settle(self, ident: RefId) -> None:
        """Evict the object if this was the last that needed it."""
        if ident in self._tasks or ident in self._leases:
            return
        ref = self._objects.pop(ident, None)
        if ref is not None:
            if self._digests.get((ident[0], ref.digest)) == ident:
                del self._digests[ident[0], ref.digest]
            self._stores.evict_soon([ref])

    def _drop_results(self, key: Key) -> None:
        refs = self._results.pop(key)
        task = self._all_tasks.get(key)
        dependents = () if task is None else task.dependents
        if any(takes_as_it_is(dependent.run_spec, key) for dependent in dependents):
            self._held.setdefault(key, []).extend(refs)
            return
        for ref in refs:
            self._settle(ref.id)

    def forget_all(self) -> None:
        """Evict every object this plugin knows of."""
        self._results.clear()
        self._held.clear()
        self._kept.clear()
        self._suspects.clear()
        self._mentions.clear()
        self._tasks.clear()
        self._leases.clear()
        self._digests.clear()
        self.figures.prefixes.clear()
        refs = list(self._objects.values())
        self._objects.clear()
        self._stores.evict_soon(refs)
