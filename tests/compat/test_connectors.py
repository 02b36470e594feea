"""Contract, section 5.1 to 5.3: connectors, local and file."""

from __future__ import annotations

import os
import pathlib
import uuid

import pytest

from proxystore.connectors.file import FileConnector, FileKey
from proxystore.connectors.local import LocalConnector, LocalKey
from proxystore.connectors.protocols import Connector, DeferrableConnector
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
