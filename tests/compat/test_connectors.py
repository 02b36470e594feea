"""Contract, section 5.1 to 5.3: connectors, local and file."""

from __future__ import annotations

import os
import pathlib
import uuid

import pytest

from proxystore.connectors.file import FileConnector, FileKey
from proxystore.connectors.local import LocalConnector, LocalKey
from proxystore.connectors.multi import MultiConnector, Policy
from proxystore.connectors.protocols import Connector, DeferrableConnector
from proxystore.store import Store
from proxystore.testing import check_connector


@pytest.fixture(params=["local", "file"])
def connector(request, tmp_path):
    made = LocalConnector() if request.param == "local" else FileConnector(tmp_path / "store")
    with made:
        yield made


def test_keeps_the_connector_contract(connector):
    check_connector(connector)


def test_is_deferrable(connector):
    assert isinstance(connector, DeferrableConnector)


def test_protocols_look_at_methods_only():
    class Mine:
        def close(self): ...
        def config(self): ...
        @classmethod
        def from_config(cls, config): ...
        def evict(self, key): ...
        def exists(self, key): ...
        def get(self, key): ...
        def get_batch(self, keys): ...
        def put(self, obj): ...
        def put_batch(self, objs): ...

    assert isinstance(Mine(), Connector)
    assert not isinstance(Mine(), DeferrableConnector)
    assert not isinstance(object(), Connector)


CONNECTOR = "close config from_config evict exists get get_batch put put_batch".split()


@pytest.mark.parametrize("missing", [None, *CONNECTOR])
def test_a_connector_has_exactly_these_methods(missing):
    methods = {name: lambda self, *args: None for name in CONNECTOR if name != missing}
    assert isinstance(type("Mine", (), methods)(), Connector) is (missing is None)


@pytest.mark.parametrize("missing", [None, "new_key", "set"])
def test_a_deferrable_connector_has_exactly_these_methods(missing):
    methods = {name: lambda self, *args: None for name in ("new_key", "set") if name != missing}
    assert isinstance(type("Mine", (), methods)(), DeferrableConnector) is (missing is None)


BUILT_IN = {
    "local": (LocalConnector, lambda path: {}),
    "file": (FileConnector, lambda path: {"store_dir": str(path / "store")}),
    "multi": (
        MultiConnector,
        lambda path: {"connectors": {"all": (FileConnector(path / "store"), Policy())}},
    ),
}


@pytest.mark.parametrize(("kind", "options"), BUILT_IN.values(), ids=BUILT_IN)
def test_leaving_its_block_closes_a_connector(tmp_path, kind, options):
    class Told(kind):
        def close(self, *args, **kwargs):
            told.append((args, kwargs))
            super().close(*args, **kwargs)

    told = []
    made = Told(**options(tmp_path))
    with made as entered:
        assert entered is made
        assert told == []
    assert told == [((), {})]


@pytest.mark.parametrize(("kind", "options"), BUILT_IN.values(), ids=BUILT_IN)
def test_several_connectors_of_one_configuration_may_be_open_and_closed_twice(
    tmp_path, kind, options
):
    made = kind(**options(tmp_path))
    others = [kind.from_config(made.config()) for _ in range(2)]
    assert [type(other) for other in others] == [kind] * 2
    for connector in (made, *others, made, *others):
        connector.close()


@pytest.mark.parametrize("kind", [LocalKey, FileKey])
def test_keys_have_one_field(kind):
    assert issubclass(kind, tuple)
    assert kind._fields == {LocalKey: ("id",), FileKey: ("filename",)}[kind]
    assert kind("x") == kind(**{kind._fields[0]: "x"})


def test_new_keys_are_random_uuids(connector):
    key, other = connector.new_key(), connector.new_key(b"not looked at")
    assert type(key) is type(connector.put(b""))
    assert uuid.UUID(key[0]).version == uuid.UUID(other[0]).version == 4
    assert key != other
    assert not connector.exists(key)
    assert not connector.exists(other)


@pytest.mark.parametrize(
    ("kind", "first", "keywords"),
    [
        (LocalConnector, "store_dict", {"include_data_in_config": True}),
        (FileConnector, "store_dir", {"clear": False, "buffering": 0}),
    ],
)
def test_all_but_the_first_argument_are_keywords(tmp_path, kind, first, keywords):
    value = {"store_dict": {}, "store_dir": tmp_path}[first]
    kind(**{first: value}, **keywords)
    kind(value, **keywords)
    with pytest.raises(TypeError):
        kind(value, *keywords.values())


def test_keys_of_different_connectors_compare_as_tuples():
    assert LocalKey("x") == FileKey("x")


