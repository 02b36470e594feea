"""Parsl apps whose large arguments and results go through a store.

Importing this starts nothing.
"""

from __future__ import annotations

from proxystore_parsl.apps import (
    AppsStats,
    StoreApps,
    bash_app,
    default_apps,
    join_app,
    python_app,
)
from proxystore_parsl.errors import (
    AppArgumentError,
    ClosedError,
    NoStoreError,
    ObjectLostError,
    RemoteTaskError,
    StoreUnreachableError,
    UnpicklableResultError,
)
from proxystore_parsl.executors import with_store
from proxystore_parsl.memoizer import StoreMemoizer
from proxystore_parsl.pool import StorePool
from proxystore_parsl.serializer import StoreSerializer

__all__ = [
    "AppArgumentError",
    "AppsStats",
    "ClosedError",
    "NoStoreError",
    "ObjectLostError",
    "RemoteTaskError",
    "StoreApps",
    "StoreMemoizer",
    "StorePool",
    "StoreSerializer",
    "StoreUnreachableError",
    "UnpicklableResultError",
    "bash_app",
    "default_apps",
    "join_app",
    "python_app",
    "with_store",
]
