"""A part that fails leaves nothing half stored, and hides no error that came before its own."""

from __future__ import annotations

import asyncio
import threading
import uuid
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from proxystore.connectors.local import LocalConnector
from proxystore.proxy import ProxyResolveError, is_resolved
from proxystore.serialize import SerializationError, serialize
from proxystore.store import Store, get_store
from proxystore.store.executor import ProxyType, StoreExecutor
from proxystore.store.lifetimes import ContextLifetime
from proxystore.store.ref import borrow, clone, mut_borrow, update
from proxystore.store.scopes import submit
from proxystore.store.utils import get_key


class Fault(Exception):
    """What a part raises that was told to fail."""


class Faults:
    """Which parts fail, after how many times that they have not."""

    def __init__(self):
        self.left = {}

    def of(self, part, after=0):
        """Let a part fail from now on, each time."""
        self.left[part] = after

    def may(self, part):
        if part not in self.left:
            return
        if self.left[part] <= 0:
            raise Fault(part)
        self.left[part] -= 1


class Plain(LocalConnector):
    """Takes objects in one piece, and is used by one thread at a time."""

    thread_safe = False

    def __init__(self):
        super().__init__()
        self.faults = Faults()
        self.evictions = 0

    def config(self):
        self.faults.may("config")
        return super().config()

    def put(self, obj):
        self.faults.may("put")
        return super().put(obj)

    def set(self, key, obj):
        self.faults.may("set")
        super().set(key, obj)

    def get(self, key):
        self.faults.may("get")
        return super().get(key)

    def new_key(self, obj=None):
        self.faults.may("new_key")
        return super().new_key(obj)

    def evict(self, key):
        self.evictions += 1
        self.faults.may("evict")
        super().evict(key)

    def close(self, clear=None):
        self.faults.may("close")


class Pieces(Plain):
    """Takes objects in pieces, from several threads."""

    thread_safe = True

    def put_buffers(self, parts):
        return self.put(b"".join(parts))

    def set_buffers(self, key, parts):
        self.set(key, b"".join(parts))


class Late:
    """A lifetime that fails when something is attached to it."""

    def __init__(self, faults):
        self.faults = faults

    def add_key(self, *keys, store=None):
        self.faults.may("lifetime")

    def add_proxy(self, *proxies):
        self.faults.may("lifetime")

    def close(self, *, close_stores=False): ...

    def done(self):
        self.faults.may("done")
        return False


@pytest.fixture(params=[Plain, Pieces])
def store(request):
    with Store(f"failing-{uuid.uuid4().hex[:8]}", request.param(), register=True) as store:
        yield store
        store.connector.faults.left.clear()


@pytest.fixture
def faults(store):
    return store.connector.faults


def objects(store):
    keys = list(store.connector.keys())
    return {key: bytes(LocalConnector.get(store.connector, key)) for key in keys}


# -- writing

OBJS = [[1], [2], [3]]


def _awaited(store, objs, **options):
    asyncio.run(store.put_async(objs[0], **options))


WRITES = {
    "put": lambda store, objs, **options: store.put(objs[0], **options),
    "put_async": _awaited,
    "put_batch": lambda store, objs, **options: store.put_batch(objs, **options),
    "proxy": lambda store, objs, **options: store.proxy(objs[0], **options),
    "proxy_batch": lambda store, objs, **options: store.proxy_batch(objs, **options),
    "locked_proxy": lambda store, objs, **options: store.locked_proxy(objs[0], **options),
    "owned_proxy": lambda store, objs, **options: store.owned_proxy(objs[0], **options),
}
BATCHES = {"put_batch", "proxy_batch"}
OF_OBJECTS = [
    (method, part, after)
    for method in WRITES
    for part in ("serializer", "put", "lifetime", "done")
    if not (method == "owned_proxy" and part in ("lifetime", "done"))
    for after in ((0, 1, 2) if method in BATCHES and part in ("serializer", "put") else (0,))
]


