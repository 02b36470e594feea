"""Dask without large data in its scheduler.

```python
from proxystore_dask import Client

client = Client()                             # a distributed.Client
future = client.submit(function, big_array)   # travels by reference
```
"""

from __future__ import annotations

from proxystore_dask.client import Client, attach
from proxystore_dask.reach import StoreUnreachableError
from proxystore_dask.scheduler_plugin import StoreLifetimes
from proxystore_dask.stats import StoreStats

__all__ = ["Client", "StoreLifetimes", "StoreStats", "StoreUnreachableError", "attach"]
