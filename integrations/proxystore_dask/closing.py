"""What a client does about its objects when it closes, and its scheduler may be gone."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from distributed import Client as DaskClient
from distributed import rpc

from proxystore.connectors.file import FileConnector
from proxystore.store import Store
from proxystore.workflow import Ref, is_dead, sweep
from proxystore.workflow.embedded import is_embedded
from proxystore_dask.scheduler_plugin import GOODBYE, KEEP

logger = logging.getLogger(__name__)

# How long a client waits for the eviction of what it leaves.
_SECONDS = 2

T = TypeVar("T")


async def say_goodbye(client: DaskClient, scheduler: str, process: str, store: Store[Any]) -> None:
    """Wait a little until a scheduler has evicted what only a client that closes has needed.

    Afterwards the scheduler may die, or the user close the store, and nothing is left. What others
    need stays when the user closes the store, until they do not.

    Args:
        client: It has left the scheduler already.
        scheduler: The scheduler's address.
        process: The `identity` of its process.
        store: The client's store.
    """
    connector = store.connector
    clears = isinstance(connector, FileConnector) and connector.clears and not is_embedded(store)

    async def say() -> None:
        async with rpc(scheduler, connection_args=client.connection_args) as again:
            if clears:
                # Before it evicts, which may take long. If all has gone by then, nothing is kept.
                keeper = await getattr(again, KEEP)(place=pickle.dumps(store.config()))
                if keeper:
                    connector.leave_to(keeper)
            await getattr(again, GOODBYE)(client=client.id)

    saying = asyncio.ensure_future(say())
    end = time.monotonic() + _SECONDS
    while not saying.done() and time.monotonic() < end and not is_dead(process):
        await asyncio.wait([saying], timeout=0.05)
    saying.cancel()
    # Whatever it does about that: nobody who closes a client waits for ever.
    await asyncio.wait([saying], timeout=0.5)
    if not saying.done() or saying.cancelled() or saying.exception() is not None:
        logger.info("the scheduler has not said that it has evicted everything: %r", saying)


async def bury(store: Store[Any], refs: Collection[Ref], prefixes: Collection[str]) -> None:
    """Evict in the place of a scheduler that is dead.

    Args:
        store: Where.
        refs: Objects that it has not heard of.
        prefixes: How the names of what it has left begin.
    """

    def evict() -> None:
        try:
            for ref in refs:
                ref.evict()
            for prefix in prefixes:
                sweep(store, prefix)
        except Exception:
            logger.exception("Could not evict from %r what its scheduler left", store.connector)

    await _in_thread(evict)


async def count(refs: Collection[Ref]) -> int:
    """How many objects are there, or may be."""

    def exists(ref: Ref) -> bool:
        try:
            return ref.exists()
        except Exception:  # noqa: BLE001 - whatever it is, nobody can say
            return True

    return await _in_thread(lambda: sum(map(exists, refs)))


async def _in_thread(function: Callable[[], T]) -> T:
    try:
        return await asyncio.get_running_loop().run_in_executor(None, function)
    except RuntimeError:  # the interpreter is exiting: threads take no work any more
        return function()
