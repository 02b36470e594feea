"""Asynchronous clients: the event loop never waits for bytes, and nothing overtakes them."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask_tasks import Unpicklable, add_one, kinds, total, wait_for
from distributed import fire_and_forget, wait

from proxystore.serialize import SerializationError
from proxystore.workflow.refs import frames_size
from proxystore_dask import Client
from proxystore_dask.outbox import Outbox

pytestmark = [pytest.mark.dask, pytest.mark.timeout(120)]


class SlowStore:
    """Writes of the store wait until they may go on."""

    def __init__(self, objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.threads: set[int] = set()
        put = objects.store.put_dumped

        def slow(data: Any, **kwargs: Any) -> Any:
            if frames_size(data) > 50_000:  # no probe
                self.threads.add(threading.get_ident())
                assert self.go.wait(30)
            return put(data, **kwargs)

        monkeypatch.setattr(objects.store, "put_dumped", slow)


@pytest.fixture
def slow(objects: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    slow = SlowStore(objects, monkeypatch)
    yield slow
    assert slow.threads, "nothing was stored through it"


async def loop_goes_on() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


class TestTheLoopGoesOn:
    def test_while_arguments_are_stored(self, in_event_loop, slow, array):
        async def program(client: Client) -> None:
            one = client.submit(total, array)
            two = client.map(total, [array + 1, array + 2], times=2)
            value = client.compute(dask.delayed(total)(array + 3))
            chunks = client.persist(da.from_array(array, chunks=10_000))
            await loop_goes_on()
            assert not one.done()
            slow.go.set()
            found = await client.gather([one, *two, value])
            n = len(array)
            assert found == [
                array.sum(),
                *(2 * (array.sum() + n), 2 * (array.sum() + 2 * n)),
                array.sum() + 3 * n,
            ]
            assert float(await client.compute(chunks.sum())) == array.sum()
            assert threading.get_ident() not in slow.threads

        in_event_loop(program)

    def test_results(self, in_event_loop, array):
        async def program(client: Client) -> None:
            future = client.submit(add_one, array)
            assert type(await future) is np.ndarray
            taken = client.submit(kinds, future)
            assert await taken == ["ndarray"]

        in_event_loop(program, ps_results="large")


class TestOrder:
    def test_tasks_that_need_them(self, in_event_loop, slow, array):
        async def program(client: Client) -> None:
            first = client.submit(add_one, array)
            second = client.submit(total, first)
            third = client.submit(total, second, times=2)
            del first
            await loop_goes_on()
            slow.go.set()
            assert await third == 2 * (array.sum() + len(array))

        in_event_loop(program)

    def test_dropped_before_it_is_sent(self, in_event_loop, slow, array, wait_until):
        async def program(client: Client) -> None:
            future = client.submit(total, array)
            key = future.key
            del future
            other = client.submit(total, 1)
            slow.go.set()
            assert await other == 1

            async def known() -> bool:
                return await client.run_on_scheduler(
                    lambda dask_scheduler: key in dask_scheduler.tasks
                )

            while await known():
                await asyncio.sleep(0.01)

        in_event_loop(program)

    def test_cancelled_before_it_is_sent(self, in_event_loop, slow, array):
        async def program(client: Client) -> None:
            future = client.submit(total, array)
            await client.cancel(future)
            assert future.cancelled()
            slow.go.set()
            assert await client.submit(total, 1) == 1

        in_event_loop(program)

    def test_goes_with_the_future(self, in_event_loop, objects, array):
        """Not when Python next looks for cycles: that may be much later."""

        async def program(client: Client) -> None:
            gc.disable()
            try:
                future = client.submit(total, array)
                assert await future == array.sum()
                assert len(objects) == 1
                del future
                while len(objects):
                    await asyncio.sleep(0.01)
            finally:
                gc.enable()

        in_event_loop(program)

    def test_options_and_annotations_arrive(self, in_event_loop, slow, array):
        async def program(client: Client) -> None:
            with dask.annotate(retries=3):
                annotated = client.submit(total, array)
            named = client.submit(total, array + 1, key="named", priority=7)
            slow.go.set()
            await wait([annotated, named])

            def look(dask_scheduler: Any) -> list[Any]:
                tasks = dask_scheduler.tasks
                return [
                    tasks[annotated_key].annotations.get("retries"),
                    tasks["named"].annotations.get("priority"),
                ]

            annotated_key = annotated.key
            assert await client.run_on_scheduler(look) == [3, 7]

        in_event_loop(program)

    def test_batches_share_an_argument(self, in_event_loop, array):
        async def program(client: Client) -> None:
            futures = client.map(total, [1, 2, 3, 4], batch_size=2, more=array)
            with pytest.raises(TypeError, match="more"):
                await client.gather(futures)
            futures = client.map(_scaled, [1, 2, 3, 4], batch_size=2, by=array)
            assert await client.gather(futures) == [i * array.sum() for i in (1, 2, 3, 4)]
            assert client.ps_stats().puts == 1

        in_event_loop(program)

    def test_what_other_threads_say_while_something_is_sent(self):
        said: list[str] = []

        async def program() -> None:
            outbox = Outbox()

            def say(what: str) -> None:
                if outbox.holds_back:
                    outbox.say(lambda: said.append(what))
                else:
                    said.append(what)

            def first(_: Any) -> None:
                other = threading.Thread(target=say, args=["third"])
                other.start()
                other.join()
                say("first")

            outbox.add(lambda: None, first, said.append)
            outbox.add(lambda: None, lambda _: say("second"), said.append)
            await outbox.drain(20, lambda: False)

        asyncio.run(program())
        assert said == ["first", "second", "third"]


class TestTrouble:
    def test_what_cannot_be_pickled(self, in_event_loop, array):
        holder = np.full(20_000, Unpicklable(), dtype=object)

        async def program(client: Client) -> None:
            bad = client.submit(len, holder)
            good = client.submit(total, array)
            with pytest.raises(SerializationError, match="ndarray"):
                await bad
            assert await good == array.sum()

        in_event_loop(program)

    def test_a_batch_that_cannot_be_stored(self, in_event_loop, objects, array, monkeypatch):
        """The next one stores what they share, and never goes without."""
        errors = [OSError("the first time")]
        put = objects.store.put_dumped

        def put_the_second_time(data: Any, **kwargs: Any) -> Any:
            if frames_size(data) > 50_000 and errors:  # no probe
                raise errors.pop()
            return put(data, **kwargs)

        monkeypatch.setattr(objects.store, "put_dumped", put_the_second_time)

        async def program(client: Client) -> None:
            futures = client.map(_scaled, [1, 2, 3, 4], batch_size=2, by=array)
            for future in futures[:2]:
                with pytest.raises(OSError, match="the first time"):
                    await future
            assert await client.gather(futures[2:]) == [3 * array.sum(), 4 * array.sum()]
            assert client.ps_stats().puts == 1

        in_event_loop(program)

    def test_what_a_graph_that_cannot_be_stored_shares_with_others(
        self, in_event_loop, objects, array, monkeypatch
    ):
        def fail(data: Any, **kwargs: Any) -> Any:
            raise OSError("no more of it")

        async def program(client: Client) -> None:
            done = client.submit(total, array, key="done")
            assert await done == array.sum()
            monkeypatch.setattr(objects.store, "put_dumped", fail)
            graph = {"done": (total, 1), "failed": (total, array + 1)}
            again, failed = client.get(graph, ["done", "failed"], sync=False)
            with pytest.raises(OSError, match="no more of it"):
                await failed
            assert await done == await again == array.sum()

        in_event_loop(program)

    def test_closed_meanwhile(self, in_event_loop, slow, array):
        async def program(client: Client) -> None:
            client.submit(total, array)
            await loop_goes_on()
            slow.go.set()

        in_event_loop(program)

    def test_the_same_bytes_once(self, in_event_loop, array):
        async def program(client: Client) -> None:
            futures = [client.submit(total, array.copy(), i) for i in range(4)]
            await client.gather(futures)
            assert client.ps_stats().puts == 1

        in_event_loop(program)


class TestClosing:
    def test_what_is_on_its_way_is_sent(self, in_event_loop, slow, array, tmp_path, wait_until):
        started, go = tmp_path / "started", tmp_path / "go"

        async def program(client: Client) -> None:
            fire_and_forget(client.submit(wait_for, array, str(started), str(go)))
            closing = asyncio.ensure_future(client.close())
            await asyncio.wait([closing], timeout=1)
            slow.go.set()
            await closing
            await asyncio.to_thread(wait_until, started.exists)
            go.touch()

        in_event_loop(program)

    @pytest.mark.parametrize("why", ["no connection", "Dask's limit", "the caller's limit"])
    def test_it_waits_no_longer_than(self, why, in_event_loop, objects, array, monkeypatch, caplog):
        too_late = threading.Event()
        put = objects.store.put_dumped

        def put_too_late(data: Any, **kwargs: Any) -> Any:
            if frames_size(data) > 50_000:  # no probe
                assert too_late.wait(30)
                raise OSError("too late")
            return put(data, **kwargs)

        monkeypatch.setattr(objects.store, "put_dumped", put_too_late)

        async def program(client: Client) -> None:
            future = client.submit(total, array)
            await loop_goes_on()
            if why == "Dask's limit":
                client._timeout = 0.2
            closing = asyncio.ensure_future(client.close(0.2 if "caller" in why else 60))
            await loop_goes_on()
            if why == "no connection":
                client.scheduler_comm.comm.abort()
            expected = (TimeoutError, asyncio.TimeoutError)  # two classes before Python 3.11
            with pytest.raises(expected) if "caller" in why else nullcontext():
                await asyncio.wait_for(closing, 20)
            assert client.status == "closed"
            assert ("has not been sent" in caplog.text) == (why == "Dask's limit")
            assert future.cancelled()
            too_late.set()

        in_event_loop(program)


class TestProcesses:
    PROGRAM = """
import asyncio, sys
import numpy as np
from dask_tasks import total
from proxystore_dask import Client

async def main(address, value):
    async with Client(address, asynchronous=True, ps_threshold="50 kB") as client:
        future = client.submit(total, np.full(20_000, float(value)))
        print(await future, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(*sys.argv[1:]))
"""

    def test_other_data_of_another_process_is_another_task(self, cluster):
        """Also where both are the first that their processes submit."""
        with ExitStack() as stack:

            def start(value: int) -> Any:
                process = subprocess.Popen(
                    [sys.executable, "-c", self.PROGRAM, cluster.scheduler_address, str(value)],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                stack.enter_context(process)
                stack.callback(process.communicate, "go on\n")
                return process

            one = start(1)
            assert float(one.stdout.readline()) == 20_000
            assert float(start(2).stdout.readline()) == 40_000


def _scaled(i: int, by: Any) -> float:
    return i * float(np.sum(by))
