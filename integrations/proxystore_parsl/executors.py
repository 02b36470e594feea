"""Executors whose tasks' large data goes through a store, for apps that are made elsewhere.

Where a program does not make its apps itself (a workflow library does), nobody can change
their decorators. An executor sees each *try* of a task, and nothing of the task: not when
it is final, nor who takes its result. So an object lives longer here than with decorators:

- An argument stays while its try is under way. Once that has failed Parsl may make another
  one, and the object stays until Parsl drops the try's future: when the next try has
  one, or when nobody has the task's future any more.
- A result stays as long as a proxy of it does. Parsl's futures hold those.
- What is left goes when the executor is shut down.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from parsl.app.errors import RemoteExceptionWrapper
from parsl.executors import ThreadPoolExecutor
from parsl.executors.base import ParslExecutor

from proxystore_parsl._log import logger
from proxystore_parsl.apps import StoreApps
from proxystore_parsl.arguments import packed_for
from proxystore_parsl.errors import ClosedError
from proxystore_parsl.lifetimes import Call, Depot, Kept, user_leaf
from proxystore_parsl.packing import TASK, Envelope, TaskOfExecutor, is_ours, name_of

ExecutorT = TypeVar("ExecutorT", bound=ParslExecutor)


def with_store(executor: ExecutorT, apps: StoreApps) -> ExecutorT:
    """Have an executor pass large arguments and results of any app through a store.

    For programs that do not make their apps themselves; where you do, the decorators of
    `StoreApps` let objects go earlier. Apps of theirs may run on the same executor.

    Futures are Parsl's, and their results what `StoreApps` gives: proxies of large objects
    with ``results="proxy"``, the objects with ``"value"``. Text, bytes and Python's own
    containers are fetched when the task is done.

    Args:
        executor: One that has not been given to Parsl yet. It is changed and returned, and
            stays what it is to Parsl and to you. `ThreadPoolExecutor`, which runs tasks in
            this process, is returned as it is.
        apps: Its store, threshold and other settings are used.

    Raises:
        TypeError: The executor has a store already.
    """
    if isinstance(executor, ThreadPoolExecutor):
        return executor
    if isinstance(executor.submit, _Submit):
        raise TypeError(f"executor {executor.label!r} has a store already: give it one once")
    submit = _Submit(executor, apps)
    shutdown = executor.shutdown

    @functools.wraps(shutdown)
    def shutdown_and_let_go(*args: Any, **kwargs: Any) -> Any:
        try:
            return shutdown(*args, **kwargs)
        finally:
            submit.let_go()

    # On the instance, so that its class, and with it its repr and what Parsl asks of it,
    # stays what it was.
    executor.submit = submit  # type: ignore[method-assign]
    executor.shutdown = shutdown_and_let_go  # type: ignore[method-assign]
    return executor


class _Try(Future[Any]):
    """What Parsl gets for one try of a task.

    Attributes:
        call: Needs the arguments until the try has succeeded or is dropped.
        parsl_executor_task_id: As for Parsl.
    """

    call: Call
    parsl_executor_task_id: Any


class _Submit:
    """Takes the place of an executor's `submit`. Thread-safe."""

    def __init__(self, executor: ParslExecutor, apps: StoreApps) -> None:
        self._submit = executor.submit
        # Not the executor itself, which has this as an attribute.
        self._executor = weakref.ref(executor)
        self._apps = apps
        self._lock = threading.Lock()  # for the set
        self._tries: weakref.WeakSet[_Try] = weakref.WeakSet()
        # Parsl remembers what it has pickled of functions, by identity.
        self._task = functools.lru_cache(maxsize=128)(self._new_task)

    def _new_task(self, func: Callable[..., Any], name: str, depot: Depot) -> TaskOfExecutor:
        apps = self._apps
        plan = apps._plan(name, depot, apps.threshold, digest=apps._wants_digest(cached=True))
        return TaskOfExecutor(func, plan)

    def __call__(
        self, func: Callable[..., Any], resource_specification: Any, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Hand a try to the executor; as `ParslExecutor.submit`."""
        executor = self._executor()
        if executor is None or is_ours(func):
            return self._submit(func, resource_specification, *args, **kwargs)
        apps, name = self._apps, name_of(func)
        depot = apps._depot_of(executor)
        assert depot is not None, "it does not run here"
        call = Call(name, None, apps._calls.new_number(), depot)
        # Content that is there already is found whatever `apps` says: a task that is tried
        # again must not store its arguments again.
        packer = apps._packer(depot, apps.threshold, digest=True)
        apps._calls.add(call)
        try:
            packed, named = packed_for(call, packer, args, kwargs, by_size=apps.policy is None)
            task = self._task(func, name, depot)
            named[TASK] = call.number
            inner = self._submit(task, resource_specification, *packed, **named)
        except BaseException:
            self._end(call)
            raise
        outer = _Try()
        outer.call = call
        if hasattr(inner, "parsl_executor_task_id"):
            outer.parsl_executor_task_id = inner.parsl_executor_task_id
        with self._lock:
            self._tries.add(outer)
        # Strongly: Parsl may have dropped it when the result arrives.
        inner.add_done_callback(functools.partial(self._settle, outer, depot))
        return outer

    def _settle(self, outer: _Try, depot: Depot, inner: Future[Any]) -> None:
        error, sealed = inner.exception(), None
        if error is None:
            sealed = inner.result()
        error = _closing(outer.call, error, sealed)
        if type(sealed) is Envelope:
            try:
                sealed = self._opened(sealed, outer.call)
            except Exception as failed:  # noqa: BLE001 - a class may not exist here
                logger.warning("cannot take over a result of app %r: %s", outer.call.app, failed)
                error = failed
        if error is not None or isinstance(sealed, RemoteExceptionWrapper):
            # A worker may have been killed in the middle of storing a result.
            depot.sweep(self._apps._calls.name_of(outer.call), tuple)
        else:
            outer.call.let_go()
        self._apps._calls.forget(outer.call)
        if error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(sealed)

    def _opened(self, envelope: Envelope, call: Call) -> Any:
        apps = self._apps
        if call.closed is not None or apps._calls.closed:
            if call.depot is not None:
                call.depot.discard(envelope.refs)
            raise ClosedError(f"a task of app {call.app!r}", "its StoreApps was closed")
        kept = Kept()
        kept.add(
            apps._calls.held(envelope.refs, call.holds),
            apps._calls.held(envelope.escaped, call.holds),
        )
        return envelope.open(lambda ref: user_leaf(ref, apps.results, kept), kept.escaped)

    def let_go(self) -> None:
        """Need no arguments any more: the executor was shut down."""
        with self._lock:
            tries = list(self._tries)
        for each in tries:
            self._end(each.call)

    def _end(self, call: Call) -> None:
        self._apps._calls.forget(call)
        call.let_go()


def _closing(call: Call, error: BaseException | None, sealed: Any) -> BaseException | None:
    """Return what a try has failed with, if it has not failed on its worker.

    Where its `StoreApps` was closed meanwhile that is why: its arguments are gone, and what
    it missed depends on how far it had come.
    """
    if call.closed is None:
        return error
    if isinstance(sealed, RemoteExceptionWrapper):
        error = sealed.get_exception()
    if error is not None:
        call.closed.__cause__ = error
        return call.closed
    return None
