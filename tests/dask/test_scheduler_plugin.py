"""The plugin inside a scheduler: what it counts, and that it evicts at "forgotten" and not before.

Most of these tests need a scheduler in this process and no workers; `gen_cluster` also checks that
no thread of the plugin outlives it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from dask_tasks import add_one, total
from distributed import Client as DaskClient
from distributed import Nanny, fire_and_forget, wait
from distributed.scheduler import ClientState
from distributed.utils_test import async_poll_for, gen_cluster

from proxystore.connectors.file import FileConnector
from proxystore.store import Store, StoreConfig, unregister_store
from proxystore.workflow import Ref, identity, store_object
from proxystore_dask import Client, StoreLifetimes, scheduler_plugin, scheduler_stores
from proxystore_dask._dask import Task
from proxystore_dask.graph import load_node


class Files:
    """A store, and how many objects are in it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.store: Store[Any] = Store(directory, FileConnector(directory), register=True)

    def __len__(self) -> int:
        return len(os.listdir(self._directory))

    def put(self) -> Ref:
        return store_object(self.store, "x" * 1000)

    def begin(self, prefix: str) -> str:
        """The path of an object that is being written."""
        path = f"{self._directory}/.{uuid.uuid4()}.{prefix}.1"
        open(path, "x").close()
        return path

    async def wait_until(self, count: int) -> None:
        def fail() -> None:
            there = sorted(os.listdir(self._directory))
            raise AssertionError(f"{len(there)} objects in the store, not {count}: {there}")

        await async_poll_for(lambda: len(self) == count, timeout=20, fail_func=fail)


# gen_cluster hides a test's parameters from pytest, hence no fixture.
@contextmanager
def files() -> Iterator[Files]:
    directory = tempfile.mkdtemp()
    files = Files(directory)
    try:
        yield files
    finally:
        unregister_store(files.store)
        shutil.rmtree(directory)


async def started(scheduler: Any) -> StoreLifetimes:
    plugin = StoreLifetimes()
    await scheduler.register_scheduler_plugin(plugin, idempotent=True)
    return plugin


def storing_client(scheduler: Any, objects: Files) -> Client:
    """Return one whose large results go to the store."""
    return Client(
        scheduler.address,
        asynchronous=True,
        ps_store=objects.store,
        ps_threshold="1 kB",
        ps_results="large",
    )


def lease(plugin: StoreLifetimes, ref: Ref, client: str) -> None:
    plugin._lease(ref=pickle.dumps(ref), client=client)


def end_lease(plugin: StoreLifetimes, ref: Ref, client: str) -> None:
    plugin._lease_end(ref=pickle.dumps(ref), client=client)


async def hello(scheduler: Any, client: str, files: Files, **what: Any) -> str:
    """How the names of a client's objects begin, of which the plugin hears as from that client."""
    scheduler.client_desires_keys([], client)
    prefix = str(uuid.uuid4())
    place = pickle.dumps(files.store.config())
    hello = scheduler.handlers["proxystore_hello"]
    await hello(client=client, prefix=prefix, place=place, **what)
    return prefix


def add_task(scheduler: Any, plugin: StoreLifetimes, key: str, *refs: Ref) -> None:
    """As a client does, that leases objects until their graph is there."""
    for ref in refs:
        lease(plugin, ref, "sender")
    spec = Task(key, total, *map(load_node, refs))
    scheduler.new_task(key, spec, "released")
    plugin.update_graph(scheduler, tasks=[key], keys={key})
    for ref in refs:
        end_lease(plugin, ref, "sender")


def forget(scheduler: Any, key: str) -> None:
    scheduler.transitions({key: "forgotten"}, stimulus_id="test")


