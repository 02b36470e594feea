"""The pool: as `concurrent.futures` has it, on Parsl, by reference."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from parsl.concurrent import ParslPoolExecutor
from parsl.config import Config
from parsl.executors import ThreadPoolExecutor
from parsl_tasks import double, fail, ones, total

from proxystore.proxy import Proxy
from proxystore_parsl import StorePool

pytestmark = pytest.mark.parsl


@pytest.mark.usefixtures("small_messages")
def test_by_reference(apps, kernel, array, objects):
    with StorePool(apps, dfk=kernel, executors=["far"]) as pool:
        assert isinstance(pool, ParslPoolExecutor)
        made = pool.submit(double, array)
        assert type(made.result()) is Proxy
        assert pool.submit(total, made).result() == 2 * array.sum()
        arrays = [array + i for i in range(3)]
        assert list(pool.map(total, arrays)) == [each.sum() for each in arrays]
        assert pool.submit(total, x=array).result() == array.sum()
        assert isinstance(pool.submit(fail, array).exception(), ValueError)
        assert pool.get_app(total) is pool.get_app(total)
    del made
    gc.collect()
    objects.wait_until(0)


def test_results_can_be_fetched_after_shutdown(apps, kernel):
    with StorePool(apps, dfk=kernel, executors=["far"]) as pool:
        future = pool.submit(ones, 20_000)
    assert future.result().sum() == 20_000
    pool.shutdown()
    with pytest.raises(RuntimeError, match="has been shut down"):
        pool.submit(ones, 1)


def test_starts_and_ends_its_own_kernel(tmp_path):
    config = Config(
        executors=[ThreadPoolExecutor()], run_dir=str(tmp_path), initialize_logging=False
    )
    with StorePool(config=config) as pool:
        assert list(pool.map(np.sum, [np.ones(3), np.ones(2)])) == [3, 2]
    with pytest.raises(ValueError, match="one of config or dfk"):
        StorePool()
