"""Can every worker get what is stored? Asked before anything depends on it."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.protocol.pickle import dumps
from distributed.protocol.serialize import deserialize

from proxystore.store import Store
from proxystore.workflow import Ref

if TYPE_CHECKING:
    from distributed.scheduler import Scheduler

_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})


class StoreUnreachableError(RuntimeError):
    """Workers cannot get objects from a client's store.

    Attributes:
        store: Where the store keeps objects.
        workers: What is wrong, by the worker's address.
        advice: What to do.
    """

    def __init__(self, store: str, workers: dict[str, str], advice: str) -> None:
        super().__init__(store, workers, advice)
        self.store = store
        self.workers = workers
        self.advice = advice

    def __str__(self) -> str:
        found = [f"{worker} ({what})" for worker, what in sorted(self.workers.items())]
        more = f", and {len(found) - 5} more" if len(found) > 5 else ""
        return (
            f"an object was put into {self.store}, and these workers cannot get it: "
            f"{', '.join(found[:5])}{more}; {self.advice}"
        )


def see(probe: bytes) -> tuple[str, str]:
    """The name of this host, and what keeps this process from getting an object, if anything."""
    host = socket.gethostname()
    try:
        ref: Ref = pickle.loads(probe)
        ref.resolve()
    except Exception as error:  # noqa: BLE001 - any of a store's own errors; all are told
        return host, f"on {host}: {type(error).__name__}: {error}"
    return host, ""


async def asked(scheduler: Scheduler, worker: str, probe: Ref) -> dict[str, Any]:
    """What `see` returns on a worker, by its address; nothing if it does not answer.

    As `Client.run` does it, from the scheduler.
    """
    message = {
        "op": "run",
        "function": dumps(see),
        "args": dumps((pickle.dumps(probe),)),
        "kwargs": dumps({}),
        "wait": True,
    }
    answers = await scheduler.broadcast(msg=message, workers=[worker], on_error="ignore")
    return {
        address: deserialize(answer["result"].header, answer["result"].frames)
        for address, answer in answers.items()
        if answer["status"] == "OK"
    }


def check(store: Store[Any], answers: Mapping[str, Any]) -> None:
    """Raise if a worker cannot get what this process has stored.

    Args:
        store: The store.
        answers: What `see` returned, or an error, by the worker's address.

    Raises:
        StoreUnreachableError: One or more cannot.
    """
    wrong: dict[str, str] = {}
    elsewhere: set[str] = set()
    here = socket.gethostname()
    for worker, answer in answers.items():
        if isinstance(answer, BaseException):
            # One that is about to leave cannot answer; one without the package can load nothing.
            if isinstance(answer, ImportError):
                wrong[worker] = f"{type(answer).__name__}: {answer}"
            continue
        host, what = answer
        if what:
            wrong[worker] = what
            if host != here:
                elsewhere.add(host)
    if wrong:
        raise StoreUnreachableError(repr(store.connector), wrong, _advice(store, elsewhere))


def _advice(store: Store[Any], elsewhere: set[str]) -> str:
    directory = getattr(store.connector, "store_dir", None)
    if directory is not None and elsewhere and is_in_memory(directory):
        return (
            f"{directory} is in the memory of {socket.gethostname()} alone, and workers run on "
            f"{', '.join(sorted(elsewhere))}, too: give ps_store a directory on a file system that "
            "all nodes share, or a server such as Redis"
        )
    if directory is not None:
        return "give ps_store a directory that all of them can read, under the same path"
    return "give ps_store one that all of them can reach, and install proxystore[dask] there"


def is_in_memory(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory is on a file system that only this node sees, and only while it runs."""
    path = Path(directory).resolve()
    found: tuple[int, str] = (-1, "")
    try:
        mounts = Path("/proc/self/mounts").read_text()
    except OSError:
        return False
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split()
        if path == Path(point) or Path(point) in path.parents:
            found = max(found, (len(point), kind))
    return found[1] in _IN_MEMORY
