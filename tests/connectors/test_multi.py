"""MultiConnector beyond the contract: fail-over, batches, zero copies, other processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import socket
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from proxystore.connectors import multi as multi_module
from proxystore.connectors.exceptions import ConnectorError, StoreDirectoryGoneError
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.multi import (
    DormantConnectorError,
    MultiConnector,
    MultiConnectorError,
    MultiKey,
    NoPolicyMatchError,
    NoSuchConnectorError,
    Policy,
)
from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.store import Store, StoreConfig, get_store, unregister_store
from proxystore.store.config import ConnectorConfig
from proxystore.testing import check_connector


class Recorder(LocalConnector):
    """Remembers which calls came, and can be told to fail."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error
        self.calls = []

    def put(self, obj):
        self.calls.append(("put", 1))
        if self.error is not None:
            raise self.error
        return super().put(obj)

    def put_batch(self, objs):
        self.calls.append(("put_batch", len(objs)))
        if self.error is not None:
            raise self.error
        return [LocalConnector.put(self, obj) for obj in objs]

    def get_batch(self, keys):
        self.calls.append(("get_batch", len(keys)))
        return super().get_batch(keys)

    def close(self):
        self.calls.append(("close", 1))
        if self.error is not None:
            raise self.error


@pytest.fixture
def split(tmp_path):
    """Small objects in memory, large ones in files."""
    with MultiConnector(
        {
            "memory": (LocalConnector(), Policy(priority=1, max_size_bytes=1000)),
            "disk": (FileConnector(tmp_path / "disk"), Policy()),
        }
    ) as connector:
        yield connector


def test_keeps_the_connector_contract(split):
    check_connector(split)


def test_looks_into_objects_of_a_connector_that_cannot_look():
    class Plain:
        """Has nothing but `get`."""

        def get(self, key):
            return bytearray(b"abcdef") if key == "there" else None

    connector = MultiConnector({"one": (Plain(), Policy()), "two": (LocalConnector(), Policy())})
    assert connector.peek(MultiKey("one", "there"), 3) == (b"abc", 6)
    assert connector.peek(MultiKey("one", "there"), 9) == (b"abcdef", 6)
    assert connector.peek(MultiKey("one", "missing"), 3) is None
    key = connector.connectors["two"].connector.put(b"xyz")
    assert connector.peek(MultiKey("two", key), 2) == (b"xy", 3)
    with pytest.raises(NoSuchConnectorError):
        connector.peek(MultiKey("three", key), 2)


def test_with_no_connector_at_all():
    connector = MultiConnector()
    assert MultiConnector(**connector.config()).connectors == {}
    with pytest.raises(NoPolicyMatchError, match="none"):
        connector.put(b"")


# -- fail-over


@pytest.mark.parametrize("error", [ConnectorError("down"), ConnectionError("down")])
def test_what_a_connector_cannot_store_goes_to_the_next(error, caplog):
    # compat.md, row 51
    first, second = Recorder(error), Recorder()
    connector = MultiConnector(
        {
            "first": (first, Policy(priority=2)),
            "not for it": (Recorder(), Policy(priority=1, min_size_bytes=9)),
            "second": (second, Policy()),
        }
    )
    key = connector.put(b"x")
    assert key.connector_name == "second"
    assert connector.get(key) == b"x"
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "proxystore.connectors.multi")
    assert "'first'" in record.message
    assert "down" in record.message


def test_a_directory_that_is_gone_is_no_reason_to_fail(tmp_path):
    gone, here = FileConnector(tmp_path / "gone"), FileConnector(tmp_path / "here")
    store = Store("m", MultiConnector({"gone": (gone, Policy()), "here": (here, Policy())}))
    gone.close()
    assert store.put([1]).connector_name == "here"
    assert [key.connector_name for key in store.put_batch([[1], [2]])] == ["here", "here"]
    here.close()
    with pytest.raises(StoreDirectoryGoneError) as caught:
        store.put([1])
    assert caught.value.path == str(tmp_path / "gone"), "the first error"