@pytest.mark.parametrize(("method", "part", "after"), OF_OBJECTS)
@pytest.mark.parametrize("cleanup", ["works", "fails"])
def test_what_fails_while_objects_are_stored_is_raised_and_leaves_nothing(
    store, faults, method, part, after, cleanup
):
    store.put("before")
    before = objects(store)
    faults.of(part, after)
    if cleanup == "fails":
        faults.of("evict")

    def serializer(obj):
        faults.may("serializer")
        return serialize(obj)

    options = {"serializer": serializer}
    if part in ("lifetime", "done"):
        options["lifetime"] = Late(faults)
    with pytest.raises(Fault, match=part):
        WRITES[method](store, OBJS, **options)
    stored = after if part == "put" else (1 + 2 * (method in BATCHES)) * (part == "lifetime")
    assert store.connector.evictions == stored, "each that was stored, once"
    if cleanup == "works":
        assert objects(store) == before
    faults.left.clear()
    WRITES[method](store, OBJS)  # and works again


class Unhashed(list):
    """Fails in another way than what has no hash."""

    def __hash__(self):
        raise Fault("hash")


@pytest.mark.parametrize("method", WRITES.keys() - {"put", "put_async", "put_batch"})
@pytest.mark.parametrize("cleanup", ["works", "fails"])
def test_an_object_that_fails_to_be_proxied_is_not_left_behind(store, faults, method, cleanup):
    if cleanup == "fails":
        faults.of("evict")
    with pytest.raises(Fault, match="hash"):
        WRITES[method](store, [Unhashed([1]), Unhashed([2])])
    assert store.connector.evictions == 1 + (method in BATCHES)
    assert (objects(store) == {}) is (cleanup == "works")


@pytest.mark.parametrize("method", WRITES.keys() - {"put", "put_async", "put_batch"})
def test_a_store_that_cannot_be_described_proxies_nothing(method):
    store = Store("not-described", Pieces())
    store.connector.faults.of("config")
    with pytest.raises(Fault, match="config"):
        WRITES[method](store, OBJS)
    assert not objects(store)


def test_a_lifetime_that_does_not_take_a_stored_object_leaves_it_where_it_is(store, faults):
    key = store.put([1])
    faults.of("lifetime")
    with pytest.raises(Fault, match="lifetime"):
        store.proxy_from_key(key, lifetime=Late(faults))
    assert store.exists(key)


@pytest.mark.parametrize("part", ["serializer", "set"])
@pytest.mark.parametrize("method", ["set_result", "_set", "update", "update of a borrow"])
def test_what_fails_while_an_object_is_replaced_leaves_the_old_one(store, faults, method, part):
    def serializer(obj):
        faults.may("serializer")
        return serialize(obj)

    future = store.future(serializer=serializer)
    owner = store.owned_proxy([1, 2])
    key = get_key(owner)
    lent = mut_borrow(owner) if method == "update of a borrow" else owner
    replace = {
        "set_result": lambda: future.set_result([1, 2, 3]),
        "_set": lambda: store._set(key, [1, 2, 3], serializer=serializer),
    }.get(method, lambda: update(lent, serializer=serializer))
    if method.startswith("update"):
        lent.append(3)
    before = objects(store)
    faults.of(part)
    with pytest.raises(Fault, match=part):
        replace()
    assert objects(store) == before
    assert not future.done()
    assert store.get(key) == [1, 2]
    faults.left.clear()
    replace()
    assert (future.result() if method == "set_result" else store.get(key)) == [1, 2, 3]


def test_a_future_without_a_key_is_none(store, faults):
    faults.of("new_key")
    with pytest.raises(Fault, match="new_key"):
        store.future()
    assert not objects(store)


@pytest.mark.parametrize("part", ["get", "put"])
def test_a_clone_that_fails_leaves_its_source_as_it_was(store, faults, part):
    owner = store.owned_proxy([1])
    before = objects(store)
    faults.of(part)
    with pytest.raises(Fault, match=part):
        clone(owner)
    assert objects(store) == before
    faults.left.clear()
    assert owner == [1]
    assert clone(owner) == [1]


# -- reading


def _load(store, faults, **options):
    def deserializer(data):
        faults.may("deserializer")
        return store.deserializer(data)

    return deserializer


READS = {
    "get": lambda store, key, load: store.get(key, deserializer=load),
    "get uncached": lambda store, key, load: store.get(key, deserializer=load, cache=False),
    "get_batch": lambda store, key, load: store.get_batch([key], deserializer=load)[0],
    "get_async": lambda store, key, load: asyncio.run(store.get_async(key, deserializer=load)),
}


