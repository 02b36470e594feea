"""Bash apps and join apps."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from parsl.app.errors import AppTimeout, BashAppNoReturn, BashExitFailure
from parsl.data_provider.files import File
from parsl.dataflow.errors import DependencyError, JoinError
from parsl_tasks import Box, double, fail, fail_stubbornly, ones, record, small, total

from proxystore.proxy import Proxy
from proxystore_parsl import RemoteTaskError

pytestmark = pytest.mark.parsl


class TestBash:
    @pytest.fixture
    def bash(self, apps, kernel):
        return lambda function, **options: apps.bash_app(
            function, data_flow_kernel=kernel, executors=["far"], **options
        )

    @pytest.mark.usefixtures("small_messages")
    def test_gets_large_arguments(self, bash, array, objects, tmp_path):
        def command(x, numbers, outputs=(), stdout=None):
            return f"echo {x.sum()} {len(numbers)} | tee {outputs[0].filepath}"

        files = {"outputs": [File(str(tmp_path / "file"))], "stdout": str(tmp_path / "out")}
        future = bash(command)(array, list(range(60_000)), **files)
        assert future.result() == 0
        for name in ("file", "out"):
            assert (tmp_path / name).read_text() == f"{array.sum()} 60000\n"
        objects.wait_until(0)

    @pytest.mark.usefixtures("small_messages")
    def test_gets_results(self, bash, app, tmp_path):
        def command(x, stdout=None):
            return f"echo {x.sum()}"

        future = bash(command)(app(ones)(20_000), stdout=str(tmp_path / "out"))
        assert future.result() == 0
        assert (tmp_path / "out").read_text() == "20000.0\n"

    def test_errors_are_those_of_parsl(self, bash, array):
        def bad_exit(x):
            return "exit 3"

        def no_command(x):
            return None.format()

        def too_long(x, walltime=0.5):
            return "sleep 60"

        error = bash(bad_exit)(array).exception()
        assert isinstance(error, BashExitFailure)
        assert error.exitcode == 3
        assert isinstance(bash(no_command)(array).exception(), BashAppNoReturn)
        assert isinstance(bash(too_long)(array).exception(), AppTimeout)

    def test_an_error_that_cannot_be_unpickled(self, bash, app, array):
        def command(x):
            from parsl_tasks import fail_stubbornly

            fail_stubbornly()

        assert isinstance(bash(command)(array).exception(), RemoteTaskError)
        assert app(small)("int").result() == 1

    def test_a_failed_dependency(self, bash, app, array, objects):
        def command(x, y):
            return "true"

        assert isinstance(bash(command)(array, app(fail)()).exception(), DependencyError)
        objects.wait_until(0)


class TestJoin:
    @pytest.fixture
    def join(self, apps, kernel):
        return lambda function: apps.join_app(function, data_flow_kernel=kernel)

    @pytest.mark.usefixtures("small_messages")
    def test_one_future(self, join, app, objects):
        make = app(ones)

        @join
        def joined(n):
            return make(n)

        result = joined(20_000).result()
        assert type(result) is Proxy
        assert result.sum() == 20_000
        gc.collect()
        objects.wait_until(1)

    @pytest.mark.usefixtures("small_messages")
    def test_many_futures(self, join, app, objects):
        make, name = app(ones), app(small)

        @join
        def joined(n):
            return [make(n), name("str"), make(n + 1)]

        first, text, second = joined(20_000).result()
        assert (first.sum(), text, second.sum()) == (20_000, "text", 20_001)
        gc.collect()
        objects.wait_until(2)

    @pytest.mark.usefixtures("small_messages")
    def test_its_result_reaches_the_next_task(self, join, app):
        make = app(ones)

        @join
        def one(n):
            return make(n)

        @join
        def many(n):
            return [make(n), make(n)]

        def add(pair):
            return float(sum(x.sum() for x in pair))

        assert app(total)(one(20_000)).result() == 20_000
        assert app(add)(many(20_000)).result() == 40_000
        assert many(20_000)[1].result().sum() == 20_000

    @pytest.mark.usefixtures("small_messages")
    def test_gets_objects(self, join, app, array):
        twice, kinds = app(double), []

        @join
        def joined(mine, result, inputs=()):
            kinds.extend(type(x) for x in (mine, result, *inputs))
            return twice(result)

        future = joined(array, app(ones)(20_000), inputs=[app(ones)(20_000)])
        assert future.result().sum() == 40_000
        assert kinds == [np.ndarray] * 3

    def test_of_a_join(self, join, app):
        make = app(record)

        @join
        def inner(n):
            return make(n)

        @join
        def outer(n):
            return inner(n)

        assert outer(20_000).result()["a"].sum() == 20_000

    def test_errors_are_those_of_parsl(self, join, app):
        bad = app(fail_stubbornly)

        @join
        def joined():
            return [bad(), bad()]

        @join
        def no_future():
            return 1

        error = joined().exception()
        assert isinstance(error, JoinError)
        assert isinstance(error.dependent_exceptions_tids[0][0], RemoteTaskError)
        with pytest.raises(TypeError, match="must return a Future"):
            no_future().result()

    def test_nothing_to_join(self, join):
        @join
        def joined():
            return []

        assert joined().result() == []

    def test_objects_without_class_on_the_other_side(self, join, app):
        box = app(lambda x: __import__("parsl_tasks").Box(x))

        @join
        def joined(x):
            return box(x)

        assert isinstance(joined(np.ones(20_000)).result(), Box)