def test_a_server_that_is_down_is_no_reason_to_fail(tmp_path, caplog):
    redis = pytest.importorskip("proxystore.connectors.redis")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        down = redis.RedisConnector("127.0.0.1", taken.getsockname()[1])
        here = FileConnector(tmp_path / "here")
        store = Store("m", MultiConnector({"down": (down, Policy()), "here": (here, Policy())}))
        assert store.put([1]).connector_name == "here"
        assert {key.connector_name for key in store.put_batch([[1], [2]])} == {"here"}
        assert "'down'" in caplog.text
        store.close()


@pytest.mark.redis
def test_keeps_the_contract_with_a_server(tmp_path, redis_server):
    from proxystore.connectors.redis import RedisConnector

    members = {
        "server": (RedisConnector("localhost", redis_server.port), Policy(max_size_bytes=1000)),
        "disk": (FileConnector(tmp_path / "disk"), Policy()),
    }
    with MultiConnector(members) as connector:
        check_connector(connector)
        store = Store("m", connector, cache_size=0)
        objs = [[1], "x" * 5000, [2]]
        keys = store.put_batch(objs)
        assert [key.connector_name for key in keys] == ["server", "disk", "server"]
        assert [store.get(key) for key in keys] == objs
        for key in keys:
            store.evict(key)


def test_the_first_error_is_raised_if_nobody_can():
    errors = [ConnectorError("first"), OSError("second")]
    members = {str(i): (Recorder(error), Policy()) for i, error in enumerate(errors)}
    connector = MultiConnector(members)
    for call in (lambda: connector.put(b"x"), lambda: connector.put_batch([b"x", b"y"])):
        with pytest.raises(ConnectorError, match="first"):
            call()


def test_other_errors_are_not_passed_over():
    connector = MultiConnector(
        {"a": (Recorder(TypeError("bad")), Policy()), "b": (Recorder(), Policy())}
    )
    with pytest.raises(TypeError, match="bad"):
        connector.put(b"x")
    assert connector.connectors["b"][0].calls == []


# -- batches


def test_each_connector_gets_its_share_in_one_batch():
    small, large = Recorder(), Recorder()
    connector = MultiConnector(
        {"small": (small, Policy(priority=1, max_size_bytes=2)), "large": (large, Policy())}
    )
    values = [b"1", b"333", b"22", b"4444", b""]
    keys = connector.put_batch(values)
    assert connector.get_batch(keys[::-1]) == values[::-1]
    assert small.calls == [("put_batch", 3), ("get_batch", 3)]
    assert large.calls == [("put_batch", 2), ("get_batch", 2)]


def test_a_store_keeps_batches_together():
    member = Recorder()
    store = Store("m", MultiConnector({"one": (member, Policy(subset_tags=["t"]))}))
    keys = store.put_batch([[1], [2], [3]])
    keys += store.put_batch([[4], [5]], subset_tags=["t"])
    assert member.calls == [("put_batch", 3), ("put_batch", 2)]
    assert [store.get(key) for key in keys] == [[1], [2], [3], [4], [5]]


def test_a_share_that_fails_goes_to_the_next():
    broken, spare = Recorder(OSError("down")), Recorder()
    connector = MultiConnector(
        {"broken": (broken, Policy(priority=1, max_size_bytes=2)), "spare": (spare, Policy())}
    )
    values = [b"1", b"333", b"22"]
    keys = connector.put_batch(values)
    assert connector.get_batch(keys) == values
    assert {key.connector_name for key in keys} == {"spare"}


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path):
    good = FileConnector(tmp_path / "good")
    connector = MultiConnector(
        {
            "good": (good, Policy(max_size_bytes=2)),
            "broken": (Recorder(OSError("down")), Policy(min_size_bytes=3, max_size_bytes=5)),
        }
    )
    with pytest.raises(OSError, match="down"):
        connector.put_batch([b"1", b"333", b"22"])
    with pytest.raises(NoPolicyMatchError):
        connector.put_batch([b"1", b"666666"])
    assert os.listdir(tmp_path / "good") == []


