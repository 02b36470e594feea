"""What a store expects of a connector.

A connector need not inherit from anything. `Connector` is required; each of the
others adds something a store uses when it is there and does without when not.
`proxystore.testing.check_connector` asserts all that is promised here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from proxystore.serialize import BytesLike

KeyT = TypeVar("KeyT", bound=tuple[Any, ...])
KeyT_contra = TypeVar("KeyT_contra", bound=tuple[Any, ...], contravariant=True)
KeyT_co = TypeVar("KeyT_co", bound=tuple[Any, ...], covariant=True)


@runtime_checkable
class Connector(Protocol[KeyT]):
    """Bytes by key.

    Keys are `typing.NamedTuple` classes: hashable, picklable, importable, and built
    from their field values by position. ``type(c)(**c.config())`` is an equivalent
    connector. A connector whose class has a true attribute ``thread_safe`` is called
    by several threads at once; any other by one at a time.
    """

    def close(self) -> None:
        """Release what is held; calling it again does nothing."""
        ...

    def config(self) -> dict[str, Any]:
        """Return the keyword arguments that rebuild this connector elsewhere."""
        ...

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Connector[KeyT]:
        """Return a connector for what `config` describes."""
        ...

    def evict(self, key: KeyT) -> None:
        """Remove the object; that it is not there is no error."""
        ...

    def exists(self, key: KeyT) -> bool:
        """Say whether there is an object under `key`."""
        ...

    def get(self, key: KeyT) -> BytesLike | None:
        """Return the data, or None if there is no such key (``b""`` is data)."""
        ...

    def get_batch(self, keys: Sequence[KeyT]) -> list[BytesLike | None]:
        """Return the data of each key: same length and order, None where missing."""
        ...

    def put(self, obj: BytesLike) -> KeyT:
        """Store data under a new key and return it."""
        ...

    def put_batch(self, objs: Sequence[BytesLike]) -> list[KeyT]:
        """Store each item under a new key: same length and order."""
        ...


@runtime_checkable
class DeferrableConnector(Protocol[KeyT]):
    """A connector that can name an object before it exists."""

    def new_key(self, obj: bytes | None = None) -> KeyT:
        """Return a key with no object behind it yet."""
        ...

    def set(self, key: KeyT, obj: BytesLike) -> None:
        """Put an object behind a key; a second call replaces the first one's."""
        ...


@runtime_checkable
class BufferConnector(Protocol[KeyT]):
    """A connector that writes several pieces of memory as one object.

    Without these methods it gets the pieces joined, which costs a copy. So does a subclass
    that has a `put` (or `set`) of its own and inherits these. Keyword arguments that `put`
    takes, `put_buffers` takes too. A connector that also has ``put_buffers_batch``, for a
    list of what `put_buffers` takes, gets a batch through it: all or nothing.
    """

    def put_buffers(self, parts: Sequence[BytesLike]) -> KeyT:
        """Store the concatenation of `parts` under a new key."""
        ...

    def set_buffers(self, key: KeyT, parts: Sequence[BytesLike]) -> None:
        """Put the concatenation of `parts` behind `key`, replacing what was there."""
        ...


@runtime_checkable
class EnumerableConnector(Protocol[KeyT_co]):
    """A connector whose objects can be named by the caller and listed by name."""

    def named_key(self, name: str) -> KeyT_co:
        """Return the key for a name of the form ``UUID4`` or ``UUID4.suffix``."""
        ...

    def keys(self, prefix: str = "") -> Iterator[KeyT_co]:
        """Yield the key of each stored object whose name starts with `prefix`."""
        ...


@runtime_checkable
class PeekableConnector(Protocol[KeyT_contra]):
    """A connector that can read the beginning of an object and leave the rest."""

    def peek(self, key: KeyT_contra, length: int) -> tuple[BytesLike, int] | None:
        """Return the first `length` bytes of the data (or all, if less) and their whole length.

        None if there is no such key.
        """
        ...


@runtime_checkable
class WaitableConnector(Protocol[KeyT_contra]):
    """A connector that can tell when an object comes, without being asked all the time."""

    def wait(self, key: KeyT_contra, timeout: float) -> bool:
        """Return True once there is an object under `key`, False if none comes.

        Args:
            key: Of an object that may be there already: then the answer is immediate.
            timeout: Longest wait, in seconds; 0: only look.
        """
        ...


@runtime_checkable
class ClaimableConnector(Protocol[KeyT_contra]):
    """A connector at which exactly one of several consumers gets an object.

    One that also has ``expect_claims`` is told so, by a call without arguments, before
    objects are handed out that will be claimed; it raises `NotImplementedError` if some
    of its objects cannot be.
    """

    def claim(self, key: KeyT_contra, claimant: str, seconds: float) -> str:
        """Try to claim the object for a time, and return who has it now.

        It goes to `claimant` if nobody has it, if `claimant` has it already (whose time
        starts anew), or if the time of whoever has it is up. All in one step: of several
        claimants at once, exactly one gets it. `evict` ends every claim on its key; where
        there is no object, a claim need not last.

        Args:
            key: Of the object.
            claimant: Who wants it: any text without line breaks.
            seconds: How long nobody else can have it; more than 0.
        """
        ...

    def release(self, key: KeyT_contra, claimant: str) -> None:
        """End the claim of `claimant`; if somebody else has the object, do nothing."""
        ...
