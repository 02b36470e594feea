"""What goes wrong between a program, Parsl and the store.

Each survives pickling by any pickler, since it has to cross processes: attributes are
text, and ``args`` rebuilds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parsl.errors import ParslError

from proxystore.store.exceptions import ProxyResolveMissingKeyError
from proxystore.workflow import UnpicklableArgumentError


class ClosedError(ParslError):
    """A task that was not final, or a new call, met the end of what it needs.

    Attributes:
        subject: What cannot go on.
        event: What ended.
    """

    def __init__(self, subject: str, event: str) -> None:
        super().__init__(subject, event)
        self.subject = subject
        self.event = event

    def __str__(self) -> str:
        return f"{self.subject} cannot go on: {self.event}"


class RemoteTaskError(ParslError):
    """Stands for an exception, or a result, of a task that cannot be unpickled here.

    Parsl's result thread would not survive the original.

    Attributes:
        app: Name of the app.
        type_name: ``module.qualname`` of the original exception's class.
        message: Its text.
        traceback: Its traceback where it happened, as text.
    """

    def __init__(self, app: str, type_name: str, message: str, traceback: str) -> None:
        super().__init__(app, type_name, message, traceback)
        self.app = app
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return (
            f"app {self.app!r} failed with {self.type_name}: {self.message}\n"
            f"(the original does not survive pickling; it was raised here:)\n{self.traceback}"
        )


class AppArgumentError(UnpicklableArgumentError, ParslError):
    """An argument of a call cannot be sent to a worker; nothing of the call was stored.

    Attributes:
        app: Name of the app.
        position: As for `UnpicklableArgumentError`; so are the others.
    """

    def __init__(self, app: str, position: int | str, type_name: str, reason: str) -> None:
        super().__init__(position, type_name, reason)
        self.args = app, position, type_name, reason
        self.app = app

    def __str__(self) -> str:
        return f"app {self.app!r} cannot be called: {super().__str__()}"


class UnpicklableResultError(ParslError, TypeError):
    """What an app has returned cannot be sent to the submit process.

    Attributes:
        app: Name of the app.
        type_name: ``module.qualname`` of the result's class.
        reason: What pickling it, or unpickling it again, has raised.
    """

    def __init__(self, app: str, type_name: str, reason: str) -> None:
        super().__init__(app, type_name, reason)
        self.app = app
        self.type_name = type_name
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"app {self.app!r} has returned a {self.type_name}, which cannot be pickled and "
            f"unpickled: {self.reason}; return what it is made of"
        )


class NoStoreError(ParslError, LookupError):
    """A `StoreApps` with a store for each executor has none for this one.

    Attributes:
        label: Label of the executor. None: none was named.
        labels: Those that have a store.
    """

    def __init__(self, label: str | None, labels: Sequence[str]) -> None:
        super().__init__(label, labels)
        self.label = label
        self.labels = labels

    def __str__(self) -> str:
        known = ", ".join(map(repr, self.labels))
        if self.label is None:
            return f"there is more than one store: name the executor ({known}) whose one is meant"
        return (
            f"StoreApps has a store for the executors {known}, and none for {self.label!r}: add "
            f"one, or name others in executors= of the app"
        )


class StoreUnreachableError(ParslError):
    """A worker cannot use the store that a task's objects are in, or are to go to.

    Attributes:
        app: Name of the app.
        worker: The worker's host and process.
        place: The store's name and connector.
        reason: What went wrong there.
    """

    def __init__(self, app: str, worker: str, place: str, reason: str) -> None:
        super().__init__(app, worker, place, reason)
        self.app = app
        self.worker = worker
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"a task of app {self.app!r} on {self.worker} cannot use {self.place}: {self.reason}; "
            f"give StoreApps a store that all workers of the executor can reach"
        )


class ObjectLostError(ProxyResolveMissingKeyError, ParslError):
    """An object that a task was given is not in its store, as its worker sees it.

    Attributes:
        worker: The worker's host and process.
        place: The store's name and connector.
    """

    def __init__(
        self, key: tuple[Any, ...], store_type: type, store_name: str, worker: str, place: str
    ) -> None:
        super().__init__(key, store_type, store_name)
        self.worker = worker
        self.place = place

    def __str__(self) -> str:
        return f"{super().__str__()} (asked by {self.worker}, in {self.place})"

    def __reduce__(self) -> tuple[Any, ...]:
        make, (_, *args) = super().__reduce__()
        return _lost_again, (make, args, self.worker, self.place)


def _lost_again(
    make: Callable[..., ProxyResolveMissingKeyError], args: Any, worker: str, place: str
) -> ObjectLostError:
    error = make(ProxyResolveMissingKeyError, *args)
    return ObjectLostError(error.key, error.store_type, error.store_name, worker, place)
