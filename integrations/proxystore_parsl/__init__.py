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
from proxystore_parsl.errors import ClosedError, RemoteTaskError

__all__ = [
    "AppsStats",
    "ClosedError",
    "RemoteTaskError",
    "StoreApps",
    "bash_app",
    "default_apps",
    "join_app",
    "python_app",
]