# -- names and configurations


@pytest.mark.parametrize("name", ["connectors", "dormant_connectors", 1])
def test_names_that_cannot_be_sent_are_refused(name):
    with pytest.raises(ValueError, match=f"cannot be named {name!r}"):
        MultiConnector({name: (LocalConnector(), Policy())})
    config = ("local", {}, Policy().as_dict())
    with pytest.raises(ValueError, match=f"cannot be named {name!r}"):
        MultiConnector({}, {name: config})
    if isinstance(name, str):
        with pytest.raises(ValueError, match=f"cannot be named {name!r}"):
            MultiConnector(**{name: list(config)})


def test_any_other_text_is_a_name(tmp_path):
    names = ["self", "cls", "with space", "", "größe"]
    members = {name: (FileConnector(tmp_path / str(i)), Policy()) for i, name in enumerate(names)}
    config = MultiConnector(members).config()
    assert list(MultiConnector(**config).connectors) == names
    with pytest.raises(ValueError, match="are named self"):
        MultiConnector(members, {"self": config["self"]})


@pytest.mark.parametrize(
    "config",
    [
        None,
        "file",
        ("file", {}),
        ({}, "file", {}),
        ("file", {"store_dir": "/nowhere"}, {"prority": 1}),
    ],
)
def test_configurations_that_make_no_sense_are_refused(config):
    with pytest.raises(ValueError, match="'mine'"):
        MultiConnector(mine=config)


def test_a_class_that_is_not_here_names_the_connector():
    with pytest.raises(MultiConnectorError, match=r"'mine'.*no_such_module"):
        MultiConnector(mine=("no_such_module.Class", {}, {}))
    with pytest.raises(TypeError, match=r"'mine'.*wrong"):
        MultiConnector(mine=("local", {"wrong": 1}, {}))


def test_what_was_made_is_given_up_when_the_next_cannot_be(tmp_path):
    keeper = FileConnector(tmp_path / "data")
    key = keeper.put(b"x")
    with pytest.raises(TypeError):
        MultiConnector(good=("file", keeper.config(), {}), bad=("local", {"wrong": 1}, {}))
    assert bytes(keeper.get(key)) == b"x", "somebody else's objects stay"


def test_configuration_in_toml(tmp_path):
    (tmp_path / "store.toml").write_text(f"""\
name = "mixed"

[connector]
kind = "multi"

[connector.options]
memory = ["local", {{}}, {{ priority = 1, max_size_bytes = 1000 }}]
disk = ["file", {{ store_dir = "{tmp_path}/disk" }}, {{ subset_tags = ["keep"] }}]
asleep = ["redis", {{ hostname = "localhost", port = 1 }}, {{ host_pattern = "no such host" }}]
""")
    store = Store.from_config(StoreConfig.from_toml(tmp_path / "store.toml"))
    assert store.connector.connectors_by_priority == ["memory", "disk"]
    assert list(store.connector.dormant_connectors) == ["asleep"]
    assert store.put(1).connector_name == "memory"
    assert store.put(1, subset_tags=["keep"]).connector_name == "disk"
    assert list(store.connector.config()) == ["memory", "disk", "asleep"], "order decides ties"
    assert StoreConfig.model_validate_json(store.config().model_dump_json()).connector
    store.close()


