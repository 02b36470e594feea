"""The contract that every connector passes, ours and yours."""

from __future__ import annotations

import pickle
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proxystore.connectors.protocols import (
    BufferConnector,
    ClaimableConnector,
    Connector,
    DeferrableConnector,
    EnumerableConnector,
    PeekableConnector,
    WaitableConnector,
)
from proxystore.serialize import is_bytes_like
from proxystore.utils.imports import get_object_path, import_from_path


def check_connector(connector: Connector[Any]) -> None:
    """Assert what every connector promises; leaves nothing behind but an open connector.

    Optional protocols (`proxystore.connectors.protocols`) are checked when the
    connector has their methods. Use it in a test of your own:

    ```python
    def test_my_connector():
        with MyConnector(...) as connector:
            check_connector(connector)
    ```

    Args:
        connector: An open connector; objects that are in it stay untouched.

    Raises:
        AssertionError: A promise is broken; the message says whose, and which.
    """
    try:
        _check(connector)
    except AssertionError as error:
        try:
            who = repr(connector)
        except Exception:  # noqa: BLE001 - that may be the promise it breaks
            who = f"a {type(connector).__name__}"
        raise AssertionError(f"{who} breaks a promise: {error}") from error


def _check(connector: Connector[Any]) -> None:
    missing = [
        name
        for name in vars(Connector)
        if not name.startswith("_") and not hasattr(connector, name)
    ]
    assert not missing, f"it has all methods of Connector (missing: {', '.join(missing)})"
    try:
        shown: Any = repr(connector)
    except Exception as error:
        raise AssertionError("it has a repr") from error
    assert isinstance(shown, str), "it has a repr"
    _check_objects(connector)
    _check_batches(connector)
    _check_keys(connector)
    _check_rebuild(connector)
    if isinstance(connector, DeferrableConnector):
        _check_deferrable(connector)
    if isinstance(connector, BufferConnector):
        _check_buffers(connector)
    if isinstance(connector, EnumerableConnector):
        _check_enumerable(connector)
    if isinstance(connector, PeekableConnector):
        _check_peekable(connector)
    if isinstance(connector, WaitableConnector):
        _check_waitable(connector)
    if isinstance(connector, ClaimableConnector) and _expects_claims(connector):
        _check_claimable(connector)


def _data(connector: Connector[Any], key: Any) -> bytes | None:
    data = connector.get(key)
    assert data is None or is_bytes_like(data), "get gives bytes-like data or None"
    return None if data is None else bytes(data)


def _check_objects(connector: Connector[Any]) -> None:
    # Small, empty, binary, and large enough for whatever a back end does for large ones.
    for value in (b"value", b"", bytes(range(256)), b"\n\x00", bytearray(b"x" * 1_000_003)):
        key = connector.put(value)
        assert connector.exists(key), "what was put exists"
        assert _data(connector, key) == value, "what was put comes back"
        assert _data(connector, key) == value, "reading takes nothing away"
        connector.evict(key)
        assert not connector.exists(key), "what was evicted does not exist"
        assert connector.get(key) is None, "None for what was evicted"
        connector.evict(key)  # evicting what is gone is no error
    first, second = connector.put(b"same"), connector.put(b"same")
    assert first != second, "each put has a key of its own"
    connector.evict(first)
    assert _data(connector, second) == b"same", "evicting one object leaves the others"
    connector.evict(second)


def _check_batches(connector: Connector[Any]) -> None:
    assert connector.put_batch([]) == [], "an empty batch is none"
    assert connector.get_batch([]) == [], "an empty batch is none"
    values = [b"a", b"", b"c" * 100_000]
    keys = connector.put_batch(values)
    assert len(keys) == len(set(keys)) == 3, "one key each"
    connector.evict(keys[1])
    found = connector.get_batch([keys[2], keys[1], keys[0]])
    assert [None if x is None else bytes(x) for x in found] == [values[2], None, b"a"], (
        "get_batch keeps the order and gives None where missing"
    )
    for key in keys:
        connector.evict(key)
        assert connector.get(key) is None, "None for what was evicted"


