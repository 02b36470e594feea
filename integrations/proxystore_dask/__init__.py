"""Dask without large data in its scheduler.

from proxystore_dask import Client

client = Client()                             # a `distributed.Client`
future = client.submit(function, big_array)   # travels by reference
"""

from __future__ import annotations

from proxystore_dask.client import Client, StoreStats, attach
from proxystore_dask.scheduler_plugin import StoreLifetimes

__all__ = ["Client", "StoreLifetimes", "StoreStats", "attach"]
