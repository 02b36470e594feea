"""RedisConnector beyond the contract: no copies, no leftovers, and a server that comes and goes."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import logging
import math
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import dill
import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry
from tblib import pickling_support
from waiting import wait_until

from proxystore.connectors import redis as redis_module
from proxystore.connectors.exceptions import ConnectorError, StorageFullError
from proxystore.connectors.redis import (
    RedisAuthenticationError,
    RedisConnectionError,
    RedisConnector,
    RedisFullError,
    RedisKey,
    RedisPermissionError,
    RedisResponseError,
    RedisServerError,
    RedisTimeoutError,
)
from proxystore.proxy import Proxy
from proxystore.store import Store
from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.testing import check_connector
from proxystore.testing.redis_server import RedisServer, find_server

pytestmark = pytest.mark.redis

SECRET = "correct horse/battery@staple"


@pytest.fixture
def prefix():
    """A prefix of a test's own, at a server that tests share."""
    return f"test-{uuid.uuid4().hex[:8]}:"


@pytest.fixture
def connector(redis_server, prefix):
    connector = RedisConnector(url=f"unix://{redis_server.socket_path}", prefix=prefix)
    yield connector
    connector.close(clear=True)


@pytest.fixture
def client(redis_server):
    """redis-py's own client of the server that tests share."""
    with redis.StrictRedis(unix_socket_path=redis_server.socket_path) as client:
        yield client


@pytest.fixture
def own(own_redis_server):
    """A connector to a server that one test has for itself, and its client."""
    # Without retries, which take seconds.
    never = Retry(NoBackoff(), 0)
    client = redis.StrictRedis(unix_socket_path=own_redis_server.socket_path, retry=never)
    with RedisConnector("localhost", own_redis_server.port, timeout=5) as connector, client:
        yield connector, client


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(redis_module, "_LONGEST_VALUE", 100_000)
    monkeypatch.setattr(redis_module, "_CHUNK", 40_000)


# -- ways to a server


def login(server):
    return f"{server.username}:{server.password}@localhost:{server.port}"


WAYS = {
    "tcp": lambda s: RedisConnector("127.0.0.1", s.port, prefix="ways:"),
    "default prefix": lambda s: RedisConnector("127.0.0.1", s.port),
    "database": lambda s: RedisConnector("localhost", s.port, db=3),
    "no timeout": lambda s: RedisConnector("localhost", s.port, timeout=None),
    "socket": lambda s: RedisConnector(url=f"unix://{s.socket_path}?db=2"),
    "socket by argument": lambda s: RedisConnector(
        client_kwargs={"unix_socket_path": s.socket_path}
    ),
    "user": lambda s: RedisConnector(
        "localhost", s.port, username=s.username, password=s.password, prefix=s.prefix
    ),
    "url": lambda s: RedisConnector(url=f"redis://{login(s)}", prefix=s.prefix),
    "tls": lambda s: RedisConnector(
        "localhost", s.tls_port, client_kwargs={"ssl": True, "ssl_ca_certs": s.certificate}
    ),
    "tls url": lambda s: RedisConnector(
        url=f"rediss://localhost:{s.tls_port}/1?ssl_ca_certs={s.certificate}"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_keeps_the_contract_whichever_way_it_connects(own_redis_server, way):
    if "tls" in way and own_redis_server.tls_port is None:
        pytest.skip("this server was built without TLS, or there is no openssl")
    with WAYS[way](own_redis_server) as connector:
        check_connector(connector)
        again = RedisConnector(**connector.config())
        key = connector.put(b"value" * 100_000)
        assert again.get(key) == b"value" * 100_000
        connector.close(clear=True)
        assert not again.exists(key)


def test_a_certificate_that_nobody_vouches_for_is_refused(redis_server):
    if redis_server.tls_port is None:
        pytest.skip("this server was built without TLS, or there is no openssl")
    with (
        RedisConnector(url=f"rediss://localhost:{redis_server.tls_port}") as connector,
        pytest.raises(RedisConnectionError, match=r"(?i)certificate"),
    ):
        connector.put(b"x")


def test_databases_are_apart(redis_server):
    first = RedisConnector("localhost", redis_server.port, db=4)
    second = RedisConnector("localhost", redis_server.port, db=5)
    key = first.put(b"x")
    assert second.get(key) is None
    first.evict(key)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"url": "redis://localhost", "port": 1}, "not both"),
    ({"url": "http://localhost"}, "must look like redis://"),
    ({"url": f"redis://user:{SECRET}@localhost"}, "must look like redis://"),
    ({"url": "redis://localhost?socket_timeout=soon"}, "must look like redis://"),
    ({"timeout": 0}, "more than 0 seconds"),
    ({"password_env": "NOT_SET_ANYWHERE"}, "'NOT_SET_ANYWHERE', which is not set"),
    ({"password": SECRET, "password_env": "PATH"}, "password or password_env, not both"),
    ({"url": "redis://:battery@localhost", "password": SECRET}, "one of them"),
    ({"url": "redis://localhost?password=battery", "password_env": "PATH"}, "one of them"),
    ({"url": "redis://one@localhost", "username": "two"}, "another user"),
    ({"url": "redis://localhost/1", "db": 2}, "database 1, and db=2"),
    ({"url": "redis://localhost/2?db=1", "db": 2}, "database 1, and db=2"),
    ({"url": "unix:///run/redis.sock?db=1", "db": 2}, "database 1, and db=2"),
    ({"port": 0}, "from 1 to 65535"),
    ({"port": 65536}, "from 1 to 65535"),
    ({"db": -1}, "0 or more"),
    ({"db": None}, "0 or more"),
    ({"timeout": math.nan}, "more than 0 seconds"),
    ({"prefix": ""}, "delete what others have stored"),
])  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says) as caught:
        RedisConnector(**arguments)
    assert "battery" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(("name", "value"), [
    ("port", "redis"), ("port", True), ("port", 6379.0),
    ("db", "0"), ("db", False), ("db", 0.5),
    ("timeout", "5"), ("timeout", True), ("timeout", [1]),
    ("prefix", None), ("prefix", 5), ("prefix", b"app:"),
    ("clear", "no"), ("clear", 1), ("clear", None),
])  # fmt: skip
def test_arguments_of_another_type_are_refused(name, value):
    with pytest.raises(TypeError, match=f"{name} must be .*{re.escape(repr(value))}"):
        RedisConnector(**{name: value})


