"""Large literals stay out of the graphs of `compute`, `persist`, `get` and all collections."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
from dask_tasks import Model, Unpicklable, add_one, change_in_place, fail_once, identity, total
from distributed import Client as DaskClient
from distributed import LocalCluster, wait

from proxystore.workflow import UnpicklableArgumentError
from proxystore_dask import Client

pytestmark = pytest.mark.dask

HALF = 10_000  # Two chunks of the array, each above the threshold of 50 kB.


@pytest.fixture
def small_graphs() -> Any:
    """Dask warns, and the test fails, when a graph takes more than 5 kB."""
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "5 kB"}):
        yield


@dataclass
class Pair:
    left: Any
    right: Any


class ArrayLike:
    """What `from_array` takes, and what does not say how large it is."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim

    def __getitem__(self, index: Any) -> Any:
        return self.array[index]


def with_length(block: Any, big: Any) -> Any:
    return block + len(big)


# Each gives the sum of the array, once its graph has been sent.
WAYS: dict[str, Callable[[Client, Any], Any]] = {
    "delayed": lambda c, x: dask.delayed(total)(x).compute(),
    "delayed, by name": lambda c, x: dask.delayed(total)(array=x).compute(),
    "delayed, nested": lambda c, x: dask.delayed(lambda a: total(a["x"][0]))({"x": [x]}).compute(),
    "delayed, in a data class": lambda c, x: dask.delayed(lambda p: total(p[0].left))(
        [Pair(x, 1)]
    ).compute(),
    "delayed, in a data class with a task": lambda c, x: dask.delayed(lambda p: total(p.left))(
        Pair(x, dask.delayed(1))
    ).compute(),
    "delayed chain": lambda c, x: dask.delayed(total)(dask.delayed(add_one)(x), -len(x)).compute(),
    "delayed value": lambda c, x: dask.delayed(total)(dask.delayed(x)).compute(),
    "delayed partial": lambda c, x: dask.delayed(functools.partial(total, x))(0).compute(),
    "delayed method": lambda c, x: dask.delayed(Model(x).predict)(0).compute(),
    "method of a delayed object": lambda c, x: dask.delayed(Model(x)).predict(0).compute(),
    "several outputs": lambda c, x: dask.compute(dask.delayed(total)(x), dask.delayed(len)(x))[0],
    "bag": lambda c, x: sum(
        db.from_sequence([x[:HALF], x[HALF:]], npartitions=2).map(total).compute()
    ),
    "bag of much that is small": lambda c, x: (
        db.from_sequence(x.tolist(), npartitions=2).sum().compute()
    ),
    "bag with an argument": lambda c, x: (
        db.from_sequence([0], npartitions=1).map(lambda i, y: total(y), x).compute()[0]
    ),
    "from_array": lambda c, x: da.from_array(x, chunks=HALF).sum().compute(),
    "from_array, one chunk": lambda c, x: da.from_array(x, chunks=-1).sum().compute(),
    "from_array of an array-like": lambda c, x: (
        da.from_array(ArrayLike(x), chunks=HALF).sum().compute()
    ),
    "array and literal": lambda c, x: (da.zeros(len(x), chunks=HALF) + x).sum().compute(),
    "map_blocks": lambda c, x: (
        da.zeros(1, chunks=1).map_blocks(lambda b, big: b + big.sum(), big=x, dtype=float)
    ).compute()[0],
    "map_blocks of a partial": lambda c, x: (
        da.zeros(1, chunks=1)
        .map_blocks(functools.partial(lambda big, b: b + big.sum(), x), dtype=float)
        .compute()[0]
    ),
    "blockwise": lambda c, x: da.blockwise(
        lambda b, big: b + big.sum(), "i", da.zeros(1, chunks=1), "i", x, None, dtype=float
    ).compute()[0],
    "map_overlap": lambda c, x: (
        da.from_array(x, chunks=HALF).map_overlap(lambda b: b, depth=1).sum().compute()
    ),
    "persist": lambda c, x: da.from_array(x, chunks=HALF).persist().sum().compute(),
    "Client.persist": lambda c, x: c.persist(da.from_array(x, chunks=HALF)).sum().compute(),
    "Client.compute": lambda c, x: c.compute(da.from_array(x, chunks=HALF).sum()).result(),
    "Client.compute, several": lambda c, x: sum(
        c.gather(c.compute([dask.delayed(total)(y) for y in (x[:HALF], x[HALF:])]))
    ),
    "Client.get": lambda c, x: c.get({"sum": (total, x)}, "sum"),
    "Client.get of a value": lambda c, x: c.get({"x": x, "sum": (total, "x")}, ["sum"])[0],
    "Client.get_executor": lambda c, x: c.get_executor().submit(total, x).result(),
    "submit a method": lambda c, x: c.submit(Model(x).predict, 0).result(),
    "submit a partial of a method": lambda c, x: c.submit(
        functools.partial(Model(x).predict, more=0)
    ).result(),
    "submit a builtin method": lambda c, x: c.submit(x.sum).result(),
    "map a method": lambda c, x: sum(c.gather(c.map(Model(x).predict, [0, 1]))) - x.sum() - 1,
}


