"""How long stored objects live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from proxystore.proxy import Proxy
from proxystore.store.types import ConnectorKeyT

if TYPE_CHECKING:
    from proxystore.store.base import Store


@runtime_checkable
class Lifetime(Protocol):
    """Evicts what is attached to it when it ends."""

    def add_key(self, *keys: ConnectorKeyT, store: Store[Any] | None = None) -> None:
        """Attach keys of `store`."""
        ...

    def add_proxy(self, *proxies: Proxy[Any]) -> None:
        """Attach the keys of proxies that stores have made."""
        ...

    def close(self, *, close_stores: bool = False) -> None:
        """End: evict everything that is attached, then close the stores if asked to."""
        ...

    def done(self) -> bool:
        """Say whether it has ended."""
        ...
