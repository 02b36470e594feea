"""The decorators by themselves: what they accept, what they keep, what they start (nothing)."""

from __future__ import annotations

import inspect
import subprocess
import sys

import parsl
import pytest
from parsl.errors import NoDataFlowKernelError
from parsl_tasks import total

import proxystore_parsl
from proxystore.connectors.file import FileConnector
from proxystore.store import Store, StoreConfig, get_store, unregister_store
from proxystore.store.exceptions import StoreConfigError, UnknownConnectorError
from proxystore.workflow import ThresholdError
from proxystore_parsl import StoreApps


@pytest.mark.parametrize("name", ["python_app", "bash_app", "join_app"])
def test_parameters_are_those_of_parsl(name):
    theirs = inspect.signature(getattr(parsl, name)).parameters
    ours = dict(inspect.signature(getattr(proxystore_parsl, name)).parameters)
    assert list(ours)[: len(theirs)] == list(theirs)
    assert [ours[each].default for each in theirs] == [p.default for p in theirs.values()]
    assert set(ours) - set(theirs) <= {"threshold"}


@pytest.mark.parametrize("name", ["python_app", "bash_app", "join_app"])
def test_with_and_without_arguments(name):
    decorator = getattr(proxystore_parsl, name)

    @decorator
    def first(x: int, y: str = "") -> str:
        """Say something."""

    @decorator(cache=True)
    def second(x: int, y: str = "") -> str:
        """Say something."""

    for app in (first, second):
        assert app.__doc__ == "Say something."
        assert list(inspect.signature(app).parameters) == ["x", "y"]
        assert app.__module__ == __name__
    assert (first.__name__, second.__name__) == ("first", "second")


@pytest.mark.parametrize("name", ["python_app", "bash_app", "join_app"])
def test_unknown_options(name):
    with pytest.raises(TypeError, match="treshold"):
        getattr(proxystore_parsl, name)(treshold=1)


def test_options_of_a_wrong_type_are_refused_as_by_parsl():
    with pytest.raises(Exception, match="executors") as theirs:
        parsl.python_app(total, executors=7)
    with pytest.raises(type(theirs.value), match="executors"):
        proxystore_parsl.python_app(total, executors=7)


@pytest.mark.parametrize("size", ["soon", -1, 1.5, True])
def test_threshold_that_is_no_size(size):
    with pytest.raises(ThresholdError, match="threshold must be"):
        StoreApps(threshold=size)
    with pytest.raises(ThresholdError, match="threshold must be"):
        proxystore_parsl.python_app(threshold=size)
    with pytest.raises(ThresholdError):
        StoreApps(threshold=None)


@pytest.mark.parametrize("name", ["arguments", "results"])
def test_modes(name):
    with pytest.raises(ValueError, match=f"{name} must be 'value' or 'proxy', got 'lazy'"):
        StoreApps(**{name: "lazy"})
    with pytest.raises(TypeError):
        StoreApps(None, "1 MiB")


@pytest.mark.parametrize("first", [parsl.python_app, proxystore_parsl.python_app])
def test_decorated_twice(first):
    with pytest.raises(TypeError, match="'total' is an app already"):
        proxystore_parsl.python_app(first(total))


def test_no_kernel_is_loaded():
    with pytest.raises(NoDataFlowKernelError):
        proxystore_parsl.python_app(total)(1)


class TestStore:
    def test_of_the_user(self, tmp_path):
        with Store("mine", FileConnector(tmp_path / "mine")) as store:
            assert f"store={store.config()!r}" in repr(StoreApps(store))
            unregister_store(store)

    def test_repr_makes_it_again(self, tmp_path):
        with Store("mine", FileConnector(tmp_path / "mine")) as store:
            apps = StoreApps(store, threshold="1 MiB", arguments="proxy", results="value")
            from proxystore.store.config import ConnectorConfig

            names = {"StoreApps": StoreApps, "StoreConfig": StoreConfig}
            again = eval(repr(apps), {**names, "ConnectorConfig": ConnectorConfig})
            assert repr(again) == repr(apps)
            unregister_store(store)
        again = eval(repr(StoreApps()), {"StoreApps": StoreApps})
        assert repr(again) == repr(StoreApps())
        assert "threshold=131072" in repr(again)

    def test_toml(self, tmp_path):
        path = tmp_path / "store.toml"
        with Store("from-a-file", FileConnector(tmp_path / "objects")) as store:
            store.config().write_toml(path)
            assert f"store={store.config()!r}" in repr(StoreApps(path))
            unregister_store("from-a-file")

    def test_toml_that_is_missing_or_wrong(self, tmp_path):
        with pytest.raises(StoreConfigError, match="cannot be read"):
            StoreApps(tmp_path / "none.toml")
        (tmp_path / "bad.toml").write_text("name = ")
        with pytest.raises(StoreConfigError, match="not TOML"):
            StoreApps(str(tmp_path / "bad.toml"))

    def test_unknown_connector(self):
        config = {"name": "unknown", "connector": {"kind": "nothing"}}
        with pytest.raises(UnknownConnectorError):
            StoreApps(StoreConfig.model_validate(config))
        assert get_store("unknown") is None

    def test_something_else(self):
        with pytest.raises(TypeError, match="a store must be"):
            StoreApps(7)


def test_importing_starts_nothing():
    code = """
import threading, proxystore_parsl
from proxystore_parsl import StoreApps, python_app

@python_app
def app(x):
    return x

assert threading.active_count() == 1, threading.enumerate()
print(proxystore_parsl.default_apps())
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "store=None" in run.stdout
