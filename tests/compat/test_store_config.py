"""Contract, section 8: configurations, and section 18: errors that survive pickling."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import cloudpickle
import dill
import pydantic
import pytest

from proxystore.connectors.exceptions import (
    StorageFullError,
    StoreDirectoryError,
    StoreDirectoryGoneError,
)
from proxystore.connectors.file import FileConnector, FileKey
from proxystore.connectors.local import LocalConnector
from proxystore.connectors.multi import MultiConnector
from proxystore.store import Store
from proxystore.store.config import ConnectorConfig, StoreConfig
from proxystore.store.exceptions import (
    ConnectorOptionsError,
    NonProxiableTypeError,
    ProxyResolveMissingKeyError,
    ProxyStoreFactoryError,
    StoreConfigError,
    StoreConfigReadError,
    StoreError,
    StoreExistsError,
    UnknownConnectorError,
)
from proxystore.workflow import ThresholdError, UnpicklableArgumentError


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("local", LocalConnector),
        ("LOCAL", LocalConnector),
        ("LocalConnector", LocalConnector),
        ("localconnector", LocalConnector),
        ("LOCALCONNECTOR", LocalConnector),
        ("proxystore.connectors.local.LocalConnector", LocalConnector),
        ("file", FileConnector),
        ("File", FileConnector),
        ("multi", MultiConnector),
        ("MULTI", MultiConnector),
        ("MultiConnector", MultiConnector),
        ("proxystore.connectors.multi.MultiConnector", MultiConnector),
        ("FileConnector", FileConnector),
        ("proxystore.connectors.file.FileConnector", FileConnector),
    ],
)
def test_short_forms(kind, cls):
    assert ConnectorConfig(kind=kind).get_connector_type() is cls


@pytest.mark.parametrize(
    "kind", ["test", "no.such.module", "proxystore.connectors.file.Missing", "globus", "os.path"]
)
def test_unknown_kinds_fail_only_when_used(kind):
    config = ConnectorConfig(kind=kind)
    with pytest.raises(ValueError, match=kind) as caught:
        config.get_connector_type()
    assert isinstance(caught.value, UnknownConnectorError)
    assert {"file", "local"} <= set(caught.value.known)
    assert "globus" not in caught.value.known


def test_options_are_checked_only_when_used():
    config = ConnectorConfig(kind="local", options={"wrong": 1})
    with pytest.raises(TypeError, match="wrong") as caught:
        config.get_connector()
    assert isinstance(caught.value, ConnectorOptionsError)
    with pytest.raises(pydantic.ValidationError):
        ConnectorConfig(kind="local", wrong=1)


def test_options_make_the_connector(tmp_path):
    options = {"store_dir": str(tmp_path), "clear": False}
    connector = ConnectorConfig(kind="file", options=options).get_connector()
    assert connector.config() == {**options, "buffering": -1}


def test_any_class_can_be_a_connector():
    config = ConnectorConfig(kind=f"{__name__}.Mine", options={"option": 1})
    assert config.get_connector_type() is Mine
    assert config.get_connector().option == 1
    with pytest.raises(TypeError, match="wrong"):
        ConnectorConfig(kind=f"{__name__}.Mine", options={"wrong": 1}).get_connector()


class Mine:
    def __init__(self, option):
        self.option = option


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ConnectorConfig, {}),
        (ConnectorConfig, {"kind": 1}),
        (ConnectorConfig, {"kind": "local", "options": 1}),
        (StoreConfig, {}),
        (StoreConfig, {"name": "n"}),
        (StoreConfig, {"connector": {"kind": "local"}}),
        (StoreConfig, {"name": "n", "connector": {"kind": "local"}, "other": 1}),
        (StoreConfig, {"name": "n", "connector": {"kind": "local", "other": 1}}),
        (StoreConfig, {"name": "n", "connector": {"kind": "local"}, "serializer": 1}),
    ],
    ids=str,
)
def test_models_are_validated(model, fields):
    with pytest.raises(pydantic.ValidationError):
        model(**fields)


def test_configs_are_equal_by_value():
    def made(**fields):
        return StoreConfig(**{"name": "n", "connector": {"kind": "local"}, **fields})

    assert made() == made(connector=ConnectorConfig(kind="local"))
    assert made().name == "n"
    for other in (
        {"name": "m"},
        {"connector": {"kind": "file"}},
        {"serializer": pickle.dumps},
        {"cache_size": 1},
        {"auto_register": True},
    ):
        assert made() != made(**other)


def test_config_is_a_field_of_other_models():
    class Settings(pydantic.BaseModel):
        connector: ConnectorConfig

    settings = Settings.model_validate({"connector": {"kind": "local"}})
    assert settings.connector == ConnectorConfig(kind="local", options={})
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(pydantic.ValidationError):
        Settings.model_validate({"connector": {"kind": "local", "other": 1}})


def test_defaults():
    config = StoreConfig(name="n", connector={"kind": "local"})
    assert config.model_dump() == {
        "name": "n",
        "connector": {"kind": "local", "options": {}},
        "serializer": None,
        "deserializer": None,
        "cache_size": 16,
        "metrics": False,
        "populate_target": True,
        "auto_register": False,
        "verify": None,
        "cache_bytes": None,
    }
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(TypeError):
        hash(config)


TOML = """\
name = "test"
cache_size = 0
metrics = true
populate_target = false

