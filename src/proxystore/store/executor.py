"""An executor whose functions get their arguments, and give their results, as proxies.

The rules:

- What has been stored for a call is evicted when the call is done, has failed or was
  cancelled, by whoever learns of that. What the user has stored is never evicted.
- A call is known from before anything is stored for it, so that a failure on the way, and
  `shutdown`, find whatever there is.
- Nothing that outlives a call depends on an object that is evicted with it: see `_Argument`.
- What the user has stored for one consumer (``retain=``) and passes to a call is that call's to
  consume: acknowledged when it ends well, released when it fails.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from proxystore.factory import SimpleFactory
from proxystore.proxy import Proxy, ProxyResolveError, extract, get_factory, is_resolved
from proxystore.store import _wire
from proxystore.store._codec import name_of
from proxystore.store._registry import get_or_create_store, store_at
from proxystore.store.base import Store
from proxystore.store.config import StoreConfig
from proxystore.store.consume import acknowledge, release, retaining_factory
from proxystore.store.factory import StoreFactory
from proxystore.store.types import ConnectorKeyT
from proxystore.store.utils import get_key

__all__ = ["ProxyAlways", "ProxyNever", "ProxyType", "StoreExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


# -- What is proxied ------------------------------------------------------------------------


class _Policy:
    """Equal to another one that decides alike, so that equal calls can be recognized."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ProxyAlways(_Policy):
    """Everything is proxied (that can be: None, True and False are not)."""

    def __call__(self, item: Any) -> bool:
        """Return True."""
        return True


class ProxyNever(_Policy):
    """Nothing is proxied."""

    def __call__(self, item: Any) -> bool:
        """Return False."""
        return False


class ProxyType(_Policy):
    """Instances of some classes are proxied.

    Args:
        types: The classes.

    Raises:
        TypeError: One is nothing that `isinstance` takes.

    Attributes:
        types: The classes.
    """

    def __init__(self, *types: type) -> None:
        for kind in types:
            try:
                isinstance(None, kind)
            except TypeError:  # noqa: PERF203 - as `isinstance` goes through them
                raise TypeError(f"ProxyType takes classes, such as list, got {kind!r}") from None
        self.types = types

    def __call__(self, item: Any) -> bool:
        """Say whether `item` is an instance of one of the classes."""
        return isinstance(item, self.types)

    def __repr__(self) -> str:
        return f"ProxyType({', '.join(map(name_of, self.types))})"


def _can_be_proxied(item: Any) -> bool:
    return not (
        item is None or item is True or item is False or _is_proxy(item) or _is_future(item)
    )


def _is_proxy(item: Any) -> bool:
    return issubclass(type(item), Proxy)  # isinstance would resolve it


def _is_future(item: Any) -> bool:
    """Say whether it has the methods of a future, and is no proxy, which would resolve."""
    names = ("add_done_callback", "cancel", "done", "result")
    return not _is_proxy(item) and all(hasattr(item, name) for name in names)


# -- Where the function runs ----------------------------------------------------------------


class _Argument(StoreFactory[T]):
    """Marks a proxy as an argument on its way to the call that it was stored for."""

    def get_store(self) -> Any:
        # The one that has stored the object, which need not be registered.
        return store_at(self.store_config) or super().get_store()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # As the plain factory, which knows how to be small.
        factory: StoreFactory[T] = StoreFactory.__new__(StoreFactory)
        factory.__dict__.update(self.__dict__)
        return _as_argument, (factory,)


def _as_argument(factory: StoreFactory[T]) -> _Argument[T]:
    argument: _Argument[T] = _Argument.__new__(_Argument)
    argument.__dict__.update(factory.__dict__)
    return argument


class _Arrived(_Argument[T]):
    """Gets an argument in its call, after which the object is evicted.

    So a proxy with this factory takes the object along wherever it is sent.

    Args:
        argument: What has arrived.
        proxy: Whose factory this is.

    Attributes:
        kept: The object, alone in a tuple, if something that outlives the call has the
            proxy, as a list has that the call returns. Empty: nothing has.
    """

    def __init__(self, argument: _Argument[T], proxy: Proxy[T]) -> None:
        self.__dict__.update(argument.__dict__)
        self.kept: tuple[T] | tuple[()] = ()
        self._proxy = weakref.ref(proxy)

    def keep(self) -> None:
        """Have the object from now on, if there is one."""
        proxy = self._proxy()
        if proxy is not None:
            with suppress(ProxyResolveError):  # using the proxy will say so
                self.kept = (extract(proxy),)

    def resolve(self) -> T:
        return self.kept[0] if self.kept else super().resolve()

    def __reduce_ex__(self, protocol: Any) -> Any:
        proxy = self._proxy()
        is_here = proxy is not None and is_resolved(proxy)
        return SimpleFactory, (extract(proxy) if is_here else self.resolve(),)  # type: ignore[arg-type]


def _factory(proxy: Proxy[Any]) -> Any:
    return get_factory(proxy)


def _factory_kind(item: Any) -> type | None:
    return type(get_factory(item)) if type(item) is Proxy else None


def _copy(argument: Proxy[T]) -> Proxy[T]:
    """Return a proxy like one that was stored by us."""
    factory: Any = get_factory(argument)
    proxy = Proxy(_as_argument(factory) if type(factory) is _Argument else factory)
    proxy.__proxy_default_class__ = argument.__proxy_default_class__
    proxy.__proxy_default_hash__ = argument.__proxy_default_hash__
    if is_resolved(argument):
        proxy.__proxy_wrapped__ = extract(argument)
    return proxy


class _Task:
    """A function, as it runs in a worker: its result is stored there, if so decided.

    Equal to one of an equal function and of the same executor, also where it is sent to;
    so nobody needs to remember which functions were wrapped.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        should_proxy: Callable[[Any], bool],
        config: StoreConfig,
        ownership: bool,
        store: Store[Any] | None = None,
    ) -> None:
        self.function = function
        self.should_proxy = should_proxy
        self.config = config
        self.ownership = ownership
        self._store = store  # in the process of the executor only
        # Clients show it, and name tasks after it.
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __repr__(self) -> str:
        return f"<{self.function!r} with {self.should_proxy!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Task):
            return NotImplemented
        return self._parts() == other._parts()

    def _parts(self) -> tuple[Any, ...]:
        return self.function, self.should_proxy, self.config, self.ownership

    def __hash__(self) -> int:
        try:
            return hash((_Task, self.function))
        except TypeError:  # callable objects need not be hashable
            return hash((_Task, type(self.function)))

    def __reduce__(self) -> tuple[Any, ...]:
        config = _wire.encode(self.config) or self.config
        return _task_from, (self.function, self.should_proxy, config, self.ownership)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        given = {id(arg): arg for arg in (*args, *kwargs.values()) if _is_retained(arg)}
        if not given:
            return self._run(*args, **kwargs)
        try:
            result = self._run(*args, **kwargs)
        except BaseException:
            _say(release, given.values())
            raise
        passed_on = given.pop(id(result), None)  # for who gets the result to consume
        _say(acknowledge, given.values())
        _say(release, [] if passed_on is None else [passed_on])
        return result

    def _run(self, /, *args: Any, **kwargs: Any) -> Any:
        # Proxies that nobody else holds, so that it can be told who does afterwards.
        own: dict[int, Proxy[Any]] = {}
        for arg in (*args, *kwargs.values()):
            if _factory_kind(arg) is _Argument and id(arg) not in own:
                own[id(arg)] = proxy = _copy(arg)
                proxy.__proxy_factory__ = _Arrived(_factory(arg), proxy)
                del proxy
        args = tuple([own.get(id(arg), arg) for arg in args])
        kwargs = {name: own.get(id(arg), arg) for name, arg in kwargs.items()}
        before = _holders(own)
        try:
            result = self.function(*args, **kwargs)
        except BaseException as error:
            # Its traceback holds them all; who else does cannot be told.
            for proxy in own.values():
                if is_resolved(proxy) or any(arg is proxy for arg in error.args):
                    _factory(proxy).keep()
            raise
        if _factory_kind(result) is _Arrived:
            result = extract(result)
        for place, now, was in zip(own, _holders(own), before, strict=True):
            if now > was:  # the result holds it, or a global
                _factory(own[place]).keep()
        if not _can_be_proxied(result) or not self.should_proxy(result):
            return result
        store = self._store
        if store is None:
            store = get_or_create_store(self.config)
        return store.owned_proxy(result) if self.ownership else store.proxy(result)


def _is_retained(item: Any) -> bool:
    kind = _factory_kind(item)
    is_ours = kind is not None and issubclass(kind, StoreFactory)
    return is_ours and retaining_factory(item) is not None


def _say(what: Callable[[Proxy[Any]], object], proxies: Iterable[Proxy[Any]]) -> None:
    """Acknowledge or release what a call was given; that this fails is not the call's failure."""
    for proxy in proxies:
        try:
            what(proxy)
        except Exception:  # noqa: PERF203 - each by itself
            logger.exception("cannot %s %r", what.__name__, get_factory(proxy))


def _holders(own: dict[int, Proxy[Any]]) -> list[int]:
    return [sys.getrefcount(proxy) for proxy in own.values()]


def _task_from(
    function: Callable[..., Any],
    should_proxy: Callable[[Any], bool],
    config: StoreConfig | str,
    ownership: bool,
) -> _Task:
    if isinstance(config, str):
        config = _wire.decode(config)
    return _Task(function, should_proxy, config, ownership)


def _run_chunk(task: _Task, calls: Sequence[Sequence[Any]]) -> list[Any]:
    return [task(*args) for args in calls]


# -- Where the function is called -----------------------------------------------------------


class _Input:
    """An object that was stored for calls.

    Attributes:
        key: Its key.
        calls: How many calls that are not done need it.
    """

    __slots__ = ("calls", "key")

    def __init__(self, key: ConnectorKeyT) -> None:
        self.key = key
        self.calls = 0


class _Call:
    """Something that needs what was stored for it until it is done.

    Attributes:
        inputs: What was stored.
        is_watched: Somebody tells when it is done.
    """

    __slots__ = ("_executor", "inputs", "is_watched")

    def __init__(self, executor: StoreExecutor) -> None:
        self._executor = executor
        self.inputs: list[_Input] = []
        self.is_watched = False

    def finish(self, _: Any = None) -> None:
        """Give back what it needed; what is left over after that, another time."""
        self._executor._finish(self)


# What was stored for a map, by the identity of the object, which is held so that no other
# one can have it meanwhile.
_Shared = dict[int, tuple[Any, Proxy[Any], _Input]]