def test_a_port_out_of_the_environment_is_a_number():
    assert RedisConnector("localhost", "6380").config()["port"] == 6380


@pytest.mark.parametrize("arguments", [
    {"url": "redis://localhost/2", "db": 2},
    {"url": "redis://app@localhost", "username": "app", "password": SECRET},
    {"url": "redis://localhost/", "db": 3},
    {"hostname": "localhost", "port": np.int64(6379), "timeout": np.float32(1)},
])  # fmt: skip
def test_what_does_not_contradict_may_be_said_twice(arguments):
    connector = RedisConnector(**arguments)
    assert RedisConnector(**connector.config()).config() == connector.config()


@pytest.mark.parametrize(("arguments", "shown"), [
    ({}, "hostname=localhost, port=6379"),
    ({"db": 3}, "hostname=localhost, port=6379, db=3"),
    ({"prefix": "app:", "username": "me"},
     "hostname=localhost, port=6379, prefix='app:', username='me'"),
    ({"url": "redis://me@node:1/2"}, "url=redis://node:1/2, username='me'"),
    ({"url": "redis://node:1", "db": 2}, "url=redis://node:1, db=2"),
    ({"url": "unix:///run/redis.sock?db=4"}, "url=unix:///run/redis.sock, db=4"),
])  # fmt: skip
def test_repr_tells_places_apart(arguments, shown):
    assert repr(RedisConnector(**arguments)) == f"RedisConnector({shown})"


# -- secrets


def test_no_timeout_is_written_to_toml_too(tmp_path, redis_server):
    connector = RedisConnector("localhost", redis_server.port, timeout=None)
    with Store("patient", connector) as store:
        config = store.config()
        config.write_toml(tmp_path / "store.toml")
        again = StoreConfig.from_toml(tmp_path / "store.toml")
        assert again == config
        for rebuilt in (again, StoreConfig.model_validate_json(config.model_dump_json())):
            assert rebuilt.connector.get_connector().timeout is None
        proxy = pickle.loads(pickle.dumps(store.proxy([1], evict=True)))
        assert proxy == [1]


def test_a_password_is_shown_nowhere(redis_server, caplog):
    caplog.set_level(logging.DEBUG)
    quoted = SECRET.replace("/", "%2F").replace("@", "%40").replace(" ", "%20")
    made = [
        RedisConnector("localhost", redis_server.port, username="app", password=SECRET),
        RedisConnector(url=f"redis://app:{quoted}@localhost:{redis_server.port}/0"),
        RedisConnector(url=f"redis://localhost:{redis_server.port}?username=app&password={quoted}"),
        RedisConnector(url=f"unix://app@{redis_server.socket_path}?password={quoted}"),
    ]
    for connector in made:
        with (
            Store("secret", connector) as store,
            pytest.raises(RedisAuthenticationError) as caught,
        ):
            store.put("x")
        shown = [repr(connector), repr(store), str(store.config()), repr(store.config().connector)]
        shown += [str(caught.value), repr(caught.value), caplog.text]
        for text in shown:
            assert "battery" not in text
        assert "battery" in str(connector.config())
        assert "localhost" in str(caught.value) or redis_server.socket_path in str(caught.value)
    nested = ConnectorConfig(kind="multi", options={"a": ("x", {"password": SECRET}, {})})
    assert "battery" not in repr(StoreConfig(name="x", connector=nested))


def test_a_password_from_the_environment_does_not_travel(redis_server, monkeypatch):
    monkeypatch.setenv("OUR_PASSWORD", redis_server.password)
    options = {"username": redis_server.username, "password_env": "OUR_PASSWORD", "prefix": "app:"}
    connector = RedisConnector("localhost", redis_server.port, **options)
    assert redis_server.password not in str(connector.config())
    with Store("from-environment", connector, register=True) as store:
        pickled = pickle.dumps(store.proxy([1, 2, 3], populate_target=False, evict=True))
        assert redis_server.password.encode() not in pickled
        assert pickle.loads(pickled) == [1, 2, 3]
    monkeypatch.delenv("OUR_PASSWORD")
    with pytest.raises(ValueError, match="OUR_PASSWORD"):
        RedisConnector(**connector.config())


