"""Parsl's serializer, replaced for the whole process by one that uses a store."""

from __future__ import annotations

import gc

import numpy as np
import parsl
import pytest
from parsl.serialize import deserialize, facade, serialize
from parsl.serialize.concretes import DillSerializer
from parsl_tasks import (
    Box,
    Unpicklable,
    are_one_object,
    boxed_total,
    kind,
    length,
    ones,
    total,
    total_of_all,
)

from proxystore.connectors.local import LocalConnector
from proxystore.store import Store, store_registration
from proxystore_parsl import ClosedError, NoStoreError, StoreApps, StoreSerializer

pytestmark = pytest.mark.parsl


@pytest.fixture
def serializer(apps):
    with StoreSerializer(apps) as serializer:
        yield serializer
    assert type(facade.methods_for_data[DillSerializer.identifier]) is DillSerializer


@pytest.fixture
def far(kernel):
    return lambda function: parsl.python_app(function, data_flow_kernel=kernel, executors=["far"])


def test_arguments_of_any_app_travel_by_reference(serializer, far, array, executor, objects):
    assert far(kind)(array).result() == ("numpy.ndarray", True)
    nested = {"k": [array, (array, 1)], "s": 2}
    assert far(total_of_all)(nested, x=array, inputs=[array]).result() == 4 * array.sum() + 3
    assert far(boxed_total)(Box(array)).result() == array.sum()
    assert far(length)(list(range(60_000))).result() == 60_000
    assert far(are_one_object)(array, array).result() is True
    assert max(executor.sent) < 10_000
    assert len(objects) == 3  # the array, its box and the list; however many tasks took them
    serializer.close()
    objects.wait_until(0)


def test_a_retry_stores_nothing_again(serializer, far, kernel, apps, array, monkeypatch, tmp_path):
    from parsl_tasks import fail_once

    monkeypatch.setattr(kernel.config, "retries", 1)
    future = far(fail_once)(array, str(tmp_path / "failed"))
    assert future.result() == array.sum()
    assert future.task_record["fail_count"] == 1
    assert apps.stats().puts == 1


def test_with_apps_of_ours(serializer, app, far, array):
    assert app(total)(far(ones)(20_000)).result() == 20_000
    assert far(total)(app(ones)(20_000)).result() == 20_000
    far(ones)(1).result()  # Parsl held the last one's arguments
    gc.collect()


def test_an_object_that_is_gone_is_an_error_of_its_task(serializer, far, array, objects):
    blob = serialize((array,))
    for key in list(objects.store.connector.keys()):
        objects.store.evict(key)
    with pytest.raises(Exception, match="has no object"):
        deserialize(blob)
    error = far(total)(array).exception()
    assert "has no object" in str(error)
    assert far(length)([1]).result() == 1


def test_what_cannot_be_pickled(serializer, far):
    error = far(length)([Unpicklable()]).exception()
    assert "length" in str(error)
    assert "argument 1[0] is a parsl_tasks.Unpicklable" in str(error.__context__)
    assert far(length)([1]).result() == 1


def test_everything_else_is_as_with_parsl(serializer):
    for obj in (None, 1, {1: "a"}, (1, {"a": [2]}), [np.arange(3).tolist()], {"x": (1, 2)}):
        assert deserialize(serialize(obj)) == obj
        assert serialize(obj) == b"02\n" + DillSerializer().serialize(obj)


def test_does_not_serialize_when_closed(apps, array, objects):
    serializer = StoreSerializer(apps)
    serializer.close()
    with pytest.raises(ClosedError):
        serializer.serialize((array,))


def test_knows_no_executors(tmp_path):
    stores = [Store(f"plugin-{i}", LocalConnector()) for i in range(2)]
    with store_registration(*stores), pytest.raises(NoStoreError):
        StoreSerializer(StoreApps(dict(zip("ab", stores, strict=True))))
