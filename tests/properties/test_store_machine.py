"""Whatever is done to a store, it holds what a dictionary would."""

from __future__ import annotations

import pickle
import tempfile
import uuid
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.proxy import (
    Proxy,
    ProxyLocker,
    ProxyResolveError,
    extract,
    get_factory,
    is_resolved,
)
from proxystore.store import Store, get_store
from proxystore.store.config import StoreConfig
from proxystore.store.exceptions import NonProxiableTypeError, ProxyResolveMissingKeyError
from proxystore.store.utils import get_key, resolve_async, resolve_batch

small = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.binary(max_size=9)
# On either side of the length from which on files are mapped.
large = st.integers(60_000, 70_000).map(bytes)
objects = (
    small
    | large
    | st.lists(small, max_size=3)
    | st.dictionaries(st.text(max_size=3), small, max_size=3)
)
missing = object()


class StoreMachine(RuleBasedStateMachine):
    """Compares a Store with a dictionary; subclasses say over which connector."""

    keys: Bundle[Any] = Bundle("keys")
    # Locked: Hypothesis looks at what it is given, and every look at a proxy resolves it.
    proxies: Bundle[ProxyLocker[Any]] = Bundle("proxies")

    store: Store[Any]

    def connector(self) -> LocalConnector | FileConnector:
        raise NotImplementedError

    def rebuilt(self, config: StoreConfig) -> Store[Any]:
        raise NotImplementedError

    @initialize(
        cache_size=st.integers(0, 4),
        cache_bytes=st.none() | st.sampled_from([0, 500, 100_000]),
        verify=st.sampled_from([None, True, False]),
        metrics=st.booleans(),
    )
    def make(self, **options: Any) -> None:
        # A name of its own: proxies find their store by it.
        name = f"machine-{uuid.uuid4()}"
        self.store = Store(name, self.connector(), register=True, **options)
        self.model: dict[Any, Any] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            assert get_store(self.store.name) is None

    # -- writing

    @rule(target=keys, obj=objects)
    def put(self, obj: Any) -> Any:
        key = self.store.put(obj)
        assert key not in self.model
        self.model[key] = obj
        return key

    @rule(target=keys, objs=st.lists(objects, max_size=3))
    def put_batch(self, objs: list[Any]) -> Any:
        keys = self.store.put_batch(objs)
        self.model.update(zip(keys, objs, strict=True))
        return multiple(*keys)

    @rule(target=keys)
    def new_key(self) -> Any:
        return self.store.connector.new_key()  # type: ignore[attr-defined]

    @rule(key=keys, obj=objects)
    def set(self, key: Any, obj: Any) -> None:
        self.store._set(key, obj)
        self.model[key] = obj
        assert not self.store.is_cached(key)

    @rule(key=keys)
    def evict(self, key: Any) -> None:
        self.store.evict(key)
        self.model.pop(key, None)
        assert not self.store.is_cached(key)

    @rule(key=keys)
    def fail_to_put(self, key: Any) -> None:
        """What cannot be serialized changes nothing: the invariants tell."""
        for change in (self.store.put, partial(self.store._set, key)):
            with pytest.raises(TypeError, match="bytes"):
                change(missing, serializer=lambda obj: obj)

    # -- reading

    @rule(key=keys, cache=st.booleans())
    def get(self, key: Any, cache: bool) -> None:
        cached = self.store.is_cached(key)
        found = self.store.get(key, default=missing, cache=cache)
        assert found == self.model.get(key, missing)
        if cache and self.store.is_cached(key):
            assert self.store.get(key) is found
        if not cache:
            assert self.store.is_cached(key) is cached

    @rule(keys=st.lists(keys, max_size=5))
    def get_batch(self, keys: list[Any]) -> None:
        found = self.store.get_batch(keys, default=missing)
        assert found == [self.model.get(key, missing) for key in keys]

    @rule(key=keys)
    def get_decoded(self, key: Any) -> None:
        """Another decoder's object is another object, cached or not."""
        found = self.store.get(key, deserializer=lambda data: "decoded", default=missing)
        assert found == ("decoded" if key in self.model else missing)

    # -- proxies

    @rule(target=proxies, obj=objects, evict=st.booleans(), populate=st.booleans())
    def proxy(self, obj: Any, evict: bool, populate: bool) -> Any:
        try:
            proxy = self.store.proxy(obj, evict=evict, populate_target=populate)
        except NonProxiableTypeError:
            assert obj is None or isinstance(obj, bool)
            return multiple()
        self.model[get_key(proxy)] = obj
        assert is_resolved(proxy) is populate
        return ProxyLocker(proxy)

    @rule(target=proxies, key=keys, evict=st.booleans())
    def proxy_from_key(self, key: Any, evict: bool) -> Any:
        return ProxyLocker(self.store.proxy_from_key(key, evict=evict))

    @rule(target=proxies, proxy=proxies)
    def send(self, proxy: ProxyLocker[Any]) -> Any:
        return ProxyLocker(pickle.loads(pickle.dumps(proxy.unlock())))

    @rule(target=keys, proxy=proxies)
    def key_of(self, proxy: ProxyLocker[Any]) -> Any:
        return get_key(proxy.unlock())

    @rule(locked=proxies)
    def resolve(self, locked: ProxyLocker[Any]) -> None:
        proxy = locked.unlock()
        if is_resolved(proxy):
            self.store.evict(get_key(proxy))  # which it does not need any more
            self.model.pop(get_key(proxy), None)
            extract(proxy)
            return
        expected = self.model.get(get_key(proxy), missing)
        if expected is missing:
            with pytest.raises(ProxyResolveError) as caught:
                extract(proxy)
            assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)
            assert not is_resolved(proxy)
            return
        assert extract(proxy) == expected
        self.resolved(proxy)

    @rule(locked=proxies)
    def resolve_in_background(self, locked: ProxyLocker[Any]) -> None:
        proxy = locked.unlock()
        was_resolved = is_resolved(proxy)
        expected = self.model.get(get_key(proxy), missing)
        resolve_async(proxy)
        if not was_resolved and expected is not missing:
            assert extract(proxy) == expected
            self.resolved(proxy)
        elif not was_resolved:
            with pytest.raises(ProxyResolveError):
                extract(proxy)

    @rule(locked=st.lists(proxies, max_size=4, unique_by=id))
    def resolve_batch(self, locked: list[ProxyLocker[Any]]) -> None:
        proxies = [each.unlock() for each in locked]
        todo = [proxy for proxy in proxies if not is_resolved(proxy)]
        expected = [self.model.get(get_key(proxy), missing) for proxy in todo]
        # Of one key, the first to be got may be the one that evicts it: then all have it.
        if missing in expected:
            with pytest.raises(ProxyResolveError) as caught:
                resolve_batch(proxies)
            assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)
        else:
            resolve_batch(proxies)
        for proxy, obj in zip(todo, expected, strict=True):
            assert is_resolved(proxy) is (obj is not missing)
            if obj is not missing:
                assert extract(proxy) == obj
                self.resolved(proxy)

    def resolved(self, proxy: Proxy[Any]) -> None:
        if get_factory(proxy).evict:  # type: ignore[attr-defined]
            self.model.pop(get_key(proxy), None)

    # -- the store itself

    @rule()
    def rebuild(self) -> None:
        """Close the store, and make it again from what another process would get."""
        config = pickle.loads(pickle.dumps(self.store.config()))
        self.store = self.rebuilt(config)
        assert self.store.config() == config

    @invariant()
    def holds_the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        cache = self.store.cache
        for key, obj in self.model.items():
            assert self.store.exists(key)
            assert self.store.connector.exists(key)
            if self.store.is_cached(key):
                cached = cache.peek(key)
                assert cached is not None
                assert cached.obj in (obj, "decoded")
        assert {*self.store.connector.keys()} == self.model.keys()  # type: ignore[attr-defined]
        assert len(cache._values) <= cache.maxsize
        assert cache._values.keys() <= self.model.keys()
        assert cache.nbytes == sum(nbytes for _, nbytes in cache._values.values())
        assert cache.maxbytes is None or cache.nbytes <= cache.maxbytes
        assert not self.store._flights._flights, "nothing is under way"


class LocalMachine(StoreMachine):
    def connector(self) -> LocalConnector:
        return LocalConnector()

    def rebuilt(self, config: StoreConfig) -> Store[Any]:
        self.store.close()
        # What another process does not have: the dictionary.
        connector = LocalConnector(self.store.connector._store)
        return Store.from_config(config, connector=connector)


class FileMachine(StoreMachine):
    def connector(self) -> FileConnector:
        self.directory = tempfile.TemporaryDirectory()
        return FileConnector(f"{self.directory.name}/objects")

    def rebuilt(self, config: StoreConfig) -> Store[Any]:
        self.store.close(clear=False)
        return Store.from_config(config)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


TestLocalStore = LocalMachine.TestCase
TestFileStore = FileMachine.TestCase
TestLocalStore.settings = settings(max_examples=100, stateful_step_count=30)
TestFileStore.settings = TestLocalStore.settings
