"""When a stored object can never be needed again, and its eviction.

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
* What workers have stored and nobody has told of is found by its name, and swept if nobody can tell
  of it any more (`_Wanted`).
* Of an object that a client has begun to write, nobody takes away the half under a client that may
  be alive: one that is gone may only have lost its connection.
* The counting runs in the scheduler's event loop. Whatever a store may take its time for (opening,
  probing, evicting, sweeping, letting go of it) runs in the plugin's one thread, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import pickle
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import chain
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import key_split, parse_timedelta
from distributed.diagnostics.plugin import SchedulerPlugin

from proxystore.connectors.file import DirectoryKeeper, FileConnector
from proxystore.store import Store, StoreConfig, get_or_create_store
from proxystore.store.config import ConnectorConfig
from proxystore.workflow import Ref, RefId, identity, is_dead, store_object, sweep
from proxystore.workflow.embedded import Keeper, keep_embedded
from proxystore.workflow.refs import idle_for
from proxystore_dask import dashboard, prometheus
from proxystore_dask.figures import Figures, Loads, loads
from proxystore_dask.graph import counted_refs
from proxystore_dask.reach import StoreUnreachableError, asked, check
from proxystore_dask.results import HURRY, RESULT, kept_result, tag, takes_as_it_is

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler, TaskState

logger = logging.getLogger(__name__)

# Counts up when messages change their meaning. A client of a scheduler with another number leaves
# nothing to it: what it has stored stays until it closes (`Lifetimes.CLIENT`), and results stay in
# Dask.
PROTOCOL = 4

PACKAGE = "proxystore_dask"

LEASE = "proxystore-lease"
LEASE_END = "proxystore-lease-end"
HELLO = "proxystore_hello"
PROBE = "proxystore_probe"
FIND = "proxystore_find"
GOODBYE = "proxystore_goodbye"
# The event for clients that hear that they are not the only ones in their store, and not the only
# ones whose results are there.
COMPANY = "proxystore-company"
STATS = "proxystore_stats"

# Seconds from the end of the need to the eviction. Futures are dropped by the dozen, which makes a
# batch; and workers first hear that the tasks are cancelled, else they log errors of some of them.
LINGER = 0.1

# Seconds after which a file that nothing was added to counts as left by a client that is gone, if
# nothing else tells whether that is dead: it was on another host. And the longest time, in seconds,
# between two looks at the files of one that may be alive.
ABANDONED = 600.0
_PAUSE = 60.0

# Seconds that a scheduler which closes waits for evictions. What is not done then, in a store that
# hangs, its thread goes on with.
CLOSING = 30.0

# Seconds between two looks for stores that no client uses and in which nothing is known. One that
# was so the last time is let go of: meanwhile a worker that ran a cancelled task to its end may
# have left something there, and died.
UNUSED = 600.0


class _Wanted:
    """The objects that may not be swept.

    Args:
        known: Those that somebody has told of, or will tell of.
        tags: Names with one of these behind the group stay, too: their workers are here.
    """

    def __init__(self, known: Collection[RefId], tags: Collection[str]) -> None:
        self._known = known
        self._tags = tags

    def __contains__(self, ident: object) -> bool:
        assert isinstance(ident, tuple)
        if ident in self._known:
            return True
        name = str(ident[1])  # the only field of the keys of connectors that can list objects
        return name.partition(".")[2].partition("-")[0] in self._tags


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
        # With those of schedulers that were here before: graphs on their way then came later.
        self._groups = {self.group}
        self._sweeping: asyncio.TimerHandle | None = None
        self._tags: dict[str, str] = {}
        # Of workers that have joined, by their addresses.
        self._checking: dict[str, asyncio.Task[None]] = {}
        self._offers: dict[str, bytes | None] = {}
        # How the names of a client's objects begin, its process, and where the objects are; by its
        # id.
        self._prefixes: dict[str, tuple[str, str]] = {}
        self._places: dict[str, StoreConfig] = {}
        # Who looks after what clients that are gone have left, and where that is.
        self._burying: dict[asyncio.Task[None], StoreConfig | None] = {}
        # Clients that have stored results; "" if there are some that are not of a client that is
        # here alone: of one that is gone, or in a variable.
        self._with_results: set[str] = set()
        # With their configurations, which have no hash. A store is looked up when a client first
        # speaks of it: it may be that client's own, in this process, and the user may close it
        # before the last eviction. To look it up then would make it anew, directory and all. Only
        # the plugin's thread changes the list.
        self._stores: list[tuple[StoreConfig, Store[Any]]] = []
        # Those of them that nobody has needed when last looked at.
        self._unused: list[Store[Any]] = []
        self._looking: asyncio.TimerHandle | None = None
        # Of stores that end with their client's process, by their names.
        self._keepers: dict[str, Keeper] = {}
        # Of those that end when their client's program closes them, by their directories, with
        # their names.
        self._directories: dict[str, tuple[str, DirectoryKeeper]] = {}
        self._releasing: asyncio.TimerHandle | None = None
        self._doomed: list[Ref] = []
        self._evicting: asyncio.Task[None] | None = None
        self.figures = Figures()
        self._shown: list[Callable[[], None]] = []

    # Never awaits anything: two clients may register at once, and the scheduler looks for an
    # existing plugin before it awaits `start`, so a pause in here would give it two.
    async def start(self, scheduler: Scheduler) -> None:
        """Listen to clients, and take up the tasks that are there already."""
        self._closing = asyncio.Event()
        self._hurried = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="proxystore-evict")
        scheduler.stream_handlers.update(
            {LEASE: self._lease, LEASE_END: self._lease_end, RESULT: self._result}
        )
        scheduler.handlers.update(
            {
                HELLO: self._hello,
                PROBE: self._probed,
                FIND: self._find,
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
        self._closing.set()
        self._hurried.set()
        for timer in (self._sweeping, self._releasing, self._looking):
            if timer is not None:
                timer.cancel()
        if self._checking:
            await asyncio.wait(self._checking.values(), timeout=1)
        self.forget_all()
        under_way = [*self._burying, *filter(None, [self._evicting])]
        end = time.monotonic() + CLOSING
        if under_way:
            await asyncio.wait(under_way, timeout=CLOSING)
        self._tags.clear()  # whatever workers still store, nobody will need
        self._sweep_groups()
        self._places.clear()
        self._release_keepers()
        late, self._doomed = self._doomed, []
        ended = True
        with contextlib.suppress(RuntimeError):  # the interpreter is exiting
            self._pool.submit(self._evict_batch, late)
            last = asyncio.get_running_loop().run_in_executor(self._pool, bool)
            await asyncio.wait([last], timeout=max(0.0, end - time.monotonic()))
            ended = last.done()
            last.cancel()
        self._pool.shutdown(wait=ended)  # which then blocks nobody
        if not ended:
            logger.warning("Evicting has taken more than %s s; objects may be left", CLOSING)

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
            self._release_soon()  # if it has failed, nothing is evicted
            if key in self._suspects:
                self._suspects.discard(key)
                self._sweep_groups_soon()
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
            burying = asyncio.ensure_future(self._bury(*names))
            self._burying[burying] = place
            burying.add_done_callback(self._burying.pop)
        ended = [
            (ident, lease)
            for ident, leases in self._leases.items()
            for lease in leases
            if lease[0] == client
        ]
        for ident, lease in ended:
            self._end(ident, lease)
        self._release_soon()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Note what the worker's results will be called."""
        self._tags[worker] = tag(scheduler.workers[worker].server_id)
        if self._stores:
            checking = asyncio.ensure_future(self._check_worker(scheduler, worker))
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
            self._sweep_groups_soon()

    def _checked(self, worker: str, checking: asyncio.Task[None]) -> None:
        if self._checking.get(worker) is checking:
            del self._checking[worker]

    async def _check_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Say so if a new worker cannot reach the stores that clients use."""
        loop = asyncio.get_running_loop()
        # One that hangs is not to keep an object there for ever.
        seconds = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
        for _, store in tuple(self._stores):
            probe = None
            try:
                probe = await loop.run_in_executor(
                    self._pool, self._probe, store, self._tags[worker]
                )
                check(store, await asyncio.wait_for(asked(scheduler, worker, probe), seconds))
            except StoreUnreachableError as error:
                logger.error("A worker has joined that cannot run tasks of all clients: %s", error)
                scheduler.log_event("warn", str(error))  # which every client shows
            except Exception:
                logger.info("Could not ask %s whether it reaches a store", worker, exc_info=True)
            finally:
                if probe is not None:
                    with contextlib.suppress(RuntimeError):  # closed: it has been evicted
                        await loop.run_in_executor(self._pool, self._evict_batch, [probe])

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
            with contextlib.suppress(Exception):  # not from here, as `_can_open` says
                self._places[client] = pickle.loads(place)
            # Its own subscription comes another way, and perhaps after the next client. Nothing is
            # awaited before: each of several that come at once finds another number.
            self._subscribe(COMPANY, client)
            company = self._company(client)
            if len(company) == 2:  # for the one that was alone; others know
                self._log_event(COMPANY, {"clients": company})
            await asyncio.get_running_loop().run_in_executor(self._pool, self._can_open, place)
            self._release_soon()  # it may have gone meanwhile
            if former and former not in self._groups:
                self._groups.add(former)
                self._sweep_groups_soon()
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
        seen = await asyncio.get_running_loop().run_in_executor(self._pool, self._can_see, probe)
        # It may have gone while its probe waited for the thread: nobody would take the offer back.
        if seen["reachable"] and offered_by in self._clients:
            self._offers[offered_by] = probe
        return seen

    def _company(self, client: str | None) -> list[str]:
        """The clients that store in the same place, this one among them; none if it is alone."""
        place = self._places.get(client or "")
        clients = [other for other, config in self._places.items() if config == place]
        return clients if len(clients) > 1 else []

    async def _goodbye(self, client: str, place: bytes = b"") -> str | None:
        """Return once what only this client, which is closing, has needed is evicted.

        Args:
            client: Its id.
            place: The configuration of its store, if that deletes the objects when it is closed.

        Returns:
            The name of the store's keeper, if somebody needs an object in it; else None.
        """
        while client in self._clients:
            await asyncio.sleep(0.005)
        evicting = self._evicting
        if evicting is not None:
            await asyncio.sleep(0.01)  # its tasks are cancelled where they wait to be run
            self._hurried.set()
            await asyncio.shield(evicting)
        config: StoreConfig | None = pickle.loads(place) if place else None
        if config is not None and not self._needs(config.name):
            config = None
        with contextlib.suppress(RuntimeError):  # closed: everything is evicted
            loop = asyncio.get_running_loop()
            keeper = await loop.run_in_executor(self._pool, self._keep, config)  # after sweeps
            self._release_keepers()  # it may be needed no more
            return keeper
        return None

    async def _hurry(self) -> bool:
        """Evict at once what is to be evicted; return whether there was anything."""
        await asyncio.sleep(0.02)  # a client may have let go of something just before it asked
        evicting = self._evicting
        if evicting is None:
            return False
        self._hurried.set()
        await asyncio.shield(evicting)
        return True

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
                    store = self._opened(config)
                    connector = repr(store.connector) if store else _text(config.connector)
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
            self._evict_soon([ref])

    def _drop_results(self, key: Key) -> None:
        refs = self._results.pop(key)
        task = self._all_tasks.get(key)
        dependents = () if task is None else task.dependents
        if any(takes_as_it_is(dependent.run_spec, key) for dependent in dependents):
            self._held.setdefault(key, []).extend(refs)
            return
        for ref in refs:
            self._settle(ref.id)

    def _release_soon(self) -> None:
        """Let go of stores that nobody needs, once for thousands of tasks that are forgotten."""
        if self._releasing is None and not self._closing.is_set():
            self._releasing = asyncio.get_running_loop().call_later(LINGER, self._release)

    def _release(self) -> None:
        self._releasing = None
        self._release_keepers()
        places = self._places.values()
        if self._looking is None and any(config not in places for config, _ in self._stores):
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(UNUSED, self._release_stores)

    def _release_stores(self) -> None:
        """Let go of stores that are without a client, and empty, and were when last looked at."""
        self._looking = None
        refs = chain(self._objects.values(), self._kept.values(), self._doomed)
        configs = (ref.factory.store_config for ref in refs)
        # Of thousands of objects, most have the same instance.
        needed = list({id(config): config for config in configs}.values())
        needed.extend(self._places.values())
        needed.extend(filter(None, self._burying.values()))
        unused = [store for config, store in self._stores if config not in needed]
        released = [store for store in unused if any(store is each for each in self._unused)]
        self._unused = [store for store in unused if all(store is not each for each in released)]
        if released:
            with contextlib.suppress(RuntimeError):  # as below
                self._pool.submit(self._drop, released)
        self._release_soon()

    def _release_keepers(self) -> None:
        """Let go of stores whose clients are gone, and of which no task needs anything."""
        here = {place.name for place in self._places.values()}
        with contextlib.suppress(RuntimeError):  # the interpreter is exiting
            for name in self._keepers.keys() - here:
                if not self._needs(name):
                    self._pool.submit(self._release_keeper, name, self._keepers.pop(name))
            for directory, (name, keeper) in tuple(self._directories.items()):
                if self._needs(name):
                    continue
                if name in here:
                    self._pool.submit(keeper.pause)
                else:
                    del self._directories[directory]
                    self._pool.submit(self._release_keeper, name, keeper)

    def _needs(self, name: str) -> bool:
        """Whether something of a store is needed, or still to be evicted."""
        refs = chain(self._kept.values(), self._doomed)
        return any(ident[0] == name for ident in chain(self._objects, (ref.id for ref in refs)))

    def _sweep_groups_soon(self) -> None:
        """Evict what nobody has told of, and nobody will."""
        if self._sweeping is None and not self._closing.is_set():
            self._sweeping = asyncio.get_running_loop().call_later(LINGER, self._sweep_groups)

    def _sweep_groups(self) -> None:
        self._sweeping = None
        for group in self._groups:
            self._sweep_soon(group)

    def _sweep_soon(self, prefix: str) -> None:
        with contextlib.suppress(RuntimeError):  # closed: everything is swept then
            self._pool.submit(self._sweep, prefix)

    async def _bury(self, prefix: str, process: str) -> None:
        """Evict what a client has stored, and was gone before it could say so.

        It may only have lost its connection: what it has begun stays until it is dead.
        """
        loop = asyncio.get_running_loop()
        pause = LINGER
        with contextlib.suppress(RuntimeError):  # closed: nobody will look again
            idle = await loop.run_in_executor(self._pool, self._sweep_whole, prefix)
            while idle < ABANDONED and not (self._closing.is_set() or is_dead(process)):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause)
                pause = min(2 * pause, _PAUSE)
                idle = await loop.run_in_executor(self._pool, self._idle_for, prefix)
            if idle < math.inf or is_dead(process):
                await loop.run_in_executor(self._pool, self._sweep, prefix)

    def _wanted(self) -> _Wanted:
        # In the thread, after objects were listed. What is in the store then was known here before:
        # a worker before it runs a task, a task before it has a result. Each copy is made in one
        # step, whatever the event loop does meanwhile.
        kept = {ref.id for ref in tuple(self._kept.values())}
        return _Wanted(kept.union(tuple(self._objects)), frozenset(tuple(self._tags.values())))

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
        self._evict_soon(refs)

    def _evict_soon(self, refs: list[Ref]) -> None:
        for ref in refs:
            self.figures.unneeded(ref)
        self._doomed.extend(refs)
        if self._doomed and self._evicting is None:
            self._evicting = asyncio.ensure_future(self._evict())

    async def _evict(self) -> None:
        """Evict in batches until nothing is doomed; what comes in meanwhile is the next batch."""
        loop = asyncio.get_running_loop()
        try:
            while self._doomed:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._hurried.wait(), LINGER)
                if not self._closing.is_set():
                    self._hurried.clear()
                batch, self._doomed = self._doomed, []
                try:
                    failed = await loop.run_in_executor(self._pool, self._evict_batch, batch)
                except RuntimeError:
                    # The interpreter is exiting, with a client that nobody has closed: threads
                    # take no work any more.
                    failed = self._evict_batch(batch)
                self.figures.evict(batch, failed)
                self._release_soon()
        finally:
            self._evicting = None

    # ------------------------------------------------------- what runs in the plugin's thread

    def _probe(self, store: Store[Any], tag: str) -> Ref:
        # Named as a result of the worker that is asked, and swept like one if that dies.
        try:
            return store_object(store, PACKAGE, name=f"{self.group}.{tag}-probe-{uuid.uuid4()}")
        except NotImplementedError:  # a connector without names
            return store_object(store, PACKAGE)

    def _can_open(self, place: bytes) -> bool:
        try:
            store = self._store_at(pickle.loads(place))
            if store.name not in self._keepers:
                # Tasks may need its objects when its client's process has ended.
                keeper = keep_embedded(store)
                if keeper is not None:
                    self._keepers[store.name] = keeper
        except Exception:  # a store's own errors can be anything; all of them mean "not from here"
            logger.info("The scheduler cannot open a client's store", exc_info=True)
            return False
        return True

    def _drop(self, stores: list[Store[Any]]) -> None:
        # Not closed: some are their clients' own, in this process.
        self._stores = [
            (config, store)
            for config, store in self._stores
            if all(store is not dropped for dropped in stores)
        ]

    def _keep(self, config: StoreConfig | None) -> str | None:
        """Keep what is in a store when its client's program closes it; return the keeper's name."""
        if config is None:
            return None
        try:
            connector = self._store_at(config).connector
            if not isinstance(connector, FileConnector):
                return None
            known = self._directories.get(connector.store_dir)
            if known is not None:
                known[1].keep()
                return known[1].name
            keeper = DirectoryKeeper(connector)
            self._directories[connector.store_dir] = config.name, keeper
            return keeper.name
        except Exception:  # as in `_can_open`
            logger.exception("Tasks need objects of %r, and it cannot be kept", config.name)
        return None

    def _release_keeper(self, name: str, keeper: Keeper | DirectoryKeeper) -> None:
        # Or it would be made anew, by who looks into all stores.
        self._stores = [each for each in self._stores if each[1].name != name]
        keeper.release()

    def _can_see(self, probe: bytes) -> dict[str, Any]:
        """Whether an object is there; and what keeps references from being unpickled, if anything.

        Nor can the scheduler read graphs that mention such objects.
        """
        try:
            ref: Ref = pickle.loads(probe)
        except Exception as error:  # noqa: BLE001 - a store's own module may raise anything
            return {"reachable": False, "unreadable": f"{type(error).__name__}: {error}"}
        try:
            return {"reachable": self._store_of(ref).exists(ref.factory.key), "unreadable": ""}
        except Exception:
            logger.info("The scheduler cannot reach a client's store", exc_info=True)
            return {"reachable": False, "unreadable": ""}

    def _evict_batch(self, refs: Iterable[Ref]) -> list[Ref]:
        """Evict each object; those that could not be."""
        failed = []
        for ref in refs:
            try:
                self._store_of(ref).evict(ref.factory.key)
            except Exception:  # noqa: PERF203 - one bad store must not keep the other objects
                failed.append(ref)
                logger.exception("Could not evict %r", ref)
        return failed

    def _sweep(self, prefix: str, *, begun: bool = True) -> None:
        """Evict objects whose names begin with `prefix`, other than those that are wanted."""
        for _, store in tuple(self._stores):
            try:
                sweep(store, prefix, keep=self._wanted, begun=begun)
            except Exception:  # noqa: PERF203 - one bad store must not keep the other objects
                logger.exception("Could not look for objects left in %r", store.connector)

    def _sweep_whole(self, prefix: str) -> float:
        """Sweep, but for what has been begun, of which it returns what `_idle_for` does."""
        idle = self._idle_for(prefix)  # before: what is whole by then is swept
        self._sweep(prefix, begun=False)
        return idle

    def _idle_for(self, prefix: str) -> float:
        """For how many seconds nothing was added to what has been begun; infinity: nothing was."""
        idle = math.inf
        for _, store in tuple(self._stores):
            with contextlib.suppress(Exception):  # the sweep says what is wrong
                idle = min(idle, idle_for(store, prefix))
        return idle

    def _store_of(self, ref: Ref) -> Store[Any]:
        return self._store_at(ref.factory.store_config)

    def _store_at(self, config: StoreConfig) -> Store[Any]:
        store = self._opened(config)
        if store is None:
            store = get_or_create_store(config, register=False)
            self._stores.append((config, store))
        return store

    def _opened(self, config: StoreConfig) -> Store[Any] | None:
        # Most are the same instance, which is seen much sooner.
        for known, store in self._stores:
            if known is config or known == config:
                return store
        return None


def _text(connector: ConnectorConfig) -> str:
    # As it is printed: without passwords.
    shown = dict(connector.__repr_args__())
    options = ", ".join(f"{name}={value!r}" for name, value in shown["options"].items())
    return f"{connector.kind.rpartition('.')[2]}({options})"