@gen_cluster(client=False)
async def test_evicts_at_forgotten_and_not_before(scheduler, a, b):
    with files() as objects:
        async with Client(
            scheduler.address, asynchronous=True, ps_store=objects.store, ps_threshold="1 kB"
        ) as client:
            first = client.submit(add_one, np.ones(1000))
            await wait(first)
            second = client.submit(total, first)
            del first
            assert await second == 2000
            # The input's task is released; if its dependent gets lost it runs again.
            states = {"released", "memory"}
            await async_poll_for(lambda: {t.state for t in scheduler.tasks.values()} == states, 5)
            await async_poll_for(lambda: client.ps_stats().live == 0, timeout=5)
            stats = await client.scheduler.proxystore_stats()
            assert (stats["objects"], stats["tasks"]) == (1, 1)
            assert len(objects) == 1
            del second
            await objects.wait_until(0)
            assert not scheduler.tasks
            await async_poll_for(
                lambda: scheduler.plugins["proxystore"].figures.evicted == 1, timeout=5
            )
            assert await client.scheduler.proxystore_stats() == {
                "objects": 0,
                "leased": 0,
                "tasks": 0,
                "evicted": 1,
                "failed": 0,
            }


@gen_cluster(nthreads=[])
async def test_a_lease_and_a_task_need_an_object_each_by_itself(scheduler):
    plugin = await started(scheduler)
    with files() as objects:
        leased, mentioned, both = (objects.put() for _ in range(3))
        lease(plugin, leased, "me")
        lease(plugin, both, "me")
        add_task(scheduler, plugin, "task", mentioned, both)
        end_lease(plugin, leased, "me")
        await objects.wait_until(2)
        assert not leased.exists()
        end_lease(plugin, both, "me")
        assert mentioned.exists()
        assert both.exists()
        forget(scheduler, "task")
        await objects.wait_until(0)


@gen_cluster(nthreads=[])
async def test_two_tasks_may_need_one_object(scheduler):
    plugin = await started(scheduler)
    with files() as objects:
        ref = objects.put()
        add_task(scheduler, plugin, "one", ref, ref)
        add_task(scheduler, plugin, "two", ref)
        forget(scheduler, "one")
        assert (await plugin._stats())["tasks"] == 1
        assert (await plugin._stats())["evicted"] == 0
        forget(scheduler, "two")
        await objects.wait_until(0)


@gen_cluster(nthreads=[])
async def test_a_lease_belongs_to_one_client(scheduler):
    plugin = await started(scheduler)
    with files() as objects:
        ref = objects.put()
        lease(plugin, ref, "mine")
        end_lease(plugin, ref, "theirs")
        plugin.remove_client(scheduler, "theirs")
        assert (await plugin._stats())["leased"] == 1
        plugin.remove_client(scheduler, "mine")
        await objects.wait_until(0)


async def looked_again(plugin: StoreLifetimes, times: int = 3) -> None:
    """Return once the plugin has looked some times at what clients that are gone have begun."""
    stores = plugin._stores
    look, looks = stores._idle_for, []

    def counted(prefix: str) -> float:
        looks.append(prefix)
        return look(prefix)

    stores._idle_for = counted  # type: ignore[method-assign]
    await async_poll_for(lambda: len(looks) >= times, timeout=10)
    stores._idle_for = look  # type: ignore[method-assign]


def test_a_scheduler_of_another_version_gets_no_attributes_of_this_one():
    sent = pickle.dumps(StoreLifetimes())
    assert not [name for name in vars(StoreLifetimes()) if name.encode() in sent]
    assert pickle.loads(sent).group


@gen_cluster(nthreads=[])
async def test_a_store_is_opened_once_however_its_options_are_ordered(scheduler):
    """Their order is another one in a reference that has come as text."""
    stores = (await started(scheduler))._stores
    with files() as objects:
        store = Store(f"{objects.store.name}-again", objects.store.connector)
        config = store.config()
        options = dict(reversed(config.connector.options.items()))
        connector = config.connector.model_copy(update={"options": options})
        assert repr(connector) != repr(config.connector)
        opened = stores._store_at(config)
        assert stores._store_at(config.model_copy(update={"connector": connector})) is opened


@gen_cluster(client=False, nthreads=[("127.0.0.1", 1)])
async def test_nothing_grows_with_the_clients_that_have_been_there(scheduler, worker):
    with mock.patch.object(scheduler_stores, "UNUSED", 0.01):
        for _ in range(2):
            with files() as objects:
                async with storing_client(scheduler, objects) as client:
                    await wait(client.submit(np.ones, 1000))
        plugin = scheduler.plugins["proxystore"]
        await async_poll_for(lambda: not plugin._stores.opened, timeout=5)
    names = "_objects _tasks _mentions _leases _digests _results _held _kept _suspects _offers"
    names += " _prefixes _places _with_results"
    assert {name: getattr(plugin, name) for name in names.split() if getattr(plugin, name)} == {}
    stores, names = plugin._stores, "_burying opened _unused _keepers _doomed"
    assert {name: getattr(stores, name) for name in names.split() if getattr(stores, name)} == {}
    assert not scheduler._broker._topics[scheduler_plugin.COMPANY].subscribers


