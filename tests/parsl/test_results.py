"""What apps give: large objects stay in the store until they are used."""

from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest
from parsl.dataflow.errors import DependencyError
from parsl.dataflow.futures import AppFuture
from parsl_tasks import (
    Box,
    FailsToUnpickle,
    Pair,
    PlainConnector,
    boxed,
    boxed_total,
    change_in_place,
    double,
    give_what_cannot_be_pickled,
    give_what_fails_to_unpickle,
    give_what_fails_to_unpickle_and_more,
    identity,
    in_a_dict,
    is_unresolved_proxy,
    numbers,
    of_the_users_store,
    ones,
    record,
    small,
    text_of,
    total,
    twice,
    with_a_lock,
)

from proxystore.proxy import Proxy, ProxyResolveError, is_resolved
from proxystore.store import Store, unregister_store
from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore_parsl import RemoteTaskError, StoreApps, UnpicklableResultError

pytestmark = pytest.mark.parsl


@pytest.mark.usefixtures("small_messages")
class TestWhatComesBack:
    def test_an_array_is_fetched_when_it_is_used(self, app):
        result = app(ones)(20_000).result()
        assert type(result) is Proxy
        assert isinstance(result, np.ndarray)
        assert not is_resolved(result)
        assert result.sum() == 20_000
        assert is_resolved(result)

    def test_it_may_be_changed(self, app):
        result = app(ones)(20_000).result()
        result[0] = 7
        assert result.sum() == 20_006

    def test_the_same_object_each_time(self, app):
        future = app(ones)(20_000)
        assert future.result() is future.result()

    def test_text(self, app):
        result = app(text_of)(100_000).result()
        assert isinstance(result, str)
        assert result == "a" * 100_000

    def test_large_objects_in_containers(self, app):
        result = app(record)(20_000).result()
        assert type(result) is dict
        assert type(result["a"]) is Proxy
        assert (result["b"], result["c"][1], result["d"].second) == ("small", 3, 1)
        assert type(result["d"]) is Pair
        assert result["a"].sum() + result["c"][0].sum() + result["d"].first.sum() == 60_000

    def test_a_container_that_is_large_as_a_whole(self, app):
        # A proxy of a list is not a sequence to NumPy: the answer would be wrong, and no error.
        result = app(numbers)(60_000).result()
        assert type(result) is list
        assert np.mean(result) == np.mean(range(60_000))

    def test_objects_of_unknown_classes(self, app):
        future = app(boxed)(np.ones(20_000))
        assert isinstance(future.result(), Box)
        assert app(boxed_total)(future).result() == 20_000

    def test_the_argument(self, app, array):
        assert np.array_equal(app(identity)(array).result(), array)
        assert np.array_equal(app(in_a_dict)(array).result()["a"], array)

    def test_the_argument_twice_is_one_object(self, app, array, objects):
        result = app(twice)(array).result()
        assert result[0] is result[1]
        objects.wait_until(1)

    def test_the_argument_changed_in_place(self, app, array):
        assert app(change_in_place)(array).result()[0] == 42
        assert array[0] == 0

    def test_values_if_asked_for(self, objects, kernel):
        apps = StoreApps(objects.store, threshold="50 kB", results="value")
        future = apps.python_app(record, data_flow_kernel=kernel, executors=["far"])(20_000)
        assert type(future.result()["a"]) is np.ndarray
        assert future.result() is future.result()

    @pytest.mark.parametrize("what", ["int", "str", "dict", "array", "set", "none"])
    def test_small_results_are_as_they_are(self, app, objects, what):
        result = app(small)(what).result()
        assert type(result) is type(small(what))
        assert np.array_equal(result, small(what))
        assert len(objects) == 0

    def test_a_proxy_that_the_function_has_made(self, app, objects):
        result = app(of_the_users_store)(objects.store.config(), 20_000).result()
        assert type(result) is Proxy
        assert result.sum() == 20_000
        gc.collect()
        assert len(objects) == 1  # the user's to evict
        objects.store.evict(result.__proxy_factory__.key)

    def test_a_proxy_of_a_result_can_be_pickled(self, app):
        result = app(ones)(20_000).result()
        again = pickle.loads(pickle.dumps(result))
        assert not is_resolved(result)
        assert again.sum() == 20_000


class TestProxiesAsArguments:
    """With ``arguments="proxy"`` a function may return, or hide, what it was given."""

    @pytest.fixture
    def lazy(self, objects, kernel):
        apps = StoreApps(objects.store, threshold="50 kB", arguments="proxy")
        return lambda function: apps.python_app(
            function, data_flow_kernel=kernel, executors=["far"]
        )

    def test_unresolved_the_object_is_not_stored_again(self, lazy, array, objects):
        result = lazy(identity)(array).result()
        assert np.array_equal(result, array)
        assert len(objects) == 1

    def test_changed_in_place(self, lazy, array):
        assert lazy(change_in_place)(array).result()[0] == 42

    def test_hidden_in_an_object(self, lazy, array, objects):
        result = lazy(boxed)(array).result()
        gc.collect()
        assert np.array_equal(result.content, array)
        del result
        objects.wait_until(0)

    def test_hidden_in_a_large_object(self, lazy, array, objects):
        def box(x):
            from parsl_tasks import Box

            return [Box((bytes(100_000), x))]

        (box,) = lazy(box)(array).result()
        gc.collect()
        assert len(objects) == 2
        content = box.content
        del box
        gc.collect()
        assert np.array_equal(content[1], array)

    def test_hidden_and_passed_on(self, lazy, array):
        assert lazy(boxed_total)(lazy(boxed)(array)).result() == array.sum()
        assert lazy(boxed_total)(lazy(boxed)(array).result()).result() == array.sum()

    def test_passed_on(self, lazy, array):
        assert lazy(is_unresolved_proxy)(lazy(double)(array)).result() is True
        assert lazy(total)(lazy(double)(array)).result() == 2 * array.sum()


