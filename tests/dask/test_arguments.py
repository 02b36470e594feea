"""`ps_arguments="proxy"`: the function gets a proxy, and the object when it uses that."""

from __future__ import annotations

import functools
from typing import Any

import dask
import numpy as np
import pytest
from dask_tasks import Model, change_in_place, change_the_first, identity, look_and_use, total
from distributed import Client as DaskClient
from distributed import LocalCluster

from proxystore.proxy import Proxy, is_resolved
from proxystore_dask import Client, attach

pytestmark = pytest.mark.dask

UNUSED = (True, False, "ndarray")  # a proxy, not resolved by looking at its class


class TestProxies:
    def test_it_is_resolved_when_it_is_used(self, client, array, objects):
        asked = len(objects.log("get"))  # each worker, whether it reaches the store
        future = client.submit(look_and_use, array, False, ps_arguments="proxy")
        assert future.result() == (*UNUSED, None)
        assert len(objects.log("get")) == asked
        future = client.submit(look_and_use, array, True, ps_arguments="proxy")
        assert future.result() == (*UNUSED, array.sum())
        assert len(objects.log("get")) == asked + 1

    def test_nested_and_by_name(self, client, array):
        value = {"a": [array]}
        future = client.submit(lambda v: look_and_use(v["a"][0]), v=value, ps_arguments="proxy")
        assert future.result()[:3] == UNUSED

    def test_map(self, client, array):
        futures = client.map(look_and_use, [array, array + 1], [True, True], ps_arguments="proxy")
        assert client.gather(futures) == [
            (*UNUSED, array.sum()),
            (*UNUSED, (array + 1).sum()),
        ]

    def test_map_in_batches(self, client, array):
        arrays = [array + i for i in range(4)]
        futures = client.map(look_and_use, arrays, batch_size=2, ps_arguments="proxy")
        assert [found[:3] for found in client.gather(futures)] == [UNUSED] * 4

    def test_what_is_small_comes_as_it_is(self, client):
        found = client.submit(look_and_use, np.ones(3), ps_arguments="proxy").result()
        assert found[0] is False

    def test_methods_and_partials(self, client, array):
        model = Model(array)
        future = client.submit(functools.partial(model.predict, 1), 2, ps_arguments="proxy")
        assert future.result() == array.sum() + 3

    def test_values_and_proxies_are_different_tasks_of_one_object(self, client, array):
        value = client.submit(identity, array)
        proxy = client.submit(identity, array, ps_arguments="proxy")
        assert value.key != proxy.key
        assert client.ps_stats().puts == 1

    def test_tasks_that_change_it_do_not_see_each_other(self, client, array):
        (worker, *_) = client.scheduler_info()["workers"]
        futures = client.map(
            change_in_place, [array] * 4, range(4), workers=[worker], ps_arguments="proxy"
        )
        assert client.gather(futures) == [1.0] * 4

    def test_one_array_is_one_and_equal_arrays_are_two(self, client, array):
        args = (array, array.copy(), [array])
        assert client.submit(change_the_first, *args, ps_arguments="proxy").result() == [1, 0, 1]

    def test_it_may_be_returned_and_lives_as_long_as_its_task(self, client, array):
        future = client.submit(identity, array, ps_arguments="proxy")
        back = future.result()
        assert type(back) is Proxy
        assert not is_resolved(back)
        assert client.submit(total, future).result() == np.sum(back) == array.sum()

    def test_a_worker_that_dies(self, client, array, kill_worker):
        future = client.submit(total, array, ps_arguments="proxy")
        future.result()
        ((worker,),) = client.who_has(future).values()
        kill_worker(client, worker)
        assert client.submit(total, future).result() == array.sum()


class TestWhereItIsSaid:
    def test_for_a_client(self, cluster, objects, array):
        with Client(
            cluster, ps_store=objects.store, ps_threshold="50 kB", ps_arguments="proxy"
        ) as client:
            assert client.submit(look_and_use, array).result()[:3] == UNUSED
            as_value = client.submit(look_and_use, array, ps_arguments="value")
            assert as_value.result()[0] is False

    def test_in_dasks_configuration(self, cluster, objects, array):
        with (
            dask.config.set({"proxystore.arguments": "proxy"}),
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            assert client.submit(look_and_use, array).result()[:3] == UNUSED

    def test_graphs_of_collections_carry_values(self, cluster, objects, array):
        """Most of their functions are a library's, and may not take a proxy."""
        with Client(
            cluster, ps_store=objects.store, ps_threshold="50 kB", ps_arguments="proxy"
        ) as client:
            assert dask.delayed(look_and_use)(array).compute()[0] is False
            assert client.submit(look_and_use, client.scatter(array)).result()[0] is False

    def test_when_attaching(self, cluster, objects):
        with DaskClient(cluster, set_as_default=False) as plain:
            client = attach(plain, ps_store=objects.store, ps_arguments="proxy")
            assert attach(client, ps_arguments="proxy") is client
            with pytest.raises(ValueError, match="ps_arguments='proxy' already"):
                attach(client, ps_arguments="value")

    def test_without_a_store_it_is_no_argument_of_the_function(self, array):
        with (
            LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
            Client(cluster, ps_threshold="50 kB") as client,
        ):
            client._ps.leases.pause()
            assert client.submit(total, array, ps_arguments="proxy").result() == array.sum()
            assert client.map(total, [array], ps_arguments="proxy")[0].result() == array.sum()

    @pytest.mark.parametrize("value", ["Proxy", True, 1, b"proxy", ["proxy"]])
    def test_neither(self, client, array, value: Any):
        for call in (
            lambda: Client(ps_arguments=value),
            lambda: client.submit(total, array, ps_arguments=value),
            lambda: client.map(total, [array], ps_arguments=value),
        ):
            with pytest.raises(ValueError, match=r"'value' .* or 'proxy' .* got"):
                call()
        assert client.ps_stats().puts == 0
