"""Getting what a task needs while the task still waits for a thread of its worker.

Rules of this file:

* What is got is for one task and one of its arguments: `Load` takes it, and then it is the task's.
* Whatever has not been taken when a task ends, in whichever way, is dropped; with the plugin,
  everything is.
* All that waits to be taken fits into the budget. What does not fit, now or ever, waits, or is got
  by its task itself.
* A fetch that fails says nothing: the task tries again, and reports what it finds.

Only what the graph itself mentions is got: not results of other tasks, of which a worker knows
where they are when it has them, and not the objects of proxies, which may never be used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin

from proxystore.connectors.file import FileConnector
from proxystore.workflow import Ref, RefId
from proxystore_dask.graph import fetched_refs
from proxystore_dask.measures import PREFETCH

if TYPE_CHECKING:
    from dask.typing import Key

_BEFORE = frozenset({"waiting", "ready", "constrained"})
_DURING = frozenset({"executing", "long-running"})


class Prefetch(WorkerPlugin):
    """Has workers get objects for tasks that are assigned to them and do not run yet.

    Clients register it where ``proxystore.prefetch`` is not 0. Of two, the later one counts.

    Args:
        budget: How many bytes of objects a worker may hold for tasks that do not run yet.
    """

    name = PREFETCH

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def setup(self, worker: Worker) -> None:
        """Begin, with the tasks that come from now on."""
        self._worker = worker
        self.ahead = Ahead(self.budget)

    def teardown(self, worker: Worker) -> None:
        """Drop everything."""
        self.ahead.close()

    def transition(self, key: Key, start: str, finish: str, **kwargs: Any) -> None:
        """Note which tasks wait, run, and do neither."""
        if finish in _BEFORE:
            if start not in _BEFORE:
                # Not at once: most tasks run without waiting at all.
                self._worker.loop.add_callback(self._begin, key)
        elif finish in _DURING:
            self.ahead.give_up(key)
        else:
            self.ahead.drop(key)

    def _begin(self, key: Key) -> None:
        task = self._worker.state.tasks.get(key)
        if task is not None and task.state in _BEFORE:
            self.ahead.want(key, fetched_refs(task.run_spec))


class Ahead:
    """Objects for tasks to come; used from the worker's event loop and its tasks' threads.

    Args:
        budget: As for `Prefetch`.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        # One thread: what is to come first is got first, and tasks that run are kept waiting least.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="proxystore-prefetch")
        # For all that follows; nobody waits for bytes with it.
        self._lock = threading.Lock()
        self._waiting: dict[Key, list[Ref]] = {}
        self._got: dict[Key, dict[RefId, tuple[Future[Any], int]]] = {}
        self._used = 0

    @property
    def nbytes(self) -> int:
        """What is there, or on its way."""
        return self._used

    def want(self, key: Key, refs: Iterable[Ref]) -> None:
        """Get objects for a task as soon as they fit."""
        fitting = {ref.id: ref for ref in refs if ref.nbytes <= self._budget}
        with self._lock:
            if fitting and key not in self._got:
                self._got[key] = {}
                self._waiting[key] = list(fitting.values())
                self._fill()

    def take(self, key: Key, ident: RefId, default: Any) -> Any:
        """The object, which is the caller's from now on; `default` if it has not been got."""
        with self._lock:
            future, nbytes = self._got.get(key, {}).pop(ident, (None, 0))
            if future is None:
                return default
            if future.cancel():
                self._free(nbytes)
                return default
        try:
            return future.result()
        except Exception:  # noqa: BLE001 - whatever it is, the task will find out
            return default
        finally:
            self._freed(nbytes)

    def give_up(self, key: Key) -> None:
        """Do not begin to get anything more for a task: it runs, and does so itself."""
        with self._lock:
            self._waiting.pop(key, None)
            found = self._got.get(key, {})
            for ident, (future, nbytes) in list(found.items()):
                if future.cancel():
                    del found[ident]
                    self._free(nbytes)

    def drop(self, key: Key) -> None:
        """Let go of what there is for a task."""
        with self._lock:
            self._waiting.pop(key, None)
            dropped = self._got.pop(key, {}).values()
        for future, nbytes in dropped:
            future.cancel()
            # At once, or when it is here.
            future.add_done_callback(functools.partial(self._freed, nbytes))

    def close(self) -> None:
        """Let go of everything, and get nothing more."""
        with self._lock:
            self._budget = -1
            self._waiting.clear()
            self._got.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _freed(self, nbytes: int, _: object = None) -> None:
        with self._lock:
            self._free(nbytes)

    def _free(self, nbytes: int) -> None:
        self._used -= nbytes
        self._fill()

    def _fill(self) -> None:
        while self._waiting:
            key, refs = next(iter(self._waiting.items()))
            if self._used + refs[0].nbytes > self._budget:
                return
            ref = refs.pop(0)
            if not refs:
                del self._waiting[key]
            self._used += ref.nbytes
            self._got[key][ref.id] = (self._pool.submit(_fetch, ref), ref.nbytes)


def _fetch(ref: Ref) -> Any:
    connector = ref.store.connector
    if (
        isinstance(connector, FileConnector)
        and connector.maps_from is not None
        and hasattr(os, "posix_fadvise")
    ):
        # A mapping brings nothing by itself: have the kernel read the file meanwhile.
        path = os.path.join(connector.store_dir, ref.factory.key[0])
        with contextlib.suppress(OSError), open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return ref.resolve()
