"""Executors in the submit process hand objects over, and nothing is stored."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from parsl.dataflow.errors import DependencyError
from parsl.executors import ThreadPoolExecutor
from parsl_tasks import Unpicklable, double, fail, identity, ones, record, total, total_of_all


@pytest.fixture(scope="module")
def kernel(start):
    """A DataFlowKernel without processes."""
    kernel = start(ThreadPoolExecutor(max_threads=4))
    yield kernel
    kernel.cleanup()


@pytest.fixture
def app(apps, kernel):
    return lambda function, **options: apps.python_app(function, data_flow_kernel=kernel, **options)


def test_the_object_itself(app, apps, array):
    assert app(identity)(array).result() is array
    assert apps.stats().puts == 0


def test_large_containers_are_not_copied(app):
    numbers = list(range(60_000))
    assert app(identity)(numbers).result() is numbers


def test_what_cannot_be_pickled(app):
    lock, stuck = threading.Lock(), Unpicklable()
    assert app(identity)(lock).result() is lock
    assert app(identity)({"x": stuck}).result()["x"] is stuck


def test_futures(app):
    assert app(total)(app(double)(app(ones)(20_000))).result() == 40_000
    assert app(record)(20_000)["a"].result().sum() == 20_000
    assert app(total_of_all)(inputs=[app(ones)(3), 1]).result() == 4


def test_a_failure(app):
    with pytest.raises(DependencyError):
        app(total)(app(fail)()).result()


def test_memoized(app):
    calls = []
    app = app(calls.append, cache=True)
    for _ in range(2):
        app(1).result()
    assert calls == [1]


def test_from_many_threads(app, at_once):
    add = app(total)
    arrays = [np.full(20_000, float(i)) for i in range(8)]
    futures = at_once(*(lambda x=x: add(x) for x in arrays))
    assert [future.result() for future in futures] == [20_000.0 * i for i in range(8)]
