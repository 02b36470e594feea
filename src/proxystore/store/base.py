"""The store: objects by key, and proxies of them."""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar, cast, overload

from typing_extensions import Self

from proxystore.connectors._base import abandon, writes_buffers
from proxystore.proxy import Proxy, ProxyLocker, _proxy_trampoline
from proxystore.serialize import (
    BytesLike,
    CorruptDataError,
    SerializationError,
    deserialize,
    serialize,
)
from proxystore.store import _threads, _wire
from proxystore.store._codec import Codec, Encoded, joined, name_of, parts_of, size_of
from proxystore.store._failures import failure_in
from proxystore.store._inflight import INTERRUPTED, Flight, Flights
from proxystore.store._observe import Observer, Silent
from proxystore.store._registry import register_store, remember, unregister_this
from proxystore.store.cache import LRUCache
from proxystore.store.config import ConnectorConfig, StoreConfig, size_from
from proxystore.store.consume import RetainingStoreFactory, check_retain
from proxystore.store.exceptions import NonProxiableTypeError, ProxyResolveMissingKeyError
from proxystore.store.factory import PollingStoreFactory, StoreFactory, check_polling
from proxystore.store.future import Future
from proxystore.store.info import ObjectInfo, info_of
from proxystore.store.lifetimes import Lifetime, no_key
from proxystore.store.metrics import StoreMetrics
from proxystore.store.ref import OwnedProxy, into_owned
from proxystore.store.types import ConnectorKeyT, ConnectorT, DeserializerT, SerializerT
from proxystore.utils.imports import get_object_path

logger = logging.getLogger(__name__)

T = TypeVar("T")
NonProxiableT: TypeAlias = bool | None
NonProxiable = TypeVar("NonProxiable", bool, None)


# Neither has subclasses, and `isinstance` would resolve an unresolved proxy.
_NON_PROXIABLE = frozenset({bool, type(None)})

# Tells "no such key" from a stored None.
_MISSING: Final[Any] = object()


class _Cached(NamedTuple):
    """An object, and who decoded it: another decoder's object is another object."""

    obj: Any
    deserializer: DeserializerT | None
    nbytes: int