def _check_keys(connector: Connector[Any]) -> None:
    key = connector.put(b"value")
    try:
        assert isinstance(key, tuple), "keys are tuples"
        assert type(key)(*key) == key, "keys are built from their fields by position"
        assert pickle.loads(pickle.dumps(key)) == key, "keys travel"
        assert hash(type(key)(*key)) == hash(key), "equal keys have equal hashes"
        assert import_from_path(get_object_path(type(key))) is type(key), "found by its path"
    finally:
        connector.evict(key)


def _check_rebuild(connector: Connector[Any]) -> None:
    config = connector.config()
    assert config == connector.config(), "config() is stable"
    assert type(type(connector).from_config(config)) is type(connector), "from_config rebuilds"
    again = type(connector)(**config)
    assert again.config() == config, "config() is what the constructor takes"


def _check_deferrable(connector: Any) -> None:
    key = connector.new_key()
    assert not connector.exists(key), "a new key has no object"
    assert connector.get(key) is None, "a new key has no object"
    for value in (b"first", b"", b"x" * 300_000):
        connector.set(key, value)
        assert _data(connector, key) == value, "set replaces what was there"
    connector.evict(key)
    assert not connector.exists(key), "what was set can be evicted"


def _check_buffers(connector: Any) -> None:
    mixed: list[Any] = [b"", memoryview(b"two"), bytearray(200_000)]
    for parts in ([b"one"], mixed, [b"x"] * 3000):
        whole = b"".join(parts)
        key = connector.put_buffers(parts)
        assert _data(connector, key) == whole, "put_buffers stores the concatenation"
        connector.set_buffers(key, [b"new", b"er"])
        assert _data(connector, key) == b"newer", "set_buffers replaces it"
        connector.evict(key)
        assert connector.get(key) is None, "None for what was evicted"


def _check_enumerable(connector: Any) -> None:
    prefix = str(uuid.uuid4())
    names = [f"{prefix}.{i}" for i in range(3)]
    keys = [connector.named_key(name) for name in names]
    for key in keys:
        connector.set(key, b"value")
    assert set(connector.keys(prefix)) == set(keys), "keys(prefix) lists them"
    assert set(connector.keys()) >= set(keys), "keys() lists all"
    for key in keys:
        connector.evict(key)
    assert not list(connector.keys(prefix)), "evicted objects are not listed"
    try:
        connector.named_key("../escape")
    except ValueError:
        pass
    else:
        raise AssertionError("a name that is no object's name is refused")


def _check_peekable(connector: Any) -> None:
    for value in (b"value", b"", bytes(range(256)) * 4000):
        key = connector.put(value)
        for length in (1, 5, 64, 4096, len(value), len(value) + 1, 0):
            found = connector.peek(key, length)
            assert found is not None, "what was put can be looked into"
            data, nbytes = found
            assert is_bytes_like(data), "peek gives bytes-like data"
            assert bytes(data) == value[:length], "peek gives the beginning, and no more"
            assert nbytes == len(value), "peek gives the length of the whole"
        assert _data(connector, key) == value, "looking takes nothing away"
        connector.evict(key)
        assert connector.peek(key, 64) is None, "None for what was evicted"


def _check_waitable(connector: Any) -> None:
    key = connector.put(b"value")
    start = time.monotonic()
    assert connector.wait(key, 60) is True, "an object that is there is not waited for"
    assert connector.wait(key, 0) is True, "an object that is there is there at once"
    assert time.monotonic() - start < 30, "an object that is there is not waited for"
    connector.evict(key)
    assert connector.wait(key, 0) is False, "no object, and no time to wait for one"
    start = time.monotonic()
    assert connector.wait(key, 0.05) is False, "no object comes"
    assert 0.04 < time.monotonic() - start < 30, "waits as long as it may, and no longer"
    if not hasattr(connector, "set"):
        return
    keys = [connector.new_key() for _ in range(3)]
    with _Threads(6) as threads:
        waits = [threads.submit(connector.wait, key, 60) for key in (*keys, *keys)]
        for key in keys:
            connector.set(key, b"")
        assert all(wait.result(30) is True for wait in waits), "whoever waits is woken up"
    for key in keys:
        connector.evict(key)


