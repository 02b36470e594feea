"""The page in the dashboard: that it is there, what it is told, and that it goes with the plugin.

How it looks, nobody but people can say. (In Chromium 1,400 and 390 pixels wide, light and dark.)
"""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from typing import Any
from urllib.request import urlopen

import pytest
from dask_tasks import total
from distributed.utils_test import gen_cluster
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

from proxystore.connectors.file import FileConnector
from proxystore.connectors.local import LocalConnector
from proxystore.store import Store
from proxystore.workflow import store_object
from proxystore_dask import Client, StoreLifetimes, StoreStats
from proxystore_dask._dask import Task
from proxystore_dask.graph import load_node
from proxystore_dask.stats import stats_html


async def started(scheduler: Any) -> StoreLifetimes:
    plugin = StoreLifetimes()
    await scheduler.register_scheduler_plugin(plugin, idempotent=True)
    return plugin


async def get(scheduler: Any, path: str) -> Any:
    address = f"http://localhost:{scheduler.http_server.port}/{path}"
    return await AsyncHTTPClient().fetch(address)


async def report(scheduler: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await get(scheduler, "proxystore.json")).body)
    return found


@gen_cluster(nthreads=[])
async def test_the_page(scheduler):
    await started(scheduler)
    for path in ("proxystore", "proxystore/", "behind/a/proxy/proxystore"):
        answer = await get(scheduler, path)
        # Its links are relative.
        assert answer.effective_url.endswith(f"/{path.rstrip('/')}")
        assert answer.headers["Content-Type"].startswith("text/html")
        text = answer.body.decode()
        assert "By graph key prefix" in text
        assert "{{" not in text
        assert "{%" not in text
        # Nothing from elsewhere: clusters may have no way out.
        assert "://" not in text
    assert (await get(scheduler, "health")).body == b"ok"


@gen_cluster(nthreads=[])
async def test_figures_by_prefix_and_by_store(scheduler):
    plugin = await started(scheduler)
    with (
        Store("one", LocalConnector(), register=True) as one,
        Store("two", LocalConnector(), register=True) as two,
    ):
        shared, own, leased = (store_object(one, "x" * n) for n in (1000, 2000, 3000))
        other = store_object(two, "x" * 50_000)
        for ref in (shared, own, other):
            plugin._learn(ref)  # as from a lease, before a graph mentions it
        specs = {"add-1": [shared], "add-2": [shared, own], ("mul-3", 0): [shared, other]}
        for key, refs in specs.items():
            scheduler.new_task(key, Task(key, total, *map(load_node, refs)), "released")
        plugin.update_graph(scheduler, tasks=list(specs))
        plugin._lease(ref=pickle.dumps(leased), client="me")
        metrics = scheduler.cumulative_worker_metrics
        metrics["execute", "add", "proxystore-load", "count"] = 3
        metrics["execute", "add", "proxystore-load", "seconds"] = 0.25
        metrics["execute", "gone", "proxystore-load", "bytes"] = 7
        metrics["execute", "gone", "proxystore-failure", "count"] = 2

        found = await report(scheduler)
        everything = sum(ref.nbytes for ref in (shared, own, leased, other))
        totals = found["totals"]
        assert (totals["objects"], totals["nbytes"]) == (4, everything)
        assert (totals["tasks"], totals["leased"], totals["misses"]) == (3, 1, 3)
        rows = [
            (row["name"], row["objects"], row["nbytes"], row["tasks"], row["misses"])
            for row in found["prefixes"]
        ]
        assert rows == [
            ("mul", 2, shared.nbytes + other.nbytes, 1, 0),
            ("add", 2, shared.nbytes + own.nbytes, 2, 3),
            ("gone", 0, 0, 0, 0),
        ]
        assert found["prefixes"][1]["load_seconds"] == 0.25
        assert found["prefixes"][2]["load_failures"] == totals["load_failures"] == 2
        assert [(place["name"], place["objects"]) for place in found["stores"]] == [
            ("two", 1),
            ("one", 3),
        ]
        assert found["history"][-1][2] == everything

        scheduler.transitions(dict.fromkeys(specs, "forgotten"), stimulus_id="test")
        plugin.remove_client(scheduler, "me")
        await plugin._stores._evicting
        found = await report(scheduler)
        assert (found["totals"]["objects"], found["totals"]["evicted"]) == (0, 4)
        assert found["totals"]["peak_nbytes"] == everything
        assert found["stores"] == []


