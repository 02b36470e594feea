"""Objects live as long as somebody needs them, and no longer."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from parsl.dataflow.errors import DependencyError
from parsl_tasks import (
    Box,
    boxed_total,
    double,
    fail,
    identity,
    in_a_dict,
    ones,
    record,
    small,
    total,
    total_of_all,
    touch_and_wait,
    wait_for,
)

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_parsl import AppsStats, ClosedError, StoreApps, lifetimes

pytestmark = pytest.mark.parsl


@pytest.fixture(autouse=True)
def _no_garbage_collector():
    """What is dropped has to go at once; cycles would wait for the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class TestInputs:
    def test_go_with_the_task(self, app, array, objects):
        future = app(total)(array)
        assert future.result() == array.sum()
        objects.wait_until(0)

    def test_stay_while_a_task_waits_for_another(self, app, array, objects, tmp_path):
        first = app(wait_for)(tmp_path / "go", 1.0)
        second = app(total_of_all)(first, x=array)
        assert app(total)(array).result() == array.sum()
        assert len(objects) == 1
        (tmp_path / "go").touch()
        assert second.result() == array.sum() + 1
        objects.wait_until(0)

    def test_stay_when_nobody_has_the_future(self, app, array, objects, tmp_path):
        app(touch_and_wait)(tmp_path / "started", tmp_path / "go", array)
        assert len(objects) == 1
        wait_for(tmp_path / "started")
        assert len(objects) == 1
        (tmp_path / "go").touch()
        objects.wait_until(0)

    def test_go_when_the_task_fails(self, app, array, objects):
        future = app(fail)(array)
        assert isinstance(future.exception(), ValueError)
        objects.wait_until(0)

    def test_go_when_a_dependency_fails(self, app, array, objects):
        future = app(total_of_all)(array, app(fail)())
        with pytest.raises(DependencyError):
            future.result()
        objects.wait_until(0)

    def test_stay_a_moment_for_the_next_call(self, apps, app, array, objects, monkeypatch):
        patient = lifetimes.Afterglow()
        patient.SECONDS = 30
        monkeypatch.setattr(lifetimes, "_afterglow", patient)
        for _ in range(3):
            assert app(total)(array).result() == array.sum()
        assert apps.stats().puts == 1
        apps.close()
        assert len(objects) == 0

    def test_inside_an_object_stay(self, app, objects):
        box = Box(app(ones)(20_000).result())  # nobody else has the result
        future = app(boxed_total)(box)
        del box
        assert future.result() == 20_000
        objects.wait_until(0)


class TestResults:
    def test_stay_with_the_future(self, app, objects):
        future = app(ones)(20_000)
        future.exception()
        assert len(objects) == 1
        assert future.result().sum() == 20_000
        del future
        objects.wait_until(0)

    def test_stay_with_the_proxy(self, app, objects):
        future = app(ones)(20_000)
        result = future.result()
        del future
        assert len(objects) == 1
        assert result.sum() == 20_000
        del result
        objects.wait_until(0)

    def test_each_with_its_own_proxy(self, app, objects):
        result = app(record)(20_000).result()
        assert len(objects) == 3
        del result["a"]
        objects.wait_until(2)
        result.clear()
        objects.wait_until(0)

    def test_stay_with_a_task_that_takes_them(self, app, objects, tmp_path):
        future = app(ones)(20_000)
        future.exception()
        waiting = app(wait_for)(tmp_path / "go", future)
        del future
        assert len(objects) == 1
        (tmp_path / "go").touch()
        assert waiting.result().sum() == 20_000
        del waiting
        objects.wait_until(0)

    def test_go_at_once_if_nobody_waits(self, app, kernel, objects, tmp_path):
        future = app(wait_for)(tmp_path / "go", np.ones(20_000))
        del future
        (tmp_path / "go").touch()
        kernel.wait_for_current_tasks()
        objects.wait_until(0)

    def test_of_a_long_chain_go_one_after_the_other(self, app, objects):
        step = app(double)
        future = step(np.ones(20_000))
        most = 0
        for _ in range(10):
            future = step(future)
            future.exception()
            most = max(most, len(objects))
        objects.wait_until(1)
        assert most <= 6  # of 11; eviction is a moment behind
        assert future.result()[0] == 2**11
        del future
        objects.wait_until(0)

    def test_of_a_chain_that_was_called_at_once(self, app, objects):
        step = app(double)
        future = step(np.ones(20_000))
        for _ in range(10):
            future = step(future)
        assert future.result()[0] == 2**11
        objects.wait_until(1)

    def test_parts(self, app, objects):
        future = app(record)(20_000)
        part = future["a"]
        assert part.result().sum() == 20_000
        del future
        objects.wait_until(1)
        assert app(total)(part).result() == 20_000
        del part
        objects.wait_until(0)

    def test_the_argument_as_the_result(self, app, array, objects):
        future = app(in_a_dict)(app(identity)(array))
        assert future.result()["a"].sum() == array.sum()
        objects.wait_until(1)

    def test_memoized_ones_stay_until_close(self, objects, kernel, array):
        with StoreApps(objects.store, threshold="50 kB") as apps:
            app = apps.python_app(double, data_flow_kernel=kernel, executors=["far"], cache=True)
            first = app(array).result().sum()
            gc.collect()
            again = app(array.copy())
            assert again.result().sum() == first
            assert again.task_record["from_memo"]
            array[0] = 5
            other = app(array)
            assert other.result()[0] == 10
            assert not other.task_record["from_memo"]


