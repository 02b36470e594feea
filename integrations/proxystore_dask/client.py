"""A Dask client whose large data travels by reference."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import os
import pickle
import threading
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from inspect import isawaitable
from queue import Queue
from typing import Any, TypeVar, cast

import dask
from dask.typing import no_default
from dask.utils import format_bytes, parse_timedelta
from distributed import Client as DaskClient
from distributed import Future, get_worker, wait
from distributed.comm.addressing import get_address_host, parse_address

from proxystore.store import Store, StoreConfig
from proxystore.workflow import (
    Ledger,
    Packer,
    Ref,
    identity,
    is_dead,
    open_store,
    parse_size,
    size_at_least,
    sweep,
)
from proxystore.workflow.embedded import is_embedded
from proxystore_dask import _dask
from proxystore_dask.calls import pack_map, split
from proxystore_dask.closing import bury, count, say_goodbye
from proxystore_dask.config import origin, setting
from proxystore_dask.graph import NODES, carries, is_native, unfold
from proxystore_dask.leases import Leases, Lifetimes
from proxystore_dask.literals import Scale
from proxystore_dask.outbox import Outbox, Promise, Promises
from proxystore_dask.prefetch import Prefetch
from proxystore_dask.reach import StoreUnreachableError, check, see
from proxystore_dask.results import (
    Keep,
    Leave,
    LocalData,
    Results,
    StoredKeys,
    check_durable,
    hurry,
    leaving,
    results_setting,
    stored_result,
    with_results,
)
from proxystore_dask.rewriting import rewrite
from proxystore_dask.scattering import Parts, pack_values, parts
from proxystore_dask.scheduler_plugin import (
    COMPANY,
    FIND,
    HELLO,
    PROBE,
    PROTOCOL,
    StoreLifetimes,
)
from proxystore_dask.stats import StoreStats, stats_html

logger = logging.getLogger(__name__)

# How long a client that is about to store something waits to hear whether it is there. A scheduler
# that is too busy to answer in time is left alone for a while: it is not to hold up every call.
_SECONDS_TO_FIND = 0.5

# How long a client whose store is full waits for the scheduler to evict what nobody needs.
_SECONDS_FOR_ROOM = 3

T = TypeVar("T")
StoreSpec = Store[Any] | StoreConfig | str | os.PathLike[str]


class _Backing:
    """A client's store, and its part in what is there."""

    def __init__(self, client: DaskClient, store: Store[Any], threshold: int) -> None:
        # The ledger has a thread, which must not keep the client alive.
        reference = weakref.ref(client)

        def send(message: dict[str, Any]) -> None:
            target = reference()
            if target is not None:
                _dask.send(target, message)

        def ask(digest: str, lease: str) -> Ref | None:
            target = reference()
            return None if target is None else _found(target, place, digest, lease)

        def make_room() -> bool:
            target = reference()
            return target is not None and _makes_room(target)

        place = pickle.dumps(store.config())
        self.store = store
        self.leases = Leases(store, send, ask, make_room)
        self.threshold = threshold
        self.packer = self.new_packer(self.leases.ledger)

    def new_packer(self, ledger: Ledger | Promises) -> Packer:
        """A packer that stores by this ledger."""
        as_ledger = cast(Ledger, ledger)  # of which a packer uses what promises have, too
        return Packer(as_ledger, threshold=self.threshold, is_native=is_native, carries=carries)


def _found(client: DaskClient, place: bytes, digest: str, lease: str) -> Ref | None:
    """What the scheduler has leased to a client."""

    async def find() -> bytes | None:
        asked = getattr(client.scheduler, FIND)(
            digest=digest, place=place, client=client.id, lease=lease
        )
        found: bytes | None = await asyncio.wait_for(asked, _SECONDS_TO_FIND)
        return found

    if client.asynchronous:  # in its event loop, which cannot wait for itself
        return None
    loop: Any = client.loop
    asked = asyncio.run_coroutine_threadsafe(find(), loop.asyncio_loop)
    found = asked.result(_SECONDS_TO_FIND + 1)
    return None if found is None else pickle.loads(found)


