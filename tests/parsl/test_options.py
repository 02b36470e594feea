"""What goes through which store: the policy, the digest, a store for each executor."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from parsl.executors.base import ParslExecutor
from parsl_tasks import Box, boxed, boxed_total, double, identity, length, ones, total, total_of_all

from proxystore.connectors.file import FileConnector
from proxystore.store import Store, StoreConfig, store_registration
from proxystore.store.config import ConnectorConfig
from proxystore_parsl import NoStoreError, StoreApps

pytestmark = pytest.mark.parsl


def arrays_only(obj):
    """Text never, arrays always, the rest by size."""
    return {str: False, np.ndarray: True}.get(type(obj))


@pytest.fixture
def options(kernel):
    return {"data_flow_kernel": kernel, "executors": ["far"]}


class TestPolicy:
    @pytest.fixture
    def apps(self, objects):
        return StoreApps(objects.store, threshold="50 kB", policy=arrays_only)

    def test_of_arguments(self, apps, options, objects):
        add = apps.python_app(total_of_all, **options)
        assert add([np.ones(3), 1]).result() == 4
        assert apps.stats().puts == 1
        assert apps.python_app(length, **options)("a" * 100_000).result() == 100_000
        assert apps.python_app(length, **options)(["a" * 100_000]).result() == 1
        assert apps.stats().puts == 1
        assert apps.python_app(length, **options)(list(range(60_000))).result() == 60_000
        assert apps.stats().puts == 2

    def test_of_results(self, apps, options, objects):
        make = apps.python_app(ones, **options)
        future = make(3)
        assert future.result().sum() == 3
        assert len(objects) == 1
        text = apps.python_app(identity, **options)("a" * 100_000)
        nested = apps.python_app(identity, **options)({"x": ["a" * 100_000], "y": 1})
        assert (text.result(), nested.result()["x"]) == ("a" * 100_000, ["a" * 100_000])
        assert len(objects) == 1
        assert type(apps.python_app(boxed, **options)(np.ones(3)).result()) is Box

    def test_that_fails(self, objects, options, array):
        def policy(obj):
            raise ZeroDivisionError

        apps = StoreApps(objects.store, policy=policy)
        with pytest.raises(ZeroDivisionError):
            apps.python_app(total, **options)(array)
        assert apps.stats().pending == 0


class TestDigest:
    def test_is_one_of_three(self):
        for value in (True, None, "never", 0):
            with pytest.raises(ValueError, match="digest must be 'always', 'when-cached' or False"):
                StoreApps(digest=value)

    def test_finds_what_is_there(self, objects, options, array):
        apps = StoreApps(objects.store, threshold="50 kB")
        kept = apps.put(array)
        assert apps.python_app(total, **options)(array).result() == array.sum()
        assert (apps.stats().puts, apps.stats().reused) == (1, 1)
        del kept

    @pytest.mark.parametrize("digest", ["when-cached", False])
    def test_is_not_asked_for(self, objects, options, array, digest):
        apps = StoreApps(objects.store, threshold="50 kB", digest=digest)
        kept = apps.put(array)
        add = apps.python_app(total, **options)
        assert [add(array).result() for _ in range(2)] == [array.sum()] * 2
        assert add(kept).result() == array.sum()
        assert (apps.stats().puts, apps.stats().reused) == (3, 0)
        future = apps.python_app(double, **options)(array)
        future.exception()
        assert future._inner.result().refs[0].digest == ""
        del kept, future
        gc.collect()
        objects.wait_until(0)

    @pytest.mark.parametrize("digest", ["when-cached", False])
    def test_cached_apps_find_their_results(self, objects, options, array, digest):
        with StoreApps(objects.store, threshold="50 kB", digest=digest) as apps:
            add = apps.python_app(total, cache=True, **options)
            assert add(array + 5).result() == (array + 5).sum()
            again = add(array + 5)
            assert again.result() == (array + 5).sum()
            assert again.task_record["from_memo"]
            assert not add(array + 6).task_record["from_memo"]


class TestAStoreForEach:
    @pytest.fixture
    def stores(self, tmp_path):
        with (
            Store("first", FileConnector(tmp_path / "first")) as first,
            Store("second", FileConnector(tmp_path / "second")) as second,
            store_registration(first, second),
        ):
            yield {"plain": first, "wired": second}

    @pytest.fixture
    def here(self, stores, wired):
        apps = StoreApps(stores, threshold="50 kB")
        yield lambda function, label: apps.python_app(
            function, data_flow_kernel=wired, executors=[label]
        )
        gc.collect()
        apps.close()
        assert [count(store) for store in stores.values()] == [0, 0]

    def test_each_executor_uses_its_own(self, here, stores):
        made = {label: here(ones, label)(20_000) for label in stores}
        for future in made.values():
            future.exception()
        assert [count(store) for store in stores.values()] == [1, 1]

    def test_from_one_to_the_other_and_back(self, here, stores, array):
        there = here(double, "wired")(here(double, "plain")(array))
        assert here(total, "plain")(there).result() == 4 * array.sum()
        assert here(identity, "plain")(there).result()[1] == 4.0
        assert here(boxed_total, "wired")(here(boxed, "plain")(array)).result() == array.sum()
        del there
        gc.collect()

    def test_a_label_without_one(self, stores, wired, array):
        apps = StoreApps({"plain": stores["plain"]})
        app = apps.python_app(total, data_flow_kernel=wired, executors=["wired"])
        with pytest.raises(NoStoreError, match="executors 'plain', and none for 'wired'") as caught:
            app(array)
        assert isinstance(caught.value, LookupError)
        assert apps.stats().puts == 0

    def test_threads_need_none(self, stores, kernel, array):
        apps = StoreApps({"plain": stores["plain"]})
        app = apps.python_app(total, data_flow_kernel=kernel, executors=["near"])
        assert app(array).result() == array.sum()

    def test_put_says_where(self, stores, here, array):
        with StoreApps(stores) as apps, StoreApps({"plain": stores["plain"]}) as only_plain:
            with pytest.raises(NoStoreError, match=r"name the executor \('plain', 'wired'\)"):
                apps.put(array)
            kept = apps.put(array, executor="wired")
            assert count(stores["wired"]) == 1
            only = only_plain.put(array)
            assert count(stores["plain"]) == 1
            assert np.array_equal(kept, only)

    def test_none_at_all(self):
        with pytest.raises(ValueError, match="must have one at least"):
            StoreApps({})

    def test_repr(self, stores):
        apps = StoreApps(stores, digest=False)
        names = {each.__name__: each for each in (StoreApps, StoreConfig, ConnectorConfig)}
        again = eval(repr(apps), names)
        assert repr(again) == repr(apps)
        assert again.store == {label: store.config() for label, store in stores.items()}


def count(store):
    return len(list(store.connector.keys()))


def test_labels_are_what_parsl_calls_executors():
    assert ParslExecutor.label == "undefined"