@pytest.mark.usefixtures("small_graphs")
class TestGraphsStaySmall:
    @pytest.mark.parametrize("way", WAYS)
    def test_with(self, client, array, way):
        assert WAYS[way](client, array) == array.sum()

    def test_a_closure_travels_as_in_plain_dask(self, client, array):
        with pytest.warns(UserWarning, match="Sending large graph"):
            assert dask.delayed(lambda: array.sum())().compute() == array.sum()


@pytest.mark.usefixtures("small_graphs")
class TestDataFrames:
    @pytest.fixture
    def frame(self, array: Any) -> Any:
        pytest.importorskip("pyarrow", reason="dask.dataframe needs it")
        pandas = pytest.importorskip("pandas")
        return pandas.DataFrame({"a": array, "b": np.arange(len(array)) % 7})

    def test_from_pandas(self, client, frame):
        import dask.dataframe as dd

        assert dd.from_pandas(frame, npartitions=2).a.sum().compute() == frame.a.sum()
        kept = dd.from_pandas(frame, npartitions=2).persist()
        assert kept.groupby("b").a.sum().compute().to_dict() == frame.groupby("b").a.sum().to_dict()

    def test_frames_as_arguments(self, client, frame):
        import dask.dataframe as dd

        few = dd.from_pandas(frame[:10], npartitions=2)
        mapped = few.map_partitions(lambda part, whole: part.assign(n=len(whole)), frame)
        assert set(mapped.compute().n) == {len(frame)}
        assert len(few.merge(frame, on="a").compute()) == 10


@pytest.mark.usefixtures("small_graphs")
def test_xarray(client, array):
    xarray = pytest.importorskip("xarray")
    chunked = xarray.DataArray(array.reshape(200, -1), dims=("t", "y")).chunk({"t": 100})
    assert chunked.mean().compute() == array.mean()


class TestWhatIsSent:
    class Spy(DaskClient):
        """Notes the expressions of the graphs that leave the client."""

        def _graph_to_futures(self, expr: Any, *args: Any, **kwargs: Any) -> Any:
            self.sent = expr
            return super()._graph_to_futures(expr, *args, **kwargs)

    class SpiedClient(Client, Spy):
        asked: Any = None

        def _graph_to_futures(self, expr: Any, *args: Any, **kwargs: Any) -> Any:
            self.asked = expr
            return super()._graph_to_futures(expr, *args, **kwargs)

    @pytest.fixture
    def spied(self, cluster, objects):
        with self.SpiedClient(cluster, ps_store=objects.store, ps_threshold="50 kB") as client:
            yield client

    @pytest.mark.parametrize(
        "make",
        [
            lambda: dask.delayed(total)([1, 2, 3]),
            lambda: da.ones(100_000, chunks=10_000).sum(),
            lambda: da.from_array(np.ones(20_000), chunks=1_000).sum(),
            lambda: db.from_sequence(range(100), npartitions=10).sum(),
        ],
        ids=["delayed", "array", "small chunks", "bag"],
    )
    def test_a_graph_without_large_literals_is_sent_as_it_is(self, spied, make):
        make().compute()
        assert spied.sent is spied.asked
        assert spied.ps_stats().puts == 0

    def test_a_literal_that_looks_large_and_is_not(self, spied):
        """Numbers are counted, not measured: the graph is made, and then sent as it was."""
        assert dask.delayed(sum)([1] * 20_000).compute() == 20_000
        assert spied.sent is spied.asked

    def test_tasks_that_nobody_wants_are_left_out(self, spied, array):
        graph = {"wanted": (total, array), "other": (total, array + 1)}
        assert spied.get(graph, "wanted") == array.sum()
        assert spied.ps_stats().puts == 1

    def test_an_argument_of_submit_is_not_looked_at_twice(self, spied):
        pickled: list[int] = []

        class Counted:
            def __reduce__(self) -> Any:
                pickled.append(1)
                return int, ()

        assert spied.submit(identity, Counted(), key="the-key").result() == 0
        assert len(pickled) == 2  # to measure it, and to send it

    def test_annotations_are_kept(self, spied, cluster, array):
        (worker, *_) = spied.scheduler_info()["workers"]
        with dask.annotate(retries=3, priority=7, workers=[worker], allow_other_workers=False):
            value = dask.delayed(total)(array)
        future = spied.compute(value, optimize_graph=False)
        assert future.result() == array.sum()
        annotations = cluster.scheduler.tasks[future.key].annotations
        assert spied.sent is not spied.asked
        assert (annotations["retries"], annotations["priority"]) == (3, 7)
        assert spied.who_has(future)[future.key] == (worker,)

    def test_resources_that_nobody_has(self, spied, cluster, array, wait_until):
        with dask.annotate(resources={"none": 1}):
            value = dask.delayed(total)(array)
        future = spied.compute(value, optimize_graph=False)
        wait_until(lambda: future.key in cluster.scheduler.tasks)
        assert cluster.scheduler.tasks[future.key].resource_restrictions == {"none": 1}
        assert not future.done()

    def test_options_of_compute_are_kept(self, client, array, tmp_path):
        value = dask.delayed(fail_once)(array, str(tmp_path / "failed"))
        assert client.compute(value, retries=1).result() == array.sum()


