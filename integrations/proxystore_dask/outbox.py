"""An asynchronous client's graphs whose large data is on its way to the store.

Whoever submits in the event loop has the futures at once. The data is stored in a thread; the
graph follows when that is done, and what the client sends meanwhile waits behind it, in order:
what is said of a task (that it is cancelled, that nobody wants it) reaches the scheduler after it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from proxystore.connectors.exceptions import StorageFullError
from proxystore.workflow import Hold, Ledger, Ref, RefId
from proxystore.workflow.embedded import is_embedded

logger = logging.getLogger(__name__)


class Outbox:
    """Messages of one client that wait for bytes.

    Graphs are added in the client's event loop; messages may be said in any thread.
    """

    def __init__(self) -> None:
        self._jobs: deque[tuple[Callable[[], Any], Callable[[Any], None], Any]] = deque()
        self._working: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The thread that delivers, while it does: what it sends is not to wait for itself.
        self._delivering: int | None = None

    @property
    def holds_back(self) -> bool:
        """Whether a message of this thread has to wait."""
        return bool(self._jobs) and self._delivering != threading.get_ident()

    def add(
        self,
        prepare: Callable[[], Any],
        deliver: Callable[[Any], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        """Do something once everything before it is done.

        Args:
            prepare: Called in a thread.
            deliver: Called in the event loop with what `prepare` returned.
            fail: Called in the event loop if one of them raised, with the error.
        """
        self._jobs.append((prepare, deliver, fail))
        self._loop = asyncio.get_running_loop()
        self._start()

    def say(self, deliver: Callable[[], None]) -> None:
        """Send a message behind what waits already."""
        self._jobs.append((_nothing, lambda _: deliver(), _ignore))
        if self._working is None and self._loop is not None:  # it has ended just now
            self._loop.call_soon_threadsafe(self._start)

    async def drain(self, seconds: float, is_in_vain: Callable[[], bool]) -> None:
        """Wait until everything has been sent.

        Args:
            seconds: The longest wait. What has not been sent then is logged.
            is_in_vain: Says whether nobody is there any more whom it could reach.
        """
        end = time.monotonic() + seconds
        while self._jobs and not is_in_vain():
            if time.monotonic() > end:
                logger.warning(
                    "what an asynchronous client had to say last has not been sent: its data "
                    "was not stored within %s s",
                    seconds,
                )
                return
            self._start()
            assert self._working is not None
            await asyncio.wait([self._working], timeout=0.05)

    def _start(self) -> None:
        if self._jobs and self._working is None:
            self._working = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._jobs:
                prepare, deliver, fail = self._jobs[0]
                try:
                    prepared = None
                    if prepare is not _nothing:
                        prepared = await loop.run_in_executor(None, prepare)
                    self._delivering = threading.get_ident()
                    deliver(prepared)
                except Exception as error:  # noqa: BLE001 - whoever waits for it hears of it
                    fail(error)
                finally:
                    self._delivering = None
                    self._jobs.popleft()
        finally:
            self._working = None
            self._start()


def _nothing() -> None:
    pass


def _ignore(error: BaseException) -> None:
    pass  # the client is closed, and its scheduler knows


class Promise:
    """An object that will be stored. Stands for the hold on it, too.

    Attributes:
        kept: The reference to it; None before it is stored.
        name: Another one for each promise, whatever process makes it: keys of tasks are made of it.
        type_name: As for `Ref`.
    """

    def __init__(self, obj: Any, type_name: str) -> None:
        self._obj = obj
        self._hold: Hold | None = None
        self.kept: Ref | None = None
        self.name = uuid.uuid4().hex
        self.type_name = type_name

    # Made anew, and not kept: in a cycle the hold would outlive the future.
    @property
    def ref(self) -> PromisedRef:
        """What stands for the reference to it."""
        return PromisedRef(self, self.type_name)

    def keep(self, ledger: Ledger) -> None:
        """Store the object, unless that is done. If it raises, the next call tries again."""
        # Before the look: while a job that was cancelled ends in its thread, the next one may be in
        # another, and either may keep the object.
        obj = self._obj
        if self.kept is not None:
            return
        try:
            self._hold = ledger.hold(obj)
            self.kept = self._hold.ref
        except StorageFullError:
            if not is_embedded(ledger.store):
                raise
            self.kept = ValueRef(obj, self.type_name)  # as `Packer` does
        # Not before: graphs that share the promise come after one that could not be stored.
        self._obj = None

    def release(self) -> None:
        """Give the object back."""
        if self._hold is not None:
            self._hold.release()


class PromisedRef(Ref):
    """A reference to what will be stored. When it is pickled, that has been done."""

    __slots__ = ("promise",)

    def __init__(self, promise: Promise, type_name: str) -> None:
        self.promise = promise
        self.digest = ""
        self.nbytes = 0
        self.type_name = type_name

    @property
    def id(self) -> RefId:
        """Another one for each promise: nobody has looked at the content."""
        return ("promised", self.promise.name)

    def __copy__(self) -> PromisedRef:
        return PromisedRef(self.promise, self.type_name)

    def __reduce__(self) -> Any:
        assert self.promise.kept is not None
        return self.promise.kept.__reduce__()


class ValueRef(Ref):
    """An object that did not fit into the store, and travels in the graph."""

    __slots__ = ("value",)

    def __init__(self, value: Any, type_name: str) -> None:
        self.value = value
        self.digest = ""
        self.nbytes = 0
        self.type_name = type_name

    @property
    def id(self) -> RefId:
        """Its own."""
        return ("value", id(self.value))

    def resolve(self) -> Any:
        """Return the object."""
        return self.value

    def __reduce__(self) -> Any:
        return type(self), (self.value, self.type_name)


class Promises:
    """Looks like a ledger to a `Packer`, and only promises to store."""

    def __init__(self) -> None:
        self.made: list[Promise] = []

    # Not kept: in a cycle the holds would outlive the futures.
    @property
    def store(self) -> Promises:
        """Itself: what a `Packer` wants of a store is here, too."""
        return self

    def dump(self, obj: Any) -> Any:
        """The object itself."""
        return obj

    def hold_dumped(self, data: Any, type_name: str, *, digest: bool = True) -> Promise:
        """A promise to store it."""
        self.made.append(Promise(data, type_name))
        return self.made[-1]