async def released(plugin: StoreLifetimes) -> None:
    """Return once the plugin has let go of what it can let go of, however much later."""
    plugin._stores._release_stores()
    plugin._stores._release_stores()
    await asyncio.get_running_loop().run_in_executor(plugin._stores._pool, bool)


@gen_cluster(nthreads=[])
async def test_a_store_stays_open_while_something_in_it_is_needed(scheduler):
    plugin = await started(scheduler)
    with files() as objects:
        await hello(scheduler, "me", objects)
        await released(plugin)
        assert plugin._stores.opened
        add_task(scheduler, plugin, "task", objects.put())
        scheduler.remove_client("me")
        await released(plugin)
        assert plugin._stores.opened
        forget(scheduler, "task")
        await objects.wait_until(0)
        await released(plugin)
        assert not plugin._stores.opened


@gen_cluster(nthreads=[])
async def test_what_a_worker_leaves_when_its_client_has_gone_is_swept(scheduler):
    """A task that is cancelled goes on, and its worker may die after it has stored something."""
    plugin = await started(scheduler)
    with files() as objects:
        await hello(scheduler, "me", objects)
        plugin._tags["worker"] = "0123"
        scheduler.remove_client("me")
        plugin._stores._release_stores()
        store_object(objects.store, "x" * 1000, name=f"{plugin.group}.0123-1")
        plugin.remove_worker(scheduler, "worker")
        await objects.wait_until(0)


@gen_cluster(client=False, nthreads=[("127.0.0.1", 1)])
async def test_results_of_others_are_those_that_others_can_have(scheduler, worker):
    with files() as objects:
        async with storing_client(scheduler, objects) as client:
            plugin = scheduler.plugins["proxystore"]
            fire_and_forget(client.submit(np.ones, 1000, key="fired"))
            await async_poll_for(lambda: plugin.figures.evicted, timeout=5)
            assert not client._ps_others_results
            made = client.submit(np.ones, 1000, key="made")
            await client.publish_dataset(made=made)
            await wait(made)
            del made
        assert (await plugin._hello(client="another"))["others_results"]
        async with DaskClient(scheduler.address, asynchronous=True) as plain:
            await plain.unpublish_dataset("made")
            await objects.wait_until(0)
        assert not (await plugin._hello(client="another"))["others_results"]


@gen_cluster(nthreads=[])
async def test_what_a_client_writes_stays_while_it_may_be_alive(scheduler):
    """It may only have lost its connection. What it has stored before, it cannot tell of."""
    plugin = await started(scheduler)
    with files() as objects:
        prefix = await hello(scheduler, "me", objects, process=identity())
        half = objects.begin(prefix)
        whole = store_object(objects.store, "x" * 1000, name=f"{prefix}.2")
        scheduler.remove_client("me")
        await objects.wait_until(1)
        assert not whole.exists()
        await looked_again(plugin)
        await released(plugin)
        assert os.path.exists(half)
        assert plugin._stores.opened
        finished = store_object(objects.store, "x" * 1000, name=f"{prefix}.1")
        os.remove(half)
        await async_poll_for(lambda: not plugin._stores._burying, timeout=5)
        assert finished.exists()  # of which it will tell


async def evicts_what_is_begun(
    scheduler: Any, process: str, end: Callable[[str], Any] = lambda path: None
) -> None:
    await started(scheduler)
    with files() as objects:
        half = objects.begin(await hello(scheduler, "me", objects, process=process))
        scheduler.remove_client("me")
        end(half)
        await objects.wait_until(0)


