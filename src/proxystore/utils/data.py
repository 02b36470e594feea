"""Sizes as people write them, and bytes in pieces."""

from __future__ import annotations

import string
from collections.abc import Generator
from decimal import Decimal, InvalidOperation
from typing import TypeVar

__all__ = ["bytes_to_readable", "chunk_bytes", "readable_to_bytes"]

BytesT = TypeVar("BytesT", bytes, bytearray, memoryview)

# We write powers of 1000 and read both kinds. The last decimal unit is also the largest
# written: 10**15 bytes are "1000 TB".
_DECIMAL_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_UNITS = _DECIMAL_UNITS | _BINARY_UNITS
_FACTORS = {unit.lower(): factor for unit, factor in _UNITS.items()}


def chunk_bytes(data: BytesT, chunk_size: int) -> Generator[BytesT, None, None]:
    """Yield consecutive slices of `data`; joined they equal it.

    Slices of bytes are copies; wrap large data in a memoryview of single bytes to avoid them.

    Args:
        data: What to slice; nothing is yielded for empty data.
        chunk_size: Length of each slice, at least 1. The last may be shorter.

    Raises:
        ValueError: `chunk_size` is less than 1 (raised by the call, not by the first slice).

    >>> list(chunk_bytes(b"abcde", 2))
    [b'ab', b'cd', b'e']
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    return (data[start : start + chunk_size] for start in range(0, len(data), chunk_size))


def bytes_to_readable(size: int, precision: int = 3) -> str:
    """Return a number of bytes in the largest unit of base 1000 that it fills.

    Args:
        size: Number of bytes, 0 or more.
        precision: Most digits after the decimal point; trailing zeros are not written.

    Raises:
        ValueError: `size` is negative.

    >>> bytes_to_readable(123_456_789)
    '123.457 MB'
    >>> bytes_to_readable(1000)
    '1 KB'
    """
    if size < 0:
        raise ValueError(f"size must not be negative, got {size}")
    unit, factor = "B", 1
    for candidate, its_factor in _DECIMAL_UNITS.items():
        if size >= its_factor:
            unit, factor = candidate, its_factor
    value = f"{size / factor:.{precision}f}"
    if "." in value:
        value = value.rstrip("0").rstrip(".")
    return f"{value} {unit}"


def readable_to_bytes(size: str) -> int:
    """Return the number of bytes meant by a text such as "1.5 GB", "128KiB" or "4096".

    Args:
        size: A value and a unit with or without a space between; units of base 1000 (KB to
            TB) and 1024 (KiB to TiB) in any case. No unit: bytes. Fractions of a byte are
            dropped.

    Raises:
        ValueError: `size` is not a value and a unit, the unit is unknown, or the value is not
            a number or is negative.

    >>> readable_to_bytes("0.6 MiB")
    629145
    """
    parts = size.split()
    if len(parts) == 1:
        value = parts[0].rstrip(string.ascii_letters)
        parts = [value, parts[0][len(value) :] or "B"]
    if len(parts) != 2 or not parts[0]:
        raise ValueError(f"size must be a value and a unit, such as '1.5 GB', got {size!r}")

    value, unit = parts
    factor = _FACTORS.get(unit.lower())
    if factor is None:
        raise ValueError(f"Unknown unit {unit!r} in size {size!r}; known are {', '.join(_UNITS)}")
    # Not a float: 1.001 * 1000 is 1000.9999999999999, which would become 1000.
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError(f"the value {value!r} in size {size!r} cannot be read as a float")
    if number < 0:
        raise ValueError(f"size must not be negative, got {size!r}")
    return int(number * factor)