[connector]
kind = "file"
options = { store_dir = "some/dir" }
"""


def test_toml(tmp_path):
    (tmp_path / "store.toml").write_text(TOML)
    config = StoreConfig.from_toml(tmp_path / "store.toml")
    assert config == StoreConfig(
        name="test",
        connector=ConnectorConfig(kind="file", options={"store_dir": "some/dir"}),
        cache_size=0,
        metrics=True,
        populate_target=False,
    )
    config.write_toml(str(tmp_path / "new" / "dir" / "store.toml"))
    assert StoreConfig.from_toml(str(tmp_path / "new" / "dir" / "store.toml")) == config
    assert (tmp_path / "new" / "dir" / "store.toml").read_text().splitlines() == [
        'name = "test"',
        "cache_size = 0",
        "metrics = true",
        "populate_target = false",
        "auto_register = false",
        "",
        "[connector]",
        'kind = "file"',
        "",
        "[connector.options]",
        'store_dir = "some/dir"',
    ]


def test_toml_of_defaults(tmp_path):
    config = StoreConfig(name="n", connector={"kind": "local"})
    config.write_toml(tmp_path / "store.toml")
    lines = (tmp_path / "store.toml").read_text().splitlines()
    assert lines[:5] == [
        'name = "n"',
        "cache_size = 16",
        "metrics = false",
        "populate_target = true",
        "auto_register = false",
    ]
    assert [line for line in lines[5:] if line] == [
        "[connector]",
        'kind = "local"',
        "[connector.options]",
    ]
    assert StoreConfig.from_toml(tmp_path / "store.toml") == config


@pytest.mark.parametrize(
    "text",
    [
        TOML.replace("cache_size = 0", 'cache_size = "0"'),
        TOML.replace("metrics", "metricks"),
        TOML.replace("kind", "kid"),
        'name = "only"',
    ],
)
def test_toml_is_validated_strictly(tmp_path, text):
    (tmp_path / "store.toml").write_text(text)
    with pytest.raises(pydantic.ValidationError):
        StoreConfig.from_toml(tmp_path / "store.toml")


@pytest.mark.parametrize("text", [b"name = ", b"\xff\xfe", b"{}"])
def test_what_is_not_toml_names_the_file(tmp_path, text):
    path = tmp_path / "store.toml"
    path.write_bytes(text)
    with pytest.raises(StoreConfigError, match=str(path)) as caught:
        StoreConfig.from_toml(path)
    assert caught.value.source == str(path)


def test_a_file_that_cannot_be_read_names_it(tmp_path):
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(StoreConfigReadError, match=str(path)) as caught:
            StoreConfig.from_toml(path)
        assert isinstance(caught.value, OSError)
        assert isinstance(caught.value.__cause__, OSError)


def test_functions_cannot_be_written(tmp_path):
    config = StoreConfig(name="n", connector={"kind": "local"}, serializer=pickle.dumps)
    with pytest.raises(TypeError):
        config.write_toml(tmp_path / "store.toml")
    assert not (tmp_path / "store.toml").exists()


ALL_ERRORS = [
    StoreError("x"),
    StoreExistsError("x"),
    ProxyStoreFactoryError("x"),
    NonProxiableTypeError("x"),
    StoreConfigError("store.toml", "is empty"),
    StoreConfigReadError("store.toml", "is missing"),
    UnknownConnectorError("kind", ("file", "local")),
    ConnectorOptionsError("kind", ("a",), "no"),
    StoreDirectoryError("/dir", "no"),
    StoreDirectoryGoneError("/dir", "gone"),
    StorageFullError("/dir", 2, 1),
    ProxyResolveMissingKeyError(FileKey("k"), Store, "n"),
    ThresholdError("threshold", "x"),
    UnpicklableArgumentError(1, "lock", "no"),
]


@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("library", [pickle, cloudpickle, dill], ids=lambda m: m.__name__)
def test_errors_travel_between_processes(error, library):
    again = library.loads(library.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert {name: again.__dict__[name] for name in error.__dict__} == error.__dict__


def test_errors_travel_where_tblib_is_switched_on():
    # As importing distributed or parsl does, for good: hence a process of its own.
    script = (
        "import pickle, sys, tblib.pickling_support\n"
        "errors = pickle.load(sys.stdin.buffer)\n"
        "tblib.pickling_support.install()\n"
        "for error in errors:\n"
        "    again = pickle.loads(pickle.dumps(error))\n"
        "    assert (type(again), str(again)) == (type(error), str(error)), error\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(ALL_ERRORS), capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_missing_keys_carry_the_facts():
    error = ProxyResolveMissingKeyError(FileKey("gone"), Store, "mine")
    assert (error.key, error.store_type, error.store_name) == (FileKey("gone"), Store, "mine")
    for fact in ("gone", "Store", "mine"):
        assert fact in str(error)
    assert not isinstance(error, StoreError)


def test_missing_keys_of_classes_unknown_here_still_arrive():
    class LocalStore(Store):
        pass

    again = pickle.loads(pickle.dumps(ProxyResolveMissingKeyError(("k",), LocalStore, "mine")))
    assert again.store_type.__name__ == "LocalStore"
    again = pickle.loads(pickle.dumps(ProxyResolveMissingKeyError((lambda: 1,), Store, "mine")))
    assert "lambda" in str(again.key)


def _resolve(proxy):
    return len(proxy)


def test_a_missing_object_does_not_break_a_process_pool(tmp_path):
    # compat.md, row 1
    store = Store("pool", FileConnector(tmp_path / "objects"))
    proxy = store.proxy([1, 2], populate_target=False)
    gone = store.proxy_from_key(FileKey("gone"))
    with ProcessPoolExecutor(1) as pool:
        error = pool.submit(_resolve, gone).exception()
        assert type(error).__name__ == "ProxyResolveError"
        assert isinstance(error.cause, ProxyResolveMissingKeyError)
        assert error.cause.key == FileKey("gone")
        assert pool.submit(_resolve, proxy).result() == 2
    store.close()


MAKE = """
import pickle, sys
from proxystore.connectors.file import FileConnector
from proxystore.store import Store
{definition}
store = Store("nested", {cls}({directory!r}, clear=False))
sys.stdout.buffer.write(pickle.dumps(store.proxy([1, 2], populate_target=False)))
"""
USE = """
import pickle, sys
proxy = pickle.load(sys.stdin.buffer)
try:
    print(sum(proxy))
