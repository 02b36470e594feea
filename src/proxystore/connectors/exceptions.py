"""What goes wrong between a connector and its back end."""

from __future__ import annotations

import os


class ConnectorError(Exception):
    """A back end did not do what it was asked to."""


class StoreDirectoryError(ConnectorError, OSError):
    """A directory cannot hold a store.

    Attributes:
        path: The directory.
        reason: Why it cannot.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"cannot keep objects in {self.path!r}: {self.reason}; name a directory "
            f"that is yours and can be written to"
        )


class StoreDirectoryGoneError(StoreDirectoryError, FileNotFoundError):
    """The directory of a store was removed, as closing the store does."""

    def __str__(self) -> str:
        return (
            f"cannot keep objects in {self.path!r}: {self.reason}; make the store again, or "
            f"close it only when nothing uses it any more"
        )


class NoFileLocksError(ConnectorError, OSError):
    """Objects cannot be claimed in a directory, since its file system locks no files.

    Attributes:
        path: The directory.
        reason: What the operating system says.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"cannot claim objects in {self.path!r}: its file system does not lock files "
            f"({self.reason}); mount it with locks (on Lustre: -o flock), or keep these objects "
            f"in another directory or in Redis"
        )


class ForeignObjectError(ConnectorError, PermissionError):
    """An object was stored by another user, who could have code run by whoever loads it.

    Attributes:
        path: Its file.
        owner: Number of the user whose file it is.
    """

    def __init__(self, path: str, owner: int) -> None:
        super().__init__(path, owner)
        self.path = path
        self.owner = owner

    def __str__(self) -> str:
        return (
            f"will not load {self.path!r}: it belongs to user {self.owner}, who could have code "
            f"run by that; remove the file, and keep objects where only you can write"
        )


class UnexpectedFileError(ConnectorError, OSError):
    """What has the name of an object is something else than a file.

    Attributes:
        path: What has the name.
        kind: What it is.
    """

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(path, kind)
        self.path = path
        self.kind = kind

    def __str__(self) -> str:
        return (
            f"will not load {self.path!r}: it is {self.kind}, and objects are regular files; "
            f"find out who has put it there, and remove it"
        )


class StorageFullError(ConnectorError, OSError):
    """There is no room for an object or a claim; nothing of it was left behind.

    Attributes:
        path: The directory that is full.
        needed: Length of the object or claim, in bytes.
        free: What the file system has left for this user, in bytes.
        what: "object" or "claim".
    """

    def __init__(self, path: str, needed: int, free: int, what: str = "object") -> None:
        super().__init__(path, needed, free, what)
        self.path = path
        self.needed = needed
        self.free = free
        self.what = what

    def __str__(self) -> str:
        if self.what == "claim":
            return (
                f"no room in {self.path!r} for a claim on an object: it needs a file of "
                f"{self.needed} bytes, {self.free} are free; try again once other objects were "
                f"evicted or acknowledged, here or elsewhere"
            )
        return (
            f"no room in {self.path!r}: the object needs {self.needed} bytes, {self.free} "
            f"are free; evict objects, or put the store on a larger file system"
        )


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Return what the file system of `path` has left for an ordinary user, in bytes."""
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize
