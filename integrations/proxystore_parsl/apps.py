"""Decorators that take the place of Parsl's."""

from __future__ import annotations

import atexit
import copy
import functools
import os
import random
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

import parsl
from parsl import DataFlowKernel
from parsl.app.app import AppBase
from parsl.app.app import bash_app as parsl_bash_app
from parsl.app.app import join_app as parsl_join_app
from parsl.app.app import python_app as parsl_python_app
from parsl.app.bash import BashApp
from parsl.app.python import PythonApp
from parsl.dataflow.futures import AppFuture
from parsl.executors import ThreadPoolExecutor
from parsl.executors.base import ParslExecutor
from parsl.launchers import SimpleLauncher, SingleNodeLauncher
from parsl.providers import LocalProvider
from parsl.utils import RepresentationMixin
from typing_extensions import Self

from proxystore.proxy import Proxy, extract, is_resolved
from proxystore.store import Store, StoreConfig
from proxystore.utils import bytes_to_readable
from proxystore.workflow import Packer, Ref, open_store, parse_size
from proxystore_parsl._log import logger
from proxystore_parsl.arguments import packed_for, unwrapped_future
from proxystore_parsl.errors import NoStoreError
from proxystore_parsl.lifetimes import Call, Calls, Depot, StoreAppFuture
from proxystore_parsl.memoizer import StoreMemoizer
from proxystore_parsl.packing import (
    TASK,
    CommandTask,
    Join,
    LocalTask,
    Plan,
    Task,
    name_of,
    replaced,
)
from proxystore_parsl.proxies import Scope, counted_factory, counted_proxy

P = ParamSpec("P")
T = TypeVar("T")

StoreSpec: TypeAlias = Store[Any] | StoreConfig | str | os.PathLike[str]

# Of our own: a program that seeds the common one gets from it what it gets without us.
_random = random.Random()

# What runs join apps, and whatever else Parsl does in the submit process.
_INTERNAL = "_parsl_internal"


