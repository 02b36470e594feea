"""Every private name of Dask that is used, each by itself: what fails says what has changed.

`proxystore_dask._dask` is the only module that uses them.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import pickle
from pathlib import Path
from typing import Any

import dask
import dask.array
import distributed
import numpy as np
import pytest
from dask.blockwise import Blockwise
from dask.highlevelgraph import MaterializedLayer
from dask_tasks import add_one, fail, total
from distributed import Client as DaskClient
from distributed.client import ClosedClientError, Future, FutureState
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import TaskState
from distributed.utils_test import gen_cluster

import proxystore_dask
from proxystore_dask import _dask

CHECKED = ("2025.7.0", "2026.8.0")
MODULES = sorted(Path(proxystore_dask.__file__).parent.glob("*.py"))


@pytest.fixture(autouse=True)
def versions():
    """Said of every test here that fails."""
    print(f"Checked against dask {' and '.join(CHECKED)}; installed is {dask.__version__}.")


def test_the_versions_these_names_were_checked_against():
    assert " and ".join(CHECKED) in (_dask.__doc__ or "")
    root = Path(__file__).parents[2]
    oldest = CHECKED[0]
    assert f"OLDEST_DASK := {oldest}\n" in (root / "Makefile").read_text()
    bound = oldest.removesuffix(".0")
    requirement = f'dask = ["dask>={bound}", "distributed>={bound}"]'
    assert requirement in (root / "pyproject.toml").read_text()
    assert (
        f"with {bound}, the oldest that is supported" in (root / "docs/guides/dask.md").read_text()
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_only_one_module_imports_private_names(path):
    imported = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("dask", "distrib")):
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [a.name for a in node.names if a.name.startswith(("dask", "distributed"))]
    private = [name for name in imported if any(part[0] == "_" for part in name.split("."))]
    assert not private or path.name == "_dask.py"


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


class TestClient:
    @pytest.mark.parametrize("name", ["_start", "_reconnect", "_close", "_register_plugin"])
    def test_methods_that_are_extended(self, name):
        assert callable(getattr(DaskClient, name))

    @pytest.mark.parametrize("name", ["_start", "_reconnect", "_close"])
    def test_those_that_are_awaited(self, name):
        assert inspect.iscoroutinefunction(inspect.unwrap(getattr(DaskClient, name)))

    def test_handlers_of_messages(self):
        assert parameters(DaskClient._handle_restart) == ["self"]
        assert parameters(DaskClient._handle_task_erred)[:2] == ["self", "key"]
        assert parameters(DaskClient._handle_cancelled_keys)[:2] == ["self", "keys"]

    def test_gathering(self):
        assert parameters(DaskClient._gather) == [
            *("self", "futures", "errors", "direct", "local_worker")
        ]
        assert parameters(DaskClient._gather_remote) == ["self", "direct", "local_worker"]
        source = inspect.getsource(DaskClient._gather)
        assert "self._gather_remote(direct, local_worker)" in source
        assert "local_worker.data[k]" in source
        # What a response that is no success means, and for which keys.
        assert 'response["status"] == "error"' in source
        assert 'for key in response["keys"]' in source

    def test_sending(self):
        assert parameters(DaskClient._send_to_scheduler) == ["self", "msg"]
        assert issubclass(ClosedClientError, Exception)

    def test_options_of_submit_and_map_are_keywords_only(self):
        for method in (DaskClient.submit, DaskClient.map):
            kinds = {p.name: p.kind for p in inspect.signature(method).parameters.values()}
            assert kinds.pop("self") is kinds.pop("func") is inspect.Parameter.POSITIONAL_OR_KEYWORD
            others = set(kinds.values())
            assert inspect.Parameter.POSITIONAL_OR_KEYWORD not in others
            assert {"key", "workers", "resources", "retries", "pure"} <= kinds.keys()
        assert {"batch_size"} == _dask.MAP_OPTIONS - _dask.SUBMIT_OPTIONS

    def test_state_of_a_failed_future(self):
        state = FutureState("key")
        _dask._raise_copies(state)
        error = ZeroDivisionError(1)
        state.set_error(error, None)
        assert state.exception is not error
        assert state.exception.args == (1,)
        state.cancel(reason="test")
        assert isinstance(state.exception, distributed.client.FutureCancelledError)

    def test_futures_can_be_watched(self):
        assert Future.__weakrefoffset__ != 0


class TestGraph:
    def test_a_task_in_an_argument_is_evaluated_with_the_task(self):
        inner = _dask.Task(None, total, np.ones(3))
        assert _dask.Task("key", total, inner, times=2)() == 6
        assert _dask.Task("key", lambda x: x, _dask.parse_input([{"a": inner}]))() == [{"a": 3}]

    def test_parts_of_a_task(self):
        inner = _dask.Task(None, total)
        outer = _dask.Task("key", total, inner, times=inner)
        assert (outer.func, outer.args, outer.kwargs) == (total, (inner,), {"times": inner})
        nested = _dask.parse_input(([inner], 1))
        assert isinstance(nested, _dask.Task)
        assert nested.args[0].args == (inner,)

    def test_literals_stay_as_they_are(self):
        value = [1, {"a": np.ones(2)}]
        assert _dask.parse_input(value) is value

    def test_a_copy_of_a_task_makes_another_call(self):
        for task in (
            _dask.Task("key", total, 1, times=2, _data_producer=True),
            _dask.parse_input([_dask.TaskRef("key"), 1]),
            _dask.parse_input({"a": _dask.TaskRef("key")}),
        ):
            inner = _dask.Task(None, add_one, 1)
            args = tuple(inner if arg == 1 else arg for arg in task.args)
            new = _dask.changed_task(task, task.func, args, task.kwargs)
            assert (type(new), new.key, new.data_producer) == (
                *(type(task), task.key, task.data_producer),
            )
            assert new.dependencies == task.dependencies
            assert args == task.args or dask.tokenize.tokenize(new) != dask.tokenize.tokenize(task)
        changed = _dask.changed_task(_dask.Task("key", total, 1), total, (3, inner), {"times": 2})
        assert changed() == 8
        assert pickle.loads(pickle.dumps(changed))() == 8

    def test_fused_tasks_keep_the_others_in_their_first_argument(self):
        first = _dask.Task("first", total, 1)
        fused = _dask.GraphNode.fuse(first, _dask.Task("second", total, _dask.TaskRef("first")))
        assert fused.has_subgraph()
        assert not first.has_subgraph()
        assert fused.args[0]["first"] == first

    def test_values_with_a_key(self):
        assert _dask.DataNode("key", 1).value == 1
        assert _dask.Alias("key", "other").dependencies == {"other"}

    def test_futures_are_references(self):
        assert issubclass(Future, _dask.TaskRef)
        assert isinstance(_dask.parse_input([_dask.TaskRef("key")]), _dask.GraphNode)


class TestExpressions:
    def test_every_graph_goes_through_one_method(self):
        assert parameters(DaskClient._graph_to_futures)[:3] == ["self", "expr", "keys"]
        for name in ("submit", "map", "get", "compute", "persist"):
            code = inspect.unwrap(getattr(DaskClient, name)).__code__
            assert "_graph_to_futures" in code.co_names, name

    def test_what_collections_are_made_of(self):
        (of_array,) = dask.base.collections_to_expr([dask.array.ones(3)]).operands
        assert isinstance(of_array, _dask.HLGExpr)
        assert isinstance(of_array, _dask.Expr)
        (layer,) = of_array.operand("dsk").layers.values()
        assert isinstance(layer, Blockwise)
        assert isinstance(layer.task, _dask.Task)
        assert {"indices", "io_deps"} <= vars(layer).keys()
        (of_delayed,) = dask.base.collections_to_expr([dask.delayed(total)(1)]).operands
        (layer,) = of_delayed.operand("dsk").layers.values()
        assert isinstance(layer, MaterializedLayer)
        (task,) = layer.mapping.values()
        assert isinstance(task, _dask.Task)

    def test_a_low_level_expression_keeps_annotations(self):
        with dask.annotate(priority=3):
            value = dask.delayed(total)(1)
        expr = dask.base.collections_to_expr([value], optimize_graph=False)
        graph = _dask.materialize(expr)
        again = pickle.loads(pickle.dumps(_dask.low_level_expr(graph, like=expr)))
        assert again.__dask_annotations__() == {"priority": {value.key: 3}}
        assert again.__dask_graph__() == graph
        # So that the scheduler leaves out what is not asked for.
        assert isinstance(again, dask._expr.LLGExpr)


class TestScheduler:
    def test_hooks_of_plugins(self):
        assert {"scheduler", "tasks"} <= set(parameters(SchedulerPlugin.update_graph))
        assert parameters(SchedulerPlugin.transition)[1:4] == ["key", "start", "finish"]
        assert parameters(SchedulerPlugin.remove_client)[1:] == ["scheduler", "client"]

    def test_a_task_has_a_run_spec(self):
        assert {"key", "run_spec"} <= set(TaskState.__slots__)


@gen_cluster(client=True, nthreads=[])
async def test_an_answer_to_an_unknown_request_is_none(client, scheduler):
    """How a client tells a scheduler without our plugin."""
    assert await client.scheduler.proxystore_never_heard_of() is None


def test_versions_of_dask_and_distributed_belong_together():
    assert dask.__version__ == distributed.__version__


@gen_cluster(client=False, nthreads=[])
async def test_attributes_of_a_client(scheduler):
    async with DaskClient(scheduler.address, asynchronous=True) as client:
        assert client._stream_handlers["restart"] == client._handle_restart
        assert client._stream_handlers["task-erred"] == client._handle_task_erred
        assert client._state_handlers["erred"] == client._handle_task_erred
        assert client._stream_handlers["cancelled-keys"] == client._handle_cancelled_keys
        assert client.status == "running"
        assert client._start_arg == scheduler.address
        assert client._timeout > 0
        assert await client._started is client
        identity = await client.scheduler.identity(n_workers=0)
        assert identity["address"] == scheduler.address
    assert client.status == "closed"
    with pytest.raises(ClosedClientError):
        client._send_to_scheduler({"op": "nothing"})


@gen_cluster(client=True)
async def test_plain_dask_still_keeps_futures_that_have_raised(client, scheduler, a, b):
    """Once this fails, dask/distributed#8790 is fixed and `_StateOfFailed` can go."""
    future = client.submit(fail, [])
    with pytest.raises(ZeroDivisionError):
        await future
    assert future._state.exception.__traceback__ is not None
    frames = future._state.exception.__traceback__
    assert frames.tb_frame.f_code.co_filename == __file__


@gen_cluster(client=False, nthreads=[("", 1)])
async def test_the_client_that_a_worker_makes(scheduler, worker):
    made = await worker._get_client()
    assert _dask.is_of_worker(made)
    async with DaskClient(scheduler.address, asynchronous=True, set_as_default=False) as client:
        assert not _dask.is_of_worker(client)
    await made.close()


@gen_cluster(client=False, nthreads=[])
async def test_attributes_of_a_scheduler(scheduler):
    assert {"update-graph", "client-releases-keys"} <= scheduler.stream_handlers.keys()
    assert "register_scheduler_plugin" in scheduler.handlers
    assert isinstance(scheduler.tasks, dict)


@gen_cluster(client=True)
async def test_plain_dask_still_cannot_map_with_a_large_keyword(client, scheduler, a, b):
    """Once this fails, `proxystore_dask.graph.inline` can go."""
    (future,) = client.map(total, [1], times=np.ones(20_000))
    with pytest.raises(Exception, match="AssertionError"):
        await asyncio.wait_for(future, 10)
