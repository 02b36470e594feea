"""Executors here and elsewhere in one program: each gets what it needs."""

from __future__ import annotations

import parsl
import pytest
from parsl.dataflow.dependency_resolvers import DEEP_DEPENDENCY_RESOLVER
from parsl.dataflow.errors import DependencyError
from parsl_tasks import (
    Unpicklable,
    are_one_object,
    boxed,
    boxed_total,
    double,
    fail,
    identity,
    kind,
    ones,
    small,
    total,
    total_of_all,
)

from proxystore.workflow import UnpicklableArgumentError

pytestmark = pytest.mark.parsl


@pytest.fixture
def near(app):
    return lambda function: app(function, executors=["near"])


@pytest.fixture
def far(app):
    return lambda function: app(function, executors=["far"])


@pytest.fixture
def sent(kernel):
    executor = kernel.executors["far"]
    executor.sent.clear()
    executor.received.clear()
    yield executor.sent
    assert max([*executor.sent, *executor.received]) < 10_000


def test_near_to_far_by_reference(near, far, sent):
    assert far(total)(near(ones)(20_000)).result() == 20_000


def test_near_to_far_when_done(near, far, sent):
    first = near(ones)(20_000)
    first.result()
    assert [far(total)(first).result() for _ in range(2)] == [20_000, 20_000]


def test_far_to_near(near, far, sent):
    assert near(kind)(far(ones)(20_000)).result() == ("numpy.ndarray", True)
    assert near(total)(far(ones)(20_000).result()).result() == 20_000
    assert near(are_one_object)(*[far(ones)(20_000)] * 2).result() is True


def test_there_and_back(near, far, sent):
    assert near(total)(far(double)(near(double)(far(ones)(20_000)))).result() == 80_000


def test_near_failure(near, far):
    with pytest.raises(DependencyError):
        far(total)(near(fail)()).result()
    assert far(small)("int").result() == 1


def test_near_result_that_cannot_travel(near, far):
    error = far(identity)(near(lambda: Unpicklable())()).exception()
    assert isinstance(error, DependencyError)
    assert isinstance(error.dependent_exceptions_tids[0][0], UnpicklableArgumentError)


def test_any(app, array):
    futures = [app(total, executors="all")(array) for _ in range(12)]
    assert {future.result() for future in futures} == {array.sum()}
    assert {future.task_record["executor"] for future in futures} == {"near", "far"}


def test_an_app_without_us_by_reference_from_here_on(far, kernel, sent):
    plain = parsl.python_app(small, data_flow_kernel=kernel, executors=["far"])
    assert far(total)(plain("array")).result() == 3


def test_futures_in_containers(far, near, sent, kernel, monkeypatch):
    monkeypatch.setattr(kernel, "dependency_resolver", DEEP_DEPENDENCY_RESOLVER)
    nested = {"k": [far(ones)(20_000), (near(ones)(20_000), 1)]}
    assert far(total_of_all)(nested).result() == 40_001
    assert near(total_of_all)(nested).result() == 40_001


def test_hidden_proxies(far, near):
    assert near(boxed_total)(far(boxed)(far(ones)(20_000))).result() == 20_000


def test_an_executor_that_does_not_exist(app, array):
    error = app(total, executors=["nowhere"])(array).exception()
    assert "invalid executor nowhere" in str(error)
