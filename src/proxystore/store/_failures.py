"""What is stored in place of an object that could not be produced.

A `Failure` lies under the object's key, in the package's own stored form whatever
serializer the store has, and is recognised by the type name in its header. So the
exception reaches whoever gets the object, in any process and with any deserializer.
"""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import cloudpickle

from proxystore.serialize import frames
from proxystore.store.exceptions import ProducerError


class Failure:
    """An exception on its way to the consumers of an object.

    Args:
        pickled: The exception; None: it cannot be pickled.
        description: Its last line in a traceback.
        trace: The whole traceback where it was raised; "" if it never was.
    """

    __slots__ = ("_description", "_pickled", "_trace")

    def __init__(self, pickled: bytes | None, description: str, trace: str) -> None:
        self._pickled = pickled
        self._description = description
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Failure, (self._pickled, self._description, self._trace)

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return what to store for an exception; never fails."""
        description = "".join(traceback.format_exception_only(type(error), error)).strip()
        trace = ""
        if error.__traceback__ is not None or error.__cause__ is not None:
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        return cls(_pickled(error), description, trace)

    def error(self) -> Exception:
        """Return the exception, a new one each time; never fails.

        Its ``__cause__`` shows the producer's traceback, which no pickle holds.
        """
        found: Any = None
        if self._pickled is not None:
            try:
                found = pickle.loads(self._pickled)
            except Exception:  # noqa: BLE001 - its class may not exist here
                found = None
        # KeyboardInterrupt, SystemExit and the like are about the producer's process; raised
        # in the consumer's they would end that too.
        error = found if isinstance(found, Exception) else ProducerError(self._description)
        if self._trace and error.__cause__ is None:
            error.__cause__ = _ProducerTraceback(self._trace)
        return error


class _ProducerTraceback(Exception):
    """Shows where the producer failed, above the consumer's own traceback."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _pickled(error: BaseException) -> bytes | None:
    try:
        data: bytes = cloudpickle.dumps(error)
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything
        return None
    return data


_NAME = f"{Failure.__module__}.{Failure.__qualname__}".encode()


def is_failure(data: Any) -> bool:
    """Say whether stored data is that of a `Failure`; nothing is unpickled."""
    return frames.is_of_type(data, _NAME)


def failure_in(data: Any) -> Exception | None:
    """Return the exception in stored data; None if the data hold anything else."""
    if not is_failure(data):
        return None
    failure: Failure = frames.load(data)
    return failure.error()