@gen_cluster(nthreads=[])
async def test_stores_of_one_name_are_two_if_they_are_in_two_places(scheduler):
    plugin = await started(scheduler)
    with tempfile.TemporaryDirectory() as directory:
        for i in range(3):
            with Store("campaign", FileConnector(f"{directory}/{i % 2}", clear=False)) as store:
                ref = pickle.dumps(store_object(store, "x" * 1000))
                plugin._lease(ref=ref, client="me")
        rows = [(row["name"], row["connector"], row["objects"]) for row in plugin.places()]
        assert [(name, objects) for name, _, objects in rows] == [("campaign", 2), ("campaign", 1)]
        assert f"{directory}/0" in rows[0][1]
        assert f"{directory}/1" in rows[1][1]
        await plugin.close()


@gen_cluster(nthreads=[])
async def test_the_page_asks_for_figures_that_there_are(scheduler):
    plugin = await started(scheduler)
    script = (await get(scheduler, "proxystore")).body.decode().partition("<script>")[2]
    with Store("fields", LocalConnector(), register=True) as store:
        ref = store_object(store, "x" * 1000)
        plugin._learn(ref)
        scheduler.new_task("add", Task("add", total, load_node(ref)), "released")
        plugin.update_graph(scheduler, tasks=["add"])
        found = await report(scheduler)
    for name, fields in {
        "data": found,
        "t": found["totals"],
        "p": found["prefixes"][0],
        "got": found["prefixes"][0],
        "s": found["stores"][0],
    }.items():
        used = set(re.findall(rf"\b{name}\.(\w+)(?!\w*\()", script))
        assert used
        assert used <= fields.keys(), name


@gen_cluster(nthreads=[])
async def test_passwords_are_not_shown(scheduler):
    plugin = await started(scheduler)
    with Store("secret", LocalConnector(), register=True) as store:
        ref = store_object(store, "x" * 1000)
        ref.factory.store_config = ref.factory.store_config.model_copy(
            update={
                "connector": type(ref.factory.store_config.connector)(
                    kind="proxystore.connectors.redis.RedisConnector",
                    options={"hostname": "host", "password": "hunter2"},
                )
            }
        )
        plugin._learn(ref)
        (place,) = (await report(scheduler))["stores"]
        assert place["connector"].startswith("RedisConnector(hostname='host'")
        assert "hunter2" not in place["connector"]
        plugin._objects.clear()


@gen_cluster(nthreads=[])
async def test_a_store_that_is_open_is_described_as_its_client_does(scheduler):
    plugin = await started(scheduler)
    with Store("open", LocalConnector(), register=True) as store:
        ref = store_object(store, "x" * 1000)
        plugin._learn(ref)
        plugin._stores._store_of(ref)
        (place,) = (await report(scheduler))["stores"]
        assert place["connector"] == repr(store.connector)


@gen_cluster(nthreads=[])
async def test_of_very_many_prefixes_the_largest(scheduler):
    plugin = await started(scheduler)
    with Store("many", LocalConnector(), register=True) as store:
        refs = {f"p{chr(97 + i // 26)}{chr(97 + i % 26)}": i for i in range(120)}
        for name, i in refs.items():
            ref = store_object(store, "x" * (1000 + 100 * i))
            plugin.figures.mention(name, {ref.id: ref})
        found = await report(scheduler)
        assert len(found["prefixes"]) == 100
        assert found["more_prefixes"] == 20
        assert found["prefixes"][0]["name"] == "pep"