def test_what_is_written_as_toml_or_json_is_equal_when_read(tmp_path):
    members = {
        "memory": (LocalConnector(), Policy(priority=1, max_size_bytes=1000)),
        "several": (
            MultiConnector(
                {"disk": (FileConnector(tmp_path / "disk"), Policy(host_pattern=["a", ".*"]))}
            ),
            Policy(subset_tags=["keep"]),
        ),
    }
    asleep = {"asleep": ("redis", {"hostname": "h"}, {"host_pattern": "no such host"})}
    path = tmp_path / "store.toml"
    with Store("mixed", MultiConnector(members, asleep)) as store:
        config = store.config()
        config.write_toml(path)
        again = StoreConfig.from_toml(path)
        assert again == config
        assert StoreConfig.model_validate_json(config.model_dump_json()) == config
        with Store.from_config(again) as rebuilt:
            assert rebuilt.config() == config, "with nothing lost on the way"
            assert rebuilt.connector.connectors_by_priority == ["memory", "several"]
            key = store.put("x", subset_tags=["keep"])
            assert rebuilt.get(key) == "x"
            rebuilt.connector.disown()


@pytest.mark.parametrize("kind", ["multi", "MultiConnector", "no.such.Class"])
def test_options_that_make_no_connectors_are_left_as_they_are(kind):
    options = {"a": ["file"], "b": 5, "c": ["file", {}, {"unknown": 1}], "d": ["file", {}, [1]]}
    assert ConnectorConfig(kind=kind, options=options).options == options
    assert ConnectorConfig(kind=kind, options={"e": ["x.Y", {}, {"subset_tags": 5}]}).options


def test_order_survives_a_host_where_the_first_is_dormant(monkeypatch):
    first = ("local", {}, {"host_pattern": "a"})
    second = ("local", {}, {})
    monkeypatch.setattr(multi_module.utils, "hostname", lambda: "b")
    there = MultiConnector(first=first, second=second)
    assert there.connectors_by_priority == ["second"]
    monkeypatch.setattr(multi_module.utils, "hostname", lambda: "a")
    assert MultiConnector(**there.config()).connectors_by_priority == ["first", "second"]


def test_a_hostname_is_matched_once(monkeypatch):
    # compat.md, row 51: the expression was evaluated on each put
    calls = []
    fullmatch = re.fullmatch
    monkeypatch.setattr(re, "fullmatch", lambda *a: calls.append(a) or fullmatch(*a))
    monkeypatch.setattr(multi_module.utils, "hostname", lambda: "a-host-of-this-test")
    connector = MultiConnector({"a": (LocalConnector(), Policy(host_pattern="a-host-of-.*"))})
    for _ in range(5):
        connector.put(b"")
    assert len(calls) == 1


def test_errors_carry_the_facts(monkeypatch):
    monkeypatch.setattr(multi_module.utils, "hostname", lambda: "node7")
    connector = MultiConnector(
        {"a": (LocalConnector(), Policy(max_size_bytes=1))},
        {"b": ("local", {}, {"host_pattern": ["login.*"]})},
    )
    with pytest.raises(NoPolicyMatchError) as refused:
        connector.put(b"123", subset_tags=["t"])
    assert (refused.value.size_bytes, refused.value.subset_tags) == (3, ("t",))
    assert (refused.value.superset_tags, refused.value.names) == ((), ("a",))
    with pytest.raises(NoSuchConnectorError) as unknown:
        connector.get(MultiKey("c", ()))
    assert (unknown.value.name, unknown.value.known) == ("c", ("a", "b"))
    with pytest.raises(DormantConnectorError) as dormant:
        connector.get(MultiKey("b", ()))
    assert (dormant.value.host, dormant.value.host_pattern) == ("node7", ["login.*"])
    for fact in ("'b'", "node7", "login.*"):
        assert fact in str(dormant.value)


# -- closing


def test_close_goes_on_after_a_failure():
    members = [Recorder(), Recorder(OSError("first")), Recorder(OSError("second")), Recorder()]
    connector = MultiConnector({str(i): (m, Policy()) for i, m in enumerate(members)})
    with pytest.raises(OSError, match="first"):
        connector.close()
    assert [m.calls for m in members] == [[("close", 1)]] * 4