def test_a_pickled_proxy_is_short(connector, redis_server):
    with (
        RedisConnector("localhost", redis_server.port) as plain,
        Store("a-store-with-a-name", plain) as store,
    ):
        proxy = store.proxy(np.zeros(10), populate_target=True)
        assert len(pickle.dumps(proxy)) <= 300
        plain.evict(proxy.__proxy_factory__.key)


# -- names


def test_values_lie_under_the_prefix(redis_server, client):
    connector = RedisConnector("localhost", redis_server.port)
    key = connector.put(b"x")
    assert client.get(f"proxystore:{key.redis_key}") == b"x"
    connector.evict(key)


def test_objects_of_existing_installations_are_found(redis_server, client):
    connector = RedisConnector("localhost", redis_server.port)
    key, other = RedisKey(str(uuid.uuid4())), connector.put(b"new")
    client.set(key.redis_key, b"old" * 100_000)
    assert connector.get(key) == b"old" * 100_000
    assert connector.peek(key, 4) == (b"oldo", 300_000)
    assert connector.exists(key)
    assert connector.get_batch([other, key, RedisKey("x")]) == [b"new", b"old" * 100_000, None]
    connector.evict(key)
    assert client.get(key.redis_key) is None
    assert not connector.exists(key)
    connector.evict(other)


def test_names_without_a_prefix_are_looked_up_only_if_they_can_be_ours(
    connector, redis_server, client, prefix
):
    plain = RedisConnector("localhost", redis_server.port)
    key = RedisKey(str(uuid.uuid4()))
    foreign = RedisKey(f"{prefix}session")
    client.mset({key.redis_key: b"x", foreign.redis_key: b"x"})
    assert connector.get(key) is None, "another prefix is asked for"
    assert connector.peek(key, 1) is None
    assert plain.peek(foreign, 1) is None
    for name in (key, foreign):
        connector.evict(name)
    plain.evict(foreign)
    assert plain.get(foreign) is None
    assert plain.get_batch([foreign]) == [None]
    assert client.delete(key.redis_key, foreign.redis_key) == 2, "both are still there"


def test_a_user_who_sees_only_the_prefix_does_without_the_other_names(own):
    connector, client = own
    client.acl_setuser("narrow", enabled=True, passwords="+pw", keys=["proxystore:*"],
                       channels=["proxystore:*"], categories=["+@all"])  # fmt: skip
    options = {"username": "narrow", "password": "pw"}
    missing = connector.new_key()
    for use in (
        lambda c: c.get(missing) is None,
        lambda c: c.peek(missing, 1) is None,
        lambda c: not c.exists(missing),
        lambda c: c.evict(missing) is None,
        lambda c: c.get_batch([missing]) == [None],
    ):
        with RedisConnector("localhost", connector.port, **options) as narrow:
            assert use(narrow)
            check_connector(narrow)


# -- memory and batches


def test_large_data_can_be_written_to_and_is_nobody_elses(connector):
    key = connector.put(bytes(1_000_000))
    first, second = connector.get(key), connector.get(key)
    first[0] = 1
    assert (second[0], connector.get(key)[0]) == (0, 0)
    assert type(connector.get(connector.put(b"small"))) is bytes
    with Store("arrays", connector, cache_size=0) as store:
        array = store.get(store.put(np.arange(1_000_000.0)))
        array += 1
        assert array[-1] == 1_000_000.0


def test_large_data_are_not_joined(connector):
    data = np.ones(50_000_000, np.uint8)
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = memory("VmRSS")
    key = connector.put_buffers([b"header", memoryview(data), data[:1000].data])
    assert memory("VmHWM") - before < 10_000_000
    assert len(connector.get(key)) == 50_001_006


