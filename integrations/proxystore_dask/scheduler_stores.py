"""The stores that clients of a scheduler use, and whatever is done in them from the scheduler.

Rules of this file:

* Which objects are needed is for `scheduler_plugin` to say. Its books are read here, never changed.
* Whatever a store may take its time for (opening, probing, evicting, sweeping, letting go of it)
  runs in one thread, in order. Everything else runs in the scheduler's event loop, which is never
  blocked by that.
* What workers have stored and nobody has told of is found by its name, and swept if nobody can tell
  of it any more (`_Wanted`).
* Of an object that a client has begun to write, nobody takes away the half under a client that may
  be alive: one that is gone may only have lost its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import pickle
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import dask
from dask.utils import parse_timedelta

from proxystore.connectors.file import DirectoryKeeper, FileConnector
from proxystore.store import Store, StoreConfig, get_or_create_store
from proxystore.store.config import ConnectorConfig
from proxystore.workflow import Ref, RefId, is_dead, store_object, sweep
from proxystore.workflow.embedded import Keeper, keep_embedded
from proxystore.workflow.refs import idle_for
from proxystore_dask.figures import Figures
from proxystore_dask.reach import StoreUnreachableError, asked, check

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler

logger = logging.getLogger(__name__)

PACKAGE = "proxystore_dask"

# Seconds from the end of the need to the eviction. Futures are dropped by the dozen, which makes a
# batch; and workers first hear that the tasks are cancelled, else they log errors of some of them.
LINGER = 0.1

# Seconds after which a file that nothing was added to counts as left by a client that is gone, if
# nothing else tells whether that is dead: it was on another host. And the longest time, in seconds,
# between two looks at the files of one that may be alive.
ABANDONED = 600.0
_PAUSE = 60.0

# How many objects are evicted before the thread does what else is to be done.
_PIECE = 100

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


class SchedulerStores:
    """Opens, probes, sweeps, keeps and releases stores, and evicts objects from them.

    Public methods are called in the scheduler's event loop. Those that are awaited return when the
    thread has done what they ask for, the others at once. In the thread run the methods of the last
    section, and no others; two of these also run in the event loop: `_known`, which only looks, and
    `_evict_batch` when the interpreter is exiting and threads take no work any more.

    Args:
        group: How the names of the scheduler's results begin.
        objects: Those that somebody has told of, and that are needed. This and the other mappings
            are the plugin's, which changes them as it goes.
        kept: Durable results that there are or will be, by the keys of their tasks.
        tags: How the names of results of the workers that are here go on, by their addresses.
        places: The configurations of the stores of clients that are here, by their ids.
        figures: Told of every object that is not needed any more, and of every eviction.
    """

    def __init__(
        self,
        group: str,
        objects: Mapping[RefId, Ref],
        kept: Mapping[Key, Ref],
        tags: Mapping[str, str],
        places: Mapping[str, StoreConfig],
        figures: Figures,
    ) -> None:
        self._group = group
        self._objects = objects
        self._kept = kept
        self._tags = tags
        self._places = places
        self._figures = figures
        self._closing = asyncio.Event()
        self._hurried = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="proxystore-evict")
        # With their configurations, which have no hash. A store is looked up when a client first
        # speaks of it: it may be that client's own, in this process, and the user may close it
        # before the last eviction. To look it up then would make it anew, directory and all. Only
        # the thread changes the list.
        self.opened: list[tuple[StoreConfig, Store[Any]]] = []
        # Those of them that nobody has needed when last looked at.
        self._unused: list[Store[Any]] = []
        self._looking: asyncio.TimerHandle | None = None
        # Of stores that end with their client's process, by their names.
        self._keepers: dict[str, Keeper] = {}
        # Of those that end when their client's program closes them, by their directories, with
        # their configurations.
        self._directories: dict[str, tuple[list[StoreConfig], DirectoryKeeper]] = {}
        self._releasing: asyncio.TimerHandle | None = None
        self._doomed: list[Ref] = []
        self._evicting: asyncio.Task[None] | None = None
        # With those of schedulers that were here before: graphs on their way then came later.
        self._groups = {group}
        self._sweeping: asyncio.TimerHandle | None = None
        # Who looks after what clients that are gone have left, and where that is.
        self._burying: dict[asyncio.Task[None], StoreConfig | None] = {}

    def hasten(self) -> None:
        """Linger no more: the scheduler is closing."""
        self._closing.set()
        self._hurried.set()
        for timer in (self._sweeping, self._releasing, self._looking):
            if timer is not None:
                timer.cancel()

    async def close(self) -> None:
        """Finish what is under way, sweep, release all keepers and end the thread."""
        under_way = [*self._burying, *filter(None, [self._evicting])]
        end = time.monotonic() + CLOSING
        if under_way:
            await asyncio.wait(under_way, timeout=CLOSING)
        self._tags = {}  # whatever workers still store, nobody will need
        self._sweep_groups()
        self._places = {}
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

    # ----------------------------------------------------------------- opening and looking

    async def open(self, place: bytes) -> None:
        """Open a client's store, if that can be done from here.

        Args:
            place: Its configuration.
        """
        await asyncio.get_running_loop().run_in_executor(self._pool, self._open, place)
        self.release_soon()  # the client may have gone meanwhile

    async def see(self, probe: bytes) -> dict[str, Any]:
        """Whether an object is there; and what keeps references from being unpickled, if anything.

        Nor can the scheduler read graphs that mention such objects.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._see, probe)

    def describe(self, config: StoreConfig) -> str:
        """What is printed for a store's connector, open or not: without passwords."""
        store = self._known(config)
        return repr(store.connector) if store else _text(config.connector)

    async def check_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Say so if a new worker cannot reach the stores that clients use."""
        loop = asyncio.get_running_loop()
        # One that hangs is not to keep an object there for ever.
        seconds = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
        for _, store in tuple(self.opened):
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

    # ---------------------------------------------------------------------------- evicting

    def evict_soon(self, refs: list[Ref]) -> None:
        """Evict objects that nobody needs any more, in the next batch."""
        for ref in refs:
            self._figures.unneeded(ref)
        self._doomed.extend(refs)
        if self._doomed and self._evicting is None:
            self._evicting = asyncio.ensure_future(self._evict())

    async def hurry(self, pause: float = 0.0) -> bool:
        """Evict at once what is to be evicted; return whether there was anything.

        Args:
            pause: Seconds to wait before that, if there is anything.
        """
        evicting = self._evicting
        if evicting is None:
            return False
        if pause:
            await asyncio.sleep(pause)
        self._hurried.set()
        await asyncio.shield(evicting)
        return True

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
                for start in range(0, len(batch), _PIECE):
                    piece = batch[start : start + _PIECE]
                    try:
                        failed = await loop.run_in_executor(self._pool, self._evict_batch, piece)
                    except RuntimeError:
                        # The interpreter is exiting, with a client that nobody has closed: threads
                        # take no work any more.
                        failed = self._evict_batch(piece)
                    self._figures.evict(piece, failed)
                self.release_soon()
        finally:
            self._evicting = None
            if not self._closing.is_set():
                self._hurried.clear()

    # ---------------------------------------------------------------------------- sweeping

    def sweep_soon(self) -> None:
        """Evict what nobody has told of, and nobody will."""
        if self._sweeping is None and not self._closing.is_set():
            self._sweeping = asyncio.get_running_loop().call_later(LINGER, self._sweep_groups)

    def _sweep_groups(self) -> None:
        self._sweeping = None
        with contextlib.suppress(RuntimeError):  # closed: everything is swept then
            for group in self._groups:
                self._pool.submit(self._sweep, group)

    def take_over(self, former: str) -> None:
        """Sweep also what the workers of an earlier scheduler, with this group, have stored."""
        if former not in self._groups:
            self._groups.add(former)
            self.sweep_soon()

    def bury(self, prefix: str, process: str, place: StoreConfig | None) -> None:
        """Evict what a client has stored, and was gone before it could say so.

        Args:
            prefix: How the names of its objects begin.
            process: The `identity` of its process.
            place: The store where they are, which stays open meanwhile; None if nobody knows.
        """
        burying = asyncio.ensure_future(self._bury(prefix, process))
        self._burying[burying] = place
        burying.add_done_callback(self._burying.pop)

    async def _bury(self, prefix: str, process: str) -> None:
        # It may only have lost its connection: what it has begun stays until it is dead.
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

    # --------------------------------------------------------------- keeping and releasing

    async def keep(self, config: StoreConfig) -> str | None:
        """Keep what is in a store when its client's program closes it, as long as that is needed.

        Args:
            config: The store's.

        Returns:
            The name of the store's keeper, if there is something; else None.
        """
        if config not in self._needed():
            return None
        with contextlib.suppress(RuntimeError):  # closed: everything is evicted
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._keep, config)
        return None

    async def settle(self) -> None:
        """Return when all is done that was to be done, and what is not needed has been let go."""
        with contextlib.suppress(RuntimeError):  # closed: everything is evicted
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, bool)
            self._release_keepers()
            await loop.run_in_executor(self._pool, bool)

    def release_soon(self) -> None:
        """Let go of stores that nobody needs, once for thousands of tasks that are forgotten."""
        if self._releasing is None and not self._closing.is_set():
            self._releasing = asyncio.get_running_loop().call_later(LINGER, self._release)

    def _release(self) -> None:
        self._releasing = None
        self._release_keepers()
        places = self._places.values()
        if self._looking is None and any(config not in places for config, _ in self.opened):
            loop = asyncio.get_running_loop()
            self._looking = loop.call_later(UNUSED, self._release_stores)

    def _release_stores(self) -> None:
        """Let go of stores that are without a client, and empty, and were when last looked at."""
        self._looking = None
        needed = self._needed()
        needed.extend(self._places.values())
        needed.extend(filter(None, self._burying.values()))
        unused = [store for config, store in self.opened if config not in needed]
        released = [store for store in unused if any(store is each for each in self._unused)]
        self._unused = [store for store in unused if all(store is not each for each in released)]
        if released:
            with contextlib.suppress(RuntimeError):  # as below
                self._pool.submit(self._drop, released)
        self.release_soon()

    def _release_keepers(self) -> None:
        """Let go of stores whose clients are gone, and of which no task needs anything."""
        if not (self._keepers or self._directories):
            return
        needed, here = self._needed(), list(self._places.values())
        names = {config.name for config in chain(needed, here)}
        with contextlib.suppress(RuntimeError):  # the interpreter is exiting
            for name in self._keepers.keys() - names:
                ended = [config for config, _ in self.opened if config.name == name]
                self._pool.submit(self._release_keeper, ended, self._keepers.pop(name))
            for directory, (configs, keeper) in tuple(self._directories.items()):
                if any(config in needed for config in configs):
                    continue
                if any(config in here for config in configs):
                    self._pool.submit(keeper.pause)
                else:
                    del self._directories[directory]
                    self._pool.submit(self._release_keeper, configs, keeper)

    def _needed(self) -> list[StoreConfig]:
        """The stores of which something is needed, or still to be evicted."""
        refs = chain(self._objects.values(), self._kept.values(), self._doomed)
        configs = (ref.factory.store_config for ref in refs)
        # Of thousands of objects, most have the same instance.
        return list({id(config): config for config in configs}.values())

    # ------------------------------------------------------------- what runs in the thread

    def _probe(self, store: Store[Any], tag: str) -> Ref:
        # Named as a result of the worker that is asked, and swept like one if that dies.
        try:
            return store_object(store, PACKAGE, name=f"{self._group}.{tag}-probe-{uuid.uuid4()}")
        except NotImplementedError:  # a connector without names
            return store_object(store, PACKAGE)

    def _open(self, place: bytes) -> None:
        try:
            store = self._store_at(pickle.loads(place))
            if store.name not in self._keepers:
                # Tasks may need its objects when its client's process has ended.
                keeper = keep_embedded(store)
                if keeper is not None:
                    self._keepers[store.name] = keeper
        except Exception:  # a store's own errors can be anything; all of them mean "not from here"
            logger.info("The scheduler cannot open a client's store", exc_info=True)

    def _drop(self, stores: list[Store[Any]]) -> None:
        # Not closed: some are their clients' own, in this process.
        self.opened = [
            (config, store)
            for config, store in self.opened
            if all(store is not dropped for dropped in stores)
        ]

    def _keep(self, config: StoreConfig) -> str | None:
        try:
            connector = self._store_at(config).connector
            if not isinstance(connector, FileConnector):
                return None
            known = self._directories.get(connector.store_dir)
            if known is not None:
                configs, keeper = known
                if config not in configs:
                    configs.append(config)
                keeper.keep()
            else:
                keeper = DirectoryKeeper(connector)
                self._directories[connector.store_dir] = [config], keeper
            return keeper.name
        except Exception:  # as in `_open`
            logger.exception("Tasks need objects of %r, and it cannot be kept", config.name)
        return None

    def _release_keeper(
        self, configs: Collection[StoreConfig], keeper: Keeper | DirectoryKeeper
    ) -> None:
        # Or they would be made anew, by who looks into all stores.
        self.opened = [each for each in self.opened if each[0] not in configs]
        keeper.release()

    def _see(self, probe: bytes) -> dict[str, Any]:
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

    def _wanted(self) -> _Wanted:
        # Called after objects were listed. What is in the store then was known to the plugin
        # before: a worker before it runs a task, a task before it has a result. Each copy is made
        # in one step, whatever the event loop does meanwhile.
        kept = {ref.id for ref in tuple(self._kept.values())}
        return _Wanted(kept.union(tuple(self._objects)), frozenset(tuple(self._tags.values())))

    def _sweep(self, prefix: str, *, begun: bool = True) -> None:
        """Evict objects whose names begin with `prefix`, other than those that are wanted."""
        for _, store in tuple(self.opened):
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
        for _, store in tuple(self.opened):
            with contextlib.suppress(Exception):  # the sweep says what is wrong
                idle = min(idle, idle_for(store, prefix))
        return idle

    def _store_of(self, ref: Ref) -> Store[Any]:
        return self._store_at(ref.factory.store_config)

    def _store_at(self, config: StoreConfig) -> Store[Any]:
        store = self._known(config)
        if store is None:
            store = get_or_create_store(config, register=False)
            self.opened.append((config, store))
        return store

    def _known(self, config: StoreConfig) -> Store[Any] | None:
        # Most are the same instance, which is seen much sooner.
        for known, store in self.opened:
            if known is config or known == config:
                return store
        return None


def _text(connector: ConnectorConfig) -> str:
    # As it is printed: without passwords.
    shown = dict(connector.__repr_args__())
    options = ", ".join(f"{name}={value!r}" for name, value in shown["options"].items())
    return f"{connector.kind.rpartition('.')[2]}({options})"