class Store(Generic[ConnectorT]):
    """Keeps objects behind a connector and hands out proxies of them.

    Thread-safe: many threads may use one store. Nothing is locked during I/O and
    (de)serialization, and threads that ask for the same key at the same time share
    one fetch. Connectors that do not call themselves ``thread_safe`` are used by one
    thread at a time.

    A store is not picklable; send `config()`, or a proxy.

    Args:
        name: Name by which the processes of a program know the store.
        connector: Where the bytes live.
        serializer: Turns an object into bytes. None: `proxystore.serialize`.
        deserializer: Turns bytes into an object. None: `proxystore.serialize`.
        cache_size: How many objects `get` remembers; 0: none.
        cache_bytes: How many bytes they may take together, as they are stored; a number, or
            text such as "1 GB". An object that takes more by itself is not remembered.
            None: any number.
        metrics: Keep counts and times of operations in `metrics`.
        populate_target: Default of `proxy`'s parameter of that name.
        register: Register the store under its name until it is closed.
        verify: Compute and compare checksums of objects' content. None: except in files
            that are mapped into memory, of which it would read every byte. Lengths, and
            the checksum of whatever is unpickled, are compared always.

    Raises:
        ValueError: `cache_size` or `cache_bytes` is negative, or `cache_bytes` no size.
        TypeError: An argument is of a type that it cannot be.
        StoreExistsError: `register` is set and the name is taken.

    Attributes:
        connector: The connector; may be replaced.
        cache: The objects that `get` remembers, in this process.
    """

    def __init__(
        self,
        name: str,
        connector: ConnectorT,
        *,
        serializer: SerializerT | None = None,
        deserializer: DeserializerT | None = None,
        cache_size: int = 16,
        metrics: bool = False,
        populate_target: bool = True,
        register: bool = False,
        verify: bool | None = None,
        cache_bytes: int | str | None = None,
    ) -> None:
        _check_arguments(name, connector, cache_size, verify)
        cache_bytes = size_from(cache_bytes, "cache_bytes")
        self._name = name
        self.connector: ConnectorT = connector
        self.cache: LRUCache[ConnectorKeyT, _Cached] = LRUCache(cache_size, maxbytes=cache_bytes)
        self.populate_target = populate_target
        self.auto_register = register
        self._metrics = StoreMetrics() if metrics else None
        self._codec = Codec(serializer, deserializer, verify)
        self._observe = Observer(name, self._metrics, logger)
        self._flights = Flights()
        # For connectors that are not thread-safe. Re-entrant: a destructor that runs
        # in the middle of an operation may evict.
        self._connector_lock = threading.RLock()
        self._shared_config: tuple[Any, StoreConfig] | None = None
        _living.add(self)
        if register:
            register_store(self)
        logger.info("initialized %r", self)

    def _after_fork(self) -> None:
        # Threads of the parent may hold the locks, and fetch what nobody here will get.
        self._connector_lock = threading.RLock()
        self._flights = Flights()
        self.cache.after_fork()
        if self._metrics is not None:
            self._metrics.after_fork()

    # -- what it is

    @property
    def name(self) -> str:
        """Name by which the processes of a program know the store."""
        return self._name

    @property
    def metrics(self) -> StoreMetrics | None:
        """Counts and times of operations; None if they are not kept."""
        return self._metrics

    @property
    def serializer(self) -> SerializerT:
        """What turns objects into bytes."""
        return self._codec.serializer or serialize

    @property
    def deserializer(self) -> DeserializerT:
        """What turns bytes into objects."""
        return self._codec.deserializer or deserialize

    def __repr__(self) -> str:
        return (
            f"Store(name={self.name}, connector={self.connector!r}, "
            f"serializer={'custom' if self._codec.serializer else 'default'}, "
            f"deserializer={'custom' if self._codec.deserializer else 'default'}, "
            f"cache_size={self.cache.maxsize}, metrics={self._metrics is not None}, "
            f"populate_target={self.populate_target}, auto_register={self.auto_register})"
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a Store cannot be pickled; send {self.name!r}.config() and call "
            f"get_or_create_store(config) where it arrives"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception:
            if exc_value is None:
                raise
            # What the block has raised came first.
            logger.warning("closing %r failed", self, exc_info=True)

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Unregister the store if it registered itself, and close its connector.

        Whether objects are deleted is up to the connector; arguments are passed on to
        its `close` (``store.close(clear=False)``).
        """
        if self.auto_register:
            unregister_this(self)
        self.connector.close(*args, **kwargs)

    # -- configuration

    def config(self) -> StoreConfig:
        """Return what makes an equivalent store in another process."""
        return StoreConfig(
            name=self.name,
            connector=ConnectorConfig(
                kind=get_object_path(type(self.connector)), options=self.connector.config()
            ),
            serializer=self._codec.serializer,
            deserializer=self._codec.deserializer,
            cache_size=self.cache.maxsize,
            metrics=self._metrics is not None,
            populate_target=self.populate_target,
            auto_register=self.auto_register,
            verify=self._codec.verify,
            cache_bytes=self.cache.maxbytes,
        )

    def _config(self) -> StoreConfig:
        """Return the configuration that all factories of this store share.

        Made once, since every proxy needs one; and again when the connector has been
        replaced.
        """
        shared = self._shared_config
        if shared is None or shared[0] is not self.connector:
            self._shared_config = shared = (self.connector, _wire.share(self.config()))
            remember(shared[1], self, is_maker=True)
        return shared[1]

    def is_at(self, connector: ConnectorConfig) -> bool:
        """Say whether a connector's configuration is, to the letter, that of this store."""
        mine = self._config().connector
        return mine is connector or mine == connector

    @classmethod
    def from_config(cls, config: StoreConfig, *, connector: Any = None) -> Self:
        """Return a new store.

        Args:
            config: What to make.
            connector: An open connector for it. None: a new one.

        Raises:
            UnknownConnectorError: `config.connector.kind` cannot be imported here.
            ConnectorOptionsError: The connector does not take its options.
            StoreExistsError: `config.auto_register` is set and the name is taken.
        """
        made: Any = config.connector.get_connector() if connector is None else None
        try:
            return cls(
                name=config.name,
                connector=made if connector is None else connector,
                serializer=config.serializer,
                deserializer=config.deserializer,
                cache_size=config.cache_size,
                metrics=config.metrics,
                populate_target=config.populate_target,
                register=config.auto_register,
                verify=config.verify,
                cache_bytes=config.cache_bytes,
            )
        except BaseException:
            if made is not None:  # nobody else has it
                with suppress(Exception):
                    abandon(made)
            raise

    # -- writing

    def put(
        self,
        obj: Any,
        *,
        lifetime: Lifetime | None = None,
        serializer: SerializerT | None = None,
        **kwargs: Any,
    ) -> ConnectorKeyT:
        """Store an object and return its key.

        Args:
            obj: Any object that can be serialized; None is one.
            lifetime: Evicts the object when it ends. None: nothing does.
            serializer: In place of the store's.
            kwargs: For the connector's `put`.

        Raises:
            SerializationError: The object cannot be pickled; nothing is stored.
            TypeError: The serializer did not return bytes; nothing is stored.
            TypeError: `lifetime` is no `Lifetime`; nothing is stored.
            RuntimeError: The lifetime has ended; nothing is stored.
        """
        _require_open(lifetime)
        with self._observe("store.put") as op:
            with op.step("serialize"):
                data = self._codec.dump(obj, serializer, self.connector)
            with op.step("connector"):
                key = self._write(data, **kwargs)
            op.on(key, object_size=size_of(data))
        self._attach(lifetime, [key])
        return key

    def put_batch(
        self,
        objs: Sequence[Any],
        *,
        lifetime: Lifetime | None = None,
        serializer: SerializerT | None = None,
        **kwargs: Any,
    ) -> list[ConnectorKeyT]:
        """Store several objects in one operation of the connector; keys keep the order.

        All are serialized before any is stored. Arguments and errors are those of `put`.
        """
        _require_open(lifetime)
        with self._observe("store.put_batch") as op:
            with op.step("serialize"):
                encoded = [self._codec.dump(obj, serializer, self.connector) for obj in objs]
            with op.step("connector"):
                keys = self._write_batch(encoded, **kwargs)
            op.on(keys, object_sizes=sum(map(size_of, encoded)))
        self._attach(lifetime, keys)
        return keys

    async def put_async(
        self,
        obj: Any,
        *,
        lifetime: Lifetime | None = None,
        serializer: SerializerT | None = None,
        **kwargs: Any,
    ) -> ConnectorKeyT:
        """Do what `put` does, in another thread: the event loop goes on meanwhile.

        The object must not change until this returns. If this is cancelled, what has been
        stored, or is stored a moment later, is evicted in the background.
        """
        work = functools.partial(self.put, obj, lifetime=lifetime, serializer=serializer, **kwargs)
        storing = _threads.start(work)
        try:
            return await _threads.wait_for(storing)
        except BaseException:
            _threads.afterwards(storing, self._take_back)
            raise

    def _take_back(self, key: ConnectorKeyT) -> None:
        try:
            self.evict(key)
        except Exception:
            logger.exception("%r could not evict %r", self, key)

    def dump(self, obj: Any, *, serializer: SerializerT | None = None) -> Encoded:
        """Return an object as `put` would store it, for who has to know its size first.

        Returns:
            `proxystore.serialize.frames.Buffers`, which alias the memory of `obj`, from
            the package's own serializer; bytes from any other.

        Raises:
            SerializationError: The object cannot be pickled.
            TypeError: The serializer did not return bytes.
        """
        return self._codec.dump(obj, serializer, self.connector)

    def put_dumped(self, data: Encoded, *, name: str | None = None) -> ConnectorKeyT:
        """Store what `dump` returned and return its key.

        Args:
            data: What `dump` returned; the object must not have changed since.
            name: A name of the form ``UUID4`` or ``UUID4.suffix``, by which the object
                can be listed. None: a new key.

        Raises:
            NotImplementedError: A name is given and the connector has no names.
        """
        with self._observe("store.put") as op:
            with op.step("connector"):
                key = self._write(data) if name is None else self._write_named(data, name)
            op.on(key, object_size=size_of(data))
        return key

    def _copy(self, key: ConnectorKeyT) -> ConnectorKeyT:
        """Store the data of an object once more, as they are, and return the new key.

        Raises:
            ProxyResolveMissingKeyError: There is no such object.
        """
        with self._observe("store.copy") as op:
            op.on(key)
            with op.step("connector"):
                with self._exclusive() as connector:
                    data: BytesLike | None = connector.get(key)
                if data is None:
                    raise ProxyResolveMissingKeyError(key, type(self), self.name)
                copied = self._write(data)
            op.on(copied, object_size=size_of(data))
        return copied

    def _set(
        self,
        key: ConnectorKeyT,
        obj: Any,
        *,
        serializer: SerializerT | None = None,
        **kwargs: Any,
    ) -> None:
        """Put an object behind a key that exists already, replacing what was there.

        Raises:
            NotImplementedError: The connector is not a `DeferrableConnector`.
            TypeError: The serializer did not return bytes; nothing is stored.
        """
        with self._observe("store.set") as op:
            op.on(key)
            with op.step("serialize"):
                data = self._codec.dump(obj, serializer, self.connector)
            with op.step("connector"):
                self._overwrite(key, data, **kwargs)
            op.on(key, object_size=size_of(data))

    def _write(self, data: Encoded, **kwargs: Any) -> ConnectorKeyT:
        with self._exclusive() as connector:
            if writes_buffers(connector):
                return cast(ConnectorKeyT, connector.put_buffers(parts_of(data), **kwargs))
            return cast(ConnectorKeyT, connector.put(joined(data), **kwargs))

    def _write_batch(self, encoded: Sequence[Encoded], **kwargs: Any) -> list[ConnectorKeyT]:
        with self._exclusive() as connector:
            if writes_buffers(connector):
                if _can(connector, "put_buffers_batch"):
                    return list(connector.put_buffers_batch([*map(parts_of, encoded)], **kwargs))
                # Such a connector has nothing to gain from a batch but the joining.
                written: list[ConnectorKeyT] = []
                try:
                    for data in encoded:
                        key = connector.put_buffers(parts_of(data), **kwargs)
                        written.append(key)
                except BaseException:
                    for key in written:  # all or none
                        with suppress(Exception):  # the first error is the one to know about
                            connector.evict(key)
                    raise
                return written
            return list(connector.put_batch([joined(data) for data in encoded], **kwargs))

    def _write_named(self, data: Encoded, name: str) -> ConnectorKeyT:
        named_key = getattr(self.connector, "named_key", None)
        if named_key is None:
            raise NotImplementedError(
                f"{self.connector!r} cannot store an object under a name: it is not an "
                f"EnumerableConnector"
            )
        key = cast(ConnectorKeyT, named_key(name))
        self._overwrite(key, data)
        return key

    def _overwrite(self, key: ConnectorKeyT, data: Encoded, **kwargs: Any) -> None:
        with self._exclusive() as connector:
            if writes_buffers(connector, "set"):
                connector.set_buffers(key, parts_of(data), **kwargs)
            elif _can(connector, "set"):
                connector.set(key, joined(data), **kwargs)
            else:
                raise NotImplementedError(
                    f"{connector!r} cannot put an object behind a given key: it is not a "
                    f"DeferrableConnector"
                )
        self._forget(key)

    def _attach(
        self, lifetime: Lifetime | None, keys: Sequence[ConnectorKeyT], *proxies: Proxy[Any]
    ) -> None:
        if lifetime is None:
            return
        try:
            if proxies:
                lifetime.add_proxy(*proxies)
            else:
                lifetime.add_key(*keys, store=self)
        except BaseException:  # it ended meanwhile
            self._give_up(keys)
            raise

    def _give_up(self, keys: Sequence[ConnectorKeyT]) -> None:
        """Evict what was stored and will not be handed out: nobody else would ever do it."""
        for key in keys:
            with suppress(Exception):  # the first error is the one to know about
                self.evict(key)

    # -- reading

    def get(
        self,
        key: ConnectorKeyT,
        *,
        deserializer: DeserializerT | None = None,
        default: object | None = None,
        cache: bool = True,
    ) -> Any | None:
        """Return the object under a key.

        Args:
            key: The connector's key.
            deserializer: In place of the store's.
            default: Returned if there is no such key. (A stored None is returned as
                None: use a default of your own to tell.)
            cache: Return the object that an earlier `get` has left in the cache, and
                leave it there. False: an object of the caller's own, which it may
                change without anybody else seeing that.

        Raises:
            SerializationError: The data cannot be deserialized, or are not what was
                written; the message names the key, ``__cause__`` says what is wrong.
            TypeError: `key` is no key but a proxy, for one: see `get_key`. All methods that
                take keys raise it.
        """
        if not issubclass(type(key), tuple):
            raise no_key(key, "get")
        with self._observe("store.get") as op:
            op.on(key)
            if not cache:
                obj, _ = self._fetch(key, deserializer, op)
                return default if obj is _MISSING else obj
            found = self.cache.get(key)
            if found is not None and found.deserializer is deserializer:
                op.count("cache_hits")
                op.detail("cached=True")
                return found.obj
            op.count("cache_misses")
            op.detail("cached=False")
            return self._fetch_once(key, deserializer, default, op)

    async def get_async(
        self,
        key: ConnectorKeyT,
        *,
        deserializer: DeserializerT | None = None,
        default: object | None = None,
        cache: bool = True,
    ) -> Any | None:
        """Do what `get` does, in another thread: the event loop goes on meanwhile."""
        work = functools.partial(
            self.get, key, deserializer=deserializer, default=default, cache=cache
        )
        return await _threads.wait_for(_threads.start(work))

    def _fetch_once(
        self, key: ConnectorKeyT, deserializer: DeserializerT | None, default: Any, op: Silent
    ) -> Any:
        """Fetch, cache and return; or wait for the thread that is doing so."""
        asked_again = False
        while True:
            flight, fetch_here = self._flights.join(key, id(deserializer))
            if fetch_here:
                break
            obj = flight.wait()
            if obj is _MISSING and not asked_again:
                # That fetch may have begun before the object came, and this call after it.
                asked_again = True
            elif obj is not INTERRUPTED:
                return default if obj is _MISSING else obj
        try:
            late = self._landed_late(flight, deserializer)
            obj, nbytes = late or self._fetch(key, deserializer, op)
        except BaseException as error:
            self._land(flight, deserializer, error=error)
            raise
        self._land(flight, deserializer, obj, nbytes)
        return default if obj is _MISSING else obj

    def _landed_late(
        self, flight: Flight, deserializer: DeserializerT | None
    ) -> tuple[Any, int] | None:
        """Return what `_fetch` would if another fetch has landed just before this one began."""
        found = self.cache.peek(flight.key)
        if found is None or found.deserializer is not deserializer:
            return None
        return found.obj, found.nbytes

    def _fetch(
        self, key: ConnectorKeyT, deserializer: DeserializerT | None, op: Silent
    ) -> tuple[Any, int]:
        """Return the object, or `_MISSING`, and the length of its data in bytes."""
        with op.step("connector"), self._exclusive() as connector:
            data: BytesLike | None = connector.get(key)
        if data is None:
            return _MISSING, 0
        nbytes = memoryview(data).nbytes
        op.on(key, object_size=nbytes)
        with op.step("deserialize"):
            return self._codec.load(data, deserializer, key), nbytes

    def _land(
        self,
        flight: Flight,
        deserializer: DeserializerT | None,
        obj: Any = _MISSING,
        nbytes: int = 0,
        error: BaseException | None = None,
    ) -> None:
        """Cache what a fetch has brought, and give it to who waits."""
        with self._flights.lock:
            if obj is not _MISSING and not flight.stale:
                self.cache.set(flight.key, _Cached(obj, deserializer, nbytes), nbytes)
            self._flights.remove(flight)
        flight.land(obj, error)

    def get_batch(
        self,
        keys: Sequence[ConnectorKeyT],
        *,
        deserializer: DeserializerT | None = None,
        default: object | None = None,
    ) -> list[Any]:
        """Return the object of each key, in order.

        What is not cached comes in one operation of the connector, each key once; keys
        that another thread is fetching are not fetched again.

        Args:
            keys: The connector's keys; one may occur several times.
            deserializer: In place of the store's.
            default: Stands where there is no such key.

        Raises:
            SerializationError: As for `get`; the other objects of the batch may be cached.
        """
        keys = _keys_in(keys)
        with self._observe("store.get_batch") as op:
            op.on(keys)
            objs: dict[ConnectorKeyT, Any] = {}
            missed = []
            for key in dict.fromkeys(keys):
                found = self.cache.get(key)
                if found is not None and found.deserializer is deserializer:
                    objs[key] = found.obj
                else:
                    missed.append(key)
            op.count("cache_hits", len(objs))
            op.count("cache_misses", len(missed))
            op.detail(f"{len(objs)} cached")
            while missed:
                flights, others = self._flights.join_batch(missed, id(deserializer))
                if flights:
                    brought = self._fetch_batch(flights, deserializer, op)
                    op.on(keys, object_sizes=sum(nbytes for _, nbytes in brought.values()))
                    objs.update((key, obj) for key, (obj, _) in brought.items())
                objs.update((flight.key, flight.wait()) for flight in others)
                missed = [flight.key for flight in others if objs[flight.key] is INTERRUPTED]
            return [default if objs[key] is _MISSING else objs[key] for key in keys]

    def _fetch_batch(
        self, flights: Sequence[Flight], deserializer: DeserializerT | None, op: Silent
    ) -> dict[ConnectorKeyT, tuple[Any, int]]:
        """Return by key what `_fetch` does, and land each flight, whatever becomes of others."""
        brought: dict[Any, tuple[Any, int]] = {}
        found: dict[Any, BytesLike | None] = {}
        failure: Exception | None = None
        under_way = deque(flights)
        try:
            for flight in flights:
                late = self._landed_late(flight, deserializer)
                if late is not None:
                    brought[flight.key] = late
            asked = [flight.key for flight in flights if flight.key not in brought]
            if asked:
                with op.step("connector"), self._exclusive() as connector:
                    answer = connector.get_batch(asked)
                if len(answer) != len(asked):
                    raise ValueError(
                        f"{self.connector!r} gave {len(answer)} items for {len(asked)} keys"
                    )
                found.update(zip(asked, answer, strict=True))
            anything = any(data is not None for data in found.values())
            with op.step("deserialize") if anything else nullcontext():
                while under_way:
                    flight = under_way[0]
                    obj, nbytes = brought.get(flight.key, (_MISSING, 0))
                    error = None
                    data = found.get(flight.key)
                    if data is not None:
                        nbytes = memoryview(data).nbytes
                        try:
                            obj = self._codec.load(data, deserializer, flight.key)
                        except Exception as e:  # noqa: BLE001 - raised when all have landed
                            failure, error = failure or e, e
                    under_way.popleft()
                    self._land(flight, deserializer, obj, nbytes, error)
                    brought[flight.key] = obj, nbytes
        except BaseException as error:
            for flight in under_way:
                self._land(flight, deserializer, error=error)
            raise
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame
        return brought

    def exists(self, key: ConnectorKeyT) -> bool:
        """Say whether there is an object under a key: in the cache, or at the connector."""
        if not issubclass(type(key), tuple):
            raise no_key(key, "exists")
        with self._observe("store.exists") as op:
            op.on(key)
            if self.cache.exists(key):
                return True
            with op.step("connector"), self._exclusive() as connector:
                return bool(connector.exists(key))

    def info(self, key: ConnectorKeyT) -> ObjectInfo | None:
        """Return the class, size, age and maker of an object, or None if there is none.

        Nothing is unpickled. A connector that can read the beginning of an object
        (`PeekableConnector`) or maps it reads no more than that; others get it all.

        Raises:
            SerializationError: What is said at the beginning of the data contradicts itself
                or their length.
        """
        if not issubclass(type(key), tuple):
            raise no_key(key, "info")
        with self._observe("store.info") as op:
            op.on(key)
            with op.step("connector"), self._exclusive() as connector:
                try:
                    return info_of(connector, key, peeks=_can(connector, "peek"))
                except CorruptDataError as error:
                    raise SerializationError(
                        f"Failed to read the header of the object with key {key!r}: {error}"
                    ) from error

    def is_cached(self, key: ConnectorKeyT) -> bool:
        """Say whether `get` remembers an object in this process."""
        return self.cache.exists(key)

    def evict(self, key: ConnectorKeyT) -> None:
        """Remove an object; that it is not there is no error.

        Caches of other processes keep it until they drop it.
        """
        if not issubclass(type(key), tuple):
            raise no_key(key, "evict")
        connector: Any = self.connector
        if _can(connector, "thread_safe") and not self._observe.listens():
            # A third of the time: owners are dropped by the thousand.
            connector.evict(key)
            self._forget(key)
            return
        with self._observe("store.evict") as op:
            op.on(key)
            with op.step("connector"), self._exclusive() as connector:
                connector.evict(key)
            self._forget(key)

    def _wait(self, key: ConnectorKeyT, seconds: float) -> bool:
        """Wait for an object: True once it is there, False after `seconds`.

        False at once if the connector cannot wait, or not while other threads use it.
        """
        connector: Any = self.connector
        if not (_can(connector, "wait") and _can(connector, "thread_safe")):
            return False
        return bool(connector.wait(key, seconds))

    def _remembers(self, key: ConnectorKeyT, deserializer: DeserializerT | None) -> bool:
        """Say whether `get` would return what it has returned before."""
        found = self.cache.peek(key)
        return found is not None and found.deserializer is deserializer

    def _failure(self, key: ConnectorKeyT) -> Exception | None:
        """Return the exception that is stored in place of an object; None if none is."""
        with self._exclusive() as connector:
            data: BytesLike | None = connector.get(key)
        return None if data is None else failure_in(data)

    def _forget(self, key: ConnectorKeyT) -> None:
        # In this order: what a fetch has brought is in the cache before it leaves the table.
        if not self._flights.is_under_way(key) and not self.cache.exists(key):
            return
        with self._flights.lock:
            self._flights.outdate(key)
            self.cache.evict(key)

    def _exclusive(self) -> AbstractContextManager[Any]:
        """Return the connector as a context, alone if it must not be shared by threads."""
        connector: Any = self.connector
        if _can(connector, "thread_safe"):
            return nullcontext(connector)
        return _Locked(self._connector_lock, connector)

    # -- proxies

    @overload
    def proxy(
        self,
        obj: NonProxiable,
        *,
        evict: bool = ...,
        lifetime: Lifetime | None = ...,
        retain: float | None = ...,
        serializer: SerializerT | None = ...,
        deserializer: DeserializerT | None = ...,
        populate_target: bool | None = ...,
        skip_nonproxiable: Literal[True],
        **kwargs: Any,
    ) -> NonProxiable: ...

    @overload
    def proxy(
        self,
        obj: T,
        *,
        evict: bool = ...,
        lifetime: Lifetime | None = ...,
        retain: float | None = ...,
        serializer: SerializerT | None = ...,
        deserializer: DeserializerT | None = ...,
        populate_target: bool | None = ...,
        skip_nonproxiable: bool = ...,
        **kwargs: Any,
    ) -> Proxy[T]: ...

    def proxy(
        self,
        obj: Any,
        *,
        evict: bool = False,
        lifetime: Lifetime | None = None,
        retain: float | None = None,
        serializer: SerializerT | None = None,
        deserializer: DeserializerT | None = None,
        populate_target: bool | None = None,
        skip_nonproxiable: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Store an object and return a proxy of it.

        Args:
            obj: As for `put`, but not None, True or False.
            evict: Evict the object when a process gets it from the store. Not safe where a
                task may fail and be run again: then use `retain`.
            lifetime: As for `put`.
            retain: Let one consumer at a time have the object, in seconds; more than 0. Who
                resolves the proxy takes it, and has it to itself for so long, unless it says
                earlier what has become of it: see `proxystore.store.consume`. The proxy never
                has `obj` itself, which would be used without being taken. None: anybody gets
                it at any time.
            serializer: As for `put`.
            deserializer: As for `get`, where the proxy is resolved.
            populate_target: Let the proxy have `obj` itself, in this process. It then
                also knows the class and hash of its target where it is sent to. None:
                the store's default.
            skip_nonproxiable: Return None, True and False as they are.
            kwargs: For the connector's `put`.

        Raises:
            ValueError: More than one of `evict`, `lifetime` and `retain` is given, or `retain`
                is out of range; nothing is stored.
            TypeError: `retain` is no number; nothing is stored.
            NotImplementedError: `retain` is given, and the connector is not a
                `ClaimableConnector`; nothing is stored.
            NonProxiableTypeError: `obj` is None, True or False.
            SerializationError: As for `put`.
        """
        _require_one_end(evict, lifetime, retain)
        retain = self._checked_retain(retain)
        if type(obj) in _NON_PROXIABLE:
            if skip_nonproxiable:
                return obj
            raise _non_proxiable(obj)
        _require_no_part_of_a_proxy(obj)
        _require_open(lifetime)
        with self._observe("store.proxy") as op:
            key = self.put(obj, serializer=serializer, **kwargs)
            op.on(key)
            try:
                proxy = self._proxy(key, obj, evict, retain, deserializer, populate_target)
            except BaseException:  # the object's own code has run, to hash it
                self._give_up([key])
                raise
            self._attach(lifetime, [key], proxy)
            return proxy

    def proxy_batch(
        self,
        objs: Sequence[Any],
        *,
        evict: bool = False,
        lifetime: Lifetime | None = None,
        retain: float | None = None,
        serializer: SerializerT | None = None,
        deserializer: DeserializerT | None = None,
        populate_target: bool | None = None,
        skip_nonproxiable: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Store several objects in one operation and return their proxies, in order.

        Arguments and errors are those of `proxy`; if one object is refused, none is
        stored.
        """
        _require_one_end(evict, lifetime, retain)
        retain = self._checked_retain(retain)
        results = list(objs)
        places = [i for i, obj in enumerate(results) if type(obj) not in _NON_PROXIABLE]
        if len(places) < len(results) and not skip_nonproxiable:
            raise _non_proxiable(next(obj for obj in results if type(obj) in _NON_PROXIABLE))
        if not places:
            return results
        _require_open(lifetime)
        with self._observe("store.proxy_batch") as op:
            keys = self.put_batch([results[i] for i in places], serializer=serializer, **kwargs)
            op.on(keys)
            try:
                for i, key in zip(places, keys, strict=True):
                    results[i] = self._proxy(
                        key, results[i], evict, retain, deserializer, populate_target
                    )
            except BaseException:  # as in proxy()
                self._give_up(keys)
                raise
            self._attach(lifetime, keys, *(results[i] for i in places))
        return results

    def proxy_from_key(
        self,
        key: ConnectorKeyT,
        *,
        evict: bool = False,
        lifetime: Lifetime | None = None,
        retain: float | None = None,
        deserializer: DeserializerT | None = None,
    ) -> Proxy[Any]:
        """Return an unresolved proxy of an object that is stored, or will be.

        Nothing is looked up: with a key that is not there the proxy fails when used.
        Arguments are those of `proxy`.

        Raises:
            ValueError: As for `proxy`, as are `TypeError` and `NotImplementedError`.
        """
        _require_one_end(evict, lifetime, retain)
        retain = self._checked_retain(retain)
        _require_open(lifetime)
        if not issubclass(type(key), tuple):
            raise no_key(key, "proxy_from_key")
        logger.debug("Store(name=%r): PROXY_FROM_KEY %r", self.name, key)
        proxy = self._proxy(key, None, evict, retain, deserializer, False)
        if lifetime is not None:
            lifetime.add_proxy(proxy)
        return proxy

    @overload
    def locked_proxy(
        self,
        obj: NonProxiable,
        *,
        evict: bool = ...,
        lifetime: Lifetime | None = ...,
        retain: float | None = ...,
        serializer: SerializerT | None = ...,
        deserializer: DeserializerT | None = ...,
        populate_target: bool | None = ...,
        skip_nonproxiable: Literal[True] = ...,
        **kwargs: Any,
    ) -> NonProxiable: ...

    @overload
    def locked_proxy(
        self,
        obj: T,
        *,
        evict: bool = ...,
        lifetime: Lifetime | None = ...,
        retain: float | None = ...,
        serializer: SerializerT | None = ...,
        deserializer: DeserializerT | None = ...,
        populate_target: bool | None = ...,
        skip_nonproxiable: bool = ...,
        **kwargs: Any,
    ) -> ProxyLocker[T]: ...

    def locked_proxy(
        self,
        obj: Any,
        *,
        evict: bool = False,
        lifetime: Lifetime | None = None,
        retain: float | None = None,
        serializer: SerializerT | None = None,
        deserializer: DeserializerT | None = None,
        populate_target: bool | None = None,
        skip_nonproxiable: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Store an object and return a proxy of it that cannot be used before `unlock()`.

        Arguments and errors are those of `proxy`, but None, True and False are returned
        as they are unless `skip_nonproxiable` is False.
        """
        proxy = self.proxy(
            obj,
            evict=evict,
            lifetime=lifetime,
            retain=retain,
            serializer=serializer,
            deserializer=deserializer,
            populate_target=populate_target,
            skip_nonproxiable=skip_nonproxiable,
            **kwargs,
        )
        return ProxyLocker(proxy) if issubclass(type(proxy), Proxy) else proxy

    def future(
        self,
        *,
        evict: bool = False,
        serializer: SerializerT | None = None,
        deserializer: DeserializerT | None = None,
        polling_interval: float = 1,
        polling_backoff_factor: float = 1,
        polling_interval_limit: float | None = None,
        polling_timeout: float | None = None,
    ) -> Future[Any]:
        """Return a future of an object that somebody will produce: a key, and nothing there.

        Args:
            evict: Evict the result when a consumer gets it. What the producer sets in its
                place, an exception, stays for all to see.
            serializer: As for `put`, where the result is set.
            deserializer: As for `get`, where the result is got.
            polling_interval: Longest time before a consumer looks again, in seconds; more
                than 0. Where the connector can tell when an object comes, it is got at once.
            polling_backoff_factor: Growth from one interval to the next; at least 1.
            polling_interval_limit: Longest interval, in seconds; more than 0. None: no cap.
            polling_timeout: How long a consumer waits altogether, in seconds; 0: it looks
                once. None: for ever.

        Raises:
            NotImplementedError: The connector is not a `DeferrableConnector`.
            ValueError: An argument is out of range.
        """
        check_polling(
            polling_interval, polling_backoff_factor, polling_interval_limit, polling_timeout
        )
        with self._observe("store.future") as op:
            with op.step("connector"), self._exclusive() as connector:
                if not (_can(connector, "new_key") and _can(connector, "set")):
                    raise NotImplementedError(
                        f"{connector!r} cannot name an object before it exists: it is not a "
                        f"DeferrableConnector"
                    )
                key: ConnectorKeyT = connector.new_key()
            op.on(key)
        factory: PollingStoreFactory[Any] = PollingStoreFactory(
            key,
            self._config(),
            deserializer=deserializer,
            evict=evict,
            polling_interval=polling_interval,
            polling_backoff_factor=polling_backoff_factor,
            polling_interval_limit=polling_interval_limit,
            polling_timeout=polling_timeout,
        )
        return Future(factory, serializer=serializer)

    @overload
    def owned_proxy(
        self,
        obj: NonProxiable,
        *,
        serializer: SerializerT | None = ...,
        deserializer: DeserializerT | None = ...,
        populate_target: bool | None = ...,
        skip_nonproxiable: Literal[True] = ...,
        **kwargs: Any,
    ) -> NonProxiable: ...

    @overload
    def owned_proxy(
        self,
        obj: T,
        *,
        serializer: SerializerT | None = ...,
        deserializer: DeserializerT | None = ...,
        populate_target: bool | None = ...,
        skip_nonproxiable: bool = ...,
        **kwargs: Any,
    ) -> OwnedProxy[T]: ...

    def owned_proxy(
        self,
        obj: Any,
        *,
        serializer: SerializerT | None = None,
        deserializer: DeserializerT | None = None,
        populate_target: bool | None = None,
        skip_nonproxiable: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Store an object and return its owner: it is evicted when the owner is deleted.

        Arguments and errors are those of `proxy`, but that None, True and False are
        returned as they are by default. See `proxystore.store.ref` for lending the object.
        """
        if kwargs.keys() & {"evict", "lifetime", "retain"}:
            raise TypeError(
                "owned_proxy() takes no evict, lifetime or retain: the owner evicts the object"
            )
        populate = self.populate_target if populate_target is None else populate_target
        proxy = self.proxy(
            obj,
            serializer=serializer,
            deserializer=deserializer,
            populate_target=populate,
            skip_nonproxiable=skip_nonproxiable,
            **kwargs,
        )
        if type(proxy) is not Proxy:  # None, True or False
            return proxy
        return into_owned(proxy, populate_target=populate)

    def _proxy(
        self,
        key: ConnectorKeyT,
        obj: Any,
        evict: bool,
        retain: float | None,
        deserializer: DeserializerT | None,
        populate_target: bool | None,
    ) -> Proxy[Any]:
        factory: StoreFactory[Any]
        if retain is None:
            factory = StoreFactory(key, self._config(), evict=evict, deserializer=deserializer)
        else:
            factory = RetainingStoreFactory(
                key, self._config(), retain=retain, deserializer=deserializer
            )
        if not (self.populate_target if populate_target is None else populate_target):
            return Proxy(factory)
        proxy = Proxy(factory, cache_defaults=True, target=obj)
        if retain is not None:
            del proxy.__proxy_wrapped__  # the class and hash stay
        return proxy

    def _checked_retain(self, retain: float | None) -> float | None:
        return None if retain is None else check_retain(retain, self.connector)


# Those of this process.
_living: weakref.WeakSet[Store[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for store in _living:
        store._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _can(connector: object, method: str) -> bool:
    # Asked of the class: cheaper than a runtime protocol, and a stand-in object that
    # has any attribute is not taken for a connector that has this one.
    return bool(getattr(type(connector), method, False))


class _Locked:
    """A connector under its lock, as a context."""

    def __init__(self, lock: threading.RLock, connector: Any) -> None:
        self._lock = lock
        self._connector = connector

    def __enter__(self) -> Any:
        self._lock.acquire()
        return self._connector

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _require_one_end(evict: bool, lifetime: Lifetime | None, retain: float | None) -> None:
    given = {"evict": evict, "lifetime": lifetime is not None, "retain": retain is not None}
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        names[-2:] = [" and ".join(names[-2:])]
        raise ValueError(f"The {', '.join(names)} parameters exclude each other: set one of them")


def _check_arguments(name: object, connector: Any, cache_size: Any, verify: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a store must be a str, got {type(name).__name__}")
    # Not whether it is a `Connector`: stand-ins for tests need not be complete.
    kind = connector if isinstance(connector, type) else type(connector)
    if isinstance(connector, type) or not callable(getattr(connector, "put", None)):
        raise TypeError(
            f"connector must be an open connector, such as FileConnector(directory), got "
            f"{'the class ' * isinstance(connector, type)}{name_of(kind)}"
        )
    if isinstance(cache_size, bool) or not isinstance(cache_size, int):
        raise TypeError(
            f"cache_size must be a number of objects, an int, got {type(cache_size).__name__}"
        )
    if cache_size < 0:
        raise ValueError(f"cache_size must be 0 (no caching) or more, got {cache_size}")
    if verify is not None and not isinstance(verify, bool):
        raise TypeError(f"verify must be True, False or None, got {type(verify).__name__}")


def _keys_in(keys: Sequence[ConnectorKeyT]) -> list[ConnectorKeyT]:
    try:
        found = list(keys)
    except TypeError:
        raise no_key(keys, "get_batch") from None
    for key in found:
        if not issubclass(type(key), tuple):
            # One key, which is a tuple of other things, or a proxy of what is no list of keys.
            raise no_key(keys if issubclass(type(keys), (tuple, Proxy)) else key, "get_batch")
    return found


def _require_open(lifetime: Lifetime | None) -> None:
    # Before anything is stored: afterwards it would stay for ever.
    if lifetime is None:
        return
    if isinstance(lifetime, type) or not isinstance(lifetime, Lifetime):
        raise TypeError(
            f"lifetime must be a Lifetime, such as ContextLifetime(store), got {lifetime!r}; "
            f"nothing was stored"
        )
    if lifetime.done():
        raise RuntimeError(f"{lifetime!r} has ended; nothing was stored")


def _require_no_part_of_a_proxy(obj: object) -> None:
    # A pickler that proxies whatever a policy matches, as Parsl's, asks the policy about each
    # part of a pickled proxy too: proxied, these two would be followed by those of that
    # proxy, without an end. (The name of a module is one object, told by its identity.)
    arguments = type(obj) is tuple and obj and issubclass(type(obj[0]), StoreFactory)
    if arguments or obj is _proxy_trampoline.__module__:
        raise NonProxiableTypeError(
            f"{obj!r} is part of what a proxy is pickled as, and would be proxied again and again: "
            f"let the policy that matches each {type(obj).__name__} leave small ones alone"
        )


def _non_proxiable(obj: object) -> NonProxiableTypeError:
    return NonProxiableTypeError(
        f"{obj!r} cannot be proxied, since code compares it with `is`; pass it as it is, or "
        f"set skip_nonproxiable=True to have that done"
    )
