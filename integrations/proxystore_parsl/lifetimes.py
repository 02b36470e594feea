"""Futures, the objects behind them, and when nobody needs those any more.

An object is needed by the tasks that take it until they are final, retries included; by
the future the user has; and by proxies of it. Parsl cannot tell: long after a task is
final, its graph still holds the futures around it, and through them their arguments and
results. So its graph gets only what holds nothing, and the rest is here:

    what the user has    StoreAppFuture ──▶ Kept ──▶ a Hold for each object of the result
                                │
                                ▼
    what Parsl has           AppFuture  ──▶ Envelope: references, no holds

Calls that are not final are in the table of `Calls`. A call holds its own objects and
the `Kept` of each future among its arguments. Nothing else refers to a `Kept` or a
`StoreAppFuture`, except weakly; so the last of those who need an object lets it go by
going, and no cycle waits for the garbage collector.
"""

from __future__ import annotations

import functools
import itertools
import operator
import queue
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from parsl import DataFlowKernel
from parsl.app.app import python_app as parsl_python_app
from parsl.dataflow.errors import DependencyError
from parsl.dataflow.futures import AppFuture

from proxystore.proxy import extract, is_resolved
from proxystore.store import Store
from proxystore.workflow import Hold, Ledger, Packer, Ref, RefId, sweep
from proxystore_parsl._log import logger
from proxystore_parsl.errors import ClosedError
from proxystore_parsl.packing import (
    Envelope,
    dill_takes,
    is_native,
    part_of,
    replaced,
    task_name,
)
from proxystore_parsl.proxies import Scope, counted_factory, counted_proxy, of_main


class Depot:
    """A store, and the objects in it that one `StoreApps` answers for."""

    def __init__(self, store: Store[Any]) -> None:
        self.store = store
        self.ledger = Ledger(store, on_unneeded=self._evict)
        # Those outlive this process.
        self._persistent: set[Any] = set()

    def packer(self, threshold: int, **options: Any) -> Packer:
        """Return what packs arguments into this store; options are those of `Packer`."""
        return Packer(
            self.ledger,
            threshold=threshold,
            is_native=is_native,
            carries=dill_takes,
            **options,
        )

    def persist(self, ref: Ref) -> None:
        """Never evict an object."""
        self._persistent.add(ref.id)
        self.ledger.keep(ref)

    def sweep(self, prefix: str, keep: Callable[[], Iterable[Ref] | None]) -> None:
        """Evict what lost tries have stored, where the store can list its objects.

        Args:
            prefix: What the names of the objects start with.
            keep: Gives those that are needed; called after the others were listed. None:
                leave all.
        """

        def needed() -> set[RefId] | None:
            refs = keep()
            return None if refs is None else self._persistent.union(ref.id for ref in refs)

        sweep(self.store, prefix, keep=needed)

    def discard(self, refs: Iterable[Ref]) -> None:
        """Evict objects that came too late for anybody to need."""
        for ref in refs:
            if ref.id not in self._persistent:
                self._evict(ref)

    def _evict(self, ref: Ref) -> None:
        # Not through the reference: it would open a store again that was closed.
        self.store.evict(ref.factory.key)


_NOTHING: Mapping[RefId, Hold] = MappingProxyType({})


class Kept:
    """The objects of one result, which stay in the store as long as this lives.

    Attributes:
        holds: By id.
        escaped: Those of objects that only proxies inside the others refer to.
    """

    __slots__ = ("__weakref__", "escaped", "holds")

    def __init__(self) -> None:
        # One for each call of the program, and most have nothing: it is a matter of the garbage
        # collector, which goes through what there is more often the more there is.
        self.holds: Mapping[RefId, Hold] = _NOTHING
        self.escaped: Mapping[RefId, Hold] = _NOTHING

    def add(self, holds: Mapping[RefId, Hold], escaped: Mapping[RefId, Hold]) -> None:
        """Keep more objects."""
        if holds:
            self.holds = {**self.holds, **holds}
        if escaped:
            self.escaped = {**self.escaped, **escaped}