class StoreExecutor(Executor):
    """Passes arguments and results of an executor's functions through a store.

    Each argument, positional or by keyword, and each result that `should_proxy` says yes
    to travels as a proxy. That is not asked of what is inside containers, nor of None,
    True, False, proxies and futures, which are passed as they are.

    An argument's object is evicted when the call is done, fails or is cancelled. In the
    result of a call the argument itself stands in for its proxy.

    Wraps any `concurrent.futures.Executor`, or a client with `submit`, `map` and `close`
    like those of Dask's. (A client that gives a result out more than once, as Dask's does,
    should be used with ``ownership=False``: an object has one owner.)

    Thread-safe, as far as the wrapped executor is.

    Args:
        executor: Runs the functions.
        store: Where arguments and results go. In other processes it is found by its name,
            or made from its configuration, once.
        should_proxy: Picklable; called with each argument, and where the function runs with
            its result. None: `ProxyNever()`.
        ownership: Results are `OwnedProxy`, evicted when they are dropped. False: plain
            proxies, whose objects stay in the store.
        close_store: `shutdown` closes the store.

    Raises:
        TypeError: `executor` has no `submit`, `store` is no `Store` or `should_proxy` cannot be
            called.

    Attributes:
        executor: As given, as are `store`, `should_proxy`, `ownership` and `close_store`.
    """

    def __init__(
        self,
        executor: Any,
        store: Store[Any],
        should_proxy: Callable[[Any], bool] | None = None,
        *,
        ownership: bool = True,
        close_store: bool = True,
    ) -> None:
        if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
            raise TypeError(
                f"executor must have a submit(), as ThreadPoolExecutor() has, got {executor!r}"
            )
        if not isinstance(store, Store):
            raise TypeError(f"store must be a Store, got {store!r}")
        if should_proxy is not None and not callable(should_proxy):
            raise TypeError(
                f"should_proxy must be callable, such as ProxyType(list), or None for nothing, "
                f"got {should_proxy!r}"
            )
        self.executor = executor
        self.store = store
        self.should_proxy = ProxyNever() if should_proxy is None else should_proxy
        self.ownership = ownership
        self.close_store = close_store
        self._pid = os.getpid()
        # For the attributes below and all `_Input`s. Re-entrant: calls are finished by
        # callbacks, and a finalizer may cancel a future in the middle of anything.
        self._lock = threading.RLock()
        self._calls: set[_Call] = set()  # not done
        self._is_shut = False
        self._must_close_store = False

    def __repr__(self) -> str:
        return (
            f"StoreExecutor({self.executor!r}, store={self.store.name!r}, "
            f"should_proxy={self.should_proxy!r})"
        )

    # -- calls

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function as the wrapped executor does; see the class.

        Args:
            function: The function; need not be hashable.
            args: Its arguments. One that is passed several times is stored once.
            kwargs: Likewise.

        Returns:
            What the wrapped executor's `submit` returns.

        Raises:
            RuntimeError: The executor was shut down.
            Exception: An argument cannot be stored, or the wrapped executor does not take
                the call; nothing stays stored.
        """
        call = self._begin()
        try:
            here: dict[int, Proxy[Any]] = {}
            new_args = [self._pass(arg, call, here) for arg in args]
            new_kwargs = {name: self._pass(arg, call, here) for name, arg in kwargs.items()}
            future: Future[T] = self.executor.submit(self._task(function), *new_args, **new_kwargs)
        except BaseException:
            call.finish()
            raise
        self._watch(call, future)
        return future

    # Named as in the contract of this class, which its base names otherwise.
    def map(  # type: ignore[override]
        self, function: Callable[..., T], *iterables: Iterable[Any], **kwargs: Any
    ) -> Iterator[T]:
        """Call a function with the items of iterables, side by side, as `map` does.

        The iterables are exhausted at once. An object that occurs several times in a list,
        a tuple or `itertools.repeat` is stored once. What was stored for a call is evicted
        when that call is done; where the wrapped executor has a `map` of its own that does
        not give futures, when the iterator is exhausted, or else by `shutdown`.

        Args:
            function: The function.
            iterables: Of its arguments; `should_proxy` is asked about their items.
            kwargs: For the wrapped executor's `map`, such as ``timeout`` and ``chunksize``.

        Returns:
            An iterator of the results, in order. To drop it half-way cancels what has not
            begun.

        Raises:
            RuntimeError: As for `submit`, as are other errors.
        """
        where = getattr(type(self.executor).map, "__module__", None)
        if where in _OF_FUTURES and kwargs.keys() <= {"timeout", "chunksize"}:
            # Known to do just this. Futures of our own tell when each call is done.
            chunk = kwargs.get("chunksize", 1) if where == _IN_CHUNKS else 1
            return self._map_in_chunks(function, iterables, chunk, kwargs.get("timeout"))
        return self._map_as_it_does(function, iterables, kwargs)

    def _map_in_chunks(
        self,
        function: Callable[..., T],
        iterables: Sequence[Iterable[Any]],
        size: int,
        timeout: float | None,
    ) -> Iterator[T]:
        if size < 1:
            raise ValueError(f"chunksize must be 1 or more, got {size}")
        deadline = None if timeout is None else time.monotonic() + timeout
        task = self._task(function)
        futures: list[Future[list[T]]] = []
        calls: list[_Call] = []  # not submitted
        sharing = self._begin()
        try:
            rows = self._rows(iterables, calls, sharing)
            while chunk := list(itertools.islice(rows, size)):
                future = self.executor.submit(_run_chunk, task, chunk)
                while calls:
                    self._watch(calls.pop(), future)
                futures.append(future)
        except BaseException:
            _finish_all(calls)
            for future in futures:
                future.cancel()
            raise
        finally:
            sharing.finish()

        def results_of(future: Future[list[T]]) -> list[T]:
            try:
                return future.result(None if deadline is None else deadline - time.monotonic())
            finally:
                del future  # its error's traceback holds this frame

        return _results(futures, results_of)

    def _map_as_it_does(
        self,
        function: Callable[..., T],
        iterables: Sequence[Iterable[Any]],
        kwargs: dict[str, Any],
    ) -> Iterator[T]:
        calls: list[_Call] = []
        sharing = self._begin()
        try:
            rows = list(self._rows(iterables, calls, sharing))
            columns = [list(column) for column in zip(*rows, strict=True)] or [
                [] for _ in iterables
            ]
            returned = self.executor.map(self._task(function), *columns, **kwargs)
        except BaseException:
            _finish_all(calls)
            raise
        finally:
            sharing.finish()
        timeout = kwargs.get("timeout")
        if not _are_futures(returned, len(calls)):
            return _values(returned, calls, timeout)
        for future, call in zip(returned, calls, strict=True):
            self._watch(call, future)

        def results_of(future: Any) -> list[T]:
            try:
                return [future.result(timeout=timeout)]
            finally:
                del future  # as above

        return _results(returned, results_of, cancel=False)

    def _rows(
        self, iterables: Sequence[Iterable[Any]], calls: list[_Call], sharing: _Call
    ) -> Iterator[list[Any]]:
        """Yield what is passed to each call of a map.

        Args:
            iterables: Of the arguments.
            calls: Where to put the calls.
            sharing: Needs what several calls share, until it is known that no more do.
        """
        # Another iterable may give the same object again with something else in it.
        shared: _Shared = {}
        tables = [
            shared if issubclass(type(items), (list, tuple, itertools.repeat)) else None
            for items in iterables
        ]
        for args in zip(*iterables, strict=False):
            call = self._begin()
            calls.append(call)
            here: dict[int, Proxy[Any]] = {}
            yield [
                self._pass(arg, call, here, table, sharing)
                for arg, table in zip(args, tables, strict=True)
            ]

    def _task(self, function: Callable[..., Any]) -> _Task:
        config = self.store._config()
        return _Task(function, self.should_proxy, config, self.ownership, self.store)

    def _pass(
        self,
        item: Any,
        call: _Call,
        here: dict[int, Proxy[Any]],
        shared: _Shared | None = None,
        sharing: _Call | None = None,
    ) -> Any:
        """Return what is passed for an argument: a proxy, or the argument itself.

        Args:
            item: The argument.
            call: The call it is for.
            here: Proxies that are passed to this call.
            shared: What was stored for calls that may share it. None: store it anew.
            sharing: Needs what is in `shared` until there are no more calls.
        """
        if not _can_be_proxied(item):
            return item
        place = id(item)
        if place in here:
            return here[place]
        if not self.should_proxy(item):
            return item
        if shared is not None and place in shared:
            _, first, stored = shared[place]
            proxy = _copy(first)
        else:
            proxy = self.store.proxy(item)
            stored = _Input(get_key(proxy))
            factory: Any = get_factory(proxy)
            if type(factory) is StoreFactory:
                proxy.__proxy_factory__ = _as_argument(factory)
            if shared is not None and sharing is not None:
                self._need(stored, sharing)
                shared[place] = item, proxy, stored
        self._need(stored, call)
        here[place] = proxy
        return proxy

    # -- the end of a call

    def _begin(self) -> _Call:
        call = _Call(self)
        with self._lock:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._calls.add(call)
        return call

    def _need(self, stored: _Input, call: _Call) -> None:
        with self._lock:
            stored.calls += 1
            call.inputs.append(stored)

    def _watch(self, call: _Call, future: Any) -> None:
        # What does not tell when it is done leaves it to shutdown.
        if hasattr(future, "add_done_callback"):
            call.is_watched = True
            future.add_done_callback(call.finish)

    def _finish(self, call: _Call) -> None:
        if os.getpid() != self._pid:
            return  # a forked child's copy of a future is being dropped
        with self._lock:
            self._calls.discard(call)
            inputs, call.inputs = call.inputs, []
            for stored in inputs:
                stored.calls -= 1
            unneeded = [stored.key for stored in inputs if not stored.calls]
        for key in unneeded:
            self._evict(key)
        try:
            self._close_store_if_idle()
        except Exception:
            logger.exception("closing %r failed", self.store)  # as above: nobody to raise to

    def _evict(self, key: ConnectorKeyT) -> None:
        try:
            self.store.evict(key)
        except Exception:
            # Nobody to raise to. What has gone wrong with the call matters more.
            logger.exception("cannot evict the argument %r, it stays in %r", key, self.store)

    # -- the end of it all

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.shutdown(wait=True)
        except Exception:
            if exc_value is None:
                raise
            # What the block has raised came first.
            logger.warning("shutting %r down failed", self, exc_info=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the wrapped executor down, then close the store if `close_store` is set.

        Args:
            wait: Wait until all calls are done. Otherwise the store is closed when the
                last one is.
            cancel_futures: Cancel calls that have not begun.

        Warns:
            RuntimeWarning: The wrapped executor has neither `shutdown` nor `close`.
        """
        with self._lock:
            must_close_store = self.close_store and not self._is_shut
            self._is_shut = True
        try:
            self._shut_down_executor(wait, cancel_futures)
        except BaseException:
            try:
                self._end_calls(must_close_store, nothing_runs=False)
            except Exception:  # the first error is the one to know about
                logger.exception("closing %r failed", self.store)
            raise
        self._end_calls(must_close_store, nothing_runs=wait)

    def _end_calls(self, must_close_store: bool, *, nothing_runs: bool) -> None:
        # Of those that nobody watches, no end would ever be known.
        _finish_all(
            call
            for call in list(self._calls)
            if nothing_runs or (self.close_store and not call.is_watched)
        )
        if must_close_store:
            self._must_close_store = True
        self._close_store_if_idle()

    def _shut_down_executor(self, wait: bool, cancel_futures: bool) -> None:
        executor = self.executor
        if isinstance(executor, Executor):
            options = {"wait": wait, "cancel_futures": cancel_futures}
            if not cancel_futures and not _takes(executor.shutdown, "cancel_futures"):
                del options["cancel_futures"]  # Dask's ClientExecutor
            executor.shutdown(**options)
        elif hasattr(executor, "close"):
            executor.close()
        else:
            warnings.warn(
                f"Cannot shutdown {type(executor).__name__}: it is no "
                f"concurrent.futures.Executor and has no close(); shut it down yourself",
                RuntimeWarning,
                stacklevel=3,
            )

    def _close_store_if_idle(self) -> None:
        with self._lock:
            if self._calls or not self._must_close_store:
                return
            self._must_close_store = False
        self.store.close()


