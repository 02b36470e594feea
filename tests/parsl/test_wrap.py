"""Apps that Parsl's decorators have made, and that go through a store from then on."""

from __future__ import annotations

import inspect

import numpy as np
import parsl
import pytest
from parsl.app.python import PythonApp
from parsl_tasks import double, fail_stubbornly, identity, ones, total

from proxystore.proxy import Proxy
from proxystore.workflow import ThresholdError
from proxystore_parsl import RemoteTaskError, python_app

pytestmark = pytest.mark.parsl


@pytest.fixture
def options(kernel):
    return {"data_flow_kernel": kernel, "executors": ["far"]}


@pytest.mark.usefixtures("small_messages")
class TestKinds:
    def test_python(self, apps, options, array, objects):
        wrapped = apps.wrap(parsl.python_app(double, **options))
        result = wrapped(array).result()
        assert type(result) is Proxy
        assert np.array_equal(result, array * 2)
        assert (wrapped.__name__, wrapped.__module__) == ("double", "parsl_tasks")
        assert list(inspect.signature(wrapped).parameters) == ["x"]

    def test_bash(self, apps, options, array, tmp_path):
        @parsl.bash_app(**options)
        def command(x, stdout=None):
            return f"echo {x.sum()}"

        assert apps.wrap(command)(array, stdout=str(tmp_path / "out")).result() == 0
        assert (tmp_path / "out").read_text() == f"{array.sum()}\n"

    def test_join(self, apps, kernel, options):
        make = apps.wrap(parsl.python_app(ones, **options))

        @parsl.join_app(data_flow_kernel=kernel)
        def joined(n):
            return [make(n), make(n)]

        first, second = apps.wrap(joined)(20_000).result()
        assert first.sum() + second.sum() == 40_000


def test_options_are_those_of_the_app(apps, options, array):
    app = parsl.python_app(identity, cache=True, ignore_for_cache=["x"], **options)
    wrapped = apps.wrap(app)
    first = wrapped(x=array)
    first.result()
    again = wrapped(x=array + 1)
    assert again.result()[1] == array[1]
    assert again.task_record["from_memo"]
    assert again.task_record["executor"] == "far"
    apps.close()


def test_the_app_stays_what_it_was(apps, options):
    app = parsl.python_app(ones, **options)
    apps.wrap(app)
    assert type(app(3).result()) is np.ndarray


def test_failures_are_ours(apps, options):
    wrapped = apps.wrap(parsl.python_app(fail_stubbornly, **options))
    assert isinstance(wrapped().exception(timeout=30), RemoteTaskError)


def test_threshold(apps, options, array):
    app = parsl.python_app(total, **options)
    assert apps.wrap(app, threshold="1 MB")(array).result() == array.sum()
    assert apps.stats().puts == 0
    with pytest.raises(ThresholdError):
        apps.wrap(app, threshold="much")


def test_what_is_no_app(apps, options):
    class Special(PythonApp):
        pass

    for other in (total, Special(total), None):
        with pytest.raises(TypeError, match="only what parsl's python_app"):
            apps.wrap(other)
    for ours in (python_app(total), apps.wrap(parsl.python_app(total))):
        with pytest.raises(TypeError, match="'total' is an app already"):
            apps.wrap(ours)


def test_an_app_of_an_app_says_what_is_wrong(apps, options, array):
    twice = parsl.python_app(apps.wrap(parsl.python_app(total, **options)), **options)
    error = twice(array).exception()
    assert "total" in str(error)
    assert "an app of an app" in str(error.__context__)
