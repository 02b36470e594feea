"""`Store.info`: what is known of a stored object without getting it."""

from __future__ import annotations

import datetime
import getpass
import os
import pickle
import socket
import subprocess
import sys
import uuid

import numpy as np
import pytest

from proxystore.connectors import redis as redis_module
from proxystore.connectors.file import FileConnector, FileKey
from proxystore.connectors.local import LocalConnector, LocalKey
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.connectors.redis import RedisConnector, RedisKey
from proxystore.serialize import SerializationError, serialize
from proxystore.serialize.frames import MAGIC
from proxystore.store import Store
from proxystore.store.info import ObjectInfo
from proxystore.store.utils import get_key

UTC = datetime.timezone.utc


class Outer:
    """Holds a class."""

    class Inner(dict):
        """A subclass that is nested."""


class Text(str):
    """A subclass of what has an encoding of its own."""


class Explosive:
    """Cannot be unpickled."""

    def __reduce__(self):
        return explode, ()


def explode():
    raise AssertionError("was unpickled")


class Plain:
    """A connector that can do no more than it must: hides what another one can."""

    def __init__(self, connector):
        self._connector = connector

    def __getattr__(self, name):
        return getattr(self._connector, name)


def with_methods(cls):
    for name in "close config evict exists get get_batch put put_batch".split():
        setattr(cls, name, lambda self, *args, name=name: getattr(self._connector, name)(*args))
    return cls


with_methods(Plain)

KINDS = ("local", "plain", "file", "read file", "multi", "multi, plain", "redis", "redis, chunks")


@pytest.fixture(params=[*KINDS[:6], *(pytest.param(k, marks=pytest.mark.redis) for k in KINDS[6:])])
def store(request, tmp_path):
    kind = request.param
    if "redis" in kind:
        server = request.getfixturevalue("redis_server")
        connector = RedisConnector(url=f"unix://{server.socket_path}", prefix=f"{uuid.uuid4()}:")
        if "chunks" in kind:
            patch = request.getfixturevalue("monkeypatch")
            patch.setattr(redis_module, "_LONGEST_VALUE", 100)
            patch.setattr(redis_module, "_CHUNK", 40)
    elif "file" in kind:
        connector = FileConnector(tmp_path / "objects", mmap=kind == "file")
    else:
        connector = LocalConnector()
        if "plain" in kind:
            connector = Plain(connector)
        if "multi" in kind:
            connector = MultiConnector({"one": (connector, Policy())})
    with Store("info", connector, cache_size=0) as store:
        yield store
        if isinstance(connector, RedisConnector):
            connector.close(clear=True)


@pytest.fixture
def local():
    with Store("info", LocalConnector(), register=True) as store:
        yield store


def replace(store, key, data):
    """Put other data behind the key of a store over a `LocalConnector`."""
    store.connector._store[key] = data


# -- what is said


