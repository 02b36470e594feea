"""Types that annotate the interfaces of stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typing_extensions import TypeVar

from proxystore.connectors.protocols import Connector
from proxystore.serialize import BytesLike

__all__ = ["ConnectorKeyT", "ConnectorT", "DeserializerT", "SerializerT"]

ConnectorT = TypeVar("ConnectorT", bound=Connector[Any], default=Any)
"""Any connector. What is made from a configuration alone is a `Store[Any]`."""

ConnectorKeyT = tuple[Any, ...]
"""Key of an object; connectors define a NamedTuple of their own."""

SerializerT = Callable[[Any], BytesLike]
"""Turns an object into data."""

DeserializerT = Callable[[BytesLike], Any]
"""Turns data back into the object."""