class TestObjects:
    def test_the_same_array_in_many_tasks_is_stored_once(self, client, array, objects):
        values = [dask.delayed(total)(array, i) for i in range(4)]
        assert dask.compute(*values) == tuple(array.sum() + i for i in range(4))
        assert client.ps_stats().puts == 1

    def test_the_same_content_across_graphs_while_alive(self, client, array):
        kept = da.from_array(array, chunks=-1).persist()
        assert client.submit(total, array).result() == kept.sum().compute() == array.sum()
        assert client.ps_stats().puts == 1

    def test_a_value_with_a_key_is_read_once(self, client, array, objects):
        asked = len(objects.log("get"))  # each worker, whether it reaches the store
        value = dask.delayed(array)
        dask.compute(*[dask.delayed(total)(value, i) for i in range(4)])
        assert len(objects.log("get")) == asked + 1

    def test_tasks_that_change_a_literal_do_not_see_each_other(self, client, array):
        values = [dask.delayed(change_in_place)(array, i) for i in range(4)]
        assert dask.compute(*values) == (1,) * 4
        assert array[0] == 0

    def test_each_output_keeps_what_it_needs(self, client, array, objects, wait_until):
        first, second = client.compute([dask.delayed(total)(array + i) for i in range(2)])
        wait([first, second])
        assert client.ps_stats().live == len(objects) == 2
        del second
        gc.collect()
        wait_until(lambda: len(objects) == 1)
        assert client.ps_stats().live == 1

    def test_a_worker_that_dies_with_a_chunk(self, client, array, kill_worker):
        kept = client.persist(da.from_array(array, chunks=HALF))
        wait(kept)
        ((worker, *_), *_) = client.who_has(kept).values()
        kill_worker(client, worker)
        assert kept.sum().compute() == array.sum()

    def test_an_error_says_in_which_task(self, client, array):
        value = dask.delayed(total)(0, [array, Unpicklable()], dask_key_name="the-task")
        with pytest.raises(UnpicklableArgumentError, match=r"\[1\] of task 'the-task' is a .*Unp"):
            value.compute()
        assert client.ps_stats().puts == 0

    def test_of_an_asynchronous_client(self, in_event_loop, array):
        async def program(client: Any) -> None:
            assert await client.compute(dask.delayed(total)(array)) == array.sum()
            assert await client.get({"x": (total, array)}, "x", sync=False) == array.sum()
            kept = client.persist(da.from_array(array, chunks=HALF))
            assert await client.compute(kept.sum()) == array.sum()
            # The second array was the first one, if Dask had not dropped its future by then.
            assert client.ps_stats().puts in (3, 4)

        in_event_loop(program)

    def test_threads_instead_of_processes(self, objects, array):
        with (
            LocalCluster(
                n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
            ) as cluster,
            Client(cluster, ps_store=objects.store, ps_threshold="50 kB") as client,
        ):
            values = [dask.delayed(change_in_place)(array, i) for i in range(2)]
            assert dask.compute(*values) == (1, 1)
            assert client.ps_stats().puts == 1
