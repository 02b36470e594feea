"""Memoization and checkpoints by content, in one program and from one program to the next."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parsl.data_provider.files import File
from parsl.dataflow.memoization import id_for_memo
from parsl.executors import ThreadPoolExecutor
from parsl_tasks import (
    Box,
    Unpicklable,
    boxed,
    boxed_total,
    double,
    identity,
    ones,
    total,
    total_of_all,
)

from proxystore_parsl import StoreApps, StoreMemoizer
from proxystore_parsl.packing import Envelope

pytestmark = pytest.mark.parsl


@pytest.fixture(scope="module")
def local(start):
    """A DataFlowKernel without processes, whose memoizer is ours."""
    kernel = start(ThreadPoolExecutor(max_threads=2), memoizer=StoreMemoizer())
    yield kernel
    kernel.cleanup()


@pytest.fixture
def cached(apps, local):
    return lambda function: apps.python_app(function, data_flow_kernel=local, cache=True)


def is_known(future):
    future.exception()
    return future.task_record["from_memo"]


def number_of_keys(value):
    return len(value)


class Version:
    """A class for which a program says what makes two of its objects the same."""

    def __init__(self, number, size):
        self.number = number
        self.data = np.random.default_rng().random(size)


@id_for_memo.register(Version)
def _id_of_version(obj, output_ref=False):
    return f"version {obj.number}".encode()


class TestArguments:
    def test_of_any_class(self, cached):
        app = cached(total_of_all)
        for make in (lambda: np.ones(3), lambda: [{"x": np.ones(3)}], lambda: 1 + 2j):
            assert not is_known(app(make()))
            assert is_known(app(make()))
        assert not is_known(app(np.zeros(3)))

    def test_by_keyword(self, cached):
        app = cached(total_of_all)
        assert not is_known(app(x=np.full(3, 7.0)))
        assert is_known(app(x=np.full(3, 7.0)))
        assert not is_known(app(y=np.full(3, 7.0)))

    def test_what_was_changed_in_place_is_another(self, cached):
        app, array = cached(total), np.full(4, 5.0)
        assert not is_known(app(array))
        array[0] = 0
        assert not is_known(app(array))
        assert app(array).result() == 15

    def test_proxies_by_what_they_stand_for(self, cached, objects, apps):
        app, array = cached(total), np.full(5, 3.0)
        assert not is_known(app(array))
        mine = objects.store.proxy(array, populate_target=False)
        other = objects.store.proxy(array.copy(), populate_target=False)
        assert is_known(app(mine))
        assert is_known(app(other))
        assert is_known(app(apps.put(array)))
        for each in (mine, other):
            objects.store.evict(each.__proxy_factory__.key)

    @pytest.mark.parametrize("length", [3, 20_000])
    @pytest.mark.parametrize("nested", [False, True])
    def test_results_by_what_they_are(self, cached, app, length, nested):
        use, far = cached(total_of_all), app(identity)
        value = np.full(length, 4.0 + nested)
        if nested:
            value = {"a": [value, "text", 1], "b": (2.0, value + 1)}
            use = cached(number_of_keys)
        assert not is_known(use(far(value)))
        assert is_known(use(value))
        assert is_known(use(far(value)))

    def test_results_that_are_objects(self, cached, app, array):
        use, far = cached(boxed_total), app(boxed)
        assert not is_known(use(far(array)))
        assert use(far(array + 1)).result() == (array + 1).sum()

    def test_the_programs_own_id_counts(self, cached):
        def number(version):
            return version.number

        app = cached(number)
        assert not is_known(app(Version(1, 3)))
        assert is_known(app(Version(1, 3)))
        assert not is_known(app(Version(2, 3)))

    def test_what_cannot_be_pickled_has_none(self, cached):
        with pytest.raises(ValueError, match="unknown type for memoization"):
            cached(total_of_all)(Unpicklable()).result()

    def test_files_have_none_unless_the_program_says_so(self, cached, tmp_path):
        with pytest.raises(ValueError, match="unknown type for memoization"):
            cached(total_of_all)(inputs=[File(str(tmp_path / "file"))]).result()

    def test_not_looked_at_without_cache(self, apps, local):
        stuck = Unpicklable()
        assert apps.python_app(identity, data_flow_kernel=local)(stuck).result() is stuck


class TestInTheStore:
    """The same with workers elsewhere, and Parsl's own memoizer."""

    @pytest.fixture
    def closing(self, objects, kernel):
        with StoreApps(objects.store, threshold="50 kB") as apps:
            yield lambda function: apps.python_app(
                function, data_flow_kernel=kernel, executors=["far"], cache=True
            )

    def test_the_programs_own_id_counts(self, closing):
        def number(version):
            return version.number

        app = closing(number)
        assert not is_known(app(Version(1, 20_000)))
        assert is_known(app(Version(1, 20_000)))
        assert not is_known(app(Version(2, 20_000)))

    def test_proxies_by_what_they_stand_for(self, closing, objects, array):
        app = closing(total)
        proxies = [objects.store.proxy(array, populate_target=False) for _ in range(2)]
        assert not is_known(app(proxies[0]))
        assert is_known(app(proxies[1]))
        for each in proxies:
            objects.store.evict(each.__proxy_factory__.key)

    def test_results_as_arguments(self, closing):
        make, twice = closing(ones), closing(double)
        assert not is_known(twice(make(20_000)))
        assert is_known(twice(make(20_000)))


