"""Functions and classes that the workers of the tests can import."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np

from proxystore.connectors.file import FileConnector
from proxystore.proxy import Proxy, is_resolved
from proxystore.store import StoreConfig, get_or_create_store

Pair = namedtuple("Pair", "first second")


class PlainConnector:
    """A connector with nothing but what is required: no names, no lists, no buffers."""

    def __init__(self, store_dir: str) -> None:
        self._files = FileConnector(store_dir, clear=False)

    def config(self):
        return {"store_dir": self._files.store_dir}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def close(self):
        self._files.close()

    def put(self, obj):
        return self._files.put(obj)

    def put_batch(self, objs):
        return self._files.put_batch(objs)

    def get(self, key):
        return self._files.get(key)

    def get_batch(self, keys):
        return self._files.get_batch(keys)

    def exists(self, key):
        return self._files.exists(key)

    def evict(self, key):
        self._files.evict(key)


# -- taking


def total(x):
    return float(x.sum())


def total_of_all(*args, inputs=(), **kwargs):
    """Sum all arrays in nested containers."""
    return _sum([*args, *inputs, *kwargs.values()])


def _sum(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        return sum(map(_sum, value))
    return float(np.sum(value))


def kind(x):
    """Name the class of an argument, and say whether it may be changed."""
    return f"{type(x).__module__}.{type(x).__name__}", getattr(x.flags, "writeable", None)


def are_one_object(a, b):
    return a is b


def through_the_c_api(text, data, array):
    """Use what accepts no stand-in for its argument."""
    assert io.StringIO(text).read() == text
    assert io.BytesIO(data).read() == data
    assert json.loads(json.dumps({"text": text}))["text"] == text
    assert re.match("a+", text)
    assert "".join([text]) == text
    return memoryview(array).nbytes


def is_unresolved_proxy(x):
    return type(x) is Proxy and not is_resolved(x)


def write_total(x, outputs=()):
    Path(outputs[0].filepath).write_text(str(x.sum()))


def read(file, x=None):
    return Path(file.filepath).read_text()


def length(x):
    return len(x)


def pid():
    return os.getpid()


# -- giving


def ones(n):
    return np.ones(n)


def text_of(n):
    return "a" * n


def record(n):
    """Return large and small things in containers."""
    return {"a": np.ones(n), "b": "small", "c": [np.zeros(n), 3], "d": Pair(np.full(n, 2.0), 1)}


def double(x):
    return x * 2


def identity(x):
    return x


def in_a_dict(x):
    return {"a": x}


def twice(x):
    return [x, x]


def change_in_place(x):
    x[0] = 42
    return x


def with_a_lock(n):
    """Return what dill can send, and no other pickler."""
    return {"lock": threading.Lock(), "a": np.ones(n)}


class Doubler:
    """An object that can be called, and has no name."""

    def __call__(self, x):
        return x * 2


def numbers(n):
    return list(range(n))


def small(kind):
    return {
        "int": 1,
        "str": "text",
        "dict": {"a": [1, 2]},
        "array": np.arange(3),
        "set": {1, 2},
        "none": None,
    }[kind]


class Box:
    """An object of a class that no framework knows."""

    def __init__(self, content: Any) -> None:
        self.content = content


def boxed(x):
    return Box(x)


def boxed_total(box):
    return float(box.content.sum())


def of_the_users_store(config: StoreConfig, n: int):
    """Return a proxy that the function has made itself."""
    return get_or_create_store(config).proxy(np.ones(n), populate_target=False)


# -- failing


class TwoArgumentError(Exception):
    """Cannot be unpickled: pickle calls it with one argument.

    Unless tblib is installed after this was imported, which patches the picklers for the
    exceptions it finds. Parsl does that when it first needs it.
    """

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class StubbornError(Exception):
    """Cannot be unpickled, whoever pickles it."""

    def __reduce__(self):
        return _fail_to_unpickle, (b"",)


class NoReprError(Exception):
    """Cannot be shown, which Parsl does to each exception."""

    def __repr__(self):
        raise RuntimeError("there is no repr")


class FailsToUnpickle:
    def __init__(self, n: int) -> None:
        self.data = bytes(n)

    def __reduce__(self):
        return _fail_to_unpickle, (self.data,)


def _fail_to_unpickle(data):
    raise RuntimeError("unpickling fails")


class Unpicklable:
    def __reduce__(self):
        raise TypeError("this one stays where it is")


def fail(x=None):
    raise ValueError("the task fails")


def fail_with_two_arguments():
    raise TwoArgumentError(1, 2)


def fail_stubbornly(x=None):
    raise StubbornError("it was raised")


def fail_without_repr():
    raise NoReprError("it was raised")


def fail_with_a_cause():
    try:
        fail()
    except ValueError as error:
        raise KeyError("the second") from error


def give_what_fails_to_unpickle(n):
    return FailsToUnpickle(n)


def give_what_fails_to_unpickle_and_more(n):
    return [np.ones(n), FailsToUnpickle(n)]


def give_what_cannot_be_pickled():
    return [1, Unpicklable()]


def fail_once(x, marker):
    """Read the argument, and fail the first time."""
    result = total(x)
    if first_time(marker):
        raise ValueError("the first try fails")
    return result


def die_once(x, marker):
    """Read the argument, and have the worker killed the first time."""
    result = total(x)
    if first_time(marker):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def die_between_results_once(n, marker):
    """Have the worker killed after the first of two results was stored."""
    return [np.ones(n), Deadly() if first_time(marker) else np.zeros(n)]


def die_while_writing_once(n, marker):
    """Have the worker killed when the file of the result is written, and has no name yet."""
    if first_time(marker):
        os.rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
    return np.ones(n)


class Deadly:
    """Says that it is large, so that nobody pickles it to see; who stores it, is killed."""

    nbytes = 10_000_000

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def first_time(marker: str) -> bool:
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


# -- waiting


def wait_for(marker, x=None, walltime=None):
    """Return when a file appears."""
    pause = threading.Event()
    while not os.path.exists(marker):
        pause.wait(0.01)
    return x


def touch_and_wait(started, marker, x=None):
    Path(started).touch()
    return wait_for(marker, x)


def sleep_for_long(x, walltime=None):
    for _ in range(3000):
        time.sleep(0.01)
    return x
