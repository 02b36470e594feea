"""What goes wrong between a program, Parsl and the store.

Each survives pickling by any pickler, since it has to cross processes: attributes are
text, and ``args`` rebuilds it.
"""

from __future__ import annotations

from parsl.errors import ParslError


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
