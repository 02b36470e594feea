"""Apps made by others, on an executor that passes large data through a store."""

from __future__ import annotations

import gc
import traceback

import numpy as np
import parsl
import pytest
from parsl.data_provider.files import File
from parsl.dataflow.errors import DependencyError
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.executors.status_handling import BlockProviderExecutor
from parsl_tasks import (
    FailsToUnpickle,
    Unpicklable,
    boxed,
    boxed_total,
    die_between_results_once,
    double,
    fail,
    fail_once,
    fail_stubbornly,
    give_what_fails_to_unpickle,
    identity,
    in_a_dict,
    kind,
    ones,
    record,
    sleep_for_long,
    small,
    text_of,
    total,
    total_of_all,
)

from proxystore.proxy import Proxy, is_resolved
from proxystore_parsl import (
    AppArgumentError,
    ObjectLostError,
    RemoteTaskError,
    UnpicklableResultError,
    with_store,
)

pytestmark = pytest.mark.parsl


@pytest.fixture
def messages(wired):
    """The executor of `wired`; nothing large goes through the submit process meanwhile."""
    executor = wired.executors["wired"]
    executor.sent.clear()
    executor.received.clear()
    yield executor
    assert max(executor.sent) < 10_000
    assert max(executor.received, default=0) < 10_000


@pytest.fixture
def objects(session_objects, wired, caplog):
    """The store, which must be empty in the end."""
    yield session_objects
    # Parsl holds what it knows of a task until another one is done, and what it knows of one
    # that did not come to an end on its worker until there is another of those.
    last = parsl.python_app(identity, data_flow_kernel=wired, executors=["wired"])
    last(FailsToUnpickle(1)).exception()
    last(1).result()
    caplog.get_records("call").clear()  # Parsl's have tracebacks, and those have tasks
    gc.collect()
    session_objects.wait_until(0)


@pytest.fixture
def plain(wired, messages, objects):
    """Make an app as if there were no store."""
    return lambda function, **options: parsl.python_app(
        function, data_flow_kernel=wired, executors=["wired"], **options
    )


def test_is_the_executor_it_was(wired, wired_apps, plain):
    executor = wired.executors["wired"]
    assert plain(small)("int").result() == 1
    assert isinstance(executor, HighThroughputExecutor)
    assert isinstance(executor, BlockProviderExecutor)
    assert executor.run_dir == wired.run_dir
    assert executor.connected_managers()
    assert executor.connected_blocks()
    assert "MeasuringExecutor(" in repr(executor)
    assert executor.outstanding() == 0
    with pytest.raises(TypeError, match="'wired' has a store already"):
        with_store(executor, wired_apps)
    threads = ThreadPoolExecutor()
    assert with_store(threads, wired_apps) is threads
    assert with_store(threads, wired_apps) is threads


class TestWhatTravels:
    def test_arguments(self, plain, array):
        assert plain(kind)(array).result() == ("numpy.ndarray", True)
        nested = {"k": [array, (array, 1)]}
        assert plain(total_of_all)(nested, x=array).result() == 3 * array.sum() + 1
        assert plain(total_of_all)(inputs=[array, 2]).result() == array.sum() + 2

    def test_results(self, plain):
        result = plain(ones)(20_000).result()
        assert type(result) is Proxy
        assert not is_resolved(result)
        assert result.sum() == 20_000
        assert plain(text_of)(100_000).result() == "a" * 100_000
        made = plain(record)(20_000).result()
        assert (made["a"].sum(), made["b"], made["c"][1]) == (20_000, "small", 3)

    def test_a_result_reaches_the_next_task(self, plain):
        assert plain(total)(plain(double)(plain(ones)(20_000))).result() == 40_000
        assert plain(boxed_total)(plain(boxed)(plain(ones)(20_000))).result() == 20_000

    def test_the_argument_as_the_result(self, plain, array):
        made = plain(in_a_dict)(plain(identity)(array)).result()
        assert np.array_equal(made["a"], array)

    def test_bash(self, wired, messages, objects, array, tmp_path):
        @parsl.bash_app(data_flow_kernel=wired, executors=["wired"])
        def command(x, stdout=None, outputs=()):
            return f"echo {x.sum()} | tee {outputs[0].filepath}"

        outputs = [File(str(tmp_path / "file"))]
        future = command(array, stdout=str(tmp_path / "out"), outputs=outputs)
        assert future.result() == 0
        assert (tmp_path / "file").read_text() == (tmp_path / "out").read_text()

    def test_memoized(self, plain, wired_apps, array):
        with_cache = plain(small, cache=True)
        assert with_cache("int").result() == with_cache("int").result() == 1