def memory(field):
    """A line of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def commands(client, during):
    """Return how often each command came to the server, other than those of a new connection."""
    client.config_resetstat()
    during()
    stats = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): value["calls"] for name, value in stats.items()}
    return {
        name: count for name, count in calls.items()
        if name.partition("|")[0] not in ("client", "config", "hello", "auth", "select", "info")
    }  # fmt: skip


def test_a_batch_of_1000_is_one_round_trip(own):
    connector, client = own
    items = [os.urandom(1000) for _ in range(1000)]
    keys = []
    assert commands(client, lambda: keys.extend(connector.put_batch(items))) == {"mset": 1}
    assert commands(client, lambda: connector.get_batch(keys)) == {"mget": 1}
    assert connector.get_batch(keys) == items
    with Store("batches", connector, cache_size=0) as store:
        assert commands(client, lambda: store.put_batch(items)) == {"mset": 1}
        assert commands(client, lambda: store.proxy_batch(items)) == {"mset": 1}


def test_operations_on_one_object_are_one_command(own):
    connector, client = own
    key = connector.put(b"x")
    assert commands(client, lambda: connector.put(b"x" * 100_000)) == {"set": 1}
    assert commands(client, lambda: connector.get(key)) == {"get": 1}
    assert commands(client, lambda: connector.exists(key)) == {"exists": 1}
    assert commands(client, lambda: connector.peek(key, 9)) == dict.fromkeys(
        ("multi", "getrange", "strlen", "exists", "exec"), 1
    )
    assert commands(client, lambda: connector.evict(key)) == {"del": 1}
    assert commands(client, lambda: connector.set(key, b"x")) == {"set": 1, "publish": 1}


def test_large_batches_are_several_commands_of_bounded_size(own, monkeypatch):
    connector, client = own
    monkeypatch.setattr(redis_module, "_BATCH_BYTES", 100_000)
    items = [bytes([i]) * 30_000 for i in range(10)] + [b"x" * 200_000] + [b""] * 2500
    keys = []
    sent = commands(client, lambda: keys.extend(connector.put_batch(items)))
    assert sent["mset"] == 3 + 3
    assert sent["set"] == 1
    assert connector.get_batch(keys) == items
    assert commands(client, lambda: connector.get_batch(keys[:10] * 200))["mget"] > 300


def test_a_batch_that_fails_leaves_nothing(own, monkeypatch):
    connector, client = own
    monkeypatch.setattr(redis_module, "_BATCH_BYTES", 100_000)
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 5_000_000)
    with pytest.raises(RedisFullError) as caught:
        connector.put_batch([bytes(90_000)] * 100)
    assert caught.value.needed == 9_000_000
    assert client.dbsize() == 0
    connector.evict(connector.put(b"small still fits"))


@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 100, 32767, 32768, 65535, 65536, 39_999, 40_000, 40_001, 100_001]),
        min_size=1, max_size=8,
    ),
    fill=st.integers(0, 255),
)  # fmt: skip
def test_data_of_any_length_in_any_pieces_come_back(shared, sizes, fill):
    parts = [bytes([(fill + i) % 256]) * size for i, size in enumerate(sizes)]
    whole = b"".join(parts)
    first = shared.put_buffers(parts)
    second, *rest = shared.put_buffers_batch([[*parts, *parts], [b"\r\n", *parts], []])
    try:
        assert shared.get(first) == whole
        for length in (0, 1, 39_999, 40_000, 40_001, 80_001, len(whole), len(whole) + 1):
            data, nbytes = shared.peek(first, length)
            assert bytes(data) == whole[:length]
            assert nbytes == len(whole)
        assert shared.get_batch([*rest, first, second]) == [
            b"\r\n" + whole, b"", whole, whole + whole,
        ]  # fmt: skip
        shared.set_buffers(second, parts[::-1])
        assert shared.get(second) == b"".join(parts[::-1])
    finally:
        for key in (first, second, *rest):
            shared.evict(key)
    assert not list(shared.keys())


@pytest.fixture(scope="module")
def shared(redis_server):
    """A connector that all examples of a property share; lengths are those of small_chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_module, "_LONGEST_VALUE", 100_000)
        patch.setattr(redis_module, "_CHUNK", 40_000)
        with RedisConnector("localhost", redis_server.port, prefix="property:") as connector:
            yield connector


# -- longer than a value may be


def test_objects_longer_than_the_servers_limit(own, monkeypatch):
    connector, client = own
    client.config_set("proto-max-bulk-len", 1 << 20)
    with pytest.raises(redis.exceptions.RedisError):
        client.set("x", bytes(2 << 20))  # the limit is one
    monkeypatch.setattr(redis_module, "_LONGEST_VALUE", 1 << 20)
    monkeypatch.setattr(redis_module, "_CHUNK", 1 << 19)
    data = np.random.default_rng(0).integers(0, 255, (5 << 20) + 7, np.uint8).tobytes()
    key = connector.put(data)
    assert client.type(f"proxystore:{key.redis_key}") == b"hash"
    assert connector.get(key) == data
    assert connector.exists(key)
    assert list(connector.keys()) == [key]
    keys = connector.put_batch([b"a", data, b"b"])
    assert connector.get_batch([*keys, key]) == [b"a", data, b"b", data]
    connector.set(key, b"short")
    assert connector.get(key) == b"short"
    connector.set(key, data)
    assert connector.get(key) == data
    assert client.dbsize() == 4, "an object is one key, however long"
    for used in (key, *keys):
        assert client.ttl(f"proxystore:{used.redis_key}") == -1, "objects do not expire"
        connector.evict(used)
    assert client.dbsize() == 0


def test_an_object_of_more_than_512_mb(own):
    connector, client = own
    piece = np.random.default_rng(0).integers(0, 255, 8 << 20, np.uint8)
    key = connector.put_buffers([piece.data] * 65)
    assert client.hget(f"proxystore:{key.redis_key}", "size") == b"%d" % (520 << 20)
    data = np.frombuffer(connector.get(key), np.uint8)
    assert data.nbytes == 520 << 20
    assert all(np.array_equal(row, piece) for row in data.reshape(65, -1))


