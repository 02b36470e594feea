"""A Dask client whose large arguments travel by reference."""

from __future__ import annotations

import html
import ipaddress
import logging
import os
import pickle
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from dask.utils import format_bytes
from distributed import Client as DaskClient
from distributed import Future, get_worker
from distributed.comm.addressing import get_address_host, parse_address

from proxystore.store import Store, StoreConfig
from proxystore.workflow import Packer, Ref, open_store, parse_size, store_object
from proxystore_dask import _dask
from proxystore_dask.calls import pack_map, split, unfold
from proxystore_dask.config import setting
from proxystore_dask.graph import carries, is_native, load_node
from proxystore_dask.leases import Leases, Lifetimes
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
    """A `distributed.Client` whose `submit` and `map` pass large arguments by reference.

    The function gets the object itself, its own private copy; results stay in Dask. An object is
    evicted once the scheduler has forgotten every task that mentions it.

    Args:
        *args: As for `distributed.Client`.
        ps_store: A store, its configuration, or the path of a TOML file with one; workers must be
            able to reach it. None: ``proxystore.store`` of Dask's configuration, and without that
            a store of this process's own, in memory if the whole cluster runs on this host.
        ps_threshold: Size from which arguments go by reference: bytes, or text such as
            ``"10 MiB"``. None: ``proxystore.threshold`` of Dask's configuration, "1 MiB".
        **kwargs: As for `distributed.Client`.

    Raises:
        ThresholdError: `ps_threshold` is not a size. Nothing has been started.
        StoreConfigError: `ps_store` cannot be read; see `open_store` for what else can be wrong
            with it. Nothing has been started.
    """

    _ps: _Backing | None
    _ps_in_task: bool
    _ps_threshold: int

    def __init__(
        self,
        *args: Any,
        ps_store: StoreSpec | None = None,
        ps_threshold: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        self._ps_prepare(ps_store, ps_threshold)
        super().__init__(*args, **kwargs)

    def _ps_prepare(self, store: StoreSpec | None, threshold: int | str | None) -> None:
        self._ps_in_task = _in_task()
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

    def submit(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Submit a call to the scheduler; as `distributed.Client.submit`.

        Raises:
            UnpicklableArgumentError: An argument cannot be pickled. Nothing has been stored.
        """
        backing = self._ps_usable(func)
        if backing is None:
            return super().submit(func, *args, **kwargs)
        options, keywords = split(kwargs, _dask.SUBMIT_OPTIONS)
        func, carried, named = unfold(func, self._ps_threshold, _dask.SUBMIT_OPTIONS)
        packed = backing.packer.pack((*carried, *args), {**named, **keywords}, wrap=load_node)
        # `args` stays referenced until the graph is sent: a future in it may have no other owner,
        # and would take its task along.
        future = super().submit(func, *packed.args, **options, **packed.kwargs)
        if packed.holds:
            backing.leases.keep(future, packed.holds)
        return future

    def map(
        self, func: Callable[..., T], *iterables: Collection[Any], **kwargs: Any
    ) -> list[Future[T]]:
        """Submit a call for each element; as `distributed.Client.map`.

        Raises:
            UnpicklableArgumentError: An argument cannot be pickled. Nothing has been stored.
        """
        backing = self._ps_usable(func)
        # Dask itself says what is wrong with iterators, queues, and nothing to map over.
        if backing is None or not iterables or not all(hasattr(it, "__len__") for it in iterables):
            return super().map(func, *iterables, **kwargs)
        options, keywords = split(kwargs, _dask.MAP_OPTIONS)
        func, carried, named = unfold(func, self._ps_threshold, _dask.MAP_OPTIONS)
        batch_size = options.get("batch_size")
        in_batches = batch_size and batch_size > 1 and sum(map(len, iterables)) > batch_size
        # Dask calls this method again for each batch: then only what they share is packed here.
        own = () if in_batches else iterables
        packed = pack_map(backing.packer, carried, own, {**named, **keywords})
        length = min(map(len, iterables))
        leading = [[value] * length for value in packed.shared]
        rest = iterables if in_batches else packed.iterables
        futures = super().map(func, *leading, *rest, **options, **packed.keywords)
        for i, future in enumerate(futures):
            holds = (*packed.shared_holds, *packed.holds.get(i, ()))
            if holds:
                backing.leases.keep(future, holds)
        return futures

    def _ps_usable(self, func: object) -> _Backing | None:
        """What to store arguments with; None: send them as plain Dask does."""
        backing = self._ps
        if backing is None or backing.leases.lifetimes is None or self.status != "running":
            return None
        return backing if callable(func) else None  # Dask says what is wrong with it

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
) -> Client:
    """Make a client that exists already pass large arguments by reference.

    For clients that others make: `cluster.get_client()`, `distributed.get_client()` in a task,
    clients of deployment tools. The client itself changes and is returned; its own class stays a
    base of its new one. With an asynchronous client: ``await attach(client)``.

    Args:
        client: Any `distributed.Client`. One that has been attached already, with the same store
            and threshold, is returned as it is.
        ps_store: As for `Client`.
        ps_threshold: As for `Client`.

    Raises:
        ValueError: The client is attached already, with another store or threshold.
        ThresholdError: As for `Client`. The client has not been changed.
    """
    with _attaching:
        if isinstance(client, Client):
            _check_same(client, ps_store, ps_threshold)
            return client
        Client._ps_prepare(client, ps_store, ps_threshold)  # type: ignore[arg-type]  # soon one
        _dask.take_over(client, _class_for(type(client)))
    assert isinstance(client, Client)
    if client.asynchronous:
        _dask.start_with(client, client._ps_connected)
    else:
        client.sync(client._ps_connected)
    return client


def _class_for(base: type[DaskClient]) -> type[Client]:
    if base not in _classes:
        _classes[base] = type(base.__name__, (Client, base), {"__module__": base.__module__})
    return _classes[base]


def _check_same(client: Client, store: StoreSpec | None, threshold: int | str | None) -> None:
    if store is not None and open_store(store) is not client.ps_store:
        raise ValueError(f"the client is attached to {client.ps_store!r} already, not to {store!r}")
    if threshold is not None and parse_size(threshold, name="ps_threshold") != client._ps_threshold:
        raise ValueError(
            f"the client is attached with a threshold of {client._ps_threshold} bytes already, "
            f"not {threshold!r}"
        )