class TestWithAppsOfOurs:
    def test_on_the_same_executor(self, plain, wired, wired_apps, array):
        options = {"data_flow_kernel": wired, "executors": ["wired"]}
        ours = wired_apps.python_app(double, **options)
        assert ours(array).result()[1] == 2.0
        assert plain(total)(ours(array)).result() == 2 * array.sum()
        add = wired_apps.python_app(total, **options)
        assert add(plain(ones)(20_000)).result() == 20_000
        assert wired_apps.python_app(kind, **options)(plain(ones)(20_000)).result() == (
            "numpy.ndarray",
            True,
        )

        @wired_apps.bash_app(**options)
        def command(x):
            return f"test {x.sum()} = {x.sum()}"

        assert command(array).result() == 0
        assert plain(small)("array").result().sum() == 3

    def test_to_an_executor_without(self, plain, wired):
        there = parsl.python_app(total, data_flow_kernel=wired, executors=["plain"])
        assert there(plain(ones)(20_000)).result() == 20_000
        assert there(np.ones(3)).result() == 3  # Parsl held the last one's arguments


class TestFailures:
    @pytest.fixture(autouse=True)
    def _one_retry(self, wired, monkeypatch):
        monkeypatch.setattr(wired.config, "retries", 1)

    def test_a_retry_stores_nothing_again(self, plain, wired_apps, array, tmp_path):
        before = wired_apps.stats().puts
        future = plain(fail_once)(array, str(tmp_path / "failed"))
        assert future.result() == array.sum()
        assert future.task_record["fail_count"] == 1
        assert wired_apps.stats().puts == before + 1

    def test_a_killed_worker(self, plain, tmp_path, objects):
        future = plain(die_between_results_once)(20_000, str(tmp_path / "died"))
        first, second = future.result()
        assert (first.sum(), second.sum()) == (20_000, 0)
        assert len(objects) == 2

    def test_exceptions(self, plain, array):
        error = plain(fail)(array).exception()
        assert isinstance(error, ValueError)
        assert "in fail" in "".join(traceback.format_exception(error))
        assert isinstance(plain(fail_stubbornly)(array).exception(), RemoteTaskError)
        assert isinstance(plain(total)(plain(fail)()).exception(), DependencyError)
        assert type(plain(sleep_for_long)(array, walltime=1).exception()).__name__ == "AppTimeout"
        assert plain(small)("int").result() == 1

    def test_what_cannot_travel(self, plain, array):
        error = plain(total_of_all)(array, x=[Unpicklable()]).exception()
        assert isinstance(error, AppArgumentError)
        assert (error.app, error.position) == ("total_of_all", "x[0]")
        error = plain(give_what_fails_to_unpickle)(10).exception()
        assert isinstance(error, UnpicklableResultError)
        assert plain(small)("int").result() == 1

    def test_an_object_that_is_gone(self, plain, objects):
        future = plain(ones)(20_000)
        future.exception()
        for key in list(objects.store.connector.keys()):
            objects.store.evict(key)
        assert isinstance(plain(total)(future).exception(), ObjectLostError)
        assert plain(small)("int").result() == 1