@gen_cluster(nthreads=[])
async def test_what_a_client_was_writing_goes_when_it_is_dead(scheduler):
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from proxystore.workflow import identity; print(identity(), flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        process = client.stdout.readline().strip()
        await evicts_what_is_begun(scheduler, process, lambda path: client.kill())


@gen_cluster(nthreads=[])
async def test_what_a_client_was_writing_goes_when_nothing_was_added_for_long(scheduler):
    """Of another host nobody knows which processes are dead."""
    an_hour_ago = time.time() - 3600
    await evicts_what_is_begun(
        scheduler, "elsewhere", lambda path: os.utime(path, (an_hour_ago, an_hour_ago))
    )


@gen_cluster(nthreads=[])
async def test_what_a_client_was_writing_goes_when_the_scheduler_closes(scheduler):
    await started(scheduler)
    with files() as objects:
        objects.begin(await hello(scheduler, "me", objects, process="elsewhere"))
        scheduler.remove_client("me")
        await scheduler.close()
        assert len(objects) == 0


@gen_cluster(nthreads=[])
async def test_a_lease_that_ends_unheard_of_is_the_end_of_the_object(scheduler):
    """Put, and given up, while the client had no connection."""
    plugin = await started(scheduler)
    with files() as objects:
        end_lease(plugin, objects.put(), "me")
        await objects.wait_until(0)


@gen_cluster(client=False, Worker=Nanny, nthreads=[("127.0.0.1", 1)])
async def test_a_restart_forgets_tasks_and_keeps_leases(scheduler, nanny):
    """A graph that is on its way meanwhile finds its objects; their clients end the leases."""
    with files() as objects:
        async with Client(
            scheduler.address, asynchronous=True, ps_store=objects.store, ps_threshold="1 kB"
        ) as client:
            plugin = scheduler.plugins["proxystore"]
            leased = objects.put()
            lease(plugin, leased, "another client")
            future = client.submit(total, np.ones(1000))
            assert await future == 1000
            assert len(objects) == 2
            await client.restart()
            await objects.wait_until(1)
            assert leased.exists()
            plugin.remove_client(scheduler, "another client")
            await objects.wait_until(0)


@gen_cluster(nthreads=[])
async def test_tasks_that_are_there_before_the_plugin(scheduler):
    with files() as objects:
        ref = objects.put()
        scheduler.new_task("task", Task("task", total, load_node(ref)), "released")
        plugin = await started(scheduler)
        lease(plugin, ref, "me")
        end_lease(plugin, ref, "me")
        assert (await plugin._stats())["objects"] == 1
        forget(scheduler, "task")
        await objects.wait_until(0)


@gen_cluster(nthreads=[])
async def test_what_only_tasks_mention_is_left_to_its_client(scheduler):
    """One that was told that its objects cannot be seen from here leases nothing."""
    with files() as objects:
        plugin = await started(scheduler)
        ref = objects.put()
        spec = Task("task", total, load_node(ref))
        scheduler.new_task("task", spec, "released")
        plugin.update_graph(scheduler, tasks=["task"], keys={"task"})
        assert (await plugin._stats())["objects"] == 0
        forget(scheduler, "task")
        other = objects.put()
        lease(plugin, other, "me")
        end_lease(plugin, other, "me")
        await objects.wait_until(1)
        assert ref.exists()


@gen_cluster(nthreads=[])
async def test_closing_evicts_everything_at_once(scheduler):
    plugin = await started(scheduler)
    with files() as objects:
        lease(plugin, objects.put(), "me")
        add_task(scheduler, plugin, "task", objects.put())
        await scheduler.close()
        assert len(objects) == 0


@gen_cluster(nthreads=[])
async def test_a_store_that_hangs_does_not_keep_a_scheduler_from_closing(scheduler):
    plugin = await started(scheduler)
    hangs = threading.Event()
    plugin._stores._pool.submit(hangs.wait, 20)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    with files() as objects, mock.patch.object(scheduler_stores, "CLOSING", 0.2):
        lease(plugin, objects.put(), "me")
        await plugin.close()
        assert ticks > 1
        hangs.set()
        await objects.wait_until(0)
    ticking.cancel()


@gen_cluster(nthreads=[])
async def test_a_store_that_fails_does_not_keep_other_objects(scheduler):
    plugin = await started(scheduler)
    with files() as objects:
        good = objects.put()
        factory = pickle.loads(pickle.dumps(good.factory))
        factory.store_config = StoreConfig.model_validate(
            {"name": "nowhere", "connector": {"kind": "no.such.Connector", "options": {}}}
        )
        bad = Ref(factory, "0" * 32, 1000, "builtins.str")
        for ref in (bad, good):
            lease(plugin, ref, "me")
        plugin.remove_client(scheduler, "me")
        await objects.wait_until(0)
        assert (await plugin._stats())["failed"] == 1


@gen_cluster(nthreads=[])
async def test_hello(scheduler):
    plugin = await started(scheduler)
    with files() as objects:
        probe = objects.put()
        scheduler.clients["me"] = ClientState("me")
        seen = await plugin._probed(pickle.dumps(probe), offered_by="me")
        assert seen == {"reachable": True, "unreadable": ""}
        assert pickle.loads((await plugin._hello())["store"]) == probe
        plugin.remove_client(scheduler, "me")
        assert (await plugin._hello())["store"] is None
        probe.evict()
        gone = await plugin._probed(pickle.dumps(probe), offered_by="me")
        assert gone == {"reachable": False, "unreadable": ""}
        assert (await plugin._hello())["store"] is None
        unknown = await plugin._probed(b"from another version")
        assert not unknown["reachable"]
        assert unknown["unreadable"].startswith("UnpicklingError")


@gen_cluster(nthreads=[])
async def test_nobody_offers_a_store_when_it_is_gone(scheduler):
    plugin = await started(scheduler)
    with files() as objects:
        seen = await plugin._probed(pickle.dumps(objects.put()), offered_by="me")
        assert seen["reachable"]
        assert (await plugin._hello())["store"] is None


@gen_cluster(nthreads=[])
async def test_a_store_is_kept_while_much_is_evicted(scheduler):
    """Whoever closes it waits for that for two seconds, and evictions may take longer."""
    plugin = await started(scheduler)
    with files() as objects:
        lease(plugin, objects.put(), "me")
        stores, evicting = plugin._stores, threading.Event()

        def slow(refs: list[Ref]) -> list[Ref]:
            evicting.set()
            time.sleep(0.1)
            return []

        stores._evict_batch = slow
        stores.evict_soon([objects.put()] * 5_000)
        await async_poll_for(evicting.is_set, 5)
        config = pickle.dumps(objects.store.config())
        assert await asyncio.wait_for(plugin._keep(config), 2)
        assert stores._evicting is not None
        stores._doomed.clear()
        del stores._evict_batch


@gen_cluster(nthreads=[])
async def test_two_stores_in_one_directory_are_kept_as_long_as_one_is_needed(scheduler):
    plugin = await started(scheduler)
    directory = tempfile.mkdtemp()
    kept = [Store(name, FileConnector(directory)) for name in ("kept-one", "kept-two")]
    refs = [store_object(store, "x" * 1000) for store in kept]
    for store, ref in zip(kept, refs, strict=True):
        lease(plugin, ref, "me")
        keeper = await plugin._keep(pickle.dumps(store.config()))
        assert keeper is not None
        store.connector.leave_to(keeper)
    await plugin._keep(pickle.dumps(kept[0].config()))  # by another client of the first one
    ((configs, _),) = plugin._stores._directories.values()
    assert len(configs) == 2
    for store in kept:
        store.close()
    end_lease(plugin, refs[0], "me")
    await async_poll_for(lambda: not refs[0].exists(), 5)
    await plugin._stores.settle()
    assert refs[1].exists()
    end_lease(plugin, refs[1], "me")
    await async_poll_for(lambda: not os.path.exists(directory), 5)


@gen_cluster(nthreads=[])
async def test_a_second_client_finds_the_plugin_that_is_there(scheduler):
    with files() as objects:
        for _ in range(2):
            async with Client(scheduler.address, asynchronous=True, ps_store=objects.store):
                plugin = scheduler.plugins["proxystore"]
                lease(plugin, objects.put(), "somebody")
        assert scheduler.plugins["proxystore"] is plugin
        assert (await plugin._stats())["leased"] == 2
        plugin.remove_client(scheduler, "somebody")
        await objects.wait_until(0)