def test_readers_see_whole_objects_while_one_is_replaced(connector, small_chunks):
    # Short, one value; long, several chunks: of different lengths, and both ways.
    values = {bytes([i]) * size for i, size in enumerate((10, 90_000, 150_000, 210_000))}
    key = connector.put(next(iter(values)))
    done = threading.Event()
    torn = []

    def read():
        while not done.is_set():
            if bytes(connector.get(key)) not in values:
                torn.append(1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(20):
        for value in values:
            connector.set(key, value)
    done.set()
    for reader in readers:
        reader.join()
    assert not torn


def test_who_looks_sees_one_object_while_it_is_replaced(connector, small_chunks, at_once):
    # As above, and the length is that of the object of which the beginning is.
    values = [bytes([i]) * size for i, size in enumerate((10, 90_000, 150_000, 210_000))]
    expected = {(value[:100], len(value)) for value in values}
    key = connector.put(values[0])
    done = threading.Event()

    def write():
        for value in values * 50:
            connector.set(key, value)
        done.set()

    def look():
        found = set()
        while not done.is_set():
            data, nbytes = connector.peek(key, 100)
            found.add((bytes(data), nbytes))
        return found

    _, *seen = at_once(write, look, look)
    assert set.union(*seen) <= expected


def test_a_full_server_leaves_nothing_and_says_so(own, small_chunks):
    connector, client = own
    old = connector.put(b"old")
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 3_000_000)
    fill = [connector.new_key() for _ in range(1000)]
    with pytest.raises(RedisFullError, match="the object needs 50000 bytes"):
        collections.deque((connector.set(key, bytes(50_000)) for key in fill), 0)
    puts = (connector.put, functools.partial(connector.set, old))
    for size, put in itertools.product((50_000, 20_000_000), puts):
        with pytest.raises(RedisFullError, match=f"the object needs {size} bytes") as caught:
            put(bytes(size))
        assert isinstance(caught.value, StorageFullError)
        assert isinstance(caught.value, redis.exceptions.OutOfMemoryError)
        assert not list(client.scan_iter("*:*:*")), "no chunks are left"
    assert connector.exists(old)
    assert connector.get(old) == b"old"


def test_on_a_full_server_a_claim_says_that_it_is_the_claim(own):
    connector, client = own
    key = connector.put(b"x")
    client.config_set("maxmemory", 1)
    with pytest.raises(RedisFullError, match="for a claim on an object: it needs") as caught:
        connector.claim(key, "me" * 50, 60)
    assert 100 <= caught.value.needed < 200
    assert "acknowledged, here or elsewhere" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    connector.evict(key)  # which is what helps


class Unresolvable:
    """Makes no target: who resolves the proxy gets another error than the test waits for."""

    def __call__(self):
        raise AssertionError("it was resolved")


@pytest.mark.parametrize("key", ["ab", None, 5, ["a"], (), (5,), "a proxy"])
def test_what_is_no_key_is_refused_and_not_looked_into(key):
    if key == "a proxy":  # not among the parameters: pytest would resolve it
        key = Proxy(Unresolvable())
    connector = RedisConnector("localhost", 1)  # where nobody is asked
    uses = [connector.get, connector.exists, connector.evict, lambda key: connector.peek(key, 1)]
    uses += [lambda key: connector.set(key, b""), lambda key: connector.get_batch([key])]
    uses += [lambda key: connector.wait(key, 0), lambda key: connector.claim(key, "me", 1)]
    uses += [lambda key: connector.release(key, "me")]
    for use in uses:
        with pytest.raises(TypeError, match=r"such as RedisKey\(redis_key=...\).* got "):
            use(key)


def test_a_killed_writer_leaves_nothing_for_ever(own):
    connector, client = own
    script = textwrap.dedent(
        """
        import os, signal, sys
        from proxystore.connectors import redis as module
        module._LONGEST_VALUE, module._CHUNK = 100_000, 40_000
        real, count = module.exchange, 0
        def exchange(*arguments, **options):
            global count
            count += 1
            if count == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        module.exchange = exchange
        module.RedisConnector("localhost", int(sys.argv[1])).put(bytes(200_000))
        """
    )
    # Before the first command, later ones, and the last, which makes it an object.
    for step, left in (1, 0), (2, 1), (4, 1), (7, 1):
        run = subprocess.run([sys.executable, "-c", script, str(connector.port), str(step)])
        assert run.returncode == -signal.SIGKILL
        names = client.keys()
        assert len(names) == left
        assert all(0 < client.ttl(name) <= 600 for name in names), "it expires"
        assert not list(connector.keys()), "it is no object"
        connector.close(clear=True)
        assert client.dbsize() == 0, "it is cleared like one"


def test_a_value_of_somebody_elses_kind_is_an_error(connector, client, prefix):
    key = connector.new_key()
    client.rpush(prefix + key.redis_key, "x")
    with pytest.raises(RedisResponseError, match="WRONGTYPE"):
        connector.get(key)
    with pytest.raises(RedisResponseError, match="WRONGTYPE"):
        connector.peek(key, 1)
    connector.evict(key)


def test_a_value_of_somebody_elses_kind_without_a_prefix_is_none_of_ours(redis_server, client):
    connector = RedisConnector("localhost", redis_server.port)
    key = connector.new_key()
    client.rpush(key.redis_key, "x")
    assert connector.get(key) is None
    assert connector.peek(key, 1) is None
    connector.evict(key)


# -- listing and clearing


def test_clear_deletes_our_objects_and_nothing_else(own, small_chunks):
    connector, client = own
    name = str(uuid.uuid4())
    foreign = {
        "session", name, "proxystore:settings", f"proxystore:{name[:-1]}", f"proxystore2:{name}",
        f"other:proxystore:{name}", f"proxystore:x{name}",
    }  # fmt: skip
    client.mset(dict.fromkeys(foreign, b"not ours"))
    keys = [*connector.put_batch([b"x"] * 2500), connector.put(bytes(200_000))]
    connector.set(connector.named_key(f"{name}.suffix"), b"x")
    connector.claim(keys[0], "me", 60)
    client.hset(f"proxystore:{name}:{name}", "0", "a chunk")
    RedisConnector(**connector.config()).close(clear=True)
    assert {found.decode() for found in client.scan_iter()} == foreign


