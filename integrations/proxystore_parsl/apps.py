"""Decorators that take the place of Parsl's."""

from __future__ import annotations

import atexit
import copy
import functools
import logging
import os
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeVar, overload

import parsl
from parsl import DataFlowKernel
from parsl.app.app import AppBase
from parsl.app.app import bash_app as parsl_bash_app
from parsl.app.app import join_app as parsl_join_app
from parsl.app.app import python_app as parsl_python_app
from parsl.dataflow.futures import AppFuture
from parsl.executors import ThreadPoolExecutor
from parsl.executors.base import ParslExecutor
from parsl.launchers import SimpleLauncher, SingleNodeLauncher
from parsl.providers import LocalProvider
from typing_extensions import Self

from proxystore.proxy import Proxy, extract, is_resolved
from proxystore.store import Store, StoreConfig
from proxystore.workflow import Packer, open_store, parse_size
from proxystore_parsl.lifetimes import Call, Calls, Depot, StoreAppFuture, relay
from proxystore_parsl.packing import (
    TASK,
    CommandTask,
    Join,
    LocalTask,
    Plan,
    Task,
    inert,
    replaced,
)
from proxystore_parsl.proxies import counted_factory, counted_proxy, notice

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# Of our own: a program that seeds the common one gets from it what it gets without us.
_random = random.Random()

# What runs join apps, and whatever else Parsl does in the submit process.
_INTERNAL = "_parsl_internal"

# What Parsl itself reads of a call. ("inputs" it reads item by item, and so do we.)
_LEFT_ALONE = frozenset(
    {
        "_parsl_staging_inhibit",
        "label",
        "outputs",
        "parsl_resource_specification",
        "stderr",
        "stdin",
        "stdout",
        "walltime",
    }
)


@dataclass(frozen=True)
class AppsStats:
    """What a `StoreApps` has done so far.

    Attributes:
        puts: Arguments stored.
        put_bytes: Their length in all, in bytes.
        reused: How often an argument was there already.
        results: Objects that workers have stored as results.
        evicted: Objects that nobody needed any more.
        live: Objects that somebody needs now.
        pending: Calls that are not final.
    """

    puts: int = 0
    put_bytes: int = 0
    reused: int = 0
    results: int = 0
    evicted: int = 0
    live: int = 0
    pending: int = 0


