"""Contract, sections 18, 19 and 24: errors and types; any error comes home from a worker."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import cloudpickle
import dill
import pytest

from proxystore.connectors.file import FileKey
from proxystore.connectors.protocols import Connector
from proxystore.serialize import BytesLike
from proxystore.store import Store, exceptions, types
from proxystore.store.exceptions import StoreError

# What constructors of errors take where that is not a text.
ARGUMENTS: dict[str, Any] = {
    "cause": KeyError("x"),
    "expected": 1,
    "found": 2,
    "free": 1,
    "host_pattern": ["login.*"],
    "key": FileKey("gone"),
    "known": ("file", "local"),
    "names": ("a", "b"),
    "needed": 2,
    "options": ("a",),
    "position": 1,
    "readers": 1,
    "size_bytes": 5,
    "store_type": Store,
    "subset_tags": ("a",),
    "superset_tags": (),
    "waited": 1.5,
    "workers": {"tcp://a:1": "on a: gone"},
    "writers": 0,
}


def all_errors() -> Iterator[BaseException]:
    """Yield one of each class of exception in the modules that can be imported here."""
    for package in ("proxystore", "proxystore_dask", "proxystore_parsl"):
        try:
            path = importlib.import_module(package).__path__
        except ImportError:
            continue  # its framework is not installed
        for info in pkgutil.walk_packages(path, f"{package}."):
            try:
                module = importlib.import_module(info.name)
            except ImportError:
                continue
            for cls in vars(module).values():
                ours = inspect.isclass(cls) and cls.__module__ == info.name
                if ours and issubclass(cls, BaseException):
                    yield example(cls)


def example(cls: type[BaseException]) -> BaseException:
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return cls(*(ARGUMENTS.get(name, name) for name in named)) if named else cls("x")


def facts(error: BaseException) -> Any:
    return type(error), str(error), {name: repr(value) for name, value in vars(error).items()}


def fail_with(error: BaseException) -> None:
    try:
        raise ValueError("the reason")
    except ValueError as reason:
        raise error from reason


def check(error: BaseException, *, parsl: bool) -> None:
    with pytest.raises(type(error)) as caught:
        fail_with(error)
    before = facts(error)
    for library in (pickle, cloudpickle, dill):
        again = library.loads(library.dumps(error))
        assert facts(again) == before, library.__name__
    if parsl:
        from parsl.app.errors import RemoteExceptionWrapper

        sent = dill.dumps(RemoteExceptionWrapper(type(error), error, caught.tb))
        with pytest.raises(type(error)) as home:
            dill.loads(sent).reraise()
        assert facts(home.value) == before
        assert [entry.name for entry in home.traceback][-1] == "fail_with", "with its traceback"
        assert str(home.value.__cause__) == "the reason"


def main(*frameworks: str) -> None:
    warnings.simplefilter("ignore")
    for name in frameworks:
        importlib.import_module(name)
    failed = False
    for error in all_errors():
        print(type(error).__name__)
        try:
            check(error, parsl="parsl" in frameworks)
        except Exception:  # noqa: BLE001 - shown, and all others are checked too
            failed = True
            traceback.print_exc()
    sys.exit(failed)


# In a process of its own, since importing these switches tblib on for good.
@pytest.mark.parametrize("frameworks", [(), ("distributed", "parsl")], ids=["plain", "tblib"])
def test_every_error_travels(frameworks: tuple[str, ...]) -> None:
    for name in frameworks:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [sys.executable, __file__, *frameworks], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert {"ProxyResolveError", "ProxyResolveMissingKeyError", "MultiConnectorError"} <= found
    assert {"StorageFullError", "SerializationError", "NonProxiableTypeError"} <= found


# -- 18 and 19


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("StoreError", Exception),
        ("StoreExistsError", StoreError),
        ("ProxyStoreFactoryError", StoreError),
        ("ProxyResolveMissingKeyError", Exception),
        ("NonProxiableTypeError", Exception),
    ],
)
def test_bases_of_errors_of_stores(name: str, base: type[Exception]) -> None:
    error = getattr(exceptions, name)
    assert issubclass(error, base)
    assert issubclass(error, StoreError) is (base is StoreError or name == "StoreError")


def test_a_missing_key_has_the_facts_and_says_them() -> None:
    key = FileKey("gone")
    error = exceptions.ProxyResolveMissingKeyError(key, Store, "name-of-the-store")
    assert (error.key, error.store_type, error.store_name) == (key, Store, "name-of-the-store")
    for fact in (repr(key), "Store", "name-of-the-store"):
        assert fact in str(error)


def test_types() -> None:
    assert types.ConnectorKeyT == tuple[Any, ...]
    assert types.SerializerT == Callable[[Any], BytesLike]
    assert types.DeserializerT == Callable[[BytesLike], Any]
    assert types.ConnectorT.__bound__ == Connector[Any]


if __name__ == "__main__":
    main(*sys.argv[1:])
