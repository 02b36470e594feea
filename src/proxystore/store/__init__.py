"""Stores: objects by key in any back end, and proxies that bring them where they are used."""

from __future__ import annotations

from proxystore.store._registry import (
    _stores,  # noqa: F401
    get_or_create_store,
    get_store,
    register_store,
    store_registration,
    unregister_store,
)
from proxystore.store.base import Store
from proxystore.store.config import StoreConfig
from proxystore.store.factory import StoreFactory

__all__ = [
    "Store",
    "StoreConfig",
    "StoreFactory",
    "get_or_create_store",
    "get_store",
    "register_store",
    "store_registration",
    "unregister_store",
]
