"""What connectors share. Nothing requires a connector to use it."""

from __future__ import annotations

import functools
import inspect
import os
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from proxystore.connectors.exceptions import ConnectorError
from proxystore.serialize import BytesLike

KeyT = TypeVar("KeyT", bound=tuple[Any, ...])

# The names our objects have, and nothing else in a shared directory is likely to:
# a UUID, alone or followed by a dot and a suffix.
OBJECT_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.[\w.-]+)?\Z")


def new_name() -> str:
    """Return a random UUID (version 4) as text.

    As ``str(uuid.uuid4())``, in a third of the time: every put waits for it.
    """
    h = os.urandom(16).hex()
    variant = "89ab"[int(h[16], 16) & 3]
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{variant}{h[17:20]}-{h[20:]}"


def checked_name(name: str) -> str:
    """Return `name` if it can be the name of an object.

    Raises:
        ValueError: It is not ``UUID4`` or ``UUID4.suffix``.
    """
    if not OBJECT_NAME.match(name):
        raise ValueError(f"an object's name must be a UUID, or one with .suffix, got {name!r}")
    return name


def wrong_key(key: object, cls: type[tuple[Any, ...]]) -> TypeError:
    """Return the error of who takes something else for a key of class `cls`.

    Only its class is looked at, unless it is harmless: to show a proxy resolves it.
    """
    fields = ", ".join(f"{name}=..." for name in getattr(cls, "_fields", ()))
    given = type(key).__name__
    if type(key) in (str, bytes, int, bool, float):
        given = f"{reprlib.repr(key)} ({given})"
    elif issubclass(type(key), tuple):
        given = f"{given} of {', '.join(type(part).__name__ for part in key) or 'nothing'}"  # type: ignore[attr-defined] # a tuple
    hint = "; a proxy's key is proxystore.store.utils.get_key(proxy)" if given == "Proxy" else ""
    return TypeError(
        f"a key here is a tuple such as {cls.__name__}({fields}), as `put` returns it, got "
        f"{given}{hint}"
    )


def writes_buffers(connector: object, method: str = "put") -> bool:
    """Say whether to call a connector's ``put_buffers`` in place of its ``put``.

    Not where a subclass has a ``put`` of its own and inherits the other: it would be
    passed over, with whatever it does to the data.

    Args:
        connector: Its class is asked.
        method: "put", or "set" for ``set_buffers`` in place of ``set``.
    """
    cls: Any = type(connector)
    return _writes_buffers(cls, method)


# Asked before each put; as many classes as one process may ever use.
@functools.lru_cache(maxsize=256)
def _writes_buffers(connector: Any, method: str) -> bool:
    for cls in connector.__mro__:
        if f"{method}_buffers" in vars(cls):
            return True
        if method in vars(cls):
            return False
    return False


@contextmanager
def translate(
    foreign: type[Exception], into: Callable[[Exception], ConnectorError]
) -> Iterator[None]:
    """Raise a back end's own exceptions as ours, inside this context.

    Args:
        foreign: Base of the exceptions to look for. What is a `ConnectorError` already
            passes as it is.
        into: Gives the one to raise; its ``__cause__`` is the back end's.
    """
    try:
        yield
    except foreign as error:
        if isinstance(error, ConnectorError):
            raise
        raise into(error) from error


def beginning(data: BytesLike, length: int) -> tuple[bytes, int]:
    """Return what `peek` does, for a connector that has the data at hand."""
    view = memoryview(data)
    # What is empty cannot be cast, and one of something else than bytes has another length.
    return bytes(view.cast("B")[:length]) if view.nbytes else b"", view.nbytes


def check_claim(seconds: float) -> None:
    """Raise `ValueError` unless a claim may be for so long."""
    if not seconds > 0:
        raise ValueError(f"a claim must be for more than 0 seconds, got {seconds}")


def expect_claims(connector: Any) -> None:
    """Tell a connector that objects will be claimed.

    Raises:
        NotImplementedError: It is no `ClaimableConnector`, or one of its members is none.
    """
    if not hasattr(type(connector), "claim"):
        raise NotImplementedError(
            f"{connector!r} cannot give an object to exactly one of several consumers: it is "
            f"not a ClaimableConnector"
        )
    method = getattr(connector, "expect_claims", None)
    if method is not None:
        method()


def disown(connector: object) -> None:
    """Leave deleting to somebody else, where a connector does any when it is closed."""
    method = getattr(connector, "disown", None)
    if method is not None:
        method()


def abandon(connector: Any) -> None:
    """Close a connector as if it had never been opened; no object is deleted."""
    disown(connector)
    method = getattr(connector, "abandon", None)
    if method is not None:
        method()
    else:
        close(connector, clear=False)


def close(connector: Any, *, clear: bool | None = None) -> None:
    """Close a connector, with `clear` if that is not None and an argument of its `close`."""
    options = {}
    if clear is not None:
        parameters = inspect.signature(connector.close).parameters.values()
        if any(p.name == "clear" or p.kind is p.VAR_KEYWORD for p in parameters):
            options["clear"] = clear
    connector.close(**options)


class ConnectorMixin(Generic[KeyT]):
    """Context manager, `from_config` and batches as loops; override what can do better."""

    def config(self) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} must define config()")

    def get(self, key: KeyT) -> BytesLike | None:
        raise NotImplementedError(f"{type(self).__name__} must define get()")

    def put(self, obj: BytesLike) -> KeyT:
        raise NotImplementedError(f"{type(self).__name__} must define put()")

    def evict(self, key: KeyT) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define evict()")

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return a connector for what `config` describes."""
        return cls(**config)

    def get_batch(self, keys: Sequence[KeyT]) -> list[BytesLike | None]:
        """Return the data of each key: same length and order, None where missing."""
        return [self.get(key) for key in keys]

    def put_batch(self, objs: Sequence[BytesLike]) -> list[KeyT]:
        """Store each item under a new key: same length and order; all of them or none."""
        keys: list[KeyT] = []
        try:
            for obj in objs:
                key = self.put(obj)
                keys.append(key)
        except BaseException:
            for key in keys:
                with suppress(Exception):  # the first error is the one to know about
                    self.evict(key)
            raise
        return keys