# Where there is a `map` that does nothing but submit, and the one that does so in chunks.
_IN_CHUNKS = "concurrent.futures.process"
_OF_FUTURES = ("concurrent.futures._base", _IN_CHUNKS)


def _finish_all(calls: Iterable[_Call]) -> None:
    for call in calls:
        call.finish()


def _are_futures(returned: Any, count: int) -> bool:
    return isinstance(returned, list) and len(returned) == count and all(map(_is_future, returned))


def _takes(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _results(
    futures: list[Any], results_of: Callable[[Any], list[T]], *, cancel: bool = True
) -> Iterator[T]:
    """Yield the results of futures, and keep none of either.

    Args:
        futures: Is emptied.
        results_of: Waits for the results of one; they are taken out of the list.
        cancel: Cancel what is left over if that fails, or the iterator is dropped. (A
            future of Dask's may be the same as one of the user's: it is only dropped.)
    """
    futures.reverse()
    try:
        while futures:
            results = results_of(futures[-1])
            futures.pop()
            results.reverse()
            while results:
                yield results.pop()
    finally:
        while futures:
            future = futures.pop()
            if cancel:
                future.cancel()
            del future


def _values(returned: Iterable[Any], calls: list[_Call], timeout: float | None) -> Iterator[Any]:
    for item in returned:
        yield item.result(timeout=timeout) if _is_future(item) else item
    _finish_all(calls)