def test_prefixes_are_taken_literally(own):
    connector, client = own
    prefix = r"a*[b]?\^c:"
    odd = RedisConnector("localhost", connector.port, prefix=prefix)
    others = [p + str(uuid.uuid4()) for p in (r"axb?\^c:", "ab", r"a*bx\^c:", r"a*[b]x^c:")]
    client.mset(dict.fromkeys(others, b"x"))
    key = odd.put(b"x")
    assert list(odd.keys()) == [key]
    assert list(odd.keys(key.redis_key[:5])) == [key]
    odd.close(clear=True)
    assert client.dbsize() == len(others)


def test_listing_gives_each_object_once_however_many(connector):
    keys = connector.put_batch([b""] * 5000)
    listed = list(connector.keys())
    assert len(listed) == 5000
    assert set(listed) == set(keys)


def test_a_disowned_connector_deletes_nothing_unless_told_to(own):
    connector, _ = own
    key = connector.put(b"x")
    guest = RedisConnector("localhost", connector.port, clear=True)
    guest.disown()
    guest.close()
    assert connector.exists(key)
    guest.close(clear=True)
    assert not connector.exists(key)


def test_a_worker_does_not_clear(own):
    connector, _ = own
    connector.clear = True
    with Store("clearing", connector, register=True) as store:
        proxy = store.proxy([1], populate_target=False)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            assert pool.submit(_use_and_close, proxy).result() == [1]
        assert store.exists(proxy.__proxy_factory__.key)


def _use_and_close(proxy):
    value = list(proxy)
    proxy.__proxy_factory__.get_store().close()
    return value


# -- a server that comes and goes


def test_a_killed_server_is_an_error_at_once_and_is_used_again_when_it_is_back(own_redis_server):
    connector = RedisConnector("127.0.0.1", own_redis_server.port, timeout=20)
    key = connector.put(b"x")
    own_redis_server.kill()
    start = time.monotonic()
    for use, operation in [
        (lambda: connector.get(key), f"get {key.redis_key!r}"),
        (lambda: connector.put(bytes(1_000_000)), "put 1000000 bytes"),
        (lambda: connector.put_batch([b"x", b"y"]), "put a batch of 2"),
        (lambda: connector.get_batch([key]), "get a batch of 1"),
        (lambda: connector.wait(key, 20), "look for"),
        (lambda: connector.claim(key, "me", 1), "claim"),
        (lambda: list(connector.keys()), "list"),
        (lambda: connector.close(clear=True), "clear"),
    ]:
        with pytest.raises(RedisConnectionError, match=operation) as caught:
            use()
        assert isinstance(caught.value, ConnectorError)
        assert caught.value.server == f"127.0.0.1:{own_redis_server.port}"
        assert caught.value.server in str(caught.value)
        assert operation in caught.value.operation
    assert time.monotonic() - start < 10
    own_redis_server.start()
    assert connector.get(key) is None
    assert connector.get(connector.put(b"y")) == b"y"


def test_a_restart_between_two_uses_is_not_noticed(own_redis_server):
    connector = RedisConnector("localhost", own_redis_server.port)
    with ThreadPoolExecutor(8) as pool:  # several connections in the pool
        for _ in range(3):
            keys = list(pool.map(connector.put, [b"x"] * 32))
            own_redis_server.kill()
            own_redis_server.start()
            assert list(pool.map(connector.get, keys)) == [None] * 32


def test_a_server_killed_in_the_middle_of_a_transfer(own_redis_server, at_once):
    connector = RedisConnector(url=f"unix://{own_redis_server.socket_path}", timeout=20)
    key = connector.put(bytes(50_000_000))
    started = threading.Barrier(5)

    def until_it_fails(use):
        started.wait(10)
        with pytest.raises(RedisConnectionError):
            collections.deque((use() for _ in range(10_000)), 0)

    def kill():
        started.wait(10)
        own_redis_server.kill()

    start = time.monotonic()
    put = lambda: connector.evict(connector.put(bytes(50_000_000)))  # noqa: E731
    get = lambda: connector.get(key)  # noqa: E731
    at_once(kill, *[lambda use=use: until_it_fails(use) for use in (put, get, put, get)])
    assert time.monotonic() - start < 15
    own_redis_server.start()
    assert connector.get(connector.put(b"again")) == b"again"


def test_a_server_that_does_not_answer_is_an_error_in_time(own_redis_server):
    connector = RedisConnector("localhost", own_redis_server.port, timeout=0.3)
    keys = [connector.put(b"%d" % i * 100_000) for i in range(2)]
    own_redis_server.suspend()
    try:
        for use in (
            lambda: connector.get(keys[0]),
            lambda: connector.put(bytes(20_000_000)),  # more than buffers take
            lambda: connector.wait(keys[0], 10),
        ):
            start = time.monotonic()
            with pytest.raises(RedisTimeoutError, match=r"timeout=0\.3 s") as caught:
                use()
            assert 0.25 < time.monotonic() - start < 3
            assert isinstance(caught.value, redis.exceptions.ConnectionError)
            assert isinstance(caught.value, redis.exceptions.TimeoutError)
    finally:
        own_redis_server.resume()
    # And no late answer is taken for that to another question.
    for i, key in enumerate(keys):
        assert connector.get(key) == b"%d" % i * 100_000