@pytest.mark.parametrize("clear", [True, False])
def test_close_passes_clear_on_to_those_that_take_it(tmp_path, clear):
    members = {
        "file": (FileConnector(tmp_path / "f", clear=not clear), Policy()),
        "local": (LocalConnector(), Policy()),
    }
    Store("m", MultiConnector(members)).close(clear=clear)
    assert (tmp_path / "f").exists() is not clear


def test_a_guest_deletes_nothing(split, tmp_path):
    split.disown()
    split.close()
    assert (tmp_path / "disk").exists()
    split.close(clear=True)


# -- threads


class OneAtATime(LocalConnector):
    """Not thread-safe, and notices."""

    thread_safe = False

    def __init__(self):
        super().__init__()
        self.busy = threading.Lock()

    def put(self, obj):
        assert self.busy.acquire(blocking=False), "two threads at once"
        try:
            return super().put(obj)
        finally:
            self.busy.release()

    def get(self, key):
        assert self.busy.acquire(blocking=False), "two threads at once"
        try:
            return super().get(key)
        finally:
            self.busy.release()


def test_a_member_that_is_not_thread_safe_is_used_by_one_thread(at_once):
    unsafe = OneAtATime()
    connector = MultiConnector(
        {"safe": (LocalConnector(), Policy(max_size_bytes=1)), "unsafe": (unsafe, Policy())}
    )

    def use():
        for i in range(50):
            for value in (b"%d" % i, b"long"):
                assert connector.get(connector.put(value)) == value

    at_once(*[use] * 4)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_does_not_inherit_a_lock_that_is_held(tmp_path):
    unsafe = OneAtATime()
    connector = MultiConnector({"unsafe": (unsafe, Policy())})
    key = connector.put(b"x")
    held, done = threading.Event(), threading.Event()

    def hold():
        with connector._alone("unsafe"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(30)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if connector.get(key) == b"x" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    done.set()
    thread.join()


# -- copies


def test_large_objects_are_neither_joined_nor_copied(tmp_path, monkeypatch):
    written = []
    connector = MultiConnector(
        {"disk": (FileConnector(tmp_path / "disk"), Policy(subset_tags=["t"]))}
    )
    put_buffers = FileConnector.put_buffers

    def spy(self, parts):
        written.append(parts)
        return put_buffers(self, parts)

    monkeypatch.setattr(FileConnector, "put_buffers", spy)
    store = Store("m", connector)
    array = np.arange(1_000_000.0)
    keys = [store.put(array), store.put(array, subset_tags=["t"]), *store.put_batch([array] * 2)]
    assert len(written) == 4
    for parts in written:
        assert any(
            np.shares_memory(np.frombuffer(part, "u1"), array) for part in parts if len(part)
        )
    with open("/proc/self/maps", encoding="utf-8") as maps:
        before = maps.read()
    arrays = [store.get(key) for key in keys]
    with open("/proc/self/maps", encoding="utf-8") as maps:
        after = maps.read()
    for key, found in zip(keys, arrays, strict=True):
        assert key.connector_key.filename not in before
        assert key.connector_key.filename in after, "mapped, not read"
        np.testing.assert_array_equal(found, array)
    store.close()


class Reversed(FileConnector):
    """Keeps data back to front: a subclass written when there was nothing but put and get."""

    def put(self, obj):
        return super().put(bytes(obj)[::-1])

    def set(self, key, obj):
        super().set(key, bytes(obj)[::-1])

    def get(self, key):
        data = super().get(key)
        return None if data is None else bytes(data)[::-1]


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: MultiConnector({"a": (c, Policy())})])
def test_a_subclass_with_a_put_of_its_own_is_not_passed_over(tmp_path, wrap):
    store = Store("m", wrap(Reversed(tmp_path / "s")))
    array = np.arange(100_000)
    for key in (store.put(array), *store.put_batch([array, array])):
        np.testing.assert_array_equal(store.get(key), array)
    if isinstance(store.connector, Reversed):
        store._set(key, array + 1)
        np.testing.assert_array_equal(store.get(key), array + 1)
    store.close()


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ({"disk": Policy()}, 65536),
        ({"memory": Policy(max_size_bytes=99), "disk": Policy()}, 65536),
        ({"memory": Policy(max_size_bytes=99_999), "disk": Policy()}, 100_000),
        ({"memory": Policy(), "disk": Policy()}, None),
    ],
)
def test_checksums_are_spared_only_where_every_connector_maps(tmp_path, policies, expected):
    made = {"memory": LocalConnector(), "disk": FileConnector(tmp_path / "disk", mmap=True)}
    connector = MultiConnector({name: (made[name], policy) for name, policy in policies.items()})
    assert connector.maps_from == expected
    store = Store("m", connector)
    array = np.arange(100_000.0)
    key = store.put(array)
    np.testing.assert_array_equal(store.get(key), array)
    store.close(clear=True)