def _expects_claims(connector: Any) -> bool:
    if hasattr(connector, "expect_claims"):
        try:
            connector.expect_claims()
            connector.expect_claims()  # again: it was told already
        except NotImplementedError:  # as one of several connectors may not have it
            return False
    return True


def _check_claimable(connector: Any) -> None:
    is_listed = hasattr(connector, "named_key")
    name = str(uuid.uuid4())
    key = connector.named_key(name) if is_listed else connector.put(b"value")
    if is_listed:
        connector.set(key, b"value")
    assert connector.claim(key, "one", 60) == "one", "what nobody has can be claimed"
    assert connector.claim(key, "two", 60) == "one", "what is claimed cannot"
    assert connector.claim(key, "one", 60) == "one", "except by who has it"
    connector.release(key, "two")
    assert connector.claim(key, "two", 60) == "one", "nobody else ends a claim"
    assert _data(connector, key) == b"value", "a claim does not keep others from reading"
    assert not is_listed or list(connector.keys(name)) == [key], "a claim is no object"
    connector.release(key, "one")
    connector.release(key, "one")  # there is none any more
    assert connector.claim(key, "two", 0.02) == "two", "what was released can be claimed"
    deadline = time.monotonic() + 30
    while (has := connector.claim(key, "one", 60)) == "two":
        assert time.monotonic() < deadline, "a claim ends when its time is up"
        time.sleep(0.01)
    assert has == "one", "a claim ends when its time is up"
    connector.evict(key)
    assert not connector.exists(key), "a claim keeps nobody from evicting"
    assert connector.claim(key, "two", 60) == "two", "evict ends every claim"
    assert not connector.exists(key), "a claim makes no object"
    assert connector.get(key) is None, "a claim makes no object"
    connector.evict(key)
    connector.release(key, "two")  # of what is gone
    keys = [connector.put(b"value") for _ in range(2)]
    strange = "ein größerer, mit Leerzeichen: " + 5000 * "x"
    assert connector.claim(keys[0], strange, 1e9) == strange, "any text without line breaks"
    assert connector.claim(keys[0], "two", 60) == strange, "the text comes back as it was"
    assert connector.claim(keys[1], "two", 60) == "two", "claiming one leaves the others free"
    connector.release(keys[0], strange)
    assert connector.claim(keys[0], "two", 60) == "two", "one claimant can have several"
    assert connector.claim(keys[0], "two", 0.02) == "two", "claiming again sets the time anew"
    while connector.claim(keys[0], "one", 60) == "two":
        assert time.monotonic() < deadline + 30, "claiming again sets the time anew"
        time.sleep(0.01)
    for seconds in (0, -1, float("nan")):
        try:
            connector.claim(keys[1], "two", seconds)
        except ValueError:
            continue
        raise AssertionError("a claim is for more than 0 seconds")
    barrier = threading.Barrier(8)

    def claim(claimant: str) -> Any:
        barrier.wait(30)
        return connector.claim(keys[0], claimant, 60)

    def claim_and_release(claimant: str) -> int:
        won = 0
        barrier.wait(30)
        for _ in range(10):
            if connector.claim(keys[1], claimant, 60) == claimant:
                inside.append(claimant)
                won += set(inside) == {claimant}
                inside.remove(claimant)
                connector.release(keys[1], claimant)
            else:
                won += 1
        return won

    names = [f"claimant {i}" for i in range(8)]
    inside: list[str] = []
    with _Threads(8) as threads:
        connector.release(keys[0], "one")
        found = set(threads.map(claim, names))
        connector.release(keys[1], "two")
        won = list(threads.map(claim_and_release, names))
    assert len(found) == 1, "exactly one of several at once gets it, and all know who"
    assert found <= set(names), "exactly one of several at once gets it, and all know who"
    assert won == [10] * 8, "whoever has it, has it alone until released"
    for key in keys:
        connector.evict(key)


class _Threads(ThreadPoolExecutor):
    """Threads that are not waited for when a check fails: one may be the reason."""

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self.shutdown(wait=exc_type is None)