@pytest.mark.parametrize("method", READS)
@pytest.mark.parametrize(
    ("part", "error"), [("get", Fault), ("deserializer", SerializationError)], ids=str
)
def test_what_fails_while_an_object_is_got_is_raised_and_not_cached(
    store, faults, method, part, error
):
    key, load = store.put([1]), _load(store, faults)
    faults.of(part)
    for _ in range(2):
        with pytest.raises(error, match=part) as caught:
            READS[method](store, key, load)
        assert type(caught.value.__cause__ or caught.value) is Fault
    assert not store.is_cached(key)
    assert store.exists(key)
    faults.left.clear()
    assert READS[method](store, key, load) == [1]


@pytest.mark.parametrize("part", ["get", "deserializer", "evict"])
@pytest.mark.parametrize("how", ["use", "in the background"])
def test_an_object_that_was_not_got_is_not_evicted(store, faults, part, how):
    proxy = store.proxy([1], evict=True, populate_target=False, deserializer=_load(store, faults))
    faults.of(part)
    if how == "in the background":
        proxy.__proxy_factory__.resolve_async()
    with pytest.raises(ProxyResolveError) as caught:
        len(proxy)
    cause = caught.value.cause
    assert type(cause.__cause__ or cause) is Fault
    assert not is_resolved(proxy)
    faults.left.clear()
    assert store.exists(get_key(proxy))
    assert proxy == [1]
    assert not objects(store)


# -- the end


def test_what_cannot_be_evicted_is_still_there(store, faults):
    key = store.put([1])
    faults.of("evict")
    with pytest.raises(Fault, match="evict"):
        store.evict(key)
    assert store.get(key) == [1]
    faults.left.clear()
    store.evict(key)
    assert not store.exists(key)


def test_a_store_whose_connector_fails_to_close_is_not_registered_any_more(store, faults):
    faults.of("close")
    with pytest.raises(Fault, match="close"):
        store.close()
    assert get_store(store.name) is None


def _in_context(context, error=None):
    with context:
        if error is not None:
            raise error


def _contexts(store):
    def attached():
        lifetime = ContextLifetime(store)
        store.put([1], lifetime=lifetime)
        return lifetime

    return {
        "store": lambda: store,
        "lifetime": attached,
        "executor": lambda: StoreExecutor(ThreadPoolExecutor(1), store),
    }


@pytest.mark.parametrize("kind", ["store", "lifetime", "executor"])
def test_what_a_block_raises_comes_before_what_its_end_does(store, faults, kind, caplog):
    context = _contexts(store)[kind]()
    part = "evict" if kind == "lifetime" else "close"
    faults.of(part)
    with pytest.raises(ZeroDivisionError):
        _in_context(context, ZeroDivisionError())
    assert f"Fault: {part}" in caplog.text, "but it is told of"


@pytest.mark.parametrize("kind", ["store", "lifetime", "executor"])
def test_what_the_end_of_a_block_raises_is_raised(store, faults, kind):
    context = _contexts(store)[kind]()
    part = "evict" if kind == "lifetime" else "close"
    faults.of(part)
    with pytest.raises(Fault, match=part):
        _in_context(context)


# -- executors


class Loud:
    """A future that keeps to itself nothing of what its callbacks raise."""

    def __init__(self):
        self.callbacks = []
        self.is_cancelled = False

    def add_done_callback(self, callback):
        self.callbacks.append(callback)

    def finish(self):
        while self.callbacks:
            self.callbacks.pop()(self)

    def cancel(self):
        self.is_cancelled = True
        self.finish()


class Refusing(Executor):
    """Takes some calls, which it never runs, and then no more."""

    def __init__(self, after=0):
        self.after = after
        self.taken = []

    def submit(self, function, /, *args, **kwargs):
        if len(self.taken) >= self.after:
            raise Fault("executor")
        self.taken.append(Loud())
        return self.taken[-1]

    def shutdown(self, wait=True, *, cancel_futures=False):
        raise Fault("shutdown")


