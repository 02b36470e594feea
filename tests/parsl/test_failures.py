"""What fails is an error of its own future: the executor lives, and nothing is left."""

from __future__ import annotations

import os
import pickle
import traceback

import numpy as np
import pytest
from parsl.app.errors import AppTimeout
from parsl.dataflow.errors import DependencyError
from parsl_tasks import (
    TwoArgumentError,
    double,
    fail,
    fail_stubbornly,
    fail_with_a_cause,
    fail_with_two_arguments,
    fail_without_repr,
    identity,
    ones,
    pid,
    sleep_for_long,
    small,
    total,
    touch_and_wait,
)

from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore_parsl import RemoteTaskError

pytestmark = pytest.mark.parsl


class TestExceptions:
    def test_come_with_type_text_and_traceback(self, app, array):
        with pytest.raises(ValueError, match="the task fails") as caught:
            app(fail)(array).result()
        assert "in fail" in "".join(traceback.format_exception(caught.value))

    def test_come_with_their_cause(self, app):
        error = app(fail_with_a_cause)().exception()
        assert isinstance(error, KeyError)
        assert isinstance(error.__cause__, ValueError)

    def test_that_cannot_be_unpickled_are_described(self, app):
        error = app(fail_stubbornly)().exception()
        assert isinstance(error, RemoteTaskError)
        assert error.app == "fail_stubbornly"
        assert error.type_name == "parsl_tasks.StubbornError"
        assert error.message == "it was raised"
        assert "in fail_stubbornly" in error.traceback
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert app(small)("int").result() == 1

    def test_of_two_arguments(self, app):
        error = app(fail_with_two_arguments)().exception()
        assert isinstance(error, (TwoArgumentError, RemoteTaskError))
        assert "1 and 2" in str(error)
        assert app(small)("int").result() == 1

    def test_that_cannot_be_shown_are_described(self, app):
        error = app(fail_without_repr)().exception(timeout=60)
        assert isinstance(error, RemoteTaskError)
        assert error.message == "it was raised"
        assert app(small)("int").result() == 1

    def test_that_only_the_worker_can_unpickle_are_described(self, app):
        def fail_there():
            import sys
            import types

            module = types.ModuleType("only_there")
            exec("class Odd(Exception): pass", module.__dict__)
            sys.modules["only_there"] = module
            raise module.Odd("text")

        error = app(fail_there)().exception()
        assert isinstance(error, RemoteTaskError)
        assert error.type_name == "only_there.Odd"
        assert app(small)("int").result() == 1

    def test_whose_text_cannot_be_made(self, app):
        def fail_badly():
            class Bad(Exception):
                def __str__(self):
                    raise RuntimeError("no text")

                def __reduce__(self):
                    raise TypeError("no pickle")

            raise Bad

        error = app(fail_badly)().exception()
        assert isinstance(error, RemoteTaskError)
        assert app(small)("int").result() == 1

    def test_fail_the_tasks_that_take_the_result(self, app, array):
        error = app(total)(app(fail)(array)).exception()
        assert isinstance(error, DependencyError)
        assert isinstance(error.dependent_exceptions_tids[0][0], ValueError)

    def test_walltime(self, app, array):
        assert isinstance(app(sleep_for_long)(array, walltime=1).exception(), AppTimeout)


class TestLostObjects:
    def test_under_a_task(self, app, apps, array, objects):
        kept = apps.put(array)
        for key in list(objects.store.connector.keys()):
            objects.store.evict(key)
        error = app(total)(kept).exception()
        assert isinstance(error, ProxyResolveMissingKeyError)
        assert error.store_name == objects.store.name
        assert app(total)(array.copy() + 1).result() == (array + 1).sum()

    def test_under_a_chain(self, app, objects):
        first = app(ones)(20_000)
        first.exception()
        for key in list(objects.store.connector.keys()):
            objects.store.evict(key)
        error = app(total)(app(double)(first)).exception()
        assert isinstance(error, DependencyError)
        assert app(total)(app(double)(app(ones)(20_000))).result() == 40_000


def test_processes_are_others(app):
    assert app(pid)().result() != os.getpid()


def test_dropped_before_it_fails(app, array, objects, kernel, tmp_path):
    app(fail)(app(touch_and_wait)(tmp_path / "started", tmp_path / "go", array))
    (tmp_path / "go").touch()
    kernel.wait_for_current_tasks()
    objects.wait_until(0)
    assert np.array_equal(app(identity)(array).result(), array)