# -- other processes


def _use(pickled):
    proxies = pickle.loads(pickled)
    before = [is_resolved(proxy) for proxy in proxies]
    values = [proxy.sum() if isinstance(proxy, np.ndarray) else [*proxy] for proxy in proxies]
    store = get_store(proxies[0])
    return before, values, type(store.connector).__name__, sorted(store.connector.connectors)


def _fails(pickled):
    try:
        len(pickle.loads(pickled))
    except ProxyResolveError as error:
        return error
    return None


def test_proxies_resolve_in_another_process(tmp_path):
    # compat.md, row 13
    members = {
        "memory": (LocalConnector(), Policy(priority=2, superset_tags=["here"])),
        "small": (FileConnector(tmp_path / "small"), Policy(priority=1, max_size_bytes=1000)),
        "large": (FileConnector(tmp_path / "large"), Policy()),
        "nobody": (FileConnector(tmp_path / "nobody"), Policy(host_pattern="no such host")),
    }
    store = Store("mixed-processes", MultiConnector(members), register=True)
    proxies = store.proxy_batch([[1, 2], np.ones(100_000)])
    here = store.proxy([1], superset_tags=["here"])
    assert len(pickle.dumps(proxies[0])) < 1500
    assert len(pickle.dumps(proxies)) < 2000, "the second one costs little"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        before, values, kind, active = pool.submit(_use, pickle.dumps(proxies)).result()
        assert before == [False, False]
        assert values == [[1, 2], 100_000.0]
        assert kind == "MultiConnector"
        assert active == ["large", "memory", "small"]
        # Its memory is another process's: this says so, and does not break the pool.
        error = pool.submit(_fails, pickle.dumps(here)).result()
        assert isinstance(error, ProxyResolveError)
    assert (tmp_path / "large").exists(), "the other process deleted nothing"
    assert store.get(store.put([3])) == [3]
    store.close()
    assert os.listdir(tmp_path) == []
    unregister_store(store)


class Batches(FileConnector):
    """Has a batch of its own for pieces."""

    def put_buffers_batch(self, batch):
        self.sizes = [[len(part) for part in parts] for parts in batch]
        return [self.put_buffers(parts) for parts in batch]


def test_a_batch_of_pieces_stays_one(tmp_path):
    member = Batches(tmp_path / "s")
    with MultiConnector({"a": (member, Policy())}) as connector:
        keys = connector.put_buffers_batch([[b"a", b"bc"], [b"d"], [b"", b"e"]])
        assert member.sizes == [[1, 2], [1], [0, 1]]
        assert [bytes(data) for data in connector.get_batch(keys)] == [b"abc", b"d", b"e"]


def test_memory_that_changes_later_is_copied_by_who_keeps_it():
    connector = MultiConnector({"a": (LocalConnector(), Policy())})
    memory = bytearray(b"old")
    whole, piece = connector.put(memory), connector.put_buffers([memoryview(memory)])
    memory[:] = b"new"
    assert connector.get(whole) is memory, "as LocalConnector does"
    assert connector.get(piece) == b"old"


