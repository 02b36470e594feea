"""Objects let go all together, and objects that stay for good."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from parsl_tasks import (
    Box,
    boxed,
    double,
    fail,
    is_unresolved_proxy,
    ones,
    record,
    small,
    text_of,
    total,
    wait_for,
)

from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy, ProxyResolveError
from proxystore.store import Store, store_registration
from proxystore.store.utils import get_key
from proxystore_parsl import ClosedError, StoreApps

pytestmark = pytest.mark.parsl


class TestScope:
    def test_ends_what_is_still_referred_to(self, apps, app, array, objects):
        with apps.scope():
            kept = apps.put(array)
            future = app(ones)(20_000)
            result = future.result()
            nested = app(record)(20_000).result()
            assert len(objects) == 5
            assert kept.sum() == array.sum()
        objects.wait_until(0)
        assert kept.sum() == array.sum()  # fetched before
        for proxy in (result, nested["a"]):
            with pytest.raises(ProxyResolveError):
                proxy.sum()

    def test_says_so_when_it_is_used_later(self, apps, app, array):
        with apps.scope():
            kept = apps.put(array)
            future, text = app(ones)(20_000), app(text_of)(100_000)
            tiny, bad = app(small)("array"), app(fail)()
            for each in (future, text, tiny, bad):
                each.exception()
            not_opened = app(ones)(20_000)
            not_opened._inner.exception()
        for use in (not_opened.result, lambda: app(total)(future), lambda: app(total)(kept)):
            with pytest.raises(ClosedError, match="scope"):
                use()
        assert text.result() == "a" * 100_000  # fetched before
        assert app(total)(tiny).result() == 3
        with pytest.raises(ValueError, match="the task fails"):
            bad.result()

    def test_tasks_keep_what_they_take(self, apps, app, array, objects, tmp_path):
        go = tmp_path / "go"
        with apps.scope():
            kept, made = apps.put(array), app(wait_for)(go, np.ones(20_000))
            tasks = [app(wait_for)(go, kept), app(total)(made)]
        assert len(objects) >= 1  # and the workers wait
        go.touch()
        assert tasks[1].result() == 20_000
        with pytest.raises(ClosedError):
            tasks[0].result()
        objects.wait_until(0)

    def test_goes_before_the_end_if_nobody_refers_to_it(self, apps, app, array, objects):
        with apps.scope() as scope:
            apps.put(array)
            objects.wait_until(0)
            scope.keep(apps.put(array))
            scope.keep(app(ones)(20_000)).exception()
            assert len(objects) == 2
        objects.wait_until(0)

    def test_proxies_inside_objects(self, objects, kernel, array):
        apps = StoreApps(objects.store, threshold="50 kB", arguments="proxy")
        box = apps.python_app(boxed, data_flow_kernel=kernel, executors=["far"])
        with apps.scope():
            result = box(array).result()
            inner = result.content
        objects.wait_until(0)
        with pytest.raises(ProxyResolveError):
            inner.sum()

    def test_of_another_and_inside_another(self, apps, app, array, objects):
        others = StoreApps(objects.store, threshold="50 kB")
        with apps.scope():
            outer = apps.put(array)
            with others.scope(), apps.scope():
                inner = apps.put(array + 1)
            objects.wait_until(1)
            assert outer.sum() == array.sum()
            with pytest.raises(ProxyResolveError):
                inner.sum()
        after = apps.put(array)
        assert after.sum() == array.sum()

    def test_ends_with_an_exception(self, apps, array, objects):
        with contextlib.suppress(ZeroDivisionError), apps.scope():
            kept = apps.put(array)
            raise ZeroDivisionError
        objects.wait_until(0)
        with pytest.raises(ProxyResolveError):
            kept.sum()


READ = """
import pickle, sys
obj = pickle.load(open(sys.argv[1], "rb"))
print(type(obj).__name__, float(obj.sum()))
"""


class TestPersist:
    def test_outlives_all(self, kernel, array, tmp_path):
        store = Store("kept", FileConnector(tmp_path / "kept", clear=False))
        with store, store_registration(store):
            apps = StoreApps(store, threshold="50 kB")
            make = apps.python_app(ones, data_flow_kernel=kernel, executors=["far"])
            future, put = make(20_000), apps.put(array)
            proxies = [apps.persist(future), *apps.persist([put])]
            del future, put
            make(30_000).result()
            apps.close()
            for i, proxy in enumerate(proxies):
                (tmp_path / str(i)).write_bytes(pickle.dumps(proxy))
        assert len(list((tmp_path / "kept").iterdir())) == 2
        for i, expected in enumerate([20_000.0, array.sum()]):
            run = subprocess.run(
                [sys.executable, "-c", READ, str(tmp_path / str(i))],
                check=True,
                capture_output=True,
                text=True,
            )
            assert run.stdout.split() == ["Proxy", str(expected)]

    @pytest.fixture
    def evict_all(self, objects):
        yield
        for key in list(objects.store.connector.keys()):
            objects.store.evict(key)

    @pytest.mark.usefixtures("evict_all")
    def test_containers_and_values(self, apps, app, objects):
        kept = apps.persist(app(record)(20_000))
        assert (kept["b"], kept["c"][1]) == ("small", 3)
        text = apps.persist(app(text_of)(100_000))
        assert type(text) is Proxy
        apps.close()
        assert kept["a"].sum() + kept["d"].first.sum() == 60_000
        assert text == "a" * 100_000
        assert len(objects) == 4
        objects.store.evict(get_key(text))
        assert len(objects) == 3
        assert apps.stats().evicted == 0

    @pytest.mark.usefixtures("evict_all")
    def test_what_the_user_has_changed(self, apps, app, array):
        result = app(double)(array).result()
        result[0] = 77
        kept = apps.persist(result)
        assert pickle.loads(pickle.dumps(kept))[0] == 77

    @pytest.mark.usefixtures("evict_all")
    def test_proxies_inside_objects(self, objects, kernel, array):
        apps = StoreApps(objects.store, threshold="50 kB", arguments="proxy")
        box = apps.python_app(boxed, data_flow_kernel=kernel, executors=["far"])
        kept = apps.persist(box(array))
        assert type(kept) is Box
        apps.close()
        assert kept.content.sum() == array.sum()

    @pytest.mark.usefixtures("evict_all")
    def test_can_be_passed_on(self, apps, app, array):
        kept = apps.persist(apps.put(array))
        assert app(is_unresolved_proxy)(kept).result() is True
        assert app(total)(kept).result() == array.sum()

    def test_small_things_are_themselves(self, apps, app):
        assert apps.persist(app(small)("dict")) == {"a": [1, 2]}
        assert apps.persist([1, "a"]) == [1, "a"]

    def test_of_the_embedded_store(self, array):
        with pytest.raises(ValueError, match="deleted when this process exits"):
            StoreApps().persist(array)

    def test_of_another(self, apps, objects, tmp_path, array):
        with Store("other", FileConnector(tmp_path / "other"), register=True) as other:
            theirs = StoreApps(other).put(array)
            with pytest.raises(ValueError, match="was not stored by this StoreApps"):
                apps.persist(theirs)
            del theirs

    def test_a_failure(self, apps, app):
        with pytest.raises(ValueError, match="the task fails"):
            apps.persist(app(fail)())
        apps.close()
        with pytest.raises(ClosedError):
            apps.persist(1)

    @pytest.mark.usefixtures("evict_all")
    def test_says_where(self, apps, array, objects, caplog):
        caplog.set_level("INFO", "parsl.proxystore")
        apps.persist(apps.put(array))
        assert str(objects.directory) in caplog.text
        assert "give its connector clear=False" in caplog.text