@pytest.mark.parametrize(
    ("obj", "type_name", "kind"),
    [
        (b"abc", "builtins.bytes", "bytes"),
        ("abc", "builtins.str", "string"),
        (bytearray(100_000), "builtins.bytearray", "bytearray"),
        (None, "builtins.NoneType", "pickle"),
        (Text("abc"), f"{__name__}.Text", "pickle"),
        (Outer.Inner(a=1), f"{__name__}.Outer.Inner", "pickle"),
        (np.arange(100_000), "numpy.ndarray", "pickle"),
        (np.ma.array([1], mask=[True]), "numpy.ma.MaskedArray", "pickle"),
        (lambda: 1, "builtins.function", "cloudpickle"),
        ([np.zeros(100)] * 1000, "builtins.list", "pickle"),
        ([np.zeros(100) for _ in range(1000)], "builtins.list", "pickle"),  # a long header
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_of_each_kind_of_object(store, obj, type_name, kind):
    before = datetime.datetime.now(UTC) - datetime.timedelta(milliseconds=1)
    key = store.put(obj)
    after = datetime.datetime.now(UTC)
    info = store.info(key)
    assert type(info) is ObjectInfo
    assert info.key == key
    assert info.nbytes == len(bytes(store.connector.get(key)))
    # numpy has moved MaskedArray to another module and kept the name.
    assert info.type_name.replace(".ma.core.", ".ma.") == type_name
    assert info.kind == kind
    assert before <= info.created <= after
    assert info.created.utcoffset() == datetime.timedelta(0)
    assert info.owner == f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"


def test_a_class_in_a_function(store):
    class Local:
        pass

    name = "test_a_class_in_a_function.<locals>.Local"
    assert store.info(store.put(Local())).type_name == f"{__name__}.{name}"


@pytest.mark.parametrize("obj", [b"abc", "abc", [1], {"a": np.arange(100_000)}], ids=repr)
def test_digests_of_equal_objects_are_equal(tmp_path, obj):
    other = pickle.loads(pickle.dumps(obj))
    with (
        Store("one", LocalConnector()) as one,
        Store("two", FileConnector(tmp_path / "two"), verify=True) as two,
    ):
        infos = [one.info(one.put(obj)), one.info(one.put(other)), two.info(two.put(other))]
        different = one.info(one.put([obj]))
    assert {len(info.digest) for info in infos} == {32}
    assert len({info.digest for info in infos}) == 1
    assert different.digest not in {None, infos[0].digest}


def test_what_has_no_checksum_has_no_digest(tmp_path):
    with Store("mapped", FileConnector(tmp_path / "objects")) as store:
        info = store.info(store.put(np.arange(100_000)))
        assert (info.digest, info.type_name) == (None, "numpy.ndarray")


def test_a_missing_object_is_none(store):
    key = store.put("abc")
    store.evict(key)
    assert store.info(key) is None


def test_a_future_before_and_after_and_when_it_fails(local):
    future = local.future()
    key = get_key(future.proxy())
    assert local.info(key) is None
    future.set_result({"a": 1})
    assert local.info(key).type_name == "builtins.dict"
    failed = local.future()
    failed.set_exception(ZeroDivisionError("no result"))
    info = local.info(get_key(failed.proxy()))
    assert info.type_name == "proxystore.store._failures.Failure"
    assert info.owner.endswith(f":{os.getpid()}")


def test_nothing_is_unpickled(store):
    key = store.put(Explosive())
    assert store.info(key).type_name == f"{__name__}.Explosive"
    with pytest.raises(SerializationError, match="was unpickled"):
        store.get(key)


def test_what_is_cached_is_looked_at_where_it_is(local):
    key = local.put([1])
    local.get(key)
    assert local.is_cached(key)
    local.connector.evict(key)
    assert local.info(key) is None


# -- other people's bytes


def test_of_another_serializer_only_the_length_is_known(store):
    key = store.put([1], serializer=lambda obj: b"mine")
    assert store.info(key) == ObjectInfo(key, 4)
    key = store.put([1], serializer=lambda obj: b"")
    assert store.info(key) == ObjectInfo(key, 0)


@pytest.mark.parametrize(
    "data", [b"BS\nx", b"US\nabc", b"PK\n" + pickle.dumps([1]), b"CP\n" + b"x" * 10_000, b"NP\n"]
)
def test_of_data_of_existing_installations_only_the_length_is_known(local, data):
    key = local.connector.put(data)
    assert local.info(key) == ObjectInfo(key, len(data))


def test_of_data_that_version_2_0_has_stored_origin_and_age_are_not_known(local):
    key = local.connector.put(serialize([1]))  # which says neither
    info = local.info(key)
    assert (info.created, info.owner) == (None, None)
    assert info.type_name == "builtins.list"
    assert info.digest == local.info(local.put([1])).digest


# -- damage


@pytest.mark.parametrize("length", [8, 30, 63, 64, 100, -64, -1])
def test_truncated_data_name_the_key(local, length):
    key = local.put([np.zeros(3), "x"])
    replace(local, key, bytes(local.connector.get(key))[:length])
    with pytest.raises(SerializationError) as caught:
        local.info(key)
    assert repr(key) in str(caught.value)
    assert caught.value.__cause__ is not None
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


# Version, kind, number of buffers (two bytes of it), length of the whole, of a buffer.
@pytest.mark.parametrize("at", [8, 9, 13, 15, 32, 39, 64])
def test_a_damaged_header_names_the_key(tmp_path, at):
    with Store("damaged", FileConnector(tmp_path / "objects")) as store:
        key = store.put(np.zeros(100_000))
        (path,) = (tmp_path / "objects").glob("*-*")
        data = bytearray(path.read_bytes())
        assert data.startswith(MAGIC)
        data[at] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(SerializationError) as caught:
            store.info(key)
        assert repr(key) in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_what_is_said_may_be_nonsense_and_no_error(local):
    key = local.put([1])
    data = bytearray(local.connector.get(key))
    data[57:64] = b"\xff" * 7  # a time that no calendar has
    data[80:82] = b"\xff\xff"  # no UTF-8
    replace(local, key, bytes(data))
    info = local.info(key)
    assert info.created is None
    assert "\ufffd" in info.type_name


# -- costs


class Recording(FileConnector):
    """Adds up how much is read."""

    nbytes = 0

    def get(self, key):
        raise AssertionError("all of it is asked for")

    def peek(self, key, length):
        found = super().peek(key, length)
        self.nbytes += memoryview(found[0]).nbytes
        return found


def test_a_few_kilobytes_of_a_large_object_are_read(tmp_path):
    with Store("large", Recording(tmp_path / "objects")) as store:
        info = store.info(store.put(np.zeros(100_000_000, np.uint8)))
        assert info.nbytes > 100_000_000
        assert info.type_name == "numpy.ndarray"
        assert 0 < store.connector.nbytes <= 8192
        # A header of 16 kB: as much as it takes, and no more.
        store.connector.nbytes = 0
        info = store.info(store.put([np.zeros(10_000, np.uint8) for _ in range(2000)]))
        assert info.type_name == "builtins.list"
        assert 16_000 < store.connector.nbytes < 32_000


@pytest.mark.redis
def test_a_server_sends_a_few_kilobytes_of_a_large_object(own_redis_server):
    connector = RedisConnector("localhost", own_redis_server.port)

    def sent():
        return connector._client.info("stats")["total_net_output_bytes"]

    with Store("large", connector) as store:
        key = store.put(bytes(100_000_000))
        before = sent()
        assert store.info(key).nbytes > 100_000_000
        assert sent() - before < 30_000, "with the statistics themselves"


# -- elsewhere


def test_put_by_another_process(tmp_path):
    program = f"""\
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
store = Store("other", FileConnector({str(tmp_path / "objects")!r}, clear=False))
class Mine: pass
import os
print(os.getpid(), *store.put(Mine()))
"""
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, stdout=subprocess.PIPE, text=True
    ).stdout
    pid, *fields = output.split()
    assert int(pid) != os.getpid()
    with Store("here", FileConnector(tmp_path / "objects")) as store:
        info = store.info(FileKey(*fields))
    assert info.type_name == "__main__.Mine"
    assert info.owner.endswith(f":{pid}")


def test_put_in_a_forked_child(tmp_path):
    with Store("fork", FileConnector(tmp_path / "objects")) as store:
        assert store.info(store.put(1)).owner.endswith(f":{os.getpid()}")
        key = store.connector.new_key()
        pid = os.fork()
        if not pid:
            store._set(key, 2)
            os._exit(0)
        os.waitpid(pid, 0)
        assert store.info(key).owner.endswith(f":{pid}")


# -- around it


def test_it_is_measured():
    with Store("metrics", LocalConnector(), metrics=True) as store:
        key = store.put([1])
        store.info(key)
        times = store.metrics.get_metrics(key).times
        assert {"store.info", "store.info.connector"} <= times.keys()


def test_an_info_travels(local):
    info = local.info(local.put([1]))
    assert pickle.loads(pickle.dumps(info)) == info
    assert len({info, pickle.loads(pickle.dumps(info))}) == 1


@pytest.mark.redis
def test_objects_without_a_prefix_are_looked_into(redis_server):
    with Store("old", RedisConnector("localhost", redis_server.port)) as store:
        key = RedisKey(str(uuid.uuid4()))
        assert store.info(key) is None
        store.connector._client.set(key.redis_key, b"US\nabc")
        assert store.info(key) == ObjectInfo(key, 6)
        store.evict(key)


def test_a_key_of_another_kind_is_simply_missing(local):
    assert local.info(LocalKey("none")) is None