def _makes_room(client: DaskClient) -> bool:
    """Whether the scheduler has evicted what nobody needs, just now."""
    if client.asynchronous:  # as above
        return False
    loop: Any = client.loop
    hurrying = hurry(client.scheduler)
    try:
        asked = asyncio.run_coroutine_threadsafe(hurrying, loop.asyncio_loop)
    except RuntimeError:  # the loop is closed
        hurrying.close()
        return False
    try:
        return asked.result(_SECONDS_FOR_ROOM)
    except Exception:  # noqa: BLE001 - whatever it is, the store is full
        return False


class Client(_dask.HookedClient):
    """A `distributed.Client` that passes large data by reference, wherever it enters a graph.

    Arguments of `submit` and `map`, literals in the graphs of all collections, what is scattered.
    Functions get the object itself, their own private copy; results stay in Dask, unless
    `ps_results` says otherwise. An object is evicted once the scheduler has forgotten every task
    that mentions it.

    Args:
        *args: As for `distributed.Client`.
        ps_store: A store, its configuration, or the path of a TOML file with one; workers must be
            able to reach it. None: ``proxystore.store`` of Dask's configuration, and without that
            a store of this process's own, in memory if the whole cluster runs on this host.
        ps_threshold: Size from which arguments go by reference: bytes, or text such as
            ``"10 MiB"``. None: ``proxystore.threshold`` of Dask's configuration, "1 MiB".
        ps_arguments: What the functions of `submit` and `map` get for a large argument:
            ``"value"`` (the object) or ``"proxy"`` (a `Proxy`, which gets the object when it is
            first used). None: ``proxystore.arguments`` of Dask's configuration, "value". Both
            methods take it too, for one call.
        ps_results: Which results of `submit` and `map` go to the store, and are not kept in the
            worker's memory: ``"never"``, ``"large"`` (those of `ps_threshold` or more) or a size.
            ``"durable"``: as "large", and all of them are in the store until the scheduler has
            forgotten their tasks, so that none of these runs again because a worker is gone.
            None: ``proxystore.results`` of Dask's configuration, "never". Both methods take it
            too, for one call.
        **kwargs: As for `distributed.Client`.

    Raises:
        ValueError: `ps_arguments` or `ps_results` is none of these, or `ps_store` cannot have
            durable results. Nothing has been started.
        ThresholdError: `ps_threshold` is not a size. Nothing has been started.
        StoreUnreachableError: A worker cannot get what is put into `ps_store`.
        StoreConfigError: `ps_store` cannot be read; see `open_store` for what else can be wrong
            with it. Nothing has been started.
    """

    _ps: _Backing | None
    _ps_arguments: str
    _ps_anew: bool
    _ps_group: str | None
    _ps_in_task: bool
    _ps_in_thread: threading.local
    _ps_others_results: bool
    _ps_prefetch: int
    _ps_process: str
    _ps_results: Results | None
    _ps_results_said: int | str
    _ps_stored: StoredKeys
    _ps_threshold: int
    _ps_warned: bool

    def __init__(
        self,
        *args: Any,
        ps_store: StoreSpec | None = None,
        ps_threshold: int | str | None = None,
        ps_arguments: str | None = None,
        ps_results: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        self._ps_prepare(ps_store, ps_threshold, ps_arguments, ps_results, in_task=_in_task())
        super().__init__(*args, **kwargs)

    def _ps_prepare(
        self,
        store: StoreSpec | None = None,
        threshold: int | str | None = None,
        arguments: str | None = None,
        results: int | str | None = None,
        *,
        in_task: bool,
    ) -> None:
        self._ps_arguments = _checked_arguments(
            setting("arguments", arguments), name=origin("arguments", arguments)
        )
        self._ps_in_task = in_task
        self._ps_in_thread = threading.local()
        self._ps_threshold = parse_size(
            setting("threshold", threshold), name=origin("threshold", threshold)
        )
        self._ps_results_said = setting("results", results)
        self._ps_results = results_setting(
            self._ps_results_said, self._ps_threshold, name=origin("results", results)
        )
        self._ps_prefetch = parse_size(setting("prefetch", None), name=origin("prefetch", None))
        self._ps_stored = StoredKeys(self)
        self._ps_outbox = Outbox()
        self._ps_group = None
        self._ps_others_results = False
        self._ps_process = ""
        self._ps_warned = False
        self._ps = None  # without a store of the user's it depends on the cluster where ours is
        spec = setting("store", store)
        if spec is not None:
            opened = open_store(spec)
            if self._ps_results is not None and self._ps_results.durable:
                check_durable(opened)
            self._ps = _Backing(self, opened, self._ps_threshold)

    # ---------------------------------------------------------------------------- looking

    @property
    def ps_store(self) -> Store[Any] | None:
        """The store in use; None before the client is connected, and where none can be used."""
        return None if self._ps is None else self._ps.store

    def ps_stats(self) -> StoreStats:
        """What this client has passed by reference so far."""
        if self._ps is None:
            return StoreStats(None, None, None, self._ps_threshold)
        ledger = self._ps.leases.ledger
        lifetimes = self._ps.leases.lifetimes
        ledger.flush(timeout=1)  # the futures of a line before are not to count any more
        live = ledger.live
        return StoreStats(
            store=self._ps.store.name,
            connector=repr(self._ps.store.connector),
            lifetimes=None if lifetimes is None else lifetimes.value,
            threshold=self._ps_threshold,
            puts=ledger.stats.puts,
            put_bytes=ledger.stats.put_bytes,
            reused=ledger.stats.reused,
            live=len(live),
            live_bytes=sum(ref.nbytes for ref in live),
        )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self._ps_text()}>"

    def _repr_html_(self) -> str:
        link = self.dashboard_link if self.status == "running" else None
        return f"{super()._repr_html_()}{stats_html(self.ps_stats(), link)}"

    def _ps_text(self) -> str:
        stats = self.ps_stats()
        if stats.lifetimes is None:
            return "store: none in use"
        text = f"store: {stats.connector}, from {format_bytes(stats.threshold)}"
        return text if stats.lifetimes == "graph" else f"{text}, kept until the client closes"

    # ------------------------------------------------------------------------- submitting

    def submit(
        self,
        func: Callable[..., T],
        *args: Any,
        ps_arguments: str | None = None,
        ps_results: int | str | None = None,
        **kwargs: Any,
    ) -> Future[T]:
        """Submit a call to the scheduler; as `distributed.Client.submit`.

        Args:
            func: As for `distributed.Client.submit`.
            *args: The function's arguments.
            ps_arguments: As for `Client`. None: as the client was told.
            ps_results: As for `Client`. None: as the client was told.
            **kwargs: The function's arguments by name, and the options of
                `distributed.Client.submit`.

        Raises:
            ValueError: `ps_arguments` or `ps_results` is none of what it can be. Nothing has
                been stored.
            UnpicklableArgumentError: An argument cannot be pickled. Nothing has been stored.
        """
        wrap = self._ps_node(ps_arguments)
        results = self._ps_which(ps_results)
        backing = self._ps_usable(func)
        if backing is None:
            return super().submit(func, *args, **kwargs)
        options, keywords = split(kwargs, _dask.SUBMIT_OPTIONS)
        func, carried, named = unfold(func, self._ps_is_large, _dask.SUBMIT_OPTIONS)
        packer, promises = self._ps_packer(backing)
        packed = packer.pack((*carried, *args), {**named, **keywords}, wrap=wrap)
        # `args` stays referenced until the graph is sent: a future in it may have no other owner,
        # and would take its task along.
        with self._ps_packed(promises), self._ps_leaving(results, options):
            future = super().submit(func, *packed.args, **options, **packed.kwargs)
        if packed.holds:
            backing.leases.keep(future, packed.holds)
        return future

    def map(
        self,
        func: Callable[..., T],
        *iterables: Collection[Any],
        ps_arguments: str | None = None,
        ps_results: int | str | None = None,
        **kwargs: Any,
    ) -> list[Future[T]]:
        """Submit a call for each element; as `distributed.Client.map`.

        Args:
            func: As for `distributed.Client.map`.
            *iterables: The function's arguments, a collection for each.
            ps_arguments: As for `submit`.
            ps_results: As for `submit`.
            **kwargs: The same arguments for all calls, and the options of
                `distributed.Client.map`.

        Raises:
            ValueError: `ps_arguments` or `ps_results` is none of what it can be. Nothing has
                been stored.
            UnpicklableArgumentError: An argument cannot be pickled. Nothing has been stored.
        """
        wrap = self._ps_node(ps_arguments)
        results = self._ps_which(ps_results)
        backing = self._ps_usable(func)
        # Dask itself says what is wrong with iterators, queues, and nothing to map over.
        if backing is None or not iterables or not all(hasattr(it, "__len__") for it in iterables):
            return super().map(func, *iterables, **kwargs)
        options, keywords = split(kwargs, _dask.MAP_OPTIONS)
        func, carried, named = unfold(func, self._ps_is_large, _dask.MAP_OPTIONS)
        batch_size = options.get("batch_size")
        in_batches = batch_size and batch_size > 1 and sum(map(len, iterables)) > batch_size
        # Dask calls this method again for each batch: then only what they share is packed here.
        own = () if in_batches else iterables
        if in_batches:
            options["ps_arguments"] = ps_arguments
            options["ps_results"] = ps_results
        packer, promises = self._ps_packer(backing)
        packed = pack_map(packer, carried, own, {**named, **keywords}, wrap=wrap)
        length = min(map(len, iterables))
        leading = [[value] * length for value in packed.shared]
        rest = iterables if in_batches else packed.iterables
        with self._ps_packed(promises), self._ps_leaving(results, options):
            futures = super().map(func, *leading, *rest, **options, **packed.keywords)
        for i, future in enumerate(futures):
            holds = (*packed.shared_holds, *packed.holds.get(i, ()))
            if holds:
                backing.leases.keep(future, holds)
        return futures

    def scatter(
        self,
        data: Any,
        workers: Any = None,
        broadcast: bool | int = False,
        direct: bool | None = None,
        hash: bool = True,
        timeout: Any = no_default,
        asynchronous: bool | None = None,
    ) -> Any:
        """Move data to the workers before tasks need it; as `distributed.Client.scatter`.

        Large values go by way of the store: a future stands for a task that loads the value, so
        that it survives the death of every worker that has it. `workers` says where that is to
        happen; if all of these are gone, it is done elsewhere. `direct` is only for small values,
        which travel as in plain Dask. So does everything that a task scatters with `broadcast`:
        it would have to wait for other tasks. Without `broadcast`, `scatter` in a task returns
        before the values are loaded.

        Raises:
            UnpicklableArgumentError: A large value cannot be pickled. Nothing has been stored.
            TimeoutError: There was no worker to load the values in time.
        """
        plainly = functools.partial(
            super().scatter,
            workers=workers,
            broadcast=broadcast,
            direct=direct,
            hash=hash,
            timeout=timeout,
            asynchronous=asynchronous,
        )
        backing = self._ps_backing()
        in_task = _in_task()
        # Dask itself says what is wrong with iterators and queues.
        if backing is None or isinstance(data, (Iterator, Queue)) or (in_task and broadcast):
            return plainly(data)
        given = parts(data)
        large = {
            place: value
            for place, value in given.values.items()
            # Under a known key only plain Dask puts another value in the first one's place.
            if not (given.named and place in self.futures) and self._ps_is_large(value)
        }
        if not large:
            return plainly(data)
        others = [place for place in given.values if place not in large]
        futures = plainly(given.some(others)) if others else []

        async def scatter() -> Any:
            made = await futures if isawaitable(futures) else futures
            found = dict(
                zip(others, made.values() if isinstance(made, dict) else made, strict=True)
            )
            found.update(await self._ps_load(backing, given, large, hash, workers))
            if not in_task:  # where waiting for other tasks might be for ever
                loading = [found[place] for place in large]
                with self.as_current():
                    await wait(loading, timeout=_timeout(timeout))
                if broadcast:
                    n = None if broadcast is True else broadcast
                    await self.replicate(loading, n=n, workers=workers)
            return given.together([found[place] for place in given.values])

        return self.sync(scatter, asynchronous=asynchronous)

    async def _ps_load(
        self, backing: _Backing, given: Parts, large: dict[Any, Any], hash: bool, workers: Any
    ) -> dict[Any, Future[Any]]:
        """Have values loaded from the store; their futures, by place."""
        pack = functools.partial(pack_values, named=given.named, hash=hash)
        loop = asyncio.get_running_loop()
        loadings = await loop.run_in_executor(None, pack, backing.packer, large)
        with self._ps_packed():
            futures = self.get(
                {loading.node.key: loading.node for loading in loadings},
                [loading.node.key for loading in loadings],
                workers=workers,
                allow_other_workers=workers is not None,
                sync=False,
            )
        for future, loading in zip(futures, loadings, strict=True):
            backing.leases.keep(future, loading.holds)
        return dict(zip(large, futures, strict=True))

    def _ps_graph(
        self, expr: Any, keys: list[Any]
    ) -> tuple[Callable[[], tuple[Any, Callable[[Any], None]]], bool]:
        expr = _dask.as_expr(expr)
        packed = getattr(self._ps_in_thread, "packed", None)
        leave = getattr(self._ps_in_thread, "leave", None)
        backing = self._ps_backing()

        def prepare() -> tuple[Any, Callable[[Any], None]]:
            if backing is not None:
                for promise in packed or ():
                    promise.keep(backing.leases.ledger)
            return self._ps_changed(expr, keys, backing if packed is None else None, leave)

        if not self.asynchronous or backing is None:
            return prepare, False
        later = bool(packed) if packed is not None else Scale(self._ps_threshold).is_large(expr)
        return prepare, later

    def _ps_changed(
        self,
        expr: Any,
        keys: list[Any],
        backing: _Backing | None,
        leave: Callable[..., Leave | Keep] | None,
    ) -> tuple[Any, Callable[[Any], None]]:
        """What to send instead of `expr`; and what to call with the futures, by key.

        Args:
            expr: A graph.
            keys: Its outputs.
            backing: Where to store its large literals; None: leave them there.
            leave: As for `with_results`.
        """
        rewritten = None if backing is None else rewrite(expr, keys, backing.packer)
        if rewritten is not None:
            expr = rewritten.expr
        if leave is not None or self._ps_stored or self._ps_others_results:
            # Futures of others come from anywhere: variables, queues, published data.
            others = self._ps_others_results
            changed = with_results(expr, lambda key: others or key in self._ps_stored, leave)
            expr = expr if changed is None else changed
            if leave is not None:
                self._ps_stored.add(keys)
        if backing is None or rewritten is None:
            return expr, _keep_nothing

        def keep(futures: dict[Any, Future[Any]]) -> None:
            for key, holds in rewritten.holds.items():
                if holds:
                    backing.leases.keep(futures[key], holds)

        return expr, keep

    @contextlib.contextmanager
    def _ps_packed(self, promises: Sequence[Promise] = ()) -> Iterator[None]:
        """While this thread sends a graph in which what is large is replaced already.

        Args:
            promises: What has to be stored before.
        """
        before = getattr(self._ps_in_thread, "packed", None)
        # `map` calls itself for each batch: what they share was packed by the first call.
        self._ps_in_thread.packed = (*(before or ()), *promises)
        try:
            yield
        finally:
            self._ps_in_thread.packed = before

    def _ps_packer(self, backing: _Backing) -> tuple[Packer, Sequence[Promise]]:
        """What packs arguments; in an event loop, it only promises to store them."""
        if not self.asynchronous:
            return backing.packer, ()
        promises = Promises()
        return backing.new_packer(promises), promises.made

    @contextlib.contextmanager
    def _ps_leaving(self, results: Results | None, options: dict[str, Any]) -> Iterator[None]:
        """While this thread sends tasks that are to leave results in the store."""
        leave = None
        backing = self._ps_backing()
        if (
            results is not None
            and backing is not None
            and not (options.get("actor") or options.get("actors"))
        ):
            if backing.leases.lifetimes is Lifetimes.GRAPH and self._ps_group is not None:
                leave = leaving(backing.store, results, self._ps_group)
            elif not self._ps_warned:
                self._ps_warned = True
                logger.warning(
                    "results stay in Dask: the scheduler cannot run the plugin of "
                    "proxystore_dask, or cannot reach the store"
                )
        before = getattr(self._ps_in_thread, "leave", None)
        self._ps_in_thread.leave = leave
        try:
            yield
        finally:
            self._ps_in_thread.leave = before

    def _ps_which(self, results: int | str | None) -> Results | None:
        """The results that go to the store; as `results_setting`, and they can go there."""
        if results is None:
            return self._ps_results
        found = results_setting(results, self._ps_threshold)
        if found is not None and found.durable and self._ps is not None:
            check_durable(self._ps.store)
        return found

    def _ps_node(self, arguments: str | None) -> Callable[[Ref], _dask.Task]:
        return NODES[self._ps_arguments if arguments is None else _checked_arguments(arguments)]

    def _ps_is_large(self, value: object) -> bool:
        return size_at_least(value, self._ps_threshold)

    def _ps_usable(self, func: object) -> _Backing | None:
        """What to store arguments with; None: send them as plain Dask does."""
        return self._ps_backing() if callable(func) else None  # Dask says what is wrong with it

    def _ps_backing(self) -> _Backing | None:
        """What to store with; None while nothing is to be stored."""
        backing = self._ps
        if backing is None or backing.leases.lifetimes is None or self.status != "running":
            return None
        return backing

    # -------------------------------------------------------------------------- gathering

    def _ps_local(self, worker: Any) -> Any:
        return LocalData(worker)

    async def _ps_gathered(self, response: dict[str, Any]) -> dict[str, Any]:
        found = {key: stored_result(value) for key, value in response["data"].items()}
        factories = {key: factory for key, factory in found.items() if factory is not None}
        if not factories:
            return response
        loop = asyncio.get_running_loop()
        objects = await loop.run_in_executor(None, self._ps_stored.fetch, factories)
        missing = [key for key in factories if key not in objects]
        if missing:
            return {"status": "error", "keys": missing}
        return {**response, "data": {**response["data"], **objects}}

    # ------------------------------------------------------------------------- connecting

    async def _ps_connected(self) -> None:
        await self._ps_find_store()
        in_use = self._ps is not None and self._ps.leases.lifetimes is not None
        if in_use and self._ps_prefetch and not self._ps_in_task:
            try:
                await self.register_plugin(Prefetch(self._ps_prefetch))
            except ValueError as error:  # as below
                logger.warning("workers do not prefetch: %s", error)

    async def _ps_find_store(self) -> None:
        try:
            await self.register_plugin(StoreLifetimes())
        except (ImportError, AttributeError) as error:
            logger.warning(
                "large arguments travel through the scheduler, as in plain Dask: it cannot import "
                "proxystore_dask (%s); install proxystore[dask] where the scheduler runs",
                error,
            )
            return
        except ValueError as error:
            # Plugins from clients are not allowed here; one may have been preloaded.
            logger.info("the scheduler accepts no plugin: %s", error)
        own = self._ps is None
        async for store in self._ps_candidates():
            if self._ps is None or self._ps.store is not store:
                self._ps = _Backing(self, store, self._ps_threshold)
            try:
                lifetimes = await self._ps_enter(store)
            except StoreUnreachableError as error:
                if not own:
                    raise
                # Who has named no store is not to lose a program that works without one.
                logger.warning("large arguments travel as in plain Dask: %s", error)
                return
            if lifetimes is None:
                return
            if lifetimes is Lifetimes.GRAPH:
                self._ps.leases.start(lifetimes, anew=self._ps_anew)
                logger.info("large arguments go through %r", store.connector)
                return
        assert self._ps is not None
        self._ps.leases.start(Lifetimes.CLIENT)
        logger.warning(
            "objects stay in %r until this client closes: its scheduler cannot run the plugin of "
            "proxystore_dask, or cannot reach the store",
            self._ps.store.connector,
        )

    async def _ps_candidates(self) -> AsyncIterator[Store[Any]]:
        """The user's store, or where one of our own could be, best first."""
        if self._ps is not None:
            yield self._ps.store
            return
        assert self.scheduler is not None
        if self._ps_in_task:
            # What a task submits may outlive its worker, and this process's own store does not.
            reply = await self._ps_ask(HELLO)
            if reply.get("store"):
                offered: Ref = pickle.loads(reply["store"])
                yield offered.store
        identity = await self.scheduler.identity(n_workers=0)
        if _is_loopback(identity["address"]):
            # Workers on other hosts could not reach such a scheduler. (If it then cannot see the
            # store, the address is the loopback of another host, through a tunnel.)
            yield open_store(None, shared=False)
        yield open_store(None, shared=True)

    async def _ps_enter(self, store: Store[Any]) -> Lifetimes | None:
        """Find out who can evict from `store`; None: nobody can get what is stored there.

        Raises:
            StoreUnreachableError: Workers cannot.
        """
        before, process = self._ps_group, self._ps_process
        reply = await self._ps_hello(store, before)
        seen = await self._ps_probe(store)
        group = reply.get("group")
        reachable = reply.get("protocol") == PROTOCOL and bool(seen.get("reachable"))
        self._ps_anew = before is not None and before != group
        self._ps_group = group if reachable else None
        is_gone = group is not None or is_dead(process)  # no answer is no proof
        if before is not None and before != group and is_gone and not reachable:
            # The plugin of before is gone, and this one does not evict in its place.
            await asyncio.get_running_loop().run_in_executor(None, sweep, store, before)
        if seen.get("unreadable"):
            logger.warning(
                "large arguments travel as in plain Dask: the scheduler cannot read what refers to "
                "objects in %r (%s); install there what the store needs",
                store.connector,
                seen["unreadable"],
            )
            return None
        return Lifetimes.GRAPH if reachable else Lifetimes.CLIENT

    async def _ps_hello(self, store: Store[Any], before: str | None) -> dict[str, Any]:
        """Tell the plugin what this client will store, and hear who else is there.

        Args:
            store: Where.
            before: The group of the plugin that this client was connected to. What is left of its
                tasks, the next one evicts: it knows which of them were on their way in between,
                with names of before.
        """
        assert self._ps is not None
        leases = self._ps.leases
        leases.prefix = str(uuid.uuid4())
        # Events may come before the reply, and say more.
        leases.has_company = self._ps_others_results = False
        self.subscribe_topic(COMPANY, self._ps_company)
        reply = await self._ps_ask(
            HELLO,
            client=self.id,
            prefix=leases.prefix,
            place=pickle.dumps(store.config()),
            former=before or "",
            process=identity(),
        )
        leases.has_company |= bool(reply.get("company"))
        self._ps_others_results |= bool(reply.get("others_results"))
        self._ps_process = str(reply.get("process", ""))
        return reply

    async def _ps_probe(self, store: Store[Any]) -> dict[str, Any]:
        """Have everybody look at an object; what the plugin sees.

        Raises:
            StoreUnreachableError: Workers cannot get it.
        """
        assert self._ps is not None
        loop = asyncio.get_running_loop()
        storing = loop.run_in_executor(None, self._ps.leases.probe)
        try:
            probe = await asyncio.shield(storing)
        except asyncio.CancelledError:
            storing.add_done_callback(_evict_stored)  # its thread goes on
            raise
        try:
            pickled = pickle.dumps(probe)
            offered_by = None if self._ps_in_task else self.id
            seen = await self._ps_ask(PROBE, probe=pickled, offered_by=offered_by)
            answers = {} if self._ps_in_task else await self._ps_ask_workers(pickled)
        finally:
            probe.evict()
        check(store, answers)
        return seen

    def _ps_company(self, event: Any) -> None:
        _, said = event
        if self._ps is not None and self.id in said.get("clients", ()):
            self._ps.leases.has_company = True
        if not {self.id}.issuperset(said.get("with_results", ())):
            self._ps_others_results = True

    async def _ps_ask_workers(self, probe: bytes) -> Any:
        seconds = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
        try:
            return await asyncio.wait_for(self.run(see, probe, on_error="return"), seconds)
        except asyncio.TimeoutError:
            logger.warning(
                "a worker has not said within %s s whether it reaches the store", seconds
            )
            return {}

    async def _ps_ask(self, handler: str, **what: Any) -> dict[str, Any]:
        """What the plugin answers; nothing if there is none."""
        try:
            # A scheduler without a handler of this name answers None.
            return await getattr(self.scheduler, handler)(**what) or {}
        except (ValueError, TypeError) as error:
            logger.info("the scheduler does not talk about stores: %s", error)
            return {}

    async def _ps_reconnected(self) -> None:
        try:
            await self._ps_connected()
        except Exception:
            # Nobody waits for this; and the client itself is as good as plain Dask's.
            logger.exception("large arguments travel as in plain Dask from now on")

    def _ps_disconnected(self) -> None:
        if self._ps is not None:
            self._ps.leases.pause()

    def _ps_restarted(self) -> None:
        if self._ps is not None:
            self._ps.leases.release_all()

    def _ps_cancelled(self, keys: Collection[Any]) -> None:
        if self._ps is not None:
            self._ps.leases.release(keys)

    async def _ps_closed(self, scheduler: str | None) -> None:
        if self._ps is None:
            return
        leases = self._ps.leases
        unheard = leases.close()
        # Also while it connects again: tasks of before may need what is there.
        if scheduler is not None and self._ps_group is not None and not self._ps_in_task:
            await say_goodbye(self, scheduler, self._ps_process, self._ps.store)
        if self._ps_group is not None and is_dead(self._ps_process):
            await bury(self._ps.store, unheard, (leases.prefix, self._ps_group))
        elif unheard and not is_embedded(self._ps.store):  # which is removed as a whole
            left = await count(unheard)
            if left:
                logger.warning(
                    "%d objects may be left in %r: the client closed while its scheduler was out "
                    "of reach",
                    left,
                    self._ps.store.connector,
                )


