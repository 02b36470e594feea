"""A Dask client whose large data travels by reference."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import ipaddress
import logging
import os
import pickle
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass
from inspect import isawaitable
from queue import Queue
from typing import Any, TypeVar

import dask
from dask.typing import no_default
from dask.utils import format_bytes
from distributed import Client as DaskClient
from distributed import Future, get_worker, wait
from distributed.comm.addressing import get_address_host, parse_address

from proxystore.store import Store, StoreConfig
from proxystore.workflow import Packer, Ref, open_store, parse_size, size_at_least, store_object
from proxystore_dask import _dask
from proxystore_dask.calls import pack_map, split
from proxystore_dask.config import setting
from proxystore_dask.graph import NODES, carries, is_native, unfold
from proxystore_dask.leases import Leases, Lifetimes
from proxystore_dask.rewriting import rewrite
from proxystore_dask.scattering import Parts, pack_values, parts
from proxystore_dask.scheduler_plugin import HELLO, PROTOCOL, StoreLifetimes

logger = logging.getLogger(__name__)

T = TypeVar("T")
StoreSpec = Store[Any] | StoreConfig | str | os.PathLike[str]


@dataclass(frozen=True)
class StoreStats:
    """What one client has passed by reference so far.

    Attributes:
        store: Name of the store; None if arguments travel as in plain Dask.
        connector: Where the store keeps objects.
        lifetimes: Who evicts: ``"graph"`` (the scheduler's plugin) or ``"client"`` (at its close).
        threshold: Size from which arguments go by reference, in bytes.
        puts: Objects stored.
        put_bytes: Their size.
        reused: How often bytes were wanted that were in the store already.
        live: Objects that this client's futures keep alive.
    """

    store: str | None
    connector: str | None
    lifetimes: str | None
    threshold: int
    puts: int = 0
    put_bytes: int = 0
    reused: int = 0
    live: int = 0


class _Backing:
    """A client's store, and its part in what is there."""

    def __init__(self, client: DaskClient, store: Store[Any], threshold: int) -> None:
        # The ledger has a thread, which must not keep the client alive.
        reference = weakref.ref(client)

        def send(message: dict[str, Any]) -> None:
            target = reference()
            if target is not None:
                _dask.send(target, message)

        self.store = store
        self.leases = Leases(store, send)
        self.packer = Packer(
            self.leases.ledger, threshold=threshold, is_native=is_native, carries=carries
        )


class Client(_dask.HookedClient):
    """A `distributed.Client` that passes large data by reference, wherever it enters a graph.

    Arguments of `submit` and `map`, literals in the graphs of all collections, what is scattered.
    Functions get the object itself, their own private copy; results stay in Dask. An object is
    evicted once the scheduler has forgotten every task that mentions it.

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
        **kwargs: As for `distributed.Client`.

    Raises:
        ValueError: `ps_arguments` is neither. Nothing has been started.
        ThresholdError: `ps_threshold` is not a size. Nothing has been started.
        StoreConfigError: `ps_store` cannot be read; see `open_store` for what else can be wrong
            with it. Nothing has been started.
    """

    _ps: _Backing | None
    _ps_arguments: str
    _ps_in_task: bool
    _ps_in_thread: threading.local
    _ps_threshold: int

    def __init__(
        self,
        *args: Any,
        ps_store: StoreSpec | None = None,
        ps_threshold: int | str | None = None,
        ps_arguments: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._ps_prepare(ps_store, ps_threshold, ps_arguments, in_task=_in_task())
        super().__init__(*args, **kwargs)

    def _ps_prepare(
        self,
        store: StoreSpec | None = None,
        threshold: int | str | None = None,
        arguments: str | None = None,
        *,
        in_task: bool,
    ) -> None:
        self._ps_arguments = _checked_arguments(setting("arguments", arguments))
        self._ps_in_task = in_task
        self._ps_in_thread = threading.local()
        self._ps_threshold = parse_size(setting("threshold", threshold), name="ps_threshold")
        spec = setting("store", store)
        # Without a store of the user's it depends on the cluster where ours has to be.
        self._ps = None if spec is None else _Backing(self, open_store(spec), self._ps_threshold)

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
        return StoreStats(
            store=self._ps.store.name,
            connector=repr(self._ps.store.connector),
            lifetimes=None if lifetimes is None else lifetimes.value,
            threshold=self._ps_threshold,
            puts=ledger.stats.puts,
            put_bytes=ledger.stats.put_bytes,
            reused=ledger.stats.reused,
            live=len(ledger.live),
        )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self._ps_text()}>"

    def _repr_html_(self) -> str:
        return f"{super()._repr_html_()}<p>{html.escape(self._ps_text())}</p>"

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
        **kwargs: Any,
    ) -> Future[T]:
        """Submit a call to the scheduler; as `distributed.Client.submit`.

        Args:
            func: As for `distributed.Client.submit`.
            *args: The function's arguments.
            ps_arguments: As for `Client`. None: as the client was told.
            **kwargs: The function's arguments by name, and the options of
                `distributed.Client.submit`.

        Raises:
            ValueError: `ps_arguments` is neither "value" nor "proxy".
            UnpicklableArgumentError: An argument cannot be pickled. Nothing has been stored.
        """
        wrap = self._ps_node(ps_arguments)
        backing = self._ps_usable(func)
        if backing is None:
            return super().submit(func, *args, **kwargs)
        options, keywords = split(kwargs, _dask.SUBMIT_OPTIONS)
        func, carried, named = unfold(func, self._ps_is_large, _dask.SUBMIT_OPTIONS)
        packed = backing.packer.pack((*carried, *args), {**named, **keywords}, wrap=wrap)
        # `args` stays referenced until the graph is sent: a future in it may have no other owner,
        # and would take its task along.
        with self._ps_packed():
            future = super().submit(func, *packed.args, **options, **packed.kwargs)
        if packed.holds:
            backing.leases.keep(future, packed.holds)
        return future

    def map(
        self,
        func: Callable[..., T],
        *iterables: Collection[Any],
        ps_arguments: str | None = None,
        **kwargs: Any,
    ) -> list[Future[T]]:
        """Submit a call for each element; as `distributed.Client.map`.

        Args:
            func: As for `distributed.Client.map`.
            *iterables: The function's arguments, a collection for each.
            ps_arguments: As for `submit`.
            **kwargs: The same arguments for all calls, and the options of
                `distributed.Client.map`.

        Raises:
            ValueError: `ps_arguments` is neither "value" nor "proxy".
            UnpicklableArgumentError: An argument cannot be pickled. Nothing has been stored.
        """
        wrap = self._ps_node(ps_arguments)
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
        packed = pack_map(backing.packer, carried, own, {**named, **keywords}, wrap=wrap)
        length = min(map(len, iterables))
        leading = [[value] * length for value in packed.shared]
        rest = iterables if in_batches else packed.iterables
        with self._ps_packed():
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

    def _ps_graph(self, expr: Any, keys: list[Any]) -> tuple[Any, Callable[[Any], None]]:
        backing = self._ps_backing()
        if backing is None or getattr(self._ps_in_thread, "packed", False):
            return expr, _keep_nothing
        rewritten = rewrite(expr, keys, backing.packer)
        if rewritten is None:
            return expr, _keep_nothing

        def keep(futures: dict[Any, Future[Any]]) -> None:
            for key, holds in rewritten.holds.items():
                if holds:
                    backing.leases.keep(futures[key], holds)

        return rewritten.expr, keep

    @contextlib.contextmanager
    def _ps_packed(self) -> Iterator[None]:
        """While this thread sends a graph in which what is large is replaced already."""
        before = getattr(self._ps_in_thread, "packed", False)
        self._ps_in_thread.packed = True
        try:
            yield
        finally:
            self._ps_in_thread.packed = before

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

    # ------------------------------------------------------------------------- connecting

    async def _ps_connected(self) -> None:
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
        async for store in self._ps_candidates():
            if self._ps is None or self._ps.store is not store:
                self._ps = _Backing(self, store, self._ps_threshold)
            if await self._ps_reaches(store):
                self._ps.leases.start(Lifetimes.GRAPH)
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
            reply = await self._ps_hello()
            if reply.get("store"):
                offered: Ref = pickle.loads(reply["store"])
                yield offered.store
        identity = await self.scheduler.identity(n_workers=0)
        if _is_loopback(identity["address"]):
            # Workers on other hosts could not reach such a scheduler. (If it then cannot see the
            # store, the address is the loopback of another host, through a tunnel.)
            yield open_store(None, shared=False)
        yield open_store(None, shared=True)

    async def _ps_reaches(self, store: Store[Any]) -> bool:
        """Whether the scheduler runs our plugin and can evict from `store`."""
        probe = store_object(store, "proxystore_dask")
        try:
            reply = await self._ps_hello(
                probe=pickle.dumps(probe), offered_by=None if self._ps_in_task else self.id
            )
        finally:
            probe.evict()
        return reply.get("protocol") == PROTOCOL and bool(reply.get("reachable"))

    async def _ps_hello(self, **what: Any) -> dict[str, Any]:
        """What the plugin says of itself; nothing if there is none."""
        try:
            # A scheduler without a handler of this name answers None.
            return await getattr(self.scheduler, HELLO)(**what) or {}
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

    def _ps_closed(self) -> None:
        if self._ps is None:
            return
        unheard = self._ps.leases.close()
        if unheard:
            logger.warning(
                "%d objects may be left in %r: the client closed while its scheduler was out of "
                "reach",
                len(unheard),
                self._ps.store.connector,
            )


def _timeout(given: Any) -> Any:
    return dask.config.get("distributed.comm.timeouts.connect") if given is no_default else given


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

    Raises:
        ValueError: The client is attached already, with other settings; or as for `Client`.
        ThresholdError: As for `Client`. The client has not been changed.
    """
    with _attaching:
        if isinstance(client, Client):
            _check_same(client, ps_store, ps_threshold, ps_arguments)
            return client
        client = _turned(client, ps_store, ps_threshold, ps_arguments, in_task=_in_task())
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
) -> None:
    if store is not None and open_store(store) is not client.ps_store:
        raise ValueError(f"the client is attached to {client.ps_store!r} already, not to {store!r}")
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


def _checked_arguments(value: Any) -> str:
    if value not in ("value", "proxy"):
        raise ValueError(
            "ps_arguments must be 'value' (functions get the object) or 'proxy' (they get a Proxy, "
            f"which gets the object when it is first used), got {value!r}"
        )
    return str(value)
