"""Passing large arguments by reference in programs that nobody edits.

For Dask's configuration, which starts it in every process that is to have it:

* ``distributed.client.preload: proxystore_dask.preload`` does to every client what `attach` does,
  also to the one that `distributed.get_client` gives in a task, with the settings under
  ``proxystore``. (``DASK_DISTRIBUTED__CLIENT__PRELOAD`` in the environment does the same; the
  workers that a client starts get it with its configuration.)
* ``distributed.scheduler.preload: proxystore_dask.preload`` gives the scheduler its plugin, for
  one that takes none from clients.
"""

from __future__ import annotations

from distributed import Client, Scheduler

from proxystore_dask.client import attach_connecting
from proxystore_dask.scheduler_plugin import StoreLifetimes

__all__ = ["dask_setup"]


async def dask_setup(starting: Client | Scheduler) -> None:
    """Called by Dask with what it is about to start."""
    if isinstance(starting, Client):
        await attach_connecting(starting)
    elif isinstance(starting, Scheduler):
        starting.add_plugin(StoreLifetimes(), idempotent=True)