def _timeout(given: Any) -> Any:
    return dask.config.get("distributed.comm.timeouts.connect") if given is no_default else given


def _evict_stored(storing: asyncio.Future[Ref]) -> None:
    if not storing.cancelled() and storing.exception() is None:
        storing.result().evict()


def _keep_nothing(futures: object) -> None:
    pass


def _in_task() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    scheme, _ = parse_address(address)
    if scheme == "inproc":
        return True
    host = get_address_host(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# Keeps two threads from attaching one client twice.
_attaching = threading.Lock()
_classes: dict[type[DaskClient], type[Client]] = {DaskClient: Client}


def attach(
    client: DaskClient,
    *,
    ps_store: StoreSpec | None = None,
    ps_threshold: int | str | None = None,
    ps_arguments: str | None = None,
    ps_results: int | str | None = None,
) -> Client:
    """Make a client that exists already pass large arguments by reference.

    For clients that others make: `cluster.get_client()`, `distributed.get_client()` in a task,
    clients of deployment tools. The client itself changes and is returned; its own class stays a
    base of its new one. With an asynchronous client: ``await attach(client)``.

    Args:
        client: Any `distributed.Client`. One that has been attached already, with the same
            settings, is returned as it is.
        ps_store: As for `Client`.
        ps_threshold: As for `Client`.
        ps_arguments: As for `Client`.
        ps_results: As for `Client`.

    Raises:
        ValueError: The client is attached already, with other settings; or as for `Client`.
        ThresholdError: As for `Client`. The client has not been changed.
    """
    with _attaching:
        if isinstance(client, Client):
            _check_same(client, ps_store, ps_threshold, ps_arguments, ps_results)
            return client
        settings = (ps_store, ps_threshold, ps_arguments, ps_results)
        client = _turned(client, *settings, in_task=_in_task())
    if client.asynchronous:
        _dask.start_with(client, client._ps_connected)
    else:
        client.sync(client._ps_connected)
    return client


async def attach_connecting(client: DaskClient) -> None:
    """`attach`, for a client in the middle of its own start; runs in its event loop."""
    with _attaching:
        if isinstance(client, Client):
            return  # it connects to its store by itself
        client = _turned(client, in_task=_dask.is_of_worker(client))
    await client._ps_connected()


def _turned(client: DaskClient, *settings: Any, in_task: bool) -> Client:
    Client._ps_prepare(client, *settings, in_task=in_task)  # type: ignore[arg-type]  # soon one
    _dask.take_over(client, _class_for(type(client)))
    assert isinstance(client, Client)
    return client


def _class_for(base: type[DaskClient]) -> type[Client]:
    if base not in _classes:
        _classes[base] = type(base.__name__, (Client, base), {"__module__": base.__module__})
    return _classes[base]


def _check_same(
    client: Client,
    store: StoreSpec | None,
    threshold: int | str | None,
    arguments: str | None,
    results: int | str | None,
) -> None:
    used = client.ps_store
    if store is not None and (used is None or open_store(store).config() != used.config()):
        raise ValueError(f"the client is attached to {used!r} already, not to {store!r}")
    if threshold is not None and parse_size(threshold, name="ps_threshold") != client._ps_threshold:
        raise ValueError(
            f"the client is attached with a threshold of {client._ps_threshold} bytes already, "
            f"not {threshold!r}"
        )
    if arguments is not None and _checked_arguments(arguments) != client._ps_arguments:
        raise ValueError(
            f"the client is attached with ps_arguments={client._ps_arguments!r} already, "
            f"not {arguments!r}"
        )
    if results is not None and client._ps_which(results) != client._ps_results:
        raise ValueError(
            f"the client is attached with ps_results={client._ps_results_said!r} already, not "
            f"{results!r}; give it to submit or map instead, for single calls"
        )


def _checked_arguments(value: Any, *, name: str = "ps_arguments") -> str:
    if value not in ("value", "proxy"):
        raise ValueError(
            f"{name} must be 'value' (functions get the object) or 'proxy' (they get a Proxy, "
            f"which gets the object when it is first used), got {value!r}"
        )
    return str(value)