# -- 5.2


def test_local_connectors_share_a_dictionary():
    shared = {}
    first, second = LocalConnector(shared), LocalConnector(shared)
    key = first.put(b"x")
    assert second.get(key) == b"x"
    assert shared == {key: b"x"}
    assert LocalConnector().get(key) is None


def test_local_keeps_the_object_itself():
    value = bytearray(b"x")
    connector = LocalConnector()
    assert connector.get(connector.put(value)) is value


def test_local_config_has_the_data_only_if_asked():
    plain, full = LocalConnector(), LocalConnector(include_data_in_config=True)
    key = full.put(b"x")
    assert plain.config() == {"include_data_in_config": False}
    assert full.config()["store_dict"] == {key: b"x"}
    assert LocalConnector(**full.config()).get(key) == b"x"
    assert repr(plain) == "LocalConnector()"


def test_local_config_has_the_dictionary_itself():
    shared = {}
    connector = LocalConnector(shared, include_data_in_config=True)
    assert connector.config()["store_dict"] is shared
    assert connector.config()["include_data_in_config"] is True


@pytest.mark.parametrize("included", [False, True])
def test_a_local_store_is_rebuilt_with_its_data_only_if_asked(included):
    store = Store("local", LocalConnector(include_data_in_config=included))
    key = store.put("x")
    assert Store.from_config(store.config()).get(key) == ("x" if included else None)


def test_local_data_outlive_close():
    connector = LocalConnector()
    key = connector.put(b"x")
    connector.close()
    assert connector.get(key) == b"x"


def test_local_keys_are_random_uuids():
    assert uuid.UUID(LocalConnector().put(b"").id).version == 4


# -- 5.3


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_file_makes_its_directory(tmp_path, kind):
    path = tmp_path / "a" / "b"
    connector = FileConnector(kind(path))
    assert path.is_dir()
    assert connector.store_dir == str(path)
    assert connector.config() == {"store_dir": str(path), "clear": True, "buffering": -1}
    assert repr(connector) == f"FileConnector(directory={path})"
    FileConnector(path, clear=False, buffering=0)  # existing is fine


def test_file_attributes(tmp_path):
    connector = FileConnector(str(tmp_path), clear=False, buffering=0)
    assert (connector.store_dir, connector.clear, connector.buffering) == (str(tmp_path), False, 0)
    assert connector.config() == {"store_dir": str(tmp_path), "clear": False, "buffering": 0}
    assert FileConnector(tmp_path).clear is True
    assert FileConnector(tmp_path).buffering == -1


def test_file_key_is_a_name_in_the_directory(tmp_path):
    connector = FileConnector(tmp_path, buffering=0)
    key = connector.put(b"x")
    assert uuid.UUID(key.filename).version == 4
    assert (tmp_path / key.filename).exists()
    assert bytes(connector.get(key)) == b"x"


@pytest.mark.parametrize(("clear", "in_call", "gone"), [
    (True, None, True), (False, None, False), (True, False, False), (False, True, True),
])  # fmt: skip
def test_file_close_clears_as_told(tmp_path, clear, in_call, gone):
    connector = FileConnector(tmp_path / "store", clear=clear)
    connector.put(b"x")
    connector.close() if in_call is None else connector.close(clear=in_call)
    assert (tmp_path / "store").exists() is not gone
    connector.close(clear=True)


def test_two_connectors_on_one_directory_can_both_be_closed(tmp_path):
    first, second = FileConnector(tmp_path / "store"), FileConnector(tmp_path / "store")
    key = first.put(b"x")
    assert bytes(second.get(key)) == b"x"
    first.close()
    second.close()
    assert first.get(key) is None


def test_file_directory_does_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    connector = FileConnector("store")
    assert connector.store_dir == str(tmp_path / "store")
    monkeypatch.chdir("/")
    assert bytes(connector.get(connector.put(b"x"))) == b"x"
    connector.close()


def test_evicting_all_leaves_an_empty_directory(tmp_path):
    connector = FileConnector(tmp_path)
    keys = connector.put_batch([b"a", b"b" * 1_000_000, b""])
    connector.set(keys[0], b"again")
    for key in keys:
        connector.evict(key)
    assert os.listdir(tmp_path) == []


def test_everything_is_silent_about_a_directory_that_is_gone(tmp_path):
    connector = FileConnector(tmp_path / "store")
    key = connector.put(b"x")
    connector.close()
    assert connector.get(key) is None
    assert not connector.exists(key)
    connector.evict(key)
    connector.close()
    with pytest.raises(FileNotFoundError):
        connector.put(b"x")
