"""Contract, section 5.4 and what 5.1, 8.1 and 24 say of it: objects in a Redis server."""

from __future__ import annotations

import pickle
import uuid

import pytest
import redis

from proxystore.connectors.protocols import Connector, DeferrableConnector
from proxystore.connectors.redis import RedisConnector, RedisKey
from proxystore.store import Store
from proxystore.store.config import ConnectorConfig
from proxystore.store.utils import get_key
from proxystore.testing import check_connector


class FakeRedis:
    """What other people's tests put in the place of `redis.StrictRedis`."""

    def __init__(self, host, port, **kwargs):
        self.address = (host, port)
        self.data = {}
        self.calls = []

    def set(self, key, value):
        self.calls.append("set")
        self.data[key] = value

    def get(self, key):
        return self.data.get(key)

    def mset(self, values):
        self.calls.append("mset")
        self.data.update(values)

    def mget(self, keys):
        self.calls.append("mget")
        return [self.data.get(key) for key in keys]

    def exists(self, key):
        return int(key in self.data)

    def delete(self, key):
        self.data.pop(key, None)

    def flushdb(self):
        raise AssertionError("other people's data")

    def close(self):
        self.calls.append("close")


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(redis, "StrictRedis", FakeRedis)
    connector = RedisConnector("host", 1234)
    return connector, connector._client


@pytest.fixture
def connector(redis_server):
    connector = RedisConnector("localhost", redis_server.port)
    yield connector
    connector.close(clear=True)


# -- with a stand-in for the client


def test_the_client_is_looked_up_at_construction(fake):
    _, client = fake
    assert isinstance(client, FakeRedis)
    assert client.address == ("host", 1234)


def test_values_are_bytes_under_a_random_uuid(fake):
    connector, client = fake
    key = connector.put(bytearray(b"value"))
    assert uuid.UUID(key.redis_key).version == 4
    assert list(client.data.values()) == [b"value"]
    assert type(next(iter(client.data.values()))) is bytes


def test_a_stand_in_can_do_what_it_must(fake):
    connector, client = fake
    key = connector.put(b"value")
    assert connector.get(key) == b"value"
    assert connector.exists(key) is True
    connector.evict(key)
    connector.evict(key)
    assert connector.get(key) is None
    assert connector.exists(key) is False
    new = connector.new_key()
    assert not connector.exists(new)
    connector.set(new, b"first")
    connector.set(new, b"last")
    assert connector.get(new) == b"last"
    assert connector.wait(new, 0) is True
    assert connector.wait(key, 0.01) is False
    connector.close()
    connector.close(clear=True)
    assert client.calls.count("close") == 2


def test_a_batch_is_one_command(fake):
    connector, client = fake
    keys = connector.put_batch([b"a", b"b", b"c"])
    assert client.calls == ["mset"]
    client.calls.clear()
    assert connector.get_batch(keys[::-1]) == [b"c", b"b", b"a"]
    assert client.calls == ["mget"]
    connector.evict(keys[1])
    assert connector.get_batch(keys) == [b"a", None, b"c"]


def test_a_store_works_with_a_stand_in(fake):
    connector, _ = fake
    with Store("with-a-stand-in", connector) as store:
        assert store.get(store.put([1, 2, 3])) == [1, 2, 3]
        assert store.proxy_batch(["a", "b"]) == ["a", "b"]


# -- what it is


def test_arguments_may_be_positional():
    connector = RedisConnector("host", 1234, True)
    assert (connector.hostname, connector.port, connector.clear) == ("host", 1234, True)
    assert RedisConnector("host", 1234).clear is False


def test_nothing_is_connected_before_the_first_use():
    with RedisConnector("localhost", 1) as connector:
        assert connector.new_key() != connector.new_key()


def test_config_is_what_the_constructor_takes():
    connector = RedisConnector("host", 1234, clear=True)
    assert connector.config() == {"hostname": "host", "port": 1234, "clear": True}
    assert RedisConnector(**connector.config()).config() == connector.config()
    assert type(RedisConnector.from_config(connector.config())) is RedisConnector


def test_attributes_and_defaults():
    connector = RedisConnector(hostname="host", port=1234)
    assert (connector.hostname, connector.port, connector.clear) == ("host", 1234, False)
    assert connector.config() == {"hostname": "host", "port": 1234, "clear": False}