@pytest.mark.parametrize(("fields", "says"), [
    ({"priority": "1"}, "priority must be a whole number, got '1'"),
    ({"priority": 0.5}, "priority must be a whole number"),
    ({"min_size_bytes": None}, "min_size_bytes must be a number of bytes, or a size such as"),
    ({"max_size_bytes": float("inf")}, "leave it out for no limit"),
    ({"host_pattern": 5}, "host_pattern must be a list of texts, got 5"),
    ({"host_pattern": [b"a"]}, "host_pattern must be a list of texts, got one with b'a'"),
    ({"subset_tags": "abc"}, r"subset_tags must be a list of tags, got 'abc'; write \['abc'\]"),
    ({"superset_tags": "abc"}, "superset_tags must be a list of tags"),
    ({"superset_tags": None}, "superset_tags must be a list of texts, got None"),
    ({"subset_tags": [1]}, "subset_tags must be a list of texts"),
])  # fmt: skip
def test_a_policy_of_other_types_is_refused(fields, says):
    with pytest.raises(TypeError, match=says):
        Policy(**fields)


@pytest.mark.parametrize(("fields", "says"), [
    ({"max_size_bytes": "1 MX"}, "max_size_bytes: Unknown unit"),
    ({"max_size_bytes": -1}, "max_size_bytes must be 0 bytes or more"),
    ({"min_size_bytes": 2, "max_size_bytes": 1}, "min_size_bytes=2 is more than max_size_bytes=1"),
    ({"host_pattern": "*"}, r"'\*', which is no regular expression"),
    ({"host_pattern": ["a", "(b"]}, r"'\(b', which is no regular expression"),
])  # fmt: skip
def test_a_policy_that_fits_nothing_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        Policy(**fields)


def test_the_sizes_of_a_policy_may_be_text():
    policy = Policy(min_size_bytes="1 kB", max_size_bytes="1 MiB")
    assert policy == Policy(min_size_bytes=1000, max_size_bytes=1 << 20)
    assert policy.is_valid(size_bytes=1000)
    assert not policy.is_valid(size_bytes=999)
    assert Policy(max_size_bytes=1e6) == Policy(max_size_bytes=1_000_000)
    connector = MultiConnector(a=("local", {}, {"max_size_bytes": "1 kB"}))
    assert connector.config()["a"][2]["max_size_bytes"] == 1000


class Unresolvable:
    """Makes no target: who resolves the proxy gets another error than the test waits for."""

    def __call__(self):
        raise AssertionError("it was resolved")


@pytest.mark.parametrize("key", ["ab", None, 5, ["a", "b"], (), ("a",), ("a", 1, 2), "a proxy"])
@pytest.mark.parametrize("kind", ["local", "multi"])
def test_what_is_no_key_is_refused_and_not_looked_into(kind, key):
    if key == "a proxy":  # not among the parameters: pytest would resolve it
        key = Proxy(Unresolvable())
    local = LocalConnector()
    connector = local if kind == "local" else MultiConnector({"a": (local, Policy())})
    uses = [connector.get, connector.exists, connector.evict, lambda key: connector.peek(key, 1)]
    uses += [lambda key: connector.get_batch([key]), lambda key: connector.claim(key, "me", 1)]
    uses += [lambda key: connector.release(key, "me")]
    if kind == "local":
        if type(key) is tuple:
            return  # any can be a key of a dictionary
        uses += [lambda key: connector.set(key, b""), lambda key: connector.wait(key, 0)]
    shown = r"LocalKey\(id=...\)" if kind == "local" else r"MultiKey\(connector_name=..., .*\)"
    for use in uses:
        with pytest.raises(TypeError, match=f"such as {shown}.*, got "):
            use(key)
