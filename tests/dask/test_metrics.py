"""What the scheduler's plugin counts, what workers report to it, and what Prometheus gets of it."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
from dask_tasks import add_one, fail, total
from distributed import LocalCluster, wait
from distributed.utils_test import gen_cluster
from prometheus_client import REGISTRY
from tornado.httpclient import AsyncHTTPClient

from proxystore.connectors.local import LocalConnector
from proxystore.store import Store, StoreFactory
from proxystore.workflow import Ref, store_object
from proxystore_dask import StoreLifetimes
from proxystore_dask._dask import Task
from proxystore_dask.figures import Figures, Loads, loads
from proxystore_dask.graph import load_node


@pytest.fixture
def refs() -> list[Ref]:
    store = Store("figures", LocalConnector())
    return [Ref(StoreFactory((i,), store.config()), "", 100 * (i + 1), "str") for i in range(3)]


class TestFigures:
    def test_an_object_counts_once_for_each_prefix(self, refs):
        figures = Figures()
        first, second, _ = refs
        for name, needed in ("add", [first]), ("add", [first, second]), ("mul", [first]):
            figures.mention(name, {ref.id: ref for ref in needed})
        add, mul = figures.prefixes["add"], figures.prefixes["mul"]
        assert (add.tasks, len(add.uses), add.nbytes) == (2, 2, 300)
        assert (mul.tasks, len(mul.uses), mul.nbytes) == (1, 1, 100)
        figures.forget("add", (first.id,))
        assert (add.tasks, len(add.uses), add.nbytes) == (1, 2, 300)
        figures.forget("add", (first.id, second.id))
        assert figures.prefixes == {"mul": mul}

    def test_sums_and_peak(self, refs):
        figures = Figures()
        for ref in refs:
            figures.put(ref)
        figures.unneeded(refs[0])
        assert (figures.puts, figures.put_bytes, figures.objects) == (3, 600, 2)
        assert (figures.nbytes, figures.peak_nbytes) == (500, 600)
        figures.evict(refs, failed=refs[1:2])
        assert (figures.evicted, figures.evicted_bytes, figures.failed) == (2, 400, 1)

    def test_history_has_a_point_for_each_second_with_the_most_and_the_last(self, refs):
        times = iter([10.1, 10.5, 10.9, 12.0])
        figures = Figures(clock=lambda: next(times))
        figures.put(refs[0])
        figures.put(refs[1])
        figures.unneeded(refs[1])
        figures.unneeded(refs[0])
        assert list(figures.history) == [(10, 300, 100), (12, 100, 0)]

    def test_loads_are_picked_out_of_all_that_workers_report(self):
        found = loads(
            {
                "latency": 1.0,
                ("execute", "add", "thread-cpu", "seconds"): 2.0,
                ("execute", "add", "proxystore-load", "count"): 3,
                ("execute", "add", "proxystore-load", "bytes"): 300,
                ("execute", "add", "proxystore-load", "seconds"): 0.5,
                ("execute", "mul", "proxystore-hit", "count"): 4,
                ("execute", "mul", "proxystore-failure", "count"): 1,
                ("get-data", "network", "seconds"): 1.0,
            }
        )
        assert found == {"add": Loads(3, 300, 0.5), "mul": Loads(hits=4, load_failures=1)}


async def get(scheduler: Any, path: str) -> str:
    address = f"http://localhost:{scheduler.http_server.port}/{path}"
    return (await AsyncHTTPClient().fetch(address)).body.decode()


async def scraped(scheduler: Any) -> dict[str, float]:
    lines = (await get(scheduler, "metrics")).splitlines()
    found = [re.match(r"dask_scheduler_proxystore_(\w+) (\S+)$", line) for line in lines]
    return {match[1]: float(match[2]) for match in found if match}


async def started(scheduler: Any) -> StoreLifetimes:
    plugin = StoreLifetimes()
    await scheduler.register_scheduler_plugin(plugin, idempotent=True)
    return plugin


def put(store: Store[Any]) -> Ref:
    return store_object(store, "x" * 1000)


@gen_cluster(nthreads=[])
async def test_prometheus_gets_the_figures(scheduler):
    plugin = await started(scheduler)
    with Store("metrics", LocalConnector(), register=True) as store:
        leased, mentioned = put(store), put(store)
        plugin._lease(ref=pickle.dumps(leased), client="me")
        plugin._learn(mentioned)  # as from a lease, before a graph mentions it
        scheduler.new_task("task", Task("task", total, load_node(mentioned)), "released")
        plugin.update_graph(scheduler, tasks=["task"])
        scheduler.cumulative_worker_metrics["execute", "task", "proxystore-hit", "count"] += 5
        before = await scraped(scheduler)
        size = leased.nbytes + mentioned.nbytes
        assert before == {
            **{"objects": 2, "bytes": size, "leases": 1, "tasks": 1},
            **{"puts_total": 2, "put_bytes_total": size},
            **{"evictions_total": 0, "evicted_bytes_total": 0, "eviction_failures_total": 0},
            **{"load_misses_total": 0, "load_bytes_total": 0, "load_seconds_total": 0},
            **{"load_hits_total": 5, "load_failures_total": 0},
        }
        plugin.remove_client(scheduler, "me")
        await plugin._stores._evicting
        after = await scraped(scheduler)
        assert (after["objects"], after["evictions_total"]) == (1, 1)
        assert after["evicted_bytes_total"] == leased.nbytes
        await scheduler.close()
        assert not any("proxystore" in family.name for family in REGISTRY.collect())


@gen_cluster(nthreads=[])
async def test_a_new_scheduler_of_the_process_takes_the_place_of_the_old_one(scheduler):
    first, second = StoreLifetimes(), StoreLifetimes()
    await first.start(scheduler)
    await second.start(scheduler)
    second.figures.puts = 7
    await first.close()
    assert (await scraped(scheduler))["puts_total"] == 7
    await second.close()
    assert await scraped(scheduler) == {}


@gen_cluster(nthreads=[], config={"distributed.dashboard.prometheus.namespace": "mine"})
async def test_names_begin_as_those_of_dask_do(scheduler):
    await started(scheduler)
    assert "\nmine_scheduler_proxystore_objects 0.0\n" in await get(scheduler, "metrics")


@pytest.mark.dask
class TestWorkers:
    def reported(self, cluster: LocalCluster, name: str) -> Loads:
        return cluster.scheduler.plugins["proxystore"].loads().get(name, Loads())

    def test_what_tasks_load_arrives_by_prefix(self, client, cluster, array, wait_until):
        stored = array.nbytes
        wait(client.map(total, [array, array], [array, array], [1, 2], key="both"))
        wait_until(lambda: self.reported(cluster, "both").misses == 2)
        found = self.reported(cluster, "both")
        assert found.hits == 2  # each task got its second argument from itself
        assert 2 * stored < found.load_bytes < 2.1 * stored
        assert found.load_seconds > 0
        assert found.load_failures == 0

    def test_of_a_proxy_it_is_what_it_gets(self, client, cluster, array, wait_until):
        wait(client.submit(len, array, key="used-1", ps_arguments="proxy"))
        wait(client.submit(type, array, key="unused-1", ps_arguments="proxy"))
        wait(client.submit(len, array, key="last-1"))
        wait_until(lambda: self.reported(cluster, "last").misses == 1)
        wait_until(lambda: self.reported(cluster, "used").misses == 1)
        assert array.nbytes < self.reported(cluster, "used").load_bytes < 1.1 * array.nbytes
        assert self.reported(cluster, "unused").misses == 0

    @pytest.mark.parametrize("ps_results", ["large", "durable"])
    def test_what_tasks_get_of_results_has_its_size(
        self, client, cluster, array, wait_until, ps_results
    ):
        made = client.submit(add_one, array, ps_results=ps_results)
        name = f"take{ps_results}"
        wait(client.submit(total, made, key=f"{name}-1"))
        wait_until(lambda: self.reported(cluster, name).misses == 1)
        assert array.nbytes < self.reported(cluster, name).load_bytes < 1.1 * array.nbytes

    def test_objects_that_are_gone_are_failures(self, client, cluster, array, objects, wait_until):
        lost = store_object(objects.store, array)
        lost.evict()
        future = client.get({"gone-1": (total, load_node(lost))}, "gone-1", sync=False)
        wait(future)
        assert future.status == "error"
        wait_until(lambda: self.reported(cluster, "gone").load_failures == 1)
        assert self.reported(cluster, "gone").misses == 0

    def test_a_task_that_fails_has_loaded_all_the_same(self, client, cluster, array, wait_until):
        wait(client.submit(fail, array, key="fail-1"))
        wait_until(lambda: self.reported(cluster, "fail").misses == 1)
