"""What goes wrong between objects and bytes."""

from __future__ import annotations


class SerializationError(Exception):
    """An object could not be turned into bytes, or bytes not into an object."""


class CorruptDataError(SerializationError):
    """Stored bytes are not what was written.

    Attributes:
        what: What does not match: ``"length"``, ``"checksum"``, ``"version"``,
            ``"header"`` or ``"kind"``.
        expected: What the data says of itself, or what this version can read.
        found: What is there instead.
    """

    def __init__(self, what: str, expected: object, found: object) -> None:
        super().__init__(what, expected, found)
        self.what = what
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return (
            f"stored data is corrupt or truncated: its {self.what} should be "
            f"{self.expected} but is {self.found}; store the object again"
        )
