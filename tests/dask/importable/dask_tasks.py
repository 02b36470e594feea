"""What the tests' tasks run: importable in the processes of workers and schedulers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from distributed import get_client, secede
from distributed.protocol import dask_deserialize, dask_serialize

from proxystore.connectors.exceptions import StorageFullError
from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy, is_resolved


class TracingConnector(FileConnector):
    """A file connector that notes which process did what, in a file beside its directory."""

    def _note(self, what: str) -> None:
        with open(f"{self.store_dir}.log", "a") as log:
            log.write(f"{what} {os.getpid()}\n")

    def put_buffers(self, parts: Any) -> Any:
        self._note("put")
        return super().put_buffers(parts)

    def set_buffers(self, key: Any, parts: Any) -> None:
        self._note("put")
        super().set_buffers(key, parts)

    def get(self, key: Any) -> Any:
        self._note("get")
        return super().get(key)

    def evict(self, key: Any) -> None:
        self._note("evict")
        super().evict(key)


class SmallConnector(FileConnector):
    """A file connector with room for 200 kB."""

    def set_buffers(self, key: Any, parts: Any) -> None:
        needed = sum(memoryview(part).nbytes for part in parts)
        free = 200_000
        for name in os.listdir(self.store_dir):
            with contextlib.suppress(FileNotFoundError):
                free -= os.path.getsize(os.path.join(self.store_dir, name))
        if needed > free:
            raise StorageFullError(self.store_dir, needed, free)
        super().set_buffers(key, parts)


def total(array: Any, *more: Any, times: float = 1) -> float:
    return float(np.sum(array)) * times + sum(float(np.sum(each)) for each in more)


def add_one(array: Any) -> Any:
    return array + 1


def kinds(*args: Any, **kwargs: Any) -> list[str]:
    return [type(value).__name__ for value in (*args, *kwargs.values())]


def identity(value: Any) -> Any:
    return value


def memoryview_total(array: Any) -> float:
    """What no proxy does."""
    return float(np.frombuffer(memoryview(array)).sum())


def total_of_nested(value: dict[str, list[Any]]) -> float:
    return sum(total(array) for array in value["arrays"])


def change_in_place(array: Any, i: int) -> float:
    array[0] += 1
    return float(array[0])


def change_the_first(first: Any, second: Any, more: list[Any]) -> list[float]:
    first[0] += 1
    return [float(array[0]) for array in (first, second, *more)]


def fail(array: Any) -> None:
    raise ZeroDivisionError(len(array))


class Unusual(Exception):
    """Does not take what it keeps as its arguments."""

    def __init__(self, text: str, length: int) -> None:
        super().__init__(text)
        self.length = length


def fail_unusually(array: Any) -> None:
    raise Unusual("unusual", len(array))


def fail_once(array: Any, marker: str) -> float:
    if not os.path.exists(marker):
        Path(marker).touch()
        raise ZeroDivisionError(len(array))
    return total(array)


def wait_for(array: Any, started: str, go: str) -> float:
    """Say that we have started, then wait until we may go on."""
    Path(started).touch()
    while not os.path.exists(go):
        time.sleep(0.01)
    return total(array)


def die_once(array: Any, marker: str) -> float:
    """Kill the worker in the middle of the task, the first time."""
    if not os.path.exists(marker):
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return total(array)


def through_the_c_api(data: Any, text: Any, table: Any) -> tuple[int, int, int]:
    """Things that no transparent proxy survives."""
    return len(io.BytesIO(data).read()), len("".join([text, "!"])), len(json.dumps(table))


async def total_in_the_loop(array: Any) -> float:
    return total(array)


def submit_from_task(array: Any) -> tuple[float, str]:
    """Attach the task's own client, and pass an array on with it."""
    from proxystore_dask import attach

    client = attach(get_client(), ps_threshold="10 kB")
    future = client.submit(total, array * 2)
    return future.result(), client.ps_store.name


def scatter_and_submit(array: Any) -> Any:
    """Scatter from within a task, and only then let another task have the thread."""
    from proxystore_dask import attach

    client = attach(get_client(), ps_threshold="50 kB")
    future = client.scatter(array * 2)
    secede()
    return client.submit(total, future).result()


def submit_with_own_client(array: Any) -> tuple[float, int]:
    """Pass an array on, in a program that does not know of us; how many were stored."""
    client = get_client()
    future = client.submit(total, array * 2)
    secede()
    return future.result(), client.ps_stats().puts


def look_and_use(value: Any, use: bool = True) -> tuple[bool, bool, str, float | None]:
    """Whether it is a proxy, and a resolved one; its class; and its total, if that is wanted."""
    proxied = type(value) is Proxy
    resolved = not proxied or is_resolved(value)
    name = value.__class__.__name__
    assert not proxied or is_resolved(value) == resolved
    return proxied, resolved, name, total(value) if use else None


class Counter:
    """An actor that goes on using what it was made from."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def add(self, i: int) -> float:
        self.array += i
        return total(self.array)


class Model:
    """What carries an array, and has methods."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def predict(self, *more: Any, **named: Any) -> float:
        return total(self.weights, *more, *named.values())

    async def predict_in_the_loop(self) -> float:
        return total(self.weights)


class Unpicklable:
    """An object that no pickler takes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class OnlyForDask(Unpicklable):
    """An object that only Dask can send, by serializers made for its class (as for h5py files)."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value


@dask_serialize.register(OnlyForDask)
def _serialize(obj: OnlyForDask) -> tuple[dict[str, Any], list[bytes]]:
    return {"value": obj.value}, []


@dask_deserialize.register(OnlyForDask)
def _deserialize(header: dict[str, Any], frames: list[bytes]) -> OnlyForDask:
    return OnlyForDask(header["value"])


def value_of(obj: OnlyForDask, array: Any) -> float:
    return obj.value + total(array)


class OfOneProcess(FileConnector):
    """A file connector that knows whose it is."""

    def __init__(self, directory: Any, pid: int) -> None:
        super().__init__(directory)
        self.pid = pid

    def config(self) -> dict[str, Any]:
        return {"directory": str(self.store_dir), "pid": self.pid}


class OwnKey(NamedTuple):
    """A key of a class that not every process can import."""

    filename: str


class KeysOfItsOwn(FileConnector):
    """A file connector whose keys are `OwnKey`."""

    def named_key(self, name: str) -> Any:
        return OwnKey(name)


class SlowElsewhere(OfOneProcess):
    """One that other processes have to wait for."""

    def get(self, key: Any) -> Any:
        if os.getpid() != self.pid:
            Path(f"{self.store_dir}.asked").touch()
            time.sleep(60)  # nobody is waited for that long; the process is killed before
        return super().get(key)


class OnlyHere(OfOneProcess):
    """One whose objects no other process sees."""

    def get(self, key: Any) -> Any:
        return super().get(key) if os.getpid() == self.pid else None
