"""A serializer for Parsl that leaves large arguments in a store.

For those who want no decorator and no other executor. A serializer is one for the whole
process and sees the arguments of a try, but not of which task, nor when that is final, nor
any result. So nothing can be evicted before the program says so; see `StoreSerializer`.
"""

from __future__ import annotations

import functools
import threading
from types import TracebackType
from typing import Any

from parsl.serialize.concretes import DillSerializer
from parsl.serialize.facade import register_method_for_data
from typing_extensions import Self

from proxystore.workflow import Hold, Packer, Ref, RefId
from proxystore_parsl.apps import StoreApps
from proxystore_parsl.errors import ClosedError
from proxystore_parsl.packing import fetched


class _Arriving:
    """A reference that is an object once it is unpickled."""

    def __init__(self, ref: Ref) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        return fetched, (self.ref, "(unknown, its arguments were arriving)")


class StoreSerializer(DillSerializer):
    """Leaves large arguments of all apps, and what is large in their containers, in a store.

    A context manager: Parsl uses it meanwhile, for every task of this process. Workers need
    no configuration. They get the objects, and each task its own.

    The same content is stored once. An object stays until `close`, which the end of the
    block calls: nobody says when the last task that takes it is final. Close it when they
    are, after `parsl.DataFlowKernel.cleanup` at the latest. In a store that was not named,
    what a killed process has left is removed by the next one. Results travel as before. The
    decorators of `StoreApps` and `with_store` do better in each of these points.

    Thread-safe.

    Args:
        apps: Its store, threshold and policy are used.

    Raises:
        NoStoreError: It has a store for each executor, and a serializer knows no executor.
    """

    # Parsl's own: workers, which have that one, can unpickle what this one has pickled, and
    # registering it takes the place of that one.
    identifier = DillSerializer.identifier

    def __init__(self, apps: StoreApps) -> None:
        apps._require_one_store()
        self._apps = apps
        self._lock = threading.Lock()  # for the holds
        self._holds: dict[RefId, Hold] = {}
        self._closed = False

    @functools.cached_property
    def _packer(self) -> Packer:
        # When Parsl runs: an embedded store depends on where the workers are.
        apps = self._apps
        return apps._packer(apps._depot_for_all(), apps.threshold, digest=True)

    def __enter__(self) -> Self:
        register_method_for_data(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def serialize(self, data: Any) -> bytes:
        """Return pickled arguments; anything else as Parsl does."""
        # What Parsl gives a serializer of a task: positional, then keyword arguments.
        if type(data) is tuple:
            packed = self._packer.pack(data, {}, wrap=_Arriving)
            data = packed.args
        elif type(data) is dict and all(type(name) is str for name in data):
            packed = self._packer.pack((), data, wrap=_Arriving)
            data = packed.kwargs
        else:
            return super().serialize(data)
        with self._lock:
            if self._closed:
                raise ClosedError("a task", "its StoreSerializer was closed")
            for hold in packed.holds:
                self._holds.setdefault(hold.ref.id, hold)
        return super().serialize(data)

    def close(self) -> None:
        """Let Parsl use its own serializer again, and evict the objects."""
        register_method_for_data(DillSerializer())
        with self._lock:
            self._closed = True
            self._holds.clear()