class Policy:
    """Says yes to lists, and fails as it is told to."""

    def __init__(self, faults):
        self.faults = faults

    def __call__(self, item):
        self.faults.may("policy")
        return type(item) is list


CALLS = {
    "submit": lambda executor: executor.submit(max, [1], [2], key=[3]),
    "map": lambda executor: executor.map(max, [[1], [2]], [[3], [4]]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("part", "after"), [("policy", 2), ("put", 2), ("executor", 0)])
@pytest.mark.parametrize("cleanup", ["works", "fails"])
def test_a_call_that_cannot_be_made_leaves_nothing(
    store, faults, call, part, after, cleanup, caplog
):
    pool = Refusing(after=part != "executor")
    executor = StoreExecutor(pool, store, Policy(faults), close_store=False)
    faults.of(part, after)
    if cleanup == "fails":
        faults.of("evict")
    with pytest.raises(Fault, match=part):
        CALLS[call](executor)
    assert store.connector.evictions > 0
    assert (objects(store) == {}) is (cleanup == "works")
    assert ("Fault: evict" in caplog.text) is (cleanup == "fails")
    with pytest.raises(Fault, match="shutdown"):
        executor.shutdown()


def test_a_map_that_is_refused_half_way_is_cancelled_and_leaves_nothing(store):
    pool = Refusing(after=1)
    executor = StoreExecutor(pool, store, ProxyType(list))
    with pytest.raises(Fault, match="executor"):
        executor.map(max, [[1], [2], [3]])
    assert [future.is_cancelled for future in pool.taken] == [True]
    assert not objects(store)


@pytest.mark.parametrize("part", ["policy", "put"])
@pytest.mark.parametrize("ownership", [True, False])
def test_a_result_that_cannot_be_stored_is_the_error_of_its_call(store, faults, part, ownership):
    with ThreadPoolExecutor(1) as pool:
        executor = StoreExecutor(
            pool, store, Policy(faults), ownership=ownership, close_store=False
        )
        faults.of(part, 1)  # the argument passes
        future = executor.submit(lambda x: [*x, 2], [1])
        with pytest.raises(Fault, match=part):
            future.result()
    assert not objects(store), "callbacks have run when the pool has been shut down"


def test_what_the_function_raises_comes_before_an_input_that_stays(store, faults, caplog):
    with ThreadPoolExecutor(1) as pool:
        executor = StoreExecutor(pool, store, ProxyType(list), close_store=False)
        faults.of("evict")
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda x: 1 / 0, [1]).result()
    assert "Fault: evict" in caplog.text


@pytest.mark.parametrize("calls", [0, 2])
def test_an_executor_that_fails_to_shut_down_comes_before_its_store(store, faults, calls, caplog):
    executor = StoreExecutor(Refusing(after=calls), store, ProxyType(list))
    for _ in range(calls):
        executor.submit(len, [1])
    faults.of("close")
    with pytest.raises(Fault, match="shutdown"):
        executor.shutdown()
    for future in executor.executor.taken:
        future.finish()
    assert not objects(store)
    assert caplog.text.count("Fault: close") == 1, "when the last call was done"
    assert get_store(store.name) is None


def test_a_store_that_fails_to_close_is_what_shutdown_raises(store, faults):
    executor = StoreExecutor(ThreadPoolExecutor(1), store, ProxyType(list))
    assert executor.submit(len, [1]).result() == 1
    faults.of("close")
    with pytest.raises(Fault, match="close"):
        executor.shutdown()


def test_a_callback_that_fails_keeps_no_input(store):
    called = threading.Event()

    def callback(future):
        called.set()
        raise Fault("callback")

    with ThreadPoolExecutor(1) as pool:
        executor = StoreExecutor(pool, store, ProxyType(list), close_store=False)
        future = executor.submit(len, [1])
        future.add_done_callback(callback)
        assert future.result() == 1
    assert called.is_set()
    assert not objects(store)


def test_a_borrow_that_could_not_be_submitted_goes_on(store):
    owner = store.owned_proxy([1])
    lent = borrow(owner)
    with pytest.raises(Fault, match="executor"):
        submit(Refusing().submit, args=(len, lent))
    assert lent == [1]
    del lent
    assert mut_borrow(owner) == [1]
