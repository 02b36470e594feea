"""Clients of programs that do not know of us, by configuration alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import dask
import dask_tasks
import pytest
from dask_tasks import scatter_and_submit, submit_with_own_client, total
from distributed import Client as DaskClient
from distributed import LocalCluster

from proxystore_dask import Client

pytestmark = pytest.mark.dask

PRELOAD = {"distributed.client.preload": ["proxystore_dask.preload"]}


@pytest.fixture
def configured(objects: Any, tmp_path: Path) -> Any:
    path = tmp_path / "store.toml"
    objects.store.config().write_toml(path)
    settings = {**PRELOAD, "proxystore.store": str(path), "proxystore.threshold": "50 kB"}
    with dask.config.set(settings):
        yield


@pytest.mark.usefixtures("configured")
class TestClients:
    def test_any_client(self, cluster, objects, array):
        with DaskClient(cluster) as client:
            assert isinstance(client, Client)
            assert client.ps_store is objects.store
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": "5 kB"}):
                assert client.submit(total, array).result() == array.sum()
                assert dask.delayed(total)(array + 1).compute() == (array + 1).sum()
            assert client.ps_stats().lifetimes == "graph"
            assert client.ps_stats().puts == 2
            objects.wait_until_empty()

    def test_our_own(self, cluster, objects, array):
        with Client(cluster, ps_threshold="1 GB") as client:
            assert type(client) is Client
            assert client.submit(total, array).result() == array.sum()
            assert client.ps_stats().puts == 0

    def test_a_connection_that_breaks(self, cluster, array, wait_until):
        with DaskClient(cluster) as client:
            before = client.submit(total, array)
            assert before.result() == array.sum()
            cluster.loop.add_callback(cluster.scheduler.client_comms[client.id].abort)
            wait_until(before.cancelled)
            wait_until(lambda: client.ps_stats().lifetimes == "graph")
            assert client.submit(total, array).result() == array.sum()
            assert client.ps_stats().puts == 2

    def test_the_one_in_a_task(self, objects, array):
        """Its worker, a process of its own, has our configuration."""
        with (
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
            DaskClient(cluster) as client,
        ):
            assert client.submit(submit_with_own_client, array).result() == (2 * array.sum(), 1)
            assert client.submit(scatter_and_submit, array).result() == 2 * array.sum()

    @pytest.mark.parametrize("path", ["/no/such/store.toml"])
    def test_settings_that_are_wrong_are_logged(self, cluster, array, caplog, path):
        with dask.config.set({"proxystore.store": path}), DaskClient(cluster) as client:
            assert path in caplog.text
            assert type(client) is DaskClient
            assert client.submit(total, array).result() == array.sum()


def test_the_one_in_a_task_uses_the_store_of_the_clusters_client(objects, array):
    """Its own would be gone with its worker."""
    with (
        dask.config.set({**PRELOAD, "proxystore.threshold": "50 kB"}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
        ) as cluster,
        Client(cluster, ps_store=objects.store, ps_threshold="1 GB") as client,
    ):
        assert client.submit(submit_with_own_client, array).result() == (2 * array.sum(), 1)
        assert len(objects.log("put")) == 1 + 1 + 1  # a probe of each client, and the argument


def test_a_scheduler_that_takes_no_plugin_from_clients(objects, array):
    with (
        LocalCluster(
            n_workers=1,
            processes=False,
            dashboard_address=":0",
            scheduler_kwargs={
                "blocked_handlers": ["register_scheduler_plugin"],
                "preload": ["proxystore_dask.preload"],
            },
        ) as cluster,
        Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
    ):
        assert client.ps_stats().lifetimes == "graph"
        assert client.submit(total, array).result() == array.sum()
        objects.wait_until_empty()


def test_a_program_that_does_not_know_of_us(objects, tmp_path):
    path = tmp_path / "store.toml"
    objects.store.config().write_toml(path)
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import dask, numpy as np
            from distributed import Client

            def score(data, i):
                return float(data[i::4].sum())

            if __name__ == "__main__":
                dask.config.set({"distributed.admin.large-graph-warning-threshold": "5 kB"})
                with Client(n_workers=1, threads_per_worker=2, dashboard_address=":0") as client:
                    data = np.ones(1_000_000)
                    values = [dask.delayed(score)(data, i) for i in range(2)]
                    futures = client.map(score, [data] * 2, [2, 3])
                    print(sum(dask.compute(*values)) + sum(client.gather(futures)))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(program)],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(dask_tasks.__file__).parent),
            "DASK_DISTRIBUTED__CLIENT__PRELOAD": "proxystore_dask.preload",
            "DASK_PROXYSTORE__STORE": str(path),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.split() == ["1000000.0"], done.stderr
    assert len(objects.log("put")) == 1 + 1