class TestPut:
    def test_goes_with_the_proxy(self, apps, app, array, objects):
        kept = apps.put(array)
        assert app(total)(kept).result() == array.sum()
        assert len(objects) == 1
        del kept
        objects.wait_until(0)

    def test_stays_with_the_task(self, apps, app, array, tmp_path, objects):
        kept = apps.put(array)
        waiting = app(wait_for)(tmp_path / "go", kept)
        del kept
        assert len(objects) == 1
        (tmp_path / "go").touch()
        assert np.array_equal(waiting.result(), array)


class TestClosing:
    def test_fails_what_is_not_final(self, objects, kernel, array, tmp_path):
        apps = StoreApps(objects.store, threshold="50 kB")
        app = apps.python_app(touch_and_wait, data_flow_kernel=kernel, executors=["far"])
        first = app(tmp_path / "started", tmp_path / "go", array)
        second = apps.python_app(total, data_flow_kernel=kernel, executors=["far"])(first)
        wait_for(tmp_path / "started")
        apps.close()
        for future in (first, second):
            with pytest.raises(ClosedError, match="its StoreApps was closed"):
                future.result()
        assert len(objects) == 0
        (tmp_path / "go").touch()
        kernel.wait_for_current_tasks()
        assert first._inner.exception() is None  # it has its result, now that nobody wants it
        objects.wait_until(0)

    def test_fails_what_depends_on_it(self, objects, kernel, array, tmp_path):
        apps = StoreApps(objects.store, threshold="50 kB")
        pending = apps.python_app(wait_for, data_flow_kernel=kernel, executors=["far"])(
            tmp_path / "go", array
        )
        apps.close()
        others = StoreApps(objects.store, threshold="50 kB")
        app = others.python_app(total, data_flow_kernel=kernel, executors=["far"])
        assert isinstance(app(pending).exception(timeout=10), DependencyError)
        (tmp_path / "go").touch()
        kernel.wait_for_current_tasks()

    def test_of_the_store_before(self, tmp_path, kernel):
        with Store("short", FileConnector(tmp_path / "short"), register=True) as store:
            apps = StoreApps(store, threshold="50 kB")
            future = apps.python_app(ones, data_flow_kernel=kernel, executors=["far"])(20_000)
            future.exception()
        assert not (tmp_path / "short").exists()
        del future
        apps.close()
        assert not (tmp_path / "short").exists()

    def test_refuses_new_calls(self, objects, kernel, array):
        apps = StoreApps(objects.store, threshold="50 kB")
        app = apps.python_app(total, data_flow_kernel=kernel, executors=["far"])
        apps.close()
        apps.close()
        with pytest.raises(ClosedError, match="a call of app 'total'"):
            app(array)
        with pytest.raises(ClosedError):
            apps.put(array)

    def test_evicts_what_is_left(self, objects, kernel):
        apps = StoreApps(objects.store, threshold="50 kB")
        future = apps.python_app(ones, data_flow_kernel=kernel, executors=["far"])(20_000)
        future.exception()
        apps.close()
        assert len(objects) == 0
        assert apps.stats().live == 0

    def test_stats(self, apps, app, array, objects):
        future = app(double)(array)
        future.exception()
        objects.wait_until(1)
        stats = apps.stats()
        assert (stats.puts, stats.results, stats.live, stats.pending) == (1, 1, 1, 0)
        assert array.nbytes <= stats.put_bytes <= array.nbytes + 1000
        assert app(small)("int").result() == 1

    def test_stats_in_words(self):
        stats = AppsStats(puts=1, put_bytes=16_100_000, reused=1234, results=2, evicted=3)
        assert str(stats).splitlines() == [
            "Stored: 1 argument, 16.1 MB",
            "Stored already when wanted: 1,234 arguments",
            "Stored by workers: 2 results",
            "Alive: 0 objects",
            "Evicted: 3 objects",
            "Not final: 0 calls",
        ]