def test_leaving_its_block_closes_it_and_so_does_closing_again(fake):
    connector, client = fake
    with connector as entered:
        assert entered is connector
        assert client.calls == []
    assert client.calls == ["close"]
    connector.close()


def test_new_keys_are_random_uuids():
    connector = RedisConnector("host", 1234)
    key = connector.new_key(b"not looked at")
    assert type(key) is RedisKey
    assert uuid.UUID(key.redis_key).version == 4
    assert key != connector.new_key()


def test_repr_names_host_and_port():
    assert repr(RedisConnector("host", 1234)) == "RedisConnector(hostname=host, port=1234)"


def test_protocols():
    connector = RedisConnector("host", 1234)
    assert isinstance(connector, Connector)
    assert isinstance(connector, DeferrableConnector)


def test_keys_are_named_tuples():
    key = RedisKey("name")
    assert (key, key.redis_key) == (("name",), "name")
    assert pickle.loads(pickle.dumps(key)) == RedisKey(redis_key="name")


@pytest.mark.parametrize("kind", ["redis", "Redis", "REDIS", "RedisConnector", "redisconnector"])
def test_short_names_in_configurations(kind):
    config = ConnectorConfig(kind=kind, options={"hostname": "host", "port": 1234})
    assert config.get_connector_type() is RedisConnector
    assert config.get_connector().port == 1234


# -- with a server


@pytest.mark.redis
def test_keeps_the_connector_contract(connector):
    check_connector(connector)


@pytest.mark.redis
def test_exists_is_a_bool(connector):
    key = connector.put(b"")
    assert connector.exists(key) is True
    connector.evict(key)
    assert connector.exists(key) is False


@pytest.mark.redis
def test_the_last_of_several_values_wins(connector):
    key = connector.new_key()
    connector.set(key, b"first")
    connector.set(key, b"last")
    assert connector.get(key) == b"last"


@pytest.mark.redis
@pytest.mark.parametrize(("clear", "in_call", "gone"), [
    (False, None, False), (True, None, True), (True, False, False), (False, True, True),
])  # fmt: skip
def test_close_clears_as_told(own_redis_server, clear, in_call, gone):
    connector = RedisConnector("localhost", own_redis_server.port, clear)
    key = connector.put(b"x")
    connector.close() if in_call is None else connector.close(clear=in_call)
    assert connector.exists(key) is not gone, "closed is not for ever"


@pytest.mark.redis
def test_two_connectors_may_both_clear(own_redis_server):
    first = RedisConnector("localhost", own_redis_server.port, clear=True)
    second = RedisConnector("localhost", own_redis_server.port, clear=True)
    key = first.put(b"x")
    assert second.get(key) == b"x"
    first.close()
    second.close()
    assert second.get(key) is None


@pytest.mark.redis
def test_several_connectors_share_what_is_there(connector):
    with RedisConnector.from_config(connector.config()) as other:
        assert other.get(connector.put(b"x")) == b"x"


def test_without_a_server_the_clients_own_exceptions_come_at_the_first_use():
    connector = RedisConnector("localhost", 1)
    for use in (
        lambda: connector.get(RedisKey("x")),
        lambda: connector.put(b"x"),
        lambda: connector.put_batch([b"x"]),
        lambda: connector.get_batch([RedisKey("x")]),
        lambda: connector.exists(RedisKey("x")),
        lambda: connector.evict(RedisKey("x")),
        lambda: connector.set(RedisKey("x"), b"x"),
        lambda: connector.wait(RedisKey("x"), 1),
        lambda: connector.close(clear=True),
    ):
        with pytest.raises(redis.exceptions.ConnectionError):
            use()


@pytest.mark.redis
def test_an_empty_batch_is_none(connector):
    assert connector.put_batch([]) == []
    assert connector.get_batch([]) == []
    with Store("empty-batch", connector) as store:
        assert store.proxy_batch([]) == []


@pytest.mark.redis
def test_tool_servers_find_objects_by_key(redis_server, connector):
    with (
        Store("writer", connector) as writer,
        Store("reader", RedisConnector("localhost", redis_server.port)) as reader,
    ):
        key = get_key(writer.proxy({"a": 1}))
        assert isinstance(key, RedisKey)
        assert type(writer.connector).__name__ == "RedisConnector"
        assert reader.get(RedisKey(key.redis_key)) == {"a": 1}
