"""A store that workers cannot reach is refused when a client starts, and not by every task."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import warnings
from typing import Any

import pytest
from dask_tasks import OnlyHere, SlowElsewhere
from distributed import LocalCluster

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore_dask import Client, reach
from proxystore_dask.reach import StoreUnreachableError

pytestmark = [pytest.mark.dask, pytest.mark.timeout(90)]


@pytest.fixture
def only_here(tmp_path: Any) -> Any:
    """A store whose objects no other process sees, as with the memory of another node."""
    name = f"only-here-{tmp_path.name}"
    with Store(name, OnlyHere(tmp_path / "objects", os.getpid()), cache_size=0) as store:
        yield store


def test_a_store_that_no_worker_reaches(cluster, only_here, tmp_path):
    with pytest.raises(StoreUnreachableError) as caught:
        Client(cluster, ps_store=only_here, set_as_default=False)
    text = str(caught.value)
    for worker in cluster.scheduler.workers:
        assert worker in text
    assert str(tmp_path / "objects") in text
    assert socket.gethostname() in text
    assert "ps_store" in text
    assert not list((tmp_path / "objects").iterdir())


def test_the_error_travels():
    error = StoreUnreachableError("FileConnector('/a')", {"tcp://a": "on b: gone"}, "move it")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert again.workers == {"tcp://a": "on b: gone"}


def test_asynchronous_clients(cluster, only_here):
    async def main() -> None:
        with pytest.raises(StoreUnreachableError):
            await Client(cluster.scheduler_address, asynchronous=True, ps_store=only_here)

    asyncio.run(main())


def test_a_worker_that_joins_later(only_here, wait_until):
    with (
        LocalCluster(n_workers=0, dashboard_address=":0", host="127.0.0.1") as cluster,
        Client(cluster, ps_store=only_here),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        cluster.scale(1)
        wait_until(lambda: any("these workers cannot get it" in str(w.message) for w in caught))


def test_nothing_is_left_if_the_cluster_closes_before_a_worker_has_answered(tmp_path, wait_until):
    directory = tmp_path / "objects"
    with Store("slow-elsewhere", SlowElsewhere(directory, os.getpid()), cache_size=0) as store:
        with (
            LocalCluster(n_workers=0, dashboard_address=":0", host="127.0.0.1") as cluster,
            Client(cluster, ps_store=store),
        ):
            cluster.scale(1)
            wait_until(tmp_path.joinpath("objects.asked").exists)
            assert len(list(directory.iterdir())) == 1
        assert not list(directory.iterdir())


def test_memory_of_one_node_and_workers_on_several(monkeypatch):
    monkeypatch.setattr(reach, "is_in_memory", lambda directory: True)
    with Store("in-memory", FileConnector("/dev/shm/proxystore-test-reach")) as store:
        answers = {
            "tcp://a": (socket.gethostname(), ""),
            "tcp://b": ("elsewhere", "on elsewhere: gone"),
        }
        with pytest.raises(StoreUnreachableError, match=r"tcp://b .*elsewhere.*Redis") as caught:
            reach.check(store, answers)
        assert "tcp://a" not in str(caught.value)
        assert "file system that all nodes share" in str(caught.value)


def test_which_directories_are_in_memory(tmp_path):
    assert reach.is_in_memory("/dev/shm")
    assert reach.is_in_memory("/dev/shm/some/where")
    assert not reach.is_in_memory("/proc/self")