class Afterglow:
    """Keeps objects for a moment after the last task that needed them.

    A loop that calls apps with one array finds it in the store, even if each task is
    final before the next call has looked at the array's content. (Looking takes 0.1 s
    per GB or less, storing 0.4 s.)
    """

    SECONDS = 0.1
    SECONDS_PER_BYTE = 1e-9

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[float, tuple[Hold, ...]]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # for starting the thread
        self._thread: threading.Thread | None = None

    def keep(self, holds: tuple[Hold, ...]) -> None:
        """Drop holds later."""
        if not holds:
            return
        seconds = self.SECONDS + self.SECONDS_PER_BYTE * max(hold.ref.nbytes for hold in holds)
        self._waiting.put((time.monotonic() + seconds, holds))
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # dead in a forked child
                self._thread = threading.Thread(
                    target=self._run, name="proxystore-afterglow", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while True:
            until, holds = self._waiting.get()
            time.sleep(max(0.0, until - time.monotonic()))
            del holds


_afterglow = Afterglow()


@dataclass(eq=False, slots=True)
class Call:
    """A call that is not final.

    Attributes:
        app: Name of the app.
        dfk: Who runs it. None: an executor knows nothing of that.
        number: Of its task; its tries get it, for the names of what they store.
        depot: Where its results go. None: it runs in this process.
        joins: It is a join app's, whose result is that of other calls.
        pinned: Its result may be asked for again without a future (memoization).
        persistent: So it may by a later program (checkpoints).
        future: What the user has; dead if nobody has it any more.
        kept: What that future and calls that take it have.
        closed: Why it will never be final.
        stored: What was stored for it, its arguments.
    """

    app: str
    dfk: DataFlowKernel | None
    number: int
    depot: Depot | None = None
    joins: bool = False
    pinned: bool = False
    persistent: bool = False
    future: Callable[[], StoreAppFuture | None] = lambda: None
    kept: Callable[[], Kept | None] = lambda: None
    closed: ClosedError | None = None
    stored: tuple[Hold, ...] = ()
    _needs: list[Hold | Kept] | None = field(default_factory=list)

    def need(self, *needs: Hold | Kept) -> None:
        """Keep objects until the call is final; does nothing when it is."""
        if (mine := self._needs) is not None:
            mine.extend(needs)

    def let_go(self) -> None:
        """Need nothing any more."""
        stored, self.stored = self.stored, ()
        if self.closed is None:
            _afterglow.keep(stored)
        self._needs = None

    @property
    def holds(self) -> dict[RefId, Hold]:
        """Everything that is kept for the call, by id."""
        found: dict[RefId, Hold] = {hold.ref.id: hold for hold in self.stored}
        for need in self._needs or ():
            if isinstance(need, Kept):
                found.update(need.escaped)
                found.update(need.holds)
            else:
                found[need.ref.id] = need
        return found


# Much code takes these in C, by exact type, and gives a proxy's user an error; or, as NumPy does
# with a list, a wrong number.
_NEVER_PROXIES = frozenset(
    f"builtins.{cls.__name__}" for cls in (bytearray, bytes, dict, frozenset, list, set, str, tuple)
)


class StoreAppFuture(AppFuture):
    """What an app returns: Parsl's `AppFuture`, with a result that is in the store.

    The first `result` puts the result together, in the caller's thread: large objects
    in it are proxies (or themselves, if `StoreApps` was told so), the rest is plain. As
    with Parsl, ``future["key"]`` and ``future.attribute`` are futures of a part of the
    result; no large object is fetched for those.
    """

    def __init__(
        self,
        inner: AppFuture,
        call: Call,
        calls: Calls,
        results: Literal["proxy", "value"],
        scope: Scope | None = None,
    ) -> None:
        super().__init__(inner.task_record)
        self._inner = inner
        self._outputs = inner._outputs
        self._stdout_future = inner._stdout_future
        self._stderr_future = inner._stderr_future
        self._kept = Kept()
        self._calls = calls
        self._joins = call.joins
        self._remote = call.depot is not None  # then Parsl has it sealed
        self._results = results
        self._scope = scope
        self._opening = threading.Lock()
        self._opened: tuple[Any] | None = None

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, waiting for it.

        Args:
            timeout: Longest wait, in seconds. None: for ever.

        Raises:
            TimeoutError: It has taken longer (`concurrent.futures.TimeoutError`).
            ClosedError: The adapter, its DataFlowKernel or the scope of the call has ended
                before.
            Exception: What the app has raised.
        """
        sealed = self._sealed(timeout)
        with self._opening:
            if self._opened is None:
                self.require_there()
                self._opened = (self._open(sealed, self._leaf),)
            return self._opened[0]

    def _sealed(self, timeout: float | None = None) -> Any:
        return super().result(timeout)

    def require_there(self) -> None:
        """Raise `ClosedError` if the objects of the result were let go with their scope."""
        if self._scope is None or not self._scope.ended:
            return
        if self.done() and (super().exception() or not self._is_stored()):
            return
        name = self.task_record["func_name"]
        raise ClosedError(f"the result of app {name!r}", "the scope it was made in has ended")

    def _is_stored(self) -> bool:
        envelopes = _envelopes(self._sealed(), self._joins)
        return any(each.refs or each.escaped for each in envelopes)

    # The same task, to whoever looks for it among those that Parsl has.
    def __eq__(self, other: object) -> bool:
        return other is self or other is self._inner

    def __hash__(self) -> int:
        return hash(self._inner)

    def let_go(self) -> None:
        """Need the objects of the result no more; tasks that take them still do."""
        self._kept = Kept()

    def unwrapped(self, leaf: Callable[[Ref], Any]) -> Any:
        """Return the result with `leaf` of each large object in its place; waits for it."""
        return self._open(self._sealed(), leaf)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, or None."""
        error = super().exception(timeout)
        if error is None:
            try:
                self.result(timeout)
            except Exception as failed:  # noqa: BLE001 - a class that does not exist here
                return failed
        return error

    def _open(self, sealed: Any, leaf: Callable[[Ref], Any]) -> Any:
        if type(sealed) is Envelope:
            return sealed.open(leaf, self._kept.escaped, self._scope)
        if self._joins and type(sealed) is list:
            return [self._open(item, leaf) for item in sealed]
        return sealed

    def _leaf(self, ref: Ref) -> Any:
        return user_leaf(ref, self._results, self._kept, self._scope)

    def __getitem__(self, key: Any) -> StoreAppFuture:
        return self._calls.part(self, operator.getitem, key)

    def __getattr__(self, name: str) -> StoreAppFuture:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._calls.part(self, getattr, name)


# By identity of the `Calls`: each `StoreApps` has scopes of its own.
_scopes: ContextVar[Mapping[int, Scope]] = ContextVar("scopes", default=MappingProxyType({}))


def user_leaf(
    ref: Ref, results: Literal["proxy", "value"], kept: Kept, scope: Scope | None = None
) -> Any:
    """Return what a program gets for a large object in a result."""
    if results == "value" or ref.type_name in _NEVER_PROXIES:
        return of_main(ref.resolve())
    return counted_proxy(ref, kept.holds.get(ref.id), kept.escaped, scope)


class Calls:
    """The calls of one `StoreApps` that are not final. Thread-safe.

    The lock protects the table; nothing is called under it.

    Args:
        results: As for `StoreApps`.

    Attributes:
        depots: Where objects are; filled by the `StoreApps`.
        tasks: What the names of objects start with that tasks store.
    """

    def __init__(self, results: Literal["proxy", "value"]) -> None:
        self.depots: dict[Hashable, Depot] = {}
        self._results = results
        self._lock = threading.Lock()
        self._pending: dict[int, Call] = {}
        self._closed: str | None = None
        # Parsl's memo table gives results to calls that come after the last future is gone.
        self._memoized: list[Kept] = []
        # A name for a task costs nothing then; system calls at each call do.
        self.tasks = f"{uuid.uuid4()}."
        self._numbers = itertools.count()
        self._watched: weakref.WeakSet[DataFlowKernel] = weakref.WeakSet()

    def new_number(self) -> int:
        """Return a number for a task."""
        return next(self._numbers)

    def name_of(self, call: Call) -> str:
        """Return what the names of objects start with that a call's tries store."""
        return task_name(self.tasks, call.number)

    @property
    def scope(self) -> Scope | None:
        """The innermost scope that this thread is in."""
        return _scopes.get().get(id(self))

    @contextmanager
    def scoped(self) -> Iterator[Scope]:
        """Make a scope for what this thread does meanwhile."""
        scope = Scope()
        token = _scopes.set({**_scopes.get(), id(self): scope})
        try:
            yield scope
        finally:
            _scopes.reset(token)
            scope.end()

    @property
    def pending(self) -> int:
        """How many calls are not final."""
        return len(self._pending)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed is not None

    def require_open(self, subject: str) -> None:
        """Raise `ClosedError` for a new `subject` if `close` was called."""
        if self._closed is not None:
            raise ClosedError(subject, self._closed)

    # -- a call's life

    def submit(self, call: Call, start: Callable[[], AppFuture]) -> StoreAppFuture:
        """Hand a call to Parsl.

        Args:
            call: With everything it needs.
            start: Hands it over and returns Parsl's future.

        Raises:
            ClosedError: `close` was called.
            Exception: What `start` raises; then the call needs nothing any more.
        """
        self.add(call)
        try:
            if call.dfk is not None:
                self._watch(call.dfk)
            inner = start()
        except BaseException:
            self.forget(call)
            call.let_go()
            raise
        scope = self.scope
        future = StoreAppFuture(inner, call, self, self._results, scope)
        with self._lock:
            call.future = weakref.ref(future)
            call.kept = weakref.ref(future._kept)
            closed = call.closed
        if scope is not None:
            scope.add(future)
        if closed is not None:
            _finish(future, None, closed)
        inner.add_done_callback(functools.partial(self._settle, call))
        return future

    def add(self, call: Call) -> None:
        """Take note of a call that is not final.

        Raises:
            ClosedError: `close` was called.
        """
        with self._lock:
            self.require_open(f"a call of app {call.app!r}")
            self._pending[call.number] = call

    def forget(self, call: Call) -> None:
        """Take note that a call is final, or never will be."""
        with self._lock:
            self._pending.pop(call.number, None)

    def _settle(self, call: Call, inner: AppFuture) -> None:
        """Parsl is done with a call: take over its result and give back what it needed."""
        error = inner.exception()
        sealed = None if error is not None else inner.result()
        envelopes = _envelopes(sealed, call.joins)
        try:
            self._take_over(call, envelopes, again=bool(inner.task_record["from_memo"]))
            if call.depot is not None and _has_lost_tries(inner, error):
                needed = [ref for each in envelopes for ref in each.refs]
                call.depot.sweep(self.name_of(call), lambda: needed)
        except Exception as failed:  # noqa: BLE001 - what a store raises
            # The user waits for the future, and has to see it there.
            logger.exception("cannot take over the result of app %r", call.app)
            error = error or failed
        call.let_go()
        self.forget(call)
        future = call.future()
        if future is not None:
            _finish(future, sealed, error)

    def _take_over(self, call: Call, envelopes: list[Envelope], *, again: bool) -> None:
        if not envelopes and not call.pinned:
            return
        kept = call.kept() or Kept()
        held = call.holds
        # Without a depot a result comes out of Parsl's memo table or another call's future,
        # and whoever put it there holds its objects.
        theirs = again or call.depot is None
        for envelope in envelopes:
            if call.closed is not None and call.depot is not None:
                call.depot.discard(envelope.refs)
                continue
            kept.add(
                self.held(envelope.refs, held, theirs=theirs),
                self.held(envelope.escaped, held, theirs=theirs),
            )
            if call.persistent and not again:
                for ref in envelope.refs + envelope.escaped:
                    self.persist(ref)
        if call.pinned and not again:
            self._memoized.append(kept)

    def depot_of(self, ref: Ref) -> Depot | None:
        """Return where an object is; None if this `StoreApps` does not answer for it."""
        name = ref.factory.store_config.name
        return next((each for each in list(self.depots.values()) if each.store.name == name), None)

    def held(
        self, refs: Iterable[Ref], held: dict[RefId, Hold], *, theirs: bool = False
    ) -> dict[RefId, Hold]:
        """Return a hold for each object: one that is there already, or a new one.

        Args:
            refs: The objects.
            held: By id, what there is.
            theirs: Somebody else answers for the others.
        """
        found: dict[RefId, Hold] = {}
        for ref in refs:
            hold, depot = held.get(ref.id), self.depot_of(ref)
            if hold is None and depot is not None and not theirs:
                hold = depot.ledger.adopt(ref)
            if hold is not None:
                found[ref.id] = hold
        return found

    def persist(self, ref: Ref) -> None:
        """Never evict an object, if it is one of ours to evict."""
        depot = self.depot_of(ref)
        if depot is not None:
            depot.persist(ref)

    def part(
        self, future: StoreAppFuture, pick: Callable[[Any, Any], Any], key: Any
    ) -> StoreAppFuture:
        """Return a future of a part of a result."""
        record = future.task_record
        app = parsl_python_app(
            part_of(pick), executors=["_parsl_internal"], data_flow_kernel=record["dfk"]
        )
        app_name = f"{pick.__name__} of {record['func_name']}"
        call = Call(app_name, record["dfk"], self.new_number())
        call.need(future._kept)
        return self.submit(call, functools.partial(app, future._inner, key))

    # -- ends

    def _watch(self, dfk: DataFlowKernel) -> None:
        """Hear of a DataFlowKernel's end: tasks it has not finished then never will be.

        Parsl tells nobody but a memoizer, of which there is one and it is the user's.
        """
        with self._lock:
            if dfk in self._watched:
                return
            self._watched.add(dfk)
        cleanup = dfk.cleanup

        @functools.wraps(cleanup)
        def cleanup_and_tell() -> None:
            try:
                cleanup()
            finally:
                self.end("its DataFlowKernel was cleaned up", dfk)

        dfk.cleanup = cleanup_and_tell  # type: ignore[method-assign]

    def end(self, event: str, dfk: DataFlowKernel | None = None) -> None:
        """Fail the calls that are not final, and need nothing for them any more.

        Args:
            event: What has ended.
            dfk: Only those that it runs. None: all.
        """
        with self._lock:
            calls = [call for call in self._pending.values() if dfk in (None, call.dfk)]
            for call in calls:
                del self._pending[call.number]
                call.closed = ClosedError(f"a task of app {call.app!r}", event)
        for call in calls:
            call.let_go()
            future = call.future()
            if future is not None:
                _finish(future, None, call.closed)
        if calls:
            logger.info("failed %d tasks that were not final: %s", len(calls), event)
        for depot in {call.depot for call in calls if call.depot is not None}:
            self.sweep(depot)

    def close(self, event: str) -> None:
        """Fail what is not final, refuse new calls, and forget memoized results."""
        with self._lock:
            self._closed = event
        self.end(event)
        self._memoized.clear()

    def sweep(self, depot: Depot) -> None:
        """Evict what lost tries have stored in a depot, unless tries are under way.

        A worker that was cut off, and not killed, may store its result late.
        """
        depot.sweep(self.tasks, lambda: None if self._pending else depot.ledger.live)


def _finish(future: StoreAppFuture, sealed: Any, error: BaseException | None) -> None:
    # Settling and closing may meet; the first one counts.
    with suppress(InvalidStateError):
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(sealed)


def _envelopes(sealed: Any, joins: bool) -> list[Envelope]:
    items = sealed if joins and type(sealed) is list else [sealed]
    return [item for item in items if type(item) is Envelope]


def _has_lost_tries(inner: AppFuture, error: BaseException | None) -> bool:
    if isinstance(error, DependencyError):
        return False  # it has never run
    return error is not None or inner.task_record["fail_count"] > 0


def by_reference(obj: Any, call: Call) -> Any:
    """Return what is passed on for a proxy of an object we count; anything else as it is.

    A reference, or the object if the user may have changed it. The call then needs it.

    Raises:
        ClosedError: It was let go with its scope.
    """
    factory = counted_factory(obj)
    if factory is None:
        return obj
    if is_resolved(obj):
        return extract(obj)
    if factory.hold is not None:
        call.need(factory.hold)
    elif factory.scope is not None and factory.scope.ended:
        raise ClosedError(f"a call of app {call.app!r}", "the scope of an argument has ended")
    return factory.ref


def relay(source: AppFuture, packer: Packer, call: Call) -> AppFuture:
    """Return a future of the result of `source`, by reference if it is large.

    For results that are in this process, because their task was, or because Parsl has
    brought them here: they need not travel with each task that takes them.
    """
    relayed = AppFuture(source.task_record)
    source.add_done_callback(functools.partial(_relay, relayed, packer, call))
    return relayed


def _relay(relayed: AppFuture, packer: Packer, call: Call, source: AppFuture) -> None:
    error = source.exception()
    if error is not None:
        relayed.set_exception(error)
        return
    try:
        value = replaced(source.result(), lambda obj: by_reference(obj, call))
        packed = packer.pack((value,), {})
    except Exception as failed:  # noqa: BLE001 - raised by whoever waits for the result
        relayed.set_exception(failed)
        return
    call.need(*packed.holds)
    relayed.set_result(packed.args[0])
