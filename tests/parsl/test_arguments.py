"""What apps are given: large objects arrive as they were, and Parsl does not see them."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from concurrent.futures import Future

import numpy as np
import parsl
import pytest
from parsl.data_provider.files import File
from parsl_tasks import (
    Box,
    Doubler,
    Pair,
    Unpicklable,
    are_one_object,
    boxed_total,
    double,
    identity,
    is_unresolved_proxy,
    kind,
    length,
    ones,
    read,
    record,
    small,
    through_the_c_api,
    total,
    total_of_all,
    wait_for,
    write_total,
)

from proxystore.proxy import is_resolved
from proxystore.workflow import UnpicklableArgumentError
from proxystore_parsl import AppArgumentError, StoreApps

pytestmark = pytest.mark.parsl


@pytest.mark.usefixtures("small_messages")
class TestWhatArrives:
    def test_the_object_itself_and_it_may_be_changed(self, app, array):
        assert app(kind)(array).result() == ("numpy.ndarray", True)

    def test_c_functions_take_it(self, app, array):
        text, data = "a" * 100_000, b"b" * 100_000
        assert app(through_the_c_api)(text, data, array).result() == array.nbytes

    def test_in_containers_of_any_depth(self, app, array):
        nested = {"k": [array, (array, Pair(array, 1))], "small": 2}
        assert app(total_of_all)(nested, x=[[array]]).result() == 4 * array.sum() + 3

    def test_a_container_that_is_large_as_a_whole(self, app):
        assert app(length)(list(range(60_000))).result() == 60_000

    def test_many_small_arrays(self, app):
        assert app(length)({i: np.ones(100) for i in range(500)}).result() == 500

    def test_objects_of_unknown_classes(self, app, array):
        assert app(boxed_total)(Box(array)).result() == array.sum()

    def test_one_object_given_twice_is_one_object(self, app, array):
        assert app(are_one_object)(array, array).result() is True

    def test_two_objects_of_equal_content_are_two_objects(self, app, array):
        assert not app(are_one_object)(array, array.copy()).result()

    def test_inputs(self, app, array):
        inputs = [array, app(ones)(20_000), 1]
        assert app(total_of_all)(inputs=inputs).result() == array.sum() + 20_000 + 1
        assert inputs[0] is array  # the caller's list is the caller's

    def test_inputs_that_are_large_as_a_whole_stay_a_list(self, app, executor):
        assert app(total_of_all)(inputs=list(range(2_000))).result() == sum(range(2_000))

    def test_a_large_default_of_inputs_is_parsls_matter(self, app):
        def no_inputs(inputs=()):
            return len(inputs)

        assert app(no_inputs)().result() == 0

    def test_files_reach_parsl(self, app, array, tmp_path):
        future = app(write_total)(array, outputs=[File(str(tmp_path / "sum"))])
        assert future.outputs[0].result().filepath == str(tmp_path / "sum")
        assert (tmp_path / "sum").read_text() == str(array.sum())
        assert app(read)(future.outputs[0], array).result() == str(array.sum())
        assert app(read)(File(str(tmp_path / "sum"))).result() == str(array.sum())

    def test_stdout(self, app, array, tmp_path):
        def say(x, stdout=None):
            print(x.sum())

        future = app(say)(array, stdout=str(tmp_path / "out"))
        future.result()
        assert future.stdout == str(tmp_path / "out")

    def test_a_proxy_if_asked_for(self, objects, kernel, array):
        apps = StoreApps(objects.store, threshold="50 kB", arguments="proxy")
        look = apps.python_app(is_unresolved_proxy, data_flow_kernel=kernel, executors=["far"])
        assert look(array).result() is True
        add = apps.python_app(total, data_flow_kernel=kernel, executors=["far"])
        assert add(array).result() == array.sum()

    def test_a_proxy_that_the_user_has_made(self, app, objects, array):
        mine = objects.store.proxy(array)
        assert app(is_unresolved_proxy)(mine).result() is True
        assert app(total)(mine).result() == array.sum()
        assert len(objects) == 1  # the user's objects are the user's to evict
        objects.store.evict(mine.__proxy_factory__.key)

    def test_a_proxy_of_unknown_class_is_not_resolved_on_its_way(self, app, objects, array):
        """Parsl, which looks at arguments, resolves it here, and waits for what is promised."""
        bare, promised = (
            objects.store.proxy_from_key(objects.store.put(array)),
            objects.store.future(),
        )
        pending = promised.proxy()
        waiting = app(total)(pending)
        assert app(is_unresolved_proxy)(bare).result() is True
        assert app(total)(bare).result() == array.sum()
        promised.set_result(array + 1)
        assert waiting.result() == array.sum() + len(array)
        assert [is_resolved(bare), is_resolved(pending)] == [False, False]
        for proxy in (bare, pending):
            objects.store.evict(proxy.__proxy_factory__.key)

    def test_an_argument_does_not_stay_in_memory(self, app, objects, tmp_path):
        array = np.arange(20_000.0)
        gone = weakref.ref(array)
        future = app(wait_for)(str(tmp_path / "go"), array)
        del array
        gc.collect()
        assert gone() is None
        assert not future.done()
        (tmp_path / "go").touch()
        assert np.array_equal(future.result(), np.arange(20_000.0))


@pytest.mark.usefixtures("small_messages")
class TestFutures:
    def test_a_result_reaches_the_next_task(self, app):
        twice = app(double)
        assert app(total)(twice(twice(app(ones)(20_000)))).result() == 80_000

    def test_two_tasks_take_it(self, app):
        first = app(ones)(20_000)
        assert [app(total)(first).result() for _ in range(2)] == [20_000, 20_000]
        assert first.result().sum() == 20_000

    def test_a_done_one(self, app):
        first = app(ones)(20_000)
        first.result()
        assert app(total)(first).result() == 20_000

    def test_its_result_is_taken_without_being_fetched(self, app):
        result = app(ones)(20_000).result()
        assert app(kind)(result).result() == ("numpy.ndarray", True)
        assert not result.__proxy_resolved__

    def test_what_the_user_did_to_a_result_counts(self, app):
        result = app(ones)(20_000).result()
        result[0] = 0
        assert app(total)(result).result() == 19_999

    def test_keyword(self, app):
        assert app(total_of_all)(x=app(ones)(20_000)).result() == 20_000

    def test_a_part_of_a_result(self, app, executor):
        future = app(record)(20_000)
        assert app(total)(future["a"]).result() == 20_000
        assert app(total)(future["d"].first).result() == 40_000
        assert future["b"].result() == "small"
        assert future["c"].result()[1] == 3

    def test_a_part_of_one_large_object(self, app, array):
        assert app(identity)(array)[7].result() == 7
        assert app(identity)(array).shape.result() == (20_000,)

    def test_another_librarys_future(self, app):
        future: Future[int] = Future()
        waiting = app(double)(future)
        future.set_result(21)
        assert waiting.result() == 42

    def test_of_an_app_without_us(self, app, kernel):
        plain = parsl.python_app(small, data_flow_kernel=kernel, executors=["far"])
        assert app(total)(plain("array")).result() == 3

    def test_by_an_app_without_us(self, app, kernel):
        plain = parsl.python_app(total, data_flow_kernel=kernel, executors=["far"])
        assert plain(app(ones)(20_000)).result() == 20_000
        # Parsl holds that task's arguments until another result arrives.
        assert plain(np.ones(2)).result() == 2


@pytest.mark.usefixtures("small_messages")
class TestStoredOnce:
    def test_for_many_tasks(self, apps, app, array):
        futures = [app(total)(array) for _ in range(4)]
        assert {future.result() for future in futures} == {array.sum()}
        assert apps.stats().puts + apps.stats().reused == 4

    def test_while_somebody_needs_it(self, apps, app, array):
        kept = apps.put(array)
        assert [app(total)(x).result() for x in (array, array.copy(), [array][0])]
        assert apps.stats().puts == 1
        del kept

    def test_put_and_pass_on(self, apps, app, array):
        kept = apps.put(array)
        assert [app(total)(kept).result() for _ in range(3)] == [array.sum()] * 3
        assert apps.stats().puts == 1

    def test_what_was_changed_in_place_is_another_object(self, apps, app, array):
        kept = apps.put(array)
        array[0] = 1e9
        assert app(total)(array).result() == array.sum()
        assert kept.sum() != array.sum()

    def test_by_many_threads(self, apps, app, array, at_once):
        kept = apps.put(array)
        add = app(total)
        futures = at_once(*[lambda: add(array)] * 8)
        assert {future.result() for future in futures} == {array.sum()}
        assert apps.stats().puts == 1
        del kept


class TestFunctions:
    def test_without_a_name(self, app, array):
        assert app(functools.partial(total_of_all, 1))(array).result() == array.sum() + 1
        future = app(Doubler())(array)
        assert future.result()[2] == 4
        with pytest.raises(AppArgumentError, match="app 'Doubler' cannot be called"):
            app(Doubler())(Unpicklable())


class TestUnpicklable:
    def test_argument(self, app, apps, array, objects):
        with pytest.raises(UnpicklableArgumentError) as caught:
            app(total_of_all)(array, 1, [{"x": Unpicklable()}])
        assert caught.value.position == "3[0]['x']"
        assert caught.value.type_name == "parsl_tasks.Unpicklable"
        assert (apps.stats().puts, len(objects)) == (0, 0)

    def test_keyword_argument(self, app):
        with pytest.raises(
            UnpicklableArgumentError, match=r"argument x is a parsl_tasks\.Unpicklable"
        ):
            app(total_of_all)(x=Unpicklable())

    def test_input(self, app):
        with pytest.raises(UnpicklableArgumentError, match=r"inputs\[1\]"):
            app(total_of_all)(inputs=[1, Unpicklable()])

    def test_what_only_dill_takes_is_sent(self, app):
        def locked(lock):
            return lock.locked()

        assert app(locked)(threading.Lock()).result() is False