def test_repr_makes_it_again():
    memoizer = StoreMemoizer(checkpoint_mode="task_exit", checkpoint_files=["a"])
    again = eval(repr(memoizer), {"StoreMemoizer": StoreMemoizer})
    assert repr(again) == repr(memoizer)
    assert again.checkpoint_mode == "task_exit"


PROGRAM = """
import json, sys

import numpy as np
import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_parsl import StoreApps, StoreMemoizer
from parsl_tasks import double, small, total

named = StoreApps(Store("campaign", FileConnector("objects", clear=False)), threshold="50 kB")
embedded = StoreApps(threshold="50 kB", digest="when-cached")
executor = ThreadPoolExecutor(label="far") if sys.argv[1] == "threads" else HighThroughputExecutor(
    label="far", address="127.0.0.1", encrypted=False, max_workers_per_node=1,
    cores_per_worker=1e-6, provider=LocalProvider(init_blocks=int(sys.argv[2]), max_blocks=1),
)
config = Config(
    executors=[executor], memoizer=StoreMemoizer(checkpoint_mode="task_exit"), run_dir="runs",
    strategy="none", initialize_logging=False,
)
found = []
with parsl.load(config):
    for apps, length in (named, 100_000), (embedded, 200_000):
        twice = apps.python_app(double, cache=True)
        add = apps.python_app(total, cache=True)
        tiny = apps.python_app(small, cache=True)
        futures = [twice(np.ones(length)), tiny("array" if apps is named else "int")]
        futures += [twice(futures[0]), add(futures[0])]
        found.append({
            "values": [float(np.sum(future.result())) / length for future in futures],
            "known": [bool(future.task_record["from_memo"]) for future in futures],
        })
        apps.close()
print(json.dumps(found))
"""