class TestTheFuture:
    def test_is_an_app_future(self, app, array):
        future = app(total)(array)
        assert isinstance(future, AppFuture)
        assert isinstance(future.tid, int)
        assert future.exception() is None
        assert future.done()
        assert future.task_status() == "exec_done"
        with pytest.raises(NotImplementedError):
            future.cancel()
        assert (future.stdout, future.stderr, list(future.outputs)) == (None, None, [])

    def test_equals_what_parsl_has(self, app, array, kernel):
        future, other = app(total)(array), app(total)(array)
        theirs = future.task_record["app_fu"]
        assert theirs == future
        assert future == theirs
        assert {theirs: 1}[future] == 1
        assert other not in (future, theirs)

    def test_callbacks(self, app, array):
        seen = []
        future = app(double)(array)
        future.result()
        future.add_done_callback(lambda f: seen.append(f.result()[1]))
        assert seen == [2.0]

    def test_private_attributes_are_no_futures(self, app):
        future = app(small)("int")
        assert not hasattr(future, "_no_such_attribute")
        future.result()


class TestWhatCannotComeBack:
    def test_small_and_fails_to_unpickle(self, app):
        with pytest.raises(UnpicklableResultError, match="unpickling fails") as caught:
            app(give_what_fails_to_unpickle)(10).result()
        assert caught.value.app == "give_what_fails_to_unpickle"
        assert caught.value.type_name == "parsl_tasks.FailsToUnpickle"
        assert isinstance(caught.value.__cause__, RuntimeError)
        # It is known where it was made, not only where it is used.
        error = app(identity)(app(give_what_fails_to_unpickle)(10)).exception()
        assert isinstance(error, DependencyError)
        assert app(small)("int").result() == 1

    def test_large_and_fails_to_unpickle(self, app, objects):
        error = app(give_what_fails_to_unpickle)(100_000).exception()
        assert "unpickling fails" in str(error)
        objects.wait_until(0)
        assert app(small)("int").result() == 1

    def test_what_was_stored_with_it_is_evicted(self, tmp_path, kernel):
        store = Store("plain", PlainConnector(str(tmp_path / "plain")), register=True)
        apps = StoreApps(store, threshold="50 kB")
        options = {"data_flow_kernel": kernel, "executors": ["far"]}
        both = apps.python_app(give_what_fails_to_unpickle_and_more, **options)
        assert isinstance(both(100_000).exception(), UnpicklableResultError)
        assert list((tmp_path / "plain").iterdir()) == []
        make, add = (apps.python_app(each, **options) for each in (ones, total))
        assert add(make(20_000)).result() == 20_000
        apps.close()
        assert list((tmp_path / "plain").iterdir()) == []
        unregister_store(store)

    def test_only_dill_can_pickle_it(self, app):
        made = app(with_a_lock)(20_000).result()
        assert made["lock"].acquire(blocking=False)
        assert made["a"].sum() == 20_000

    def test_cannot_be_pickled(self, app):
        with pytest.raises(UnpicklableResultError, match="stays where it is") as caught:
            app(give_what_cannot_be_pickled)().result()
        assert "app 'give_what_cannot_be_pickled' has returned a builtins.list" in str(caught.value)

    def test_class_that_only_the_worker_knows(self, app):
        def make():
            import sys
            import types

            module = types.ModuleType("only_there")
            exec("class Thing:\n    def __init__(self): self.x = 1", module.__dict__)
            sys.modules["only_there"] = module
            return module.Thing()

        future = app(make)()
        with pytest.raises(ModuleNotFoundError, match="only_there"):
            future.result()
        assert isinstance(future.exception(), ModuleNotFoundError)
        assert app(small)("int").result() == 1

    def test_object_that_is_gone(self, app, objects):
        future = app(ones)(20_000)
        result = future.result()
        for key in list(objects.store.connector.keys()):
            objects.store.evict(key)
        with pytest.raises(ProxyResolveError) as caught:
            result.sum()
        assert isinstance(caught.value.cause, ProxyResolveMissingKeyError)
        error = app(total)(future).exception()
        assert isinstance(error, ProxyResolveMissingKeyError)
        assert app(total)(app(ones)(20_000)).result() == 20_000

    def test_error_says_whose_it_was(self):
        error = RemoteTaskError("app", "module.Bad", "text", "Traceback: ...")
        assert "app 'app' failed with module.Bad: text" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_fails_to_unpickle_does():
    data = pickle.dumps(FailsToUnpickle(1))
    with pytest.raises(RuntimeError, match="unpickling fails"):
        pickle.loads(data)