except Exception as error:
    print(type(error.cause).__name__, error.cause)
"""


@pytest.mark.parametrize(
    ("definition", "cls", "says"),
    [
        ("from their_module import Outer", "Outer.Inner", "3"),
        ("class Mine(FileConnector): pass", "Mine", "UnknownConnectorError.*__main__.*move it to"),
        (
            "def f():\n    class Mine(FileConnector): pass\n    return Mine",
            "f()",
            "UnknownConnectorError.*<locals>.*move it to",
        ),
    ],
    ids=["nested", "in a script", "in a function"],
)
def test_classes_of_connectors_in_other_processes(tmp_path, definition, cls, says):
    # compat.md, row 52
    (tmp_path / "their_module.py").write_text(
        "from proxystore.connectors.file import FileConnector\n"
        "class Outer:\n"
        "    class Inner(FileConnector): pass\n"
    )
    make = MAKE.format(definition=definition, cls=cls, directory=str(tmp_path / "objects"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    made = subprocess.run(
        [sys.executable, "-c", make], env=environment, capture_output=True, check=True
    )
    used = subprocess.run(
        [sys.executable, "-c", USE],
        input=made.stdout,
        env=environment,
        capture_output=True,
        check=True,
    )
    assert re.match(says, used.stdout.decode()), used.stdout


def test_what_cannot_be_used_is_not_printed(tmp_path):
    options = {"password": "s3cret"}
    wrong = [
        lambda: ConnectorConfig(kind="redis", options=[options]),
        lambda: ConnectorConfig(kind="redis", options={}, password="s3cret"),
        lambda: StoreConfig(name="n", connector={"kind": "redis", "options": "s3cret"}),
        lambda: StoreConfig(name="n", connector={"kind": "redis"}, cache_size=options),
    ]
    file = tmp_path / "store.toml"
    file.write_text('name = "n"\n[connector]\nkind = "redis"\npassword = "s3cret"\n')
    for make in (*wrong, lambda: StoreConfig.from_toml(file)):
        with pytest.raises(pydantic.ValidationError) as caught:
            make()
        assert "s3cret" not in str(caught.value)
        assert re.search("options|password|cache_size", str(caught.value)), "what is wrong is said"
