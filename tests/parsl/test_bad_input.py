"""What a program or a machine has wrong is said in its own words, and the executor lives."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import cloudpickle
import dill
import numpy as np
import pytest
from parsl.errors import ParslError
from parsl_tasks import Unpicklable, give_what_cannot_be_pickled, ones, small, total, total_of_all

from proxystore.connectors.file import FileConnector, FileKey
from proxystore.store import Store, unregister_store
from proxystore_parsl import (
    AppArgumentError,
    ClosedError,
    NoStoreError,
    ObjectLostError,
    RemoteTaskError,
    StoreApps,
    StoreUnreachableError,
    UnpicklableResultError,
)

ERRORS = [
    AppArgumentError("app", "x[0]", "module.Class", "TypeError: no"),
    ClosedError("a task", "it was closed"),
    NoStoreError("gpu", ("cpu", "disk")),
    NoStoreError(None, ("cpu", "disk")),
    ObjectLostError(FileKey("a"), Store, "store", "host a (process 1)", "store 'store'"),
    RemoteTaskError("app", "module.Error", "text", "Traceback"),
    StoreUnreachableError("app", "host a (process 1)", "store 'store'", "OSError: no"),
    UnpicklableResultError("app", "module.Class", "TypeError: no"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("pickler", [pickle, cloudpickle, dill], ids=lambda each: each.__name__)
def test_errors_travel_between_processes(error, pickler):
    again = pickler.loads(pickler.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert isinstance(again, ParslError)


@pytest.mark.parsl
class TestNamesTheApp:
    def test_argument(self, app, apps):
        with pytest.raises(AppArgumentError, match="app 'total_of_all' cannot be called") as caught:
            app(total_of_all)(1, x=[Unpicklable()])
        assert (caught.value.app, caught.value.position) == ("total_of_all", "x[0]")
        assert isinstance(caught.value, TypeError)
        assert app(small)("int").result() == 1

    def test_result(self, app):
        error = app(give_what_cannot_be_pickled)().exception()
        assert isinstance(error, UnpicklableResultError)
        assert error.app == "give_what_cannot_be_pickled"
        assert app(small)("int").result() == 1


@pytest.mark.parsl
class TestStoreOutOfReach:
    """A worker on another host, played by one on this host from which the store is taken."""

    @pytest.fixture
    def store(self, tmp_path):
        store = Store("far-away", FileConnector(tmp_path / "far"), register=True)
        yield store
        unregister_store(store)

    @pytest.fixture
    def options(self, kernel):
        return {"data_flow_kernel": kernel, "executors": ["far"]}

    @staticmethod
    def take_away(directory):
        directory.rename(directory.with_name("moved"))
        directory.write_text("a file where the directory was")

    @staticmethod
    def bring_back(directory):
        directory.unlink()
        directory.with_name("moved").rename(directory)

    def test_by_an_argument(self, store, options, array, app):
        apps = StoreApps(store, threshold="50 kB")
        kept = apps.put(array)
        directory = Path(store.connector.store_dir)
        self.take_away(directory)
        error = apps.python_app(total, **options)(kept).exception()
        self.bring_back(directory)
        assert isinstance(error, StoreUnreachableError)
        assert error.app == "total"
        assert "process" in error.worker
        assert str(directory) in error.place
        assert "store 'far-away'" in str(error)
        assert app(small)("int").result() == 1
        del kept

    def test_by_a_result(self, store, options, app):
        apps = StoreApps(store, threshold="50 kB")
        directory = Path(store.connector.store_dir)
        self.take_away(directory)
        error = apps.python_app(ones, **options)(20_000).exception()
        self.bring_back(directory)
        assert isinstance(error, StoreUnreachableError)
        assert str(directory) in str(error)
        assert app(small)("int").result() == 1

    def test_by_a_bash_app(self, store, options, array):
        apps = StoreApps(store, threshold="50 kB")
        kept = apps.put(array)

        @apps.bash_app(**options)
        def command(x):
            return "true"

        directory = Path(store.connector.store_dir)
        self.take_away(directory)
        error = command(kept).exception()
        self.bring_back(directory)
        assert isinstance(error, StoreUnreachableError)
        assert error.app == "command"
        del kept

    def test_an_object_that_is_not_there(self, store, options, array):
        apps = StoreApps(store, threshold="50 kB")
        kept = apps.put(array)
        store.evict(kept.__proxy_factory__.key)
        error = apps.python_app(total, **options)(kept).exception()
        assert isinstance(error, ObjectLostError)
        assert error.store_name == "far-away"
        assert f"store_dir': '{store.connector.store_dir}'" in str(error)
        assert "asked by host" in str(error)
        del kept


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_what_happens_is_in_parsls_log(tmp_path, monkeypatch):
    records = Records()
    theirs = logging.getLogger("parsl")  # its messages are what Parsl writes to parsl.log
    monkeypatch.setattr(theirs, "handlers", [*theirs.handlers, records])
    monkeypatch.setattr(theirs, "level", logging.INFO)
    with Store("logged", FileConnector(tmp_path / "logged"), register=True) as store:
        apps = StoreApps(store)
        apps.persist(apps.put(np.ones(3)))
        unregister_store(store)
    assert any("kept for later programs" in text for text in records.texts)
    assert any(str(tmp_path / "logged") in text for text in records.texts)