@gen_cluster(nthreads=[])
async def test_it_goes_with_the_plugin(scheduler):
    plugin = await started(scheduler)
    await get(scheduler, "proxystore")
    await plugin.close()
    with pytest.raises(HTTPClientError, match="404"):
        await get(scheduler, "proxystore")


@gen_cluster(nthreads=[], scheduler_kwargs={"dashboard": True})
async def test_it_is_in_the_navigation_of_dasks_pages(scheduler):
    pytest.importorskip("bokeh")
    assert b'href="proxystore"' not in (await get(scheduler, "workers")).body
    plugin = await started(scheduler)
    assert b'href="proxystore"' in (await get(scheduler, "workers")).body
    page = (await get(scheduler, "proxystore")).body.decode()
    assert 'href="status"' in page
    assert page.count('href="proxystore"') == 1
    await plugin.close()
    assert b'href="proxystore"' not in (await get(scheduler, "workers")).body


@gen_cluster(nthreads=[], scheduler_kwargs={"dashboard": False})
async def test_without_bokeh_it_leads_to_the_pages_that_there_are(scheduler):
    await started(scheduler)
    page = (await get(scheduler, "proxystore")).body.decode()
    assert 'href="info/main/workers.html"' in page
    assert 'href="status"' not in page
    await get(scheduler, "info/main/workers.html")


@gen_cluster(nthreads=[])
async def test_a_page_that_cannot_be_added_keeps_nobody_from_working(scheduler, caplog):
    plugin = StoreLifetimes()
    application, scheduler.http_application = scheduler.http_application, None
    await plugin.start(scheduler)
    scheduler.http_application = application
    assert "Some figures of proxystore cannot be shown" in caplog.text
    assert (await plugin._hello())["protocol"]
    await plugin.close()


@pytest.mark.dask
class TestNotebooks:
    def test_a_client_says_in_words_what_it_has_stored(self, client, objects, array):
        futures = [client.submit(total, array, i) for i in range(3)]
        stats = client.ps_stats()
        assert stats.live_bytes == stats.put_bytes > array.nbytes
        text = str(stats)
        assert f"Store: {objects.store.name}, FileConnector" in text
        assert "By reference: from 48.83 kiB" in text
        assert "Stored: 1 object, 156.50 kiB" in text
        assert "Stored already when wanted: 2 objects" in text
        assert "Alive: 1 object, 156.50 kiB" in text
        assert "Evicted: when no task can need it any more" in text
        assert "<strong>Stored:</strong>" in stats._repr_html_()
        del futures

    def test_its_view_leads_to_the_page(self, client):
        (link,) = re.findall(r'href="([^"]+/proxystore)"', client._repr_html_())
        with urlopen(link) as answer:
            assert b"By graph key prefix" in answer.read()

    def test_other_views(self):
        none = StoreStats(None, None, None, 1000)
        assert str(none) == "Store: none in use: large data travels as in plain Dask"
        kept = StoreStats("<b>", "Connector()", "client", 1000, puts=1234)
        assert "Stored: 1,234 objects" in str(kept)
        assert "Evicted: when the client closes" in str(kept)
        shown = stats_html(kept, "http://host:8787/status")
        assert "&lt;b&gt;" in shown
        assert "href" not in shown  # the plugin that serves the page may not be there
        graph = StoreStats("name", "Connector()", "graph", 1000)
        assert "href" not in stats_html(graph, "https://hub.example.org/my-dashboard")
        assert 'href="/proxy/8787/proxystore"' in stats_html(graph, "/proxy/8787/status")

    def test_a_client_that_is_closed(self, cluster):
        client = Client(cluster)
        client.close()
        assert "Objects by reference" in client._repr_html_()