def test_a_put_that_timed_out_leaves_nothing(own_redis_server, small_chunks):
    connector = RedisConnector("localhost", own_redis_server.port, timeout=0.2)
    key = connector.put(b"there is a connection")
    own_redis_server.suspend()
    try:
        for put in (
            lambda: connector.put(b"gets as far as the server's socket"),
            lambda: connector.put_batch([b"this", b"too"]),
            lambda: connector.put(bytes(200_000)),
        ):
            start = time.monotonic()
            with pytest.raises(RedisTimeoutError):
                put()
            assert time.monotonic() - start < 2
    finally:
        own_redis_server.resume()
    client = redis.StrictRedis(unix_socket_path=own_redis_server.socket_path)
    with client:
        assert client.dbsize() > 1, "the server has done what it was asked to, too late"
        last = connector.put(b"works again")
        names = {name.decode() for name in client.scan_iter()}
        whole = {name for name in names if client.ttl(name) == -1}
        assert whole == {f"proxystore:{kept.redis_key}" for kept in (key, last)}


def test_an_interrupted_transfer_does_not_confuse_the_next(connector, monkeypatch):
    first, second = connector.put(b"1" * 100_000), connector.put(b"2" * 100_000)
    real = redis_module.exchange.__globals__["Reader"]

    class Interrupted(real):
        def _value(self, length):
            raise KeyboardInterrupt

    monkeypatch.setitem(redis_module.exchange.__globals__, "Reader", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        connector.get(first)
    monkeypatch.undo()
    assert connector.get(second) == b"2" * 100_000


def test_without_access_to_the_socket_redis_py_reads_the_replies(connector, monkeypatch):
    monkeypatch.setitem(redis_module.exchange.__globals__, "socket", _NoSockets)
    check_connector(connector)


class _NoSockets:
    class socket: ...

    timeout = TimeoutError


# -- errors


def test_a_wrong_password_names_the_user(redis_server):
    connector = RedisConnector("localhost", redis_server.port, username="app", password="wrong")
    with pytest.raises(RedisAuthenticationError, match="user 'app'") as caught:
        connector.get(connector.new_key())
    assert isinstance(caught.value, redis.exceptions.AuthenticationError)
    assert caught.value.username == "app"


def test_a_server_that_wants_a_password(own):
    connector, client = own
    client.config_set("requirepass", "pw")
    with (
        RedisConnector("localhost", connector.port) as nobody,
        pytest.raises(RedisAuthenticationError, match="the default user"),
    ):
        nobody.put(b"x")
    client.config_set("requirepass", "")


def test_what_a_user_may_not_do(redis_server):
    connector = RedisConnector(
        *("localhost", redis_server.port),
        **{"username": "app", "password": redis_server.password, "prefix": "elsewhere:"},
    )
    for use in (
        lambda: connector.put(b"x"),
        lambda: connector.set(connector.new_key(), b"x"),
        lambda: connector.get(connector.new_key()),
        lambda: connector.get_batch([connector.new_key()]),
        lambda: connector.claim(connector.new_key(), "x", 1),
    ):
        with pytest.raises(RedisPermissionError, match="user 'app'") as caught:
            use()
        assert isinstance(caught.value, redis.exceptions.NoPermissionError)


ERRORS = [
    *[
        cls("localhost:6379", "get 'x'", "its reason", "somebody")
        for cls in (
            RedisServerError,
            RedisConnectionError,
            RedisTimeoutError,
            RedisAuthenticationError,
            RedisPermissionError,
            RedisResponseError,
        )
    ],
    RedisFullError("localhost:6379", 100, 0),
    RedisFullError("localhost:6379", 100, 0, "claim"),
]


@pytest.mark.parametrize("library", [pickle, cloudpickle, dill])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_errors_travel_between_processes(error, library):
    again = library.loads(library.dumps(error))
    assert (type(again), str(again), repr(again)) == (type(error), str(error), repr(error))
    assert vars(again) == vars(error)
    assert "localhost:6379" in str(error)


def test_errors_travel_where_tblib_is_switched_on():
    script = "import pickle, sys; from tblib import pickling_support as p; p.install(); " + (
        "e = pickle.load(sys.stdin.buffer); f = pickle.loads(pickle.dumps(e)); "
        "assert [(type(a), str(a)) for a in e] == [(type(a), str(a)) for a in f], f"
    )
    assert pickling_support
    subprocess.run([sys.executable, "-c", script], input=pickle.dumps(ERRORS), check=True)


def test_a_missing_client_names_the_extra():
    script = textwrap.dedent(
        """
        import sys
        sys.modules["redis"] = None
        from proxystore.store.config import ConnectorConfig
        path = "proxystore.connectors.redis.RedisConnector"
        for use in (
            lambda: __import__("proxystore.connectors.redis"),
            lambda: ConnectorConfig(kind="redis").get_connector(),
            lambda: ConnectorConfig(kind=path).get_connector(),
        ):
            try:
                use()
            except ImportError as error:
                assert "pip install redis" in str(error), error
            else:
                raise AssertionError("no error")
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# -- waiting


def until_subscribed(client, channel):
    wait_until(lambda: client.pubsub_numsub(channel)[0][1], pause=0.001, what="a subscriber")


def test_a_waiter_is_woken_up_in_time(connector, client, prefix):
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(10):
            key = connector.new_key()
            waiting = pool.submit(connector.wait, key, 30)
            until_subscribed(client, prefix + key.redis_key)
            connector.set(key, b"x")
            assert waiting.result() is True
    assert time.monotonic() - start < 5, "looking every second would take 10"


def test_a_waiter_notices_what_nobody_announces(connector, client, prefix):
    key = connector.new_key()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(connector.wait, key, 30)
        until_subscribed(client, prefix + key.redis_key)
        client.set(prefix + key.redis_key, b"x")  # with no word to who waits
        assert waiting.result(10) is True


def test_a_waiter_that_may_not_subscribe_looks(own, caplog):
    connector, client = own
    client.acl_setuser("deaf", enabled=True, passwords="+pw", keys=["*"], categories=["+@all"],
                       reset_channels=True)  # fmt: skip
    key = connector.new_key()
    with (
        RedisConnector("localhost", connector.port, username="deaf", password="pw") as deaf,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(deaf.wait, key, 30)
        deaf.set(key, b"x")  # may not publish either
        assert waiting.result(10) is True
        assert deaf.wait(deaf.new_key(), 0.1) is False
    assert "may not subscribe" in caplog.text


def test_a_waiter_does_not_hang_when_the_server_is_killed(own_redis_server):
    connector = RedisConnector("localhost", own_redis_server.port)
    client = redis.StrictRedis(unix_socket_path=own_redis_server.socket_path)
    key = connector.new_key()
    with client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(connector.wait, key, 60)
        until_subscribed(client, f"proxystore:{key.redis_key}")
        own_redis_server.kill()
        with pytest.raises(RedisConnectionError, match=r"wait for|look for"):
            waiting.result(10)
        own_redis_server.start()
        waiting = pool.submit(connector.wait, key, 60)
        connector.set(key, b"x")
        assert waiting.result(10) is True


def test_waiters_give_their_connections_back(own):
    connector, client = own
    key = connector.put(b"x")
    for _ in range(5):
        assert connector.wait(key, 1)
        assert not connector.wait(connector.new_key(), 0.01)
    assert len(client.client_list()) <= 4
    assert not client.pubsub_channels()


# -- claims


def test_a_claim_is_the_servers_to_end(own):
    connector, client = own
    key = connector.put(b"x")
    assert connector.claim(key, "me, größer", 0.5) == "me, größer"
    assert 0 < client.pttl(f"proxystore:{key.redis_key}:claim") <= 500
    connector.evict(key)
    assert client.dbsize() == 0
    with pytest.raises(ValueError, match="more than 0 seconds"):
        connector.claim(key, "me", 0)


# -- threads and processes


def test_64_threads_share_a_connector(connector, at_once):
    def work(i):
        for j in range(10):
            size = [10, 1000, 40_000, 300_000][(i + j) % 4]
            key = connector.put(bytes([i]) * size)
            assert connector.get(key) == bytes([i]) * size
            assert connector.exists(key)
            keys = connector.put_batch([bytes([i, j])] * 3)
            assert connector.get_batch(keys) == [bytes([i, j])] * 3
            for used in (key, *keys):
                connector.evict(used)
        return True

    assert all(at_once(*[lambda i=i: work(i) for i in range(64)]))
    assert not list(connector.keys())


def _in_the_child(connector, keys, queue):
    for _ in range(50):
        assert connector.get(keys[1]) == b"2" * 100_000
    queue.put(connector.put(b"from the child"))
    connector.close()


def test_parent_and_forked_child_do_not_share_connections(own):
    connector, _ = own
    connector.clear = True
    keys = [connector.put(b"%d" % i * 100_000) for i in (1, 2)]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_the_child, args=(connector, keys, queue))
    child.start()
    for _ in range(50):
        assert connector.get(keys[0]) == b"1" * 100_000
    child.join()
    assert child.exitcode == 0
    assert connector.get(queue.get()) == b"from the child"
    assert connector.exists(keys[0]), "and the child clears nothing"


def _sum(proxy):
    return os.getpid(), float(proxy.sum())


def test_a_store_used_by_a_pool_of_processes(connector):
    arrays = [np.full(100_000, i, float) for i in range(8)]
    with Store("pool", connector, register=True) as store:
        proxies = store.proxy_batch(arrays, populate_target=False)
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            results = list(pool.map(_sum, proxies))
    assert [value for _, value in results] == [100_000.0 * i for i in range(8)]
    assert os.getpid() not in {pid for pid, _ in results}


# -- the server of tests


def test_a_server_ends_with_whoever_started_it():
    script = (
        "import os, signal; from proxystore.testing.redis_server import RedisServer; "
        "print(RedisServer().pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pid = int(run.stdout)
    wait_until(lambda: not _is_running(pid), what="its end")


def _is_running(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_no_server_is_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PROXYSTORE_REDIS_SERVER", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="apt-get install redis-server"):
        find_server()


def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="no-such-option"):
        RedisServer(extra="no-such-option 1\n")