@dataclass(frozen=True)
class AppsStats:
    """What a `StoreApps` has done so far; `str` of it is for people.

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

    def __str__(self) -> str:
        return "\n".join(
            [
                f"Stored: {_count(self.puts, 'argument')}, {bytes_to_readable(self.put_bytes, 1)}",
                f"Stored already when wanted: {_count(self.reused, 'argument')}",
                f"Stored by workers: {_count(self.results, 'result')}",
                f"Alive: {_count(self.live, 'object')}",
                f"Evicted: {_count(self.evicted, 'object')}",
                f"Not final: {_count(self.pending, 'call')}",
            ]
        )


def _count(number: int, one: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else 's'}"


class StoreApps(RepresentationMixin):
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
            other hosts then have to see; deleted when this process exits. A dictionary of
            these by label of the executor: what a task takes and gives is in the store of
            its executor; what it gives can be taken by tasks of another one if that one's
            workers can reach the store, too.
        threshold: From which size on objects go through the store, in bytes, or text
            such as ``"1 MiB"``. The default is where that starts to be quicker with
            files in memory (measured: between 100 and 200 kB).
        arguments: What a function gets: ``"value"``, the object itself, its own to
            change; ``"proxy"``, a `proxystore.proxy.Proxy` that fetches it when used.
        results: What ``future.result()`` gives for large objects: ``"proxy"``, fetched
            when used, except for text, bytes and Python's own containers, of which much
            code takes no proxy; ``"value"``, the objects.
        policy: Called with each object that may be worth a reference, before its size is
            looked at: arguments and what is in their containers here, results on the
            workers. True: it goes through the store; False: it does not; None: that depends
            on its size. None in place of a function: all by size.
        digest: ``"always"``: look at the content of arguments, so that what is in the store
            already is not stored again (7 ms for 100 MB); ``"when-cached"``: only for apps
            with ``cache=True``, which need it to find their results; False: never, and what
            cached apps are given is fetched again to find their results.

    Raises:
        ThresholdError: `threshold` is not a size; a `ValueError`.
        ValueError: `arguments`, `results` or `digest` is none of its values, or the
            dictionary is empty.
        TypeError: `store` is none of what it can be.
        StoreConfigError: The file cannot be read or does not describe a store.
    """

    def __init__(
        self,
        store: StoreSpec | Mapping[str, StoreSpec] | None = None,
        *,
        threshold: int | str = "128 KiB",
        arguments: Literal["value", "proxy"] = "value",
        results: Literal["proxy", "value"] = "proxy",
        policy: Callable[[Any], bool | None] | None = None,
        digest: Literal["always", "when-cached", False] = "always",
    ) -> None:
        for name, value in (("arguments", arguments), ("results", results)):
            if value not in ("value", "proxy"):
                raise ValueError(f"{name} must be 'value' or 'proxy', got {value!r}")
        if digest not in ("always", "when-cached") and digest is not False:
            raise ValueError(f"digest must be 'always', 'when-cached' or False, got {digest!r}")
        self.threshold = parse_size(threshold)
        self.arguments: Literal["value", "proxy"] = arguments
        self.results: Literal["proxy", "value"] = results
        self.policy = policy
        self.digest: Literal["always", "when-cached", False] = digest
        self._calls = Calls(results)
        # By label of the executor, or None for all. Empty: the embedded store.
        self._stores: dict[str | None, Store[Any]] = {}
        if isinstance(store, Mapping):
            if not store:
                raise ValueError("a dictionary of stores must have one at least, got {}")
            self._stores.update((label, open_store(each)) for label, each in store.items())
        elif store is not None:
            self._stores[None] = open_store(store)
        # By name of the store; embedded ones by whether other hosts have to see the objects.
        # The lock protects the table, and whoever needs a store that is being made waits.
        self._depots = self._calls.depots
        self._lock = threading.Lock()

    @property
    def store(self) -> StoreConfig | dict[str, StoreConfig] | None:
        """How the store can be opened elsewhere; None: none was named, and none needed yet."""
        if None not in self._stores and self._stores:
            return {str(label): store.config() for label, store in self._stores.items()}
        used = [depot.store for depot in list(self._depots.values())]
        found = next(iter([*self._stores.values(), *used]), None)
        return None if found is None else found.config()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a StoreApps stays in the process it was made in: a function that is sent to a "
            "worker must not refer to it or to its apps (an app of an app does)"
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
            raise _is_an_app(function)
        app = kind(self, function, threshold, options)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> StoreAppFuture:
            return app(args, kwargs)

        call._proxystore_app = app  # type: ignore[attr-defined]
        return call

    def wrap(
        self,
        app: Callable[P, Any],
        *,
        threshold: int | str | None = None,
    ) -> Callable[P, StoreAppFuture]:
        """Make an app with the options of one that Parsl's decorators have made.

        Its executors, cache, DataFlowKernel and function are the same; the app itself
        stays as it is.

        Args:
            app: Python, bash or join app.
            threshold: As for `python_app`.

        Raises:
            ThresholdError: `threshold` is not a size; a `ValueError`.
            TypeError: `app` is not such an app, or one of ours already.
        """
        if type(app) not in (PythonApp, BashApp):
            if hasattr(app, "_proxystore_app"):
                raise _is_an_app(app)
            raise TypeError(
                f"only what parsl's python_app, bash_app and join_app have made can be wrapped, "
                f"got {app!r}: decorate a function with python_app"
            )
        kind: type[_App] = _BashApp
        theirs: Any = app  # its type is that of the function's parameters
        function = theirs.func
        options = {
            "data_flow_kernel": theirs.data_flow_kernel,
            "cache": theirs.cache,
            "executors": theirs.executors,
            "ignore_for_cache": theirs.ignore_for_cache,
        }
        if type(app) is PythonApp:
            function = function.__wrapped__  # what Parsl put around it catches exceptions
            kind = _PythonApp
            if theirs.join:
                del options["executors"]
                kind = _JoinApp
        made: Callable[P, StoreAppFuture] = self._decorate(kind, function, threshold, options)
        return made

    # -- the store

    def put(self, obj: T, *, executor: str | None = None) -> Proxy[T]:
        """Store an object and return a proxy of it, to be passed to any number of calls.

        They then take the object without looking at its content again. It stays in the
        store as long as the proxy, or a call that takes it, needs it.

        Args:
            obj: The object.
            executor: Label of the executor in whose store it goes; needed if there is more
                than one store.

        Raises:
            SerializationError: The object cannot be pickled.
            NoStoreError: The executor has no store, or there are several and none was named;
                a `LookupError`.
            ClosedError: `close` was called.
        """
        self._calls.require_open("put()")
        depot = self._depot_for_all() if executor is None else self._depot_named(executor)
        hold = depot.ledger.hold(obj)
        # A reference of its own: to a task, the same reference is the same object.
        return counted_proxy(copy.copy(hold.ref), hold, scope=self._calls.scope)

    def scope(self) -> AbstractContextManager[Scope]:
        """Let go at the end of a ``with`` block of what is put and called in it.

        Objects that the block has put, and results of its calls, leave the store at its
        end, even if something still refers to them, such as the memory of a notebook; tasks
        that take them keep them until they are final. What was fetched before stays; using
        the rest raises `ClosedError`, or `ProxyResolveError` if it is a proxy. `persist`
        keeps an object longer. The block's variable has ``keep(obj)``, which returns a
        future or a proxy that is not dropped before the end.
        """
        return self._calls.scoped()

    def persist(self, obj: Any) -> Any:
        """Keep what a future gives, or what a proxy stands for, for later programs.

        The objects are never evicted by this `StoreApps` from now on: not when nobody needs
        them, nor by `close`. They are in the store that it was given, for as long as that
        keeps them: give a `FileConnector` ``clear=False``, so that closing the store does
        not delete its files. Whoever wants the room back evicts them there:
        ``store.evict(proxystore.store.utils.get_key(proxy))``.

        Args:
            obj: A future of ours, whose result is waited for; a proxy that `put` or a result
                has given; or a container of such proxies.

        Returns:
            The same, with an ordinary proxy in the place of each object in the store. It
            can be pickled, written down, and used wherever the store can be reached.

        Raises:
            ValueError: There is no store but the embedded one, which is deleted when this
                process exits; or an object is not of this `StoreApps`.
            ClosedError: `close` was called, or the scope of the future has ended.
            Exception: What the future raises.
        """
        self._calls.require_open("persist()")
        if not self._stores:
            raise ValueError(
                "what is in the embedded store is deleted when this process exits: give "
                "StoreApps a store of yours to keep objects in"
            )
        if type(obj) is StoreAppFuture:
            obj.require_there()
            kept = obj.unwrapped(self._persisted_ref)
            for hold in obj._kept.escaped.values():
                self._persisted_ref(hold.ref)
            return kept
        return replaced(obj, self._persisted)

    def _persisted(self, obj: Any) -> Any:
        factory = counted_factory(obj)
        if factory is None:
            return obj
        for inner in factory.inside.values():
            self._persisted_ref(inner.ref)
        if not is_resolved(obj):
            return self._persisted_ref(factory.ref)
        # The user may have changed what was fetched, and that is what is to be kept.
        depot = self._calls.depot_of(factory.ref)
        return self._persisted_ref(
            factory.ref if depot is None else depot.ledger.hold(extract(obj)).ref
        )

    def _persisted_ref(self, ref: Ref) -> Proxy[Any]:
        depot = self._calls.depot_of(ref)
        if depot is None:
            raise ValueError(f"{ref!r} was not stored by this StoreApps, which cannot keep it")
        depot.persist(ref)
        logger.info("kept for later programs: %r, in %r", ref, ref.factory.store_config)
        if getattr(depot.store.connector, "clear", False):
            logger.warning(
                "closing store %r deletes its objects, also those kept for later programs: "
                "give its connector clear=False",
                depot.store.name,
            )
        return ref.proxy()

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

    def _depot(self, label: str | None, *, shared: bool) -> Depot:
        """Return where objects for an executor are.

        Args:
            label: The executor's.
            shared: Other hosts have to see an embedded store.
        """
        store = self._stores.get(label) or self._stores.get(None)
        if store is None and self._stores:
            raise NoStoreError(label, tuple(map(str, self._stores)))
        place = shared if store is None else store.name
        depot = self._depots.get(place)
        if depot is None:
            with self._lock:
                depot = self._depots.get(place)
                if depot is None:
                    store = store or open_store(None, shared=shared)
                    self._depots[place] = depot = Depot(store)
                    _close_at_exit(self)
        return depot

    def _depot_named(self, label: str) -> Depot:
        return self._depot(label, shared=self._has_shared())

    def _depot_for_all(self) -> Depot:
        """Return where objects are whose executor is not known."""
        self._require_one_store()
        label = next(iter(self._stores), None)
        return self._depot(label, shared=self._has_shared())

    def _require_one_store(self) -> None:
        if len(self._stores) > 1:
            raise NoStoreError(None, tuple(map(str, self._stores)))

    def _depot_of(self, executor: ParslExecutor | None) -> Depot | None:
        """Return where objects for an executor are; None: it is in this process, or unknown."""
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            return None
        return self._depot(executor.label, shared=not _runs_here(executor))

    def _packer(self, depot: Depot, threshold: int, *, digest: bool) -> Packer:
        options: dict[str, Any] = {"digest": digest}
        if self.policy is not None:
            options["policy"] = self.policy
        return depot.packer(threshold, **options)

    def _wants_digest(self, *, cached: bool) -> bool:
        return self.digest == "always" or (self.digest == "when-cached" and cached)

    def _plan(self, app: str, depot: Depot, threshold: int, *, digest: bool) -> Plan:
        return Plan(
            app,
            depot.store.config(),
            threshold,
            self.arguments,
            embedded=not self._stores,
            policy=self.policy,
            digest=digest,
            tasks=self._calls.tasks,
        )

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
        self._digest = apps._wants_digest(cached=options["cache"])
        self.parsl_app(function)  # Parsl checks types and names of the options
        # Parsl's app for each executor and store, as it picks a random executor too late
        # for us: what is packed depends on where it goes.
        self._parsl_apps: dict[tuple[str, Depot | None], Callable[..., AppFuture]] = {}
        self._packers: dict[Depot, Packer] = {}

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
        depot = self.apps._depot_of(dfk.executors.get(label))
        call = Call(
            name_of(self.function),
            dfk,
            self.apps._calls.new_number(),
            depot,
            joins=isinstance(self, _JoinApp),
            pinned=self.options["cache"],
            persistent=self.options["cache"] and self._in_checkpoints(dfk),
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

    def _in_checkpoints(self, dfk: DataFlowKernel) -> bool:
        """Say whether later programs will find results by reference in a checkpoint."""
        memoizer = dfk.memoizer
        if not isinstance(memoizer, StoreMemoizer) or not self.apps._stores:
            return False
        return memoizer.checkpoint_mode is not None

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
        depot, packer = call.depot, None
        if depot is not None:
            packer = self._packers.get(depot)
            if packer is None:
                packer = self.apps._packer(depot, self.threshold, digest=self._digest)
                self._packers[depot] = packer
        return packed_for(call, packer, args, kwargs, by_size=self.apps.policy is None)


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
        name = name_of(self.function)
        return Task(
            self.function, self.apps._plan(name, depot, self.threshold, digest=self._digest)
        )

    def extra(self, call: Call) -> dict[str, Any]:
        if call.depot is None:
            return {}
        assert call.dfk is not None, "only executors do not know it"
        mode = getattr(call.dfk.memoizer, "checkpoint_mode", None)
        # A checkpoint outlives the objects, unless its memoizer and their store know better.
        by_value = call.pinned and mode is not None and not call.persistent
        return {TASK: None if by_value else call.number}


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
        return Join(self.function, unwrapped_future)

    def extra(self, call: Call) -> dict[str, Any]:
        return {TASK: call}


def _is_an_app(function: Any) -> TypeError:
    return TypeError(
        f"{name_of(function)!r} is an app already: decorate the function itself, with one decorator"
    )


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