class StoreApps:
    """Decorators like Parsl's, for apps whose large data goes through a store.

    Arguments of at least `threshold` bytes are stored once, however many tasks take
    them, and large results are stored where they are made; Parsl carries references.
    An object is evicted when no task, future or proxy needs it any more.

    Executors that run in this process (`ThreadPoolExecutor`) hand objects over as they
    are; nothing is stored for them.

    Thread-safe. Nothing is started before the first call of an app.

    Args:
        store: A store that the workers can reach; a configuration of one; the path of a
            TOML file with one. None: files in memory if the executor's workers are on
            this host, else in ``$PROXYSTORE_DIR`` or the user's cache directory, which
            other hosts then have to see; deleted when this process exits.
        threshold: From which size on objects go through the store, in bytes, or text
            such as ``"1 MiB"``. The default is where that starts to be quicker with
            files in memory (measured: between 100 and 200 kB).
        arguments: What a function gets: ``"value"``, the object itself, its own to
            change; ``"proxy"``, a `proxystore.proxy.Proxy` that fetches it when used.
        results: What ``future.result()`` gives for large objects: ``"proxy"``, fetched
            when used, except for text, bytes and Python's own containers, of which much
            code takes no proxy; ``"value"``, the objects.

    Raises:
        ThresholdError: `threshold` is not a size; a `ValueError`.
        ValueError: `arguments` or `results` is neither of its values.
        TypeError: `store` is none of what it can be.
        StoreConfigError: The file cannot be read or does not describe a store.
    """

    def __init__(
        self,
        store: Store[Any] | StoreConfig | str | os.PathLike[str] | None = None,
        *,
        threshold: int | str = "128 KiB",
        arguments: Literal["value", "proxy"] = "value",
        results: Literal["proxy", "value"] = "proxy",
    ) -> None:
        for name, value in (("arguments", arguments), ("results", results)):
            if value not in ("value", "proxy"):
                raise ValueError(f"{name} must be 'value' or 'proxy', got {value!r}")
        self.threshold = parse_size(threshold)
        self.arguments: Literal["value", "proxy"] = arguments
        self.results: Literal["proxy", "value"] = results
        self._store = None if store is None else open_store(store)
        self._calls = Calls(results)
        # By whether other hosts have to see the objects. The lock protects the table,
        # and whoever needs a store that is being made waits for it.
        self._depots: dict[bool, Depot] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        store = self._store or next((depot.store for depot in self._depots.values()), None)
        return (
            f"{type(self).__name__}(store={store and store.config()!r}, "
            f"threshold={self.threshold}, arguments={self.arguments!r}, "
            f"results={self.results!r})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- decorators

    @overload
    def python_app(
        self,
        function: Callable[P, Any],
        data_flow_kernel: DataFlowKernel | None = ...,
        cache: bool = ...,
        executors: list[str] | Literal["all"] = ...,
        ignore_for_cache: Sequence[str] | None = ...,
        *,
        threshold: int | str | None = ...,
    ) -> Callable[P, StoreAppFuture]: ...

    @overload
    def python_app(
        self,
        function: None = ...,
        data_flow_kernel: DataFlowKernel | None = ...,
        cache: bool = ...,
        executors: list[str] | Literal["all"] = ...,
        ignore_for_cache: Sequence[str] | None = ...,
        *,
        threshold: int | str | None = ...,
    ) -> Callable[[Callable[P, Any]], Callable[P, StoreAppFuture]]: ...

    def python_app(
        self,
        function: Callable[..., Any] | None = None,
        data_flow_kernel: DataFlowKernel | None = None,
        cache: bool = False,
        executors: list[str] | Literal["all"] = "all",
        ignore_for_cache: Sequence[str] | None = None,
        *,
        threshold: int | str | None = None,
    ) -> Any:
        """Make an app of a function; as `parsl.python_app`.

        Args:
            function: The function. Left out when the decorator is given arguments.
            data_flow_kernel: As for Parsl.
            cache: As for Parsl. Large results then stay in the store until `close`,
                since they may be asked for again. With a memoizer that writes
                checkpoints, which outlive the store, results travel by value.
            executors: As for Parsl.
            ignore_for_cache: As for Parsl.
            threshold: As for `StoreApps`. None: what that was given.

        Raises:
            ThresholdError: `threshold` is not a size; a `ValueError`.
            TypeError: `function` is an app already.
        """
        options = {
            "data_flow_kernel": data_flow_kernel,
            "cache": cache,
            "executors": executors,
            "ignore_for_cache": ignore_for_cache,
        }
        return self._decorate(_PythonApp, function, threshold, options)

    @overload
    def bash_app(
        self,
        function: Callable[P, Any],
        data_flow_kernel: DataFlowKernel | None = ...,
        cache: bool = ...,
        executors: list[str] | Literal["all"] = ...,
        ignore_for_cache: Sequence[str] | None = ...,
        *,
        threshold: int | str | None = ...,
    ) -> Callable[P, StoreAppFuture]: ...

    @overload
    def bash_app(
        self,
        function: None = ...,
        data_flow_kernel: DataFlowKernel | None = ...,
        cache: bool = ...,
        executors: list[str] | Literal["all"] = ...,
        ignore_for_cache: Sequence[str] | None = ...,
        *,
        threshold: int | str | None = ...,
    ) -> Callable[[Callable[P, Any]], Callable[P, StoreAppFuture]]: ...

    def bash_app(
        self,
        function: Callable[..., Any] | None = None,
        data_flow_kernel: DataFlowKernel | None = None,
        cache: bool = False,
        executors: list[str] | Literal["all"] = "all",
        ignore_for_cache: Sequence[str] | None = None,
        *,
        threshold: int | str | None = None,
    ) -> Any:
        """Make a bash app of a function that returns a command line; as `parsl.bash_app`.

        Arguments and errors are those of `python_app`. The function runs on the worker
        and gets the objects.
        """
        options = {
            "data_flow_kernel": data_flow_kernel,
            "cache": cache,
            "executors": executors,
            "ignore_for_cache": ignore_for_cache,
        }
        return self._decorate(_BashApp, function, threshold, options)

    @overload
    def join_app(
        self,
        function: Callable[P, Any],
        data_flow_kernel: DataFlowKernel | None = ...,
        cache: bool = ...,
        ignore_for_cache: Sequence[str] | None = ...,
    ) -> Callable[P, StoreAppFuture]: ...

    @overload
    def join_app(
        self,
        function: None = ...,
        data_flow_kernel: DataFlowKernel | None = ...,
        cache: bool = ...,
        ignore_for_cache: Sequence[str] | None = ...,
    ) -> Callable[[Callable[P, Any]], Callable[P, StoreAppFuture]]: ...

    def join_app(
        self,
        function: Callable[..., Any] | None = None,
        data_flow_kernel: DataFlowKernel | None = None,
        cache: bool = False,
        ignore_for_cache: Sequence[str] | None = None,
    ) -> Any:
        """Make an app of a function that calls apps and returns their futures.

        As `parsl.join_app`; arguments and errors are those of `python_app`. The
        function runs in this process and gets the objects.
        """
        options = {
            "data_flow_kernel": data_flow_kernel,
            "cache": cache,
            "ignore_for_cache": ignore_for_cache,
        }
        return self._decorate(_JoinApp, function, None, options)

    def _decorate(
        self,
        kind: type[_App],
        function: Callable[..., Any] | None,
        threshold: int | str | None,
        options: dict[str, Any],
    ) -> Any:
        size = self.threshold if threshold is None else parse_size(threshold)
        if function is None:
            return functools.partial(self._make, kind, size, options)
        return self._make(kind, size, options, function)

    def _make(
        self, kind: type[_App], threshold: int, options: dict[str, Any], function: Any
    ) -> Callable[..., StoreAppFuture]:
        if isinstance(function, AppBase) or hasattr(function, "_proxystore_app"):
            raise TypeError(
                f"{function.__name__!r} is an app already: decorate the function itself, "
                f"with one decorator"
            )
        app = kind(self, function, threshold, options)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> StoreAppFuture:
            return app(args, kwargs)

        call._proxystore_app = app  # type: ignore[attr-defined]
        return call

    # -- the store

    def put(self, obj: T) -> Proxy[T]:
        """Store an object and return a proxy of it, to be passed to any number of calls.

        They then take the object without looking at its content again. It stays in the
        store as long as the proxy, or a call that takes it, needs it.

        Raises:
            SerializationError: The object cannot be pickled.
            ClosedError: `close` was called.
        """
        self._calls.require_open("put()")
        hold = self._depot(shared=self._has_shared()).ledger.hold(obj)
        # A reference of its own: to a task, the same reference is the same object.
        return counted_proxy(copy.copy(hold.ref), hold)

    def stats(self) -> AppsStats:
        """Return what has been stored and evicted so far, arguments and results."""
        if not self._calls.closed:
            for depot in self._depots.values():
                depot.ledger.flush()
        ledgers = [(depot.ledger.stats, depot.ledger.live) for depot in self._depots.values()]
        return AppsStats(
            puts=sum(stats.puts for stats, _ in ledgers),
            put_bytes=sum(stats.put_bytes for stats, _ in ledgers),
            reused=sum(stats.reused for stats, _ in ledgers),
            results=sum(stats.adopted for stats, _ in ledgers),
            evicted=sum(stats.unneeded for stats, _ in ledgers),
            live=sum(len(live) for _, live in ledgers),
            pending=self._calls.pending,
        )

    def close(self) -> None:
        """Fail the calls that are not final with `ClosedError`, and evict every object.

        Results that were not fetched before cannot be fetched any more. The store stays
        open. Called when the process exits; calling it again does nothing.
        """
        self._calls.close("its StoreApps was closed")
        for depot in list(self._depots.values()):
            depot.ledger.close()
            self._calls.sweep(depot)

    def _depot(self, *, shared: bool) -> Depot:
        if self._store is not None:
            shared = False  # it is the one for all
        depot = self._depots.get(shared)
        if depot is None:
            with self._lock:
                depot = self._depots.get(shared)
                if depot is None:
                    store = self._store or open_store(None, shared=shared)
                    self._depots[shared] = depot = Depot(store)
                    _close_at_exit(self)
        return depot

    def _has_shared(self) -> bool:
        """Say whether any worker of the DataFlowKernel that is loaded is on another host."""
        try:
            executors = parsl.dfk().executors.values()
        except parsl.errors.NoDataFlowKernelError:
            return False
        return not all(map(_runs_here, executors))


# -- a decorated function


class _App:
    """A function that has become an app: makes Parsl apps of it, and calls of those."""

    def __init__(
        self,
        apps: StoreApps,
        function: Callable[..., Any],
        threshold: int,
        options: dict[str, Any],
    ) -> None:
        self.apps = apps
        self.function = function
        self.threshold = threshold
        self.options = options
        self.parsl_app(function)  # Parsl checks types and names of the options
        # Parsl's app for each executor and store, as it picks a random executor too late
        # for us: what is packed depends on where it goes.
        self._parsl_apps: dict[tuple[str, Depot | None], Callable[..., AppFuture]] = {}

    def parsl_app(self, task: Callable[..., Any], **options: Any) -> Callable[..., AppFuture]:
        """Return Parsl's app of what is called in place of the function."""
        raise NotImplementedError

    def task(self, depot: Depot | None) -> Callable[..., Any]:
        """Return what is called in place of the function; no depot: in this process."""
        raise NotImplementedError

    def extra(self, call: Call) -> dict[str, Any]:
        """Return keyword arguments for `task` that are not the user's."""
        return {}

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StoreAppFuture:
        dfk = self.options["data_flow_kernel"] or parsl.dfk()
        label = self._pick(dfk)
        executor = dfk.executors.get(label)
        depot = None
        if executor is not None and not isinstance(executor, ThreadPoolExecutor):
            depot = self.apps._depot(shared=not _runs_here(executor))
        call = Call(
            self.function.__name__,
            dfk,
            self.apps._calls.new_task(),
            depot,
            joins=isinstance(self, _JoinApp),
            pinned=self.options["cache"],
        )
        self.apps._calls.require_open(f"a call of app {call.app!r}")
        try:
            packed, named = self._pack(args, kwargs, call)
        except BaseException:
            call.let_go()  # the traceback would keep it
            raise
        app = self._parsl_app_for(label, depot)
        start = functools.partial(app, *packed, **named, **self.extra(call))
        return self.apps._calls.submit(call, start)

    def _pick(self, dfk: DataFlowKernel) -> str:
        # As DataFlowKernel.submit does.
        labels = self.options.get("executors", [_INTERNAL])
        if isinstance(labels, str):
            labels = [label for label in dfk.executors if label != _INTERNAL]
        return str(_random.choice(labels))

    def _parsl_app_for(self, label: str, depot: Depot | None) -> Callable[..., AppFuture]:
        app = self._parsl_apps.get((label, depot))
        if app is None:
            app = self.parsl_app(self.task(depot), executors=[label])
            self._parsl_apps[label, depot] = app
        return app

    def _pack(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments as they go to Parsl; the call needs what is in the store."""
        packer = None if call.depot is None else call.depot.packer(self.threshold)
        swap = functools.partial(_swapped, call=call, packer=packer)
        untouched = {name: kwargs[name] for name in kwargs if name in _LEFT_ALONE}
        named = {name: arg for name, arg in kwargs.items() if name not in _LEFT_ALONE}
        # Parsl has to see the items, so each of them is an argument of its own.
        inputs = named.pop("inputs", None)
        listed = list(inputs) if type(inputs) in (list, tuple) else []
        items = {f"inputs[{i}]": item for i, item in enumerate(listed)}
        args = tuple(replaced(arg, swap) for arg in args)
        named = {name: replaced(arg, swap) for name, arg in {**named, **items}.items()}
        if packer is not None:
            with notice() as noticed:
                packed = packer.pack(args, named)
            args, named = packed.args, packed.kwargs
            call.stored = packed.holds
            if noticed:  # hidden in the user's objects, which Parsl would keep, and so them
                call.need(*(factory.hold for factory in noticed if factory.hold is not None))
                args = tuple(replaced(arg, inert) for arg in args)
                named = {name: replaced(arg, inert) for name, arg in named.items()}
        if inputs is not None:
            packed_items = [named.pop(name) for name in items]
            named["inputs"] = type(inputs)(packed_items) if items else inputs
        return args, {**named, **untouched}


class _PythonApp(_App):
    def parsl_app(self, task: Callable[..., Any], **options: Any) -> Callable[..., AppFuture]:
        ignore = self.options["ignore_for_cache"]
        if isinstance(task, Task):
            # What changes from call to call must not make the call another one.
            ignore = [*(ignore or ()), TASK]
        made: Callable[..., AppFuture] = parsl_python_app(
            task, **{**self.options, **options, "ignore_for_cache": ignore}
        )
        return made

    def task(self, depot: Depot | None) -> Callable[..., Any]:
        if depot is None:
            return LocalTask(self.function)
        plan = Plan(
            self.function.__name__,
            depot.store.config(),
            self.threshold,
            self.apps.arguments,
            embedded=self.apps._store is None,
        )
        return Task(self.function, plan)

    def extra(self, call: Call) -> dict[str, Any]:
        if call.depot is None:
            return {}
        mode = getattr(call.dfk.memoizer, "checkpoint_mode", None)
        return {TASK: None if call.pinned and mode is not None else call.task}


class _BashApp(_App):
    def parsl_app(self, task: Callable[..., Any], **options: Any) -> Callable[..., AppFuture]:
        made: Callable[..., AppFuture] = parsl_bash_app(task, **{**self.options, **options})
        return made

    def task(self, depot: Depot | None) -> Callable[..., Any]:
        return CommandTask(self.function)


class _JoinApp(_App):
    def parsl_app(self, task: Callable[..., Any], **options: Any) -> Callable[..., AppFuture]:
        ignore = self.options["ignore_for_cache"]
        if isinstance(task, Join):
            ignore = [*(ignore or ()), TASK]
        made: Callable[..., AppFuture] = parsl_join_app(
            task, **{**self.options, "ignore_for_cache": ignore}
        )
        return made

    def task(self, depot: Depot | None) -> Callable[..., Any]:
        return Join(self.function, _unwrapped_future)

    def extra(self, call: Call) -> dict[str, Any]:
        return {TASK: call}


def _unwrapped_future(obj: Any, call: Call) -> Any:
    """Return Parsl's future of one of ours, whose result the call then needs."""
    if type(obj) is not StoreAppFuture:
        return obj
    if obj.done() and not obj._inner.done():
        return obj  # it was closed: Parsl would wait for ever
    call.need(obj._kept)
    return obj._inner


def _swapped(obj: Any, *, call: Call, packer: Packer | None) -> Any:
    """Return what is passed on for an object in a call's arguments.

    For our future: Parsl's. For a proxy of an object we count: a reference, or the
    object if the user may have changed it. The call then needs the object.
    """
    if issubclass(type(obj), Proxy):  # first: isinstance may resolve it
        factory = counted_factory(obj)
        if factory is None:
            return obj
        if is_resolved(obj):
            return extract(obj)
        if factory.hold is not None:
            call.need(factory.hold)
        return factory.ref
    if not isinstance(obj, AppFuture):
        return obj
    inner = _unwrapped_future(obj, call)
    if packer is None or (type(obj) is StoreAppFuture and obj._remote):
        return inner
    return relay(inner, packer, call)


# -- where executors run


def _runs_here(executor: ParslExecutor) -> bool:
    """Say whether all workers of an executor are on this host, for all that Parsl knows.

    Launchers such as srun start workers on all nodes of a job.
    """
    if isinstance(executor, ThreadPoolExecutor):
        return True
    provider = getattr(executor, "provider", None)
    return isinstance(provider, LocalProvider) and isinstance(
        provider.launcher, (SimpleLauncher, SingleNodeLauncher)
    )


# -- the end of the process

_open: weakref.WeakSet[StoreApps] = weakref.WeakSet()


def _close_at_exit(apps: StoreApps) -> None:
    _open.add(apps)
    # Registered again after each store: the last one registered runs first, and closing
    # has to come before an embedded store is removed.
    atexit.register(_close_all)


def _close_all() -> None:
    for apps in list(_open):
        _close(apps)


def _close(apps: StoreApps) -> None:
    try:
        apps.close()
    except Exception as error:  # noqa: BLE001 - a server may be gone before its clients
        logger.warning("%r could not be closed at exit: %s", apps, error)


_default = StoreApps()

python_app = _default.python_app
bash_app = _default.bash_app
join_app = _default.join_app


def default_apps() -> StoreApps:
    """Return the `StoreApps` behind the decorators of this module."""
    return _default