class TestCheckpoints:
    """With a store of the user's, and with the embedded one, in one kernel: it takes seconds."""

    @pytest.fixture
    def run(self, tmp_path):
        (tmp_path / "program.py").write_text(PROGRAM)
        importable = str(Path(__file__).parent / "importable")

        def run(executor="htex", blocks=1):
            paths = [importable, *filter(None, [os.environ.get("PYTHONPATH")])]
            result = subprocess.run(
                [sys.executable, "program.py", executor, str(blocks)],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONPATH": os.pathsep.join(paths),
                    "XDG_CACHE_HOME": str(tmp_path / "cache"),
                },
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert result.returncode == 0, result.stderr
            named, embedded = json.loads(result.stdout.splitlines()[-1])
            assert named["values"] == pytest.approx([2, 3 / 100_000, 4, 2])
            assert embedded["values"] == pytest.approx([2, 1 / 200_000, 4, 2])
            return named["known"], embedded["known"]

        return run

    def test_are_found_by_the_next_program(self, run, tmp_path):
        assert run() == ([False] * 4, [False] * 4)
        (checkpoint,) = (tmp_path / "runs").glob("*/checkpoint/tasks.pkl")
        with checkpoint.open("rb") as file:
            entries = [len(pickle.dumps(pickle.load(file))) for _ in range(8)]
            assert not file.read()
        large, small = (sorted(entries)[i:j] for i, j in ((6, 8), (0, 6)))
        assert min(large) > 1_600_000  # of the embedded store, which ends with the program
        assert max(small) < 3_000  # references
        kept = set((tmp_path / "objects").iterdir())
        assert len(kept) == 2  # the results; arguments are not needed any more
        assert run(blocks=0) == ([True] * 4, [True] * 4)  # there is no worker that could do it
        assert set((tmp_path / "objects").iterdir()) == kept
        # What is gone is computed again, and no other than that; here or elsewhere.
        (tmp_path / "objects" / sorted(path.name for path in kept)[0]).unlink()
        named, embedded = run("threads")
        assert sorted(named) == [False, True, True, True]
        assert embedded == [True] * 4


class TestStale:
    """Checkpoints whose results cannot be used; the memoizer by itself."""

    @pytest.fixture
    def envelope(self, objects, app, array):
        future = app(double)(array)
        future.exception()
        yield future._inner.result()
        del future

    @pytest.fixture
    def again(self, start, tmp_path):
        """Start with a checkpoint that has a result for every task; return one of its tasks."""

        def again(result):
            memoizer = StoreMemoizer()
            kernel = start(ThreadPoolExecutor(label="near"), memoizer=memoizer)
            apps = StoreApps()
            app = apps.python_app(total, data_flow_kernel=kernel, cache=True)
            first = app(np.ones(3))
            first.result()
            folder = tmp_path / "checkpoint"
            folder.mkdir()
            entry = {"hash": first.task_record["hashsum"], "exception": None, "result": result}
            (folder / "tasks.pkl").write_bytes(pickle.dumps(entry))
            kernel.cleanup()
            memoizer = StoreMemoizer(checkpoint_files=[str(folder)])
            kernel = start(ThreadPoolExecutor(label="near"), memoizer=memoizer)
            app = apps.python_app(total, data_flow_kernel=kernel, cache=True)
            second = app(np.ones(3))
            second.exception()
            kernel.cleanup()
            return second

        return again

    def test_is_used_if_it_can_be(self, again, envelope, array):
        future = again(envelope)
        assert is_known(future)
        assert np.array_equal(future.result(), array * 2)

    def test_its_object_is_gone(self, again, envelope, objects):
        objects.store.evict(envelope.refs[0].factory.key)
        future = again(envelope)
        assert not is_known(future)
        assert future.result() == 3

    def test_its_class_is_gone(self, again):
        body = pickle.dumps(Box(1)).replace(b"parsl_tasks", b"parsl_skats")
        future = again(Envelope(body))
        assert not is_known(future)
        assert future.result() == 3

    def test_its_store_cannot_be_opened(self, again, envelope, tmp_path):
        (tmp_path / "file").write_text("")
        config = envelope.refs[0].factory.store_config.model_copy(deep=True)
        config.name = "elsewhere"
        config.connector.options["store_dir"] = str(tmp_path / "file" / "objects")
        ref = pickle.loads(pickle.dumps(envelope.refs[0]))
        ref.factory.store_config = config
        future = again(dataclasses.replace(envelope, refs=(ref,)))
        assert not is_known(future)
        assert future.result() == 3

    def test_with_small_results(self, again):
        assert again(5.0).result() == 5.0


def test_results_of_a_memo_table_are_not_evicted_by_who_asks_again(objects, kernel, array):
    with StoreApps(objects.store, threshold="50 kB") as apps:
        options = {"data_flow_kernel": kernel, "executors": ["far"], "cache": True}
        app = apps.python_app(boxed, **options)
        app(array + 9).exception()
        for _ in range(2):
            again = app(array + 9)
            assert is_known(again)
            assert np.array_equal(again.result().content, array + 9)
            del again
            gc.collect()
            apps.stats()
