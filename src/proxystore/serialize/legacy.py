"""Reading what existing installations have written; nothing writes this.

The format: an identifier of two ASCII letters, a newline, the payload.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

from proxystore.serialize._errors import SerializationError

# No header line is longer: two letters and some tolerated white space. Searching
# further would copy foreign data into an error message (compat.md, row 8).
_LONGEST_HEADER = 32


def _numpy(payload: memoryview) -> Any:
    import numpy as np  # only who stored an array needs numpy

    return np.load(io.BytesIO(payload), allow_pickle=True)


def _pandas(payload: memoryview) -> Any:
    import pandas as pd  # as above

    return pd.read_pickle(io.BytesIO(payload))


def _polars(payload: memoryview) -> Any:
    import polars as pl  # as above

    return pl.read_ipc(io.BytesIO(payload))


def _string(payload: memoryview) -> str:
    return str(payload, "utf-8")


# cloudpickle writes pickles: pickle reads them.
_READERS: dict[bytes, tuple[str, Callable[[memoryview], Any]]] = {
    b"BS": ("bytes", bytes),
    b"US": ("string", _string),
    b"NP": ("numpy", _numpy),
    b"PD": ("pandas", _pandas),
    b"PL": ("polars", _polars),
    b"PK": ("pickle", pickle.loads),
    b"CP": ("cloudpickle", pickle.loads),
}


def load(data: Any) -> Any:
    """Return the object in `data`, as existing installations have written it.

    Raises:
        SerializationError: Unknown header, or the payload does not decode.
    """
    view = memoryview(data).cast("B")
    line, newline, _ = bytes(view[:_LONGEST_HEADER]).partition(b"\n")
    if not newline or line.strip() not in _READERS:
        raise SerializationError(
            f"data of {view.nbytes} bytes starting with {line[:8]!r} has no header that "
            f"this package knows; was it written with another serializer?"
        )
    name, read = _READERS[line.strip()]
    try:
        return read(view[len(line) + 1 :])
    except Exception as error:
        raise SerializationError(
            f"Failed to deserialize object using the {name} serializer: "
            f"{type(error).__name__}: {error}"
        ) from error
