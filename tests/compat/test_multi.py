"""Contract, section 5.5: several connectors behind one."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import typing

import pytest

import proxystore.utils
from proxystore.connectors import multi
from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.multi import (
    ConnectorPolicyConfig,
    MultiConnector,
    MultiConnectorError,
    MultiKey,
    Policy,
    PolicyDict,
)
from proxystore.connectors.protocols import Connector, DeferrableConnector
from proxystore.store import Store, StoreConfig


def on_host(monkeypatch, name):
    monkeypatch.setattr(proxystore.utils, "hostname", lambda: name)


# -- Policy


def test_policy_is_a_dataclass_with_these_fields():
    assert {field.name for field in dataclasses.fields(Policy)} == set(PolicyDict.__annotations__)
    assert dataclasses.asdict(Policy()) == {
        "priority": 0,
        "host_pattern": None,
        "min_size_bytes": 0,
        "max_size_bytes": sys.maxsize,
        "subset_tags": [],
        "superset_tags": [],
    }
    assert Policy() == Policy()
    assert Policy(1, "a", 2, 3, ["b"], ["c"]) == Policy(
        priority=1,
        host_pattern="a",
        min_size_bytes=2,
        max_size_bytes=3,
        subset_tags=["b"],
        superset_tags=["c"],
    )
    assert Policy(priority=1) != Policy()


def test_policies_do_not_share_their_lists():
    Policy().subset_tags.append("x")
    assert Policy().subset_tags == []


@pytest.mark.parametrize(
    ("size", "valid"), [(0, False), (1, True), (5, True), (10, True), (11, False), (None, True)]
)
def test_policy_sizes_include_both_ends(size, valid):
    assert Policy(min_size_bytes=1, max_size_bytes=10).is_valid(size_bytes=size) is valid


@pytest.mark.parametrize(
    ("tags", "valid"),
    [
        (None, True),
        ((), True),
        (["a"], True),
        (["b", "a"], True),
        (["a", "c"], False),
        ("ab", True),
    ],
)
def test_subset_tags_are_among_the_policys(tags, valid):
    assert Policy(subset_tags=["a", "b"]).is_valid(subset_tags=tags) is valid


@pytest.mark.parametrize(
    ("tags", "valid"),
    [
        *((None, True), ((), False), (["a"], False), (["b", "a"], True)),
        *((["a", "b", "c"], True), ("abc", True), ("ac", False)),
    ],
)
def test_superset_tags_include_the_policys(tags, valid):
    assert Policy(superset_tags=["a", "b"]).is_valid(superset_tags=tags) is valid


def test_policy_without_tags():
    assert not Policy().is_valid(subset_tags=["anything"])
    assert Policy().is_valid(superset_tags="anything")


def test_every_argument_must_pass():
    policy = Policy(max_size_bytes=10, subset_tags=["a"], superset_tags=["b"])
    good = {"size_bytes": 1, "subset_tags": ["a"], "superset_tags": ["b"]}
    assert policy.is_valid(**good)
    for name, bad in [("size_bytes", 11), ("subset_tags", ["x"]), ("superset_tags", [])]:
        assert not policy.is_valid(**{**good, name: bad})


@pytest.mark.parametrize("value", [1, ["a"]])
def test_is_valid_takes_keywords_only(value):
    with pytest.raises(TypeError):
        Policy().is_valid(value)


@pytest.mark.parametrize(
    ("pattern", "valid"),
    [
        *((None, True), ("node1", True), ("node", False), ("ode1", False), (r"node\d+", True)),
        *(("other|node1", True), ([], False), (["x", r"n.*"], True), (("x", "y"), False)),
    ],
)
def test_host_pattern_matches_the_whole_name(monkeypatch, pattern, valid):
    on_host(monkeypatch, "node1")
    assert Policy(host_pattern=pattern).is_valid_on_host() is valid
    assert Policy(host_pattern=pattern).is_valid() is valid


def test_the_hostname_is_read_when_asked(monkeypatch):
    policy = Policy(host_pattern="node1")
    for name, valid in [("node1", True), ("node2", False), ("node1", True)]:
        on_host(monkeypatch, name)
        assert policy.is_valid_on_host() is valid
    monkeypatch.undo()
    assert Policy(host_pattern=proxystore.utils.hostname()).is_valid_on_host()


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(1, "a.*", 2, 3, ["b"], ["c", "d"]),
        Policy(host_pattern=["a", "b"]),
        Policy(host_pattern=("a", "b"), subset_tags=("t",), superset_tags=("u",)),
        Policy(host_pattern=(c for c in "ab")),
    ],
)
def test_policy_goes_through_json_and_back(policy):
    fields = policy.as_dict()
    assert Policy(**fields) == policy
    assert Policy(**json.loads(json.dumps(fields))) == policy
    assert set(fields) == set(PolicyDict.__annotations__)
    assert fields["host_pattern"] is None or type(fields["host_pattern"]) in (str, list)
    assert pickle.loads(pickle.dumps(policy)) == policy


# -- MultiConnector


@pytest.fixture
def pair(tmp_path):
    """One connector for small objects and one for all."""
    small, large = LocalConnector(), FileConnector(tmp_path / "large")
    with MultiConnector(
        {"large": (large, Policy()), "small": (small, Policy(priority=1, max_size_bytes=5))}
    ) as connector:
        yield connector


def test_names():
    assert typing.get_args(ConnectorPolicyConfig) == (str, dict[str, typing.Any], PolicyDict)
    assert issubclass(MultiConnectorError, Exception)
    assert MultiKey._fields == ("connector_name", "connector_key")
    key = MultiKey("a", ("k",))
    assert key._replace(connector_name="b") == MultiKey("b", ("k",)) == ("b", ("k",))


def test_attributes(pair):
    connector, policy = pair.connectors["small"]
    assert isinstance(connector, LocalConnector)
    assert policy == Policy(priority=1, max_size_bytes=5)
    assert len(pair.connectors["small"]) == 2
    assert list(pair.connectors) == ["large", "small"]
    assert pair.connectors_by_priority == ["small", "large"]
    assert len(pair.dormant_connectors) == 0
    assert repr(pair).startswith("MultiConnector({")
    assert repr(pair).endswith("})")


def test_ties_of_priority_are_broken_by_order():
    names = ["c", "a", "d", "b"]
    members = {name: (LocalConnector(), Policy(priority=name == "d")) for name in names}
    assert MultiConnector(members).connectors_by_priority == ["d", "c", "a", "b"]


def test_is_a_connector_and_not_deferrable(pair):
    assert isinstance(pair, Connector)
    assert not isinstance(pair, DeferrableConnector)
    store = Store("multi", pair)
    with pytest.raises(NotImplementedError, match="DeferrableConnector"):
        store._set(store.put(1), 2)


def test_objects_go_to_the_first_whose_policy_is_valid(pair):
    small, large = pair.put(b"12345"), pair.put(b"123456")
    assert isinstance(small, MultiKey)
    assert (small.connector_name, large.connector_name) == ("small", "large")
    assert pair.connectors["small"][0].get(small.connector_key) == b"12345"
    for key, value in [(small, b"12345"), (large, b"123456")]:
        assert pair.exists(key)
        assert bytes(pair.get(key)) == value
        pair.evict(key)
        assert not pair.exists(key)
        assert pair.get(key) is None
        pair.evict(key)


def test_batches_may_be_spread(pair):
    values = [b"1", b"123456", b"2", b"", b"1234567"]
    keys = pair.put_batch(values)
    assert [key.connector_name for key in keys] == ["small", "large", "small", "small", "large"]
    assert [bytes(data) for data in pair.get_batch(keys)] == values
    for key in keys:
        pair.evict(key)
    assert pair.get_batch(keys) == [None] * 5


def test_tags_choose():
    connector = MultiConnector(
        {
            "must": (LocalConnector(), Policy(priority=2, superset_tags=["gpu"])),
            "may": (LocalConnector(), Policy(priority=1, subset_tags=["a", "b"])),
        }
    )
    assert connector.put(b"").connector_name == "may"
    assert connector.put(b"", subset_tags=["a"]).connector_name == "may"
    assert connector.put(b"", superset_tags=["gpu", "x"]).connector_name == "must"
    assert connector.put(b"", ["b"], ["gpu"]).connector_name == "may"
    assert [key[0] for key in connector.put_batch([b"", b"1"], ["b"])] == ["may", "may"]
    assert [key[0] for key in connector.put_batch([b""], superset_tags=["gpu"])] == ["must"]


@pytest.mark.parametrize("tags", [{}, {"subset_tags": ["x"]}, {"superset_tags": ["x"]}])
def test_no_valid_policy_is_an_error(tags):
    connector = MultiConnector({"a": (LocalConnector(), Policy(min_size_bytes=10))})
    for call in (lambda: connector.put(b"x", **tags), lambda: connector.put_batch([b"x"], **tags)):
        with pytest.raises(MultiConnectorError, match="policy") as caught:
            call()
        assert "constraints" in str(caught.value)


@pytest.mark.parametrize("call", ["get", "exists", "evict", "get_batch"])
def test_unknown_and_dormant_names_are_errors(pair, monkeypatch, call):
    def ask(connector, key):
        return getattr(connector, call)([key] if call == "get_batch" else key)

    key = pair.put(b"x")
    with pytest.raises(MultiConnectorError, match="does not exist"):
        ask(pair, key._replace(connector_name="other"))
    members = {"small": (pair.connectors["small"][0], Policy(host_pattern="here"))}
    config = MultiConnector(members).config()
    on_host(monkeypatch, "elsewhere")
    with pytest.raises(MultiConnectorError, match="dormant"):
        ask(MultiConnector.from_config(config), key)


def test_close_closes_every_active_connector(pair, tmp_path):
    pair.put(b"123456")
    assert (tmp_path / "large").exists()
    pair.close()
    assert not (tmp_path / "large").exists()


def test_config(pair, tmp_path):
    dormant = ("proxystore.connectors.local.LocalConnector", {}, Policy(priority=3).as_dict())
    connector = MultiConnector(pair.connectors, {"asleep": dormant})
    assert connector.dormant_connectors == {"asleep": dormant}
    expected = {
        "large": (
            "proxystore.connectors.file.FileConnector",
            {"store_dir": str(tmp_path / "large"), "clear": True, "buffering": -1},
            Policy().as_dict(),
        ),
        "small": (
            "proxystore.connectors.local.LocalConnector",
            {"include_data_in_config": False},
            Policy(priority=1, max_size_bytes=5).as_dict(),
        ),
        "asleep": dormant,
    }
    for _ in range(2):  # compat.md, row 13: it grew
        assert connector.config() == expected
        assert connector.dormant_connectors == {"asleep": dormant}


@pytest.mark.parametrize("rebuild", [
    lambda config: MultiConnector.from_config(config),
    lambda config: MultiConnector(**config),
])  # fmt: skip
@pytest.mark.parametrize("send", [lambda c: c, lambda c: json.loads(json.dumps(c))])
def test_rebuilt_where_one_of_two_policies_is_valid(tmp_path, monkeypatch, rebuild, send):
    here = FileConnector(tmp_path / "here"), Policy(host_pattern=["login", "here.*"])
    there = FileConnector(tmp_path / "there"), Policy(host_pattern="there")
    connector = MultiConnector({"here": here, "there": there})
    config = connector.config()
    on_host(monkeypatch, "here7")
    key = connector.put(b"x")
    again = rebuild(send(config))
    assert type(again) is MultiConnector
    assert list(again.connectors) == ["here"]
    assert again.connectors_by_priority == ["here"]
    assert list(again.dormant_connectors) == ["there"]
    assert bytes(again.get(key)) == b"x"
    assert again.config() == config, "with nothing lost on the way"
    on_host(monkeypatch, "there")
    assert list(rebuild(send(again.config())).connectors) == ["there"]
    connector.close()


def test_a_store_is_rebuilt_from_its_config(tmp_path):
    # compat.md, row 13: MultiConnector(**config) was a TypeError
    store = Store("multi", MultiConnector({"file": (FileConnector(tmp_path / "s"), Policy())}))
    key = store.put([1, 2])
    config = pickle.loads(pickle.dumps(store.config()))
    assert config == store.config()
    assert config.connector.kind == "proxystore.connectors.multi.MultiConnector"
    again = Store.from_config(config)
    assert again.get(key) == [1, 2]
    assert again.config() == config
    for kind in ("multi", "MultiConnector"):
        config = StoreConfig(
            name="m", connector={"kind": kind, "options": store.connector.config()}
        )
        assert Store.from_config(config).get(key) == [1, 2]
    store.close()


def test_tags_go_through_the_store(tmp_path):
    members = {
        "tagged": (LocalConnector(), Policy(priority=1, superset_tags=["a"])),
        "other": (LocalConnector(), Policy(subset_tags=["b"])),
    }
    store = Store("multi", MultiConnector(members), register=True)
    assert store.put([1]).connector_name == "other"
    assert store.put([1], superset_tags=["a"]).connector_name == "tagged"
    for key in store.put_batch([[1], [2]], superset_tags=["a"]):
        assert key.connector_name == "tagged"
    proxies = [
        store.proxy([1], superset_tags=["a"], populate_target=False),
        *store.proxy_batch([[1], [1]], superset_tags=["a"], populate_target=False),
    ]
    assert proxies == [[1]] * 3
    assert len(members["tagged"][0]._store) == 6
    with pytest.raises(MultiConnectorError, match="constraints"):
        store.put([1], subset_tags=["no"])
    with pytest.raises(TypeError, match="wrong"):
        store.put([1], wrong=1)
    store.close()


def test_all_errors_are_multi_connector_errors_and_travel():
    for error in (
        multi.NoPolicyMatchError(5, ("a",), (), "host", ("n",)),
        multi.NoSuchConnectorError("n", ("m",)),
        multi.DormantConnectorError("n", "host", ["a"]),
        MultiConnectorError("x"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert isinstance(again, MultiConnectorError)
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
